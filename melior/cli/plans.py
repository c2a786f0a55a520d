"""what a run will do, cost and need, for people"""

from __future__ import annotations

from typing import TYPE_CHECKING

from melior.cli.output import say, warn
from melior.cli.progress import clock

if TYPE_CHECKING:
    from melior.cycles.plan import Plan


def show_plan(plan: Plan) -> None:
    """The plan in a few lines; warnings go to stderr."""
    from melior.trainers.memory import in_bytes

    def line(label: str, text: str) -> None:
        say(f"{label:<10}{text}")

    line("rows", _rows(plan))
    read = "prompt tokens" if plan.epochs is None else "tokens"
    if plan.tokens is None:
        line("decisions", _decisions(plan))
    else:
        held = f"the longest row {plan.longest:,} of {plan.context:,}"
        line("tokens", f"{plan.tokens:,} {read}, {held}; {_decisions(plan)}")
    line("steps", _steps(plan))
    share = plan.trainable / max(1, plan.parameters)
    line("trains", f"{plan.trainable:,} of {plan.parameters:,} parameters ({share:.2%}), layout {plan.layout}")
    if plan.peak_bytes is not None:
        free = f", {in_bytes(plan.available_bytes)} free" if plan.available_bytes is not None else ""
        parts = f"weights {in_bytes(plan.weights_bytes)}, gradients {in_bytes(plan.gradient_bytes)}, "
        parts += f"optimizer {in_bytes(plan.optimizer_bytes)}, activations {in_bytes(plan.activation_bytes or 0)}"
        line("memory", f"about {in_bytes(plan.peak_bytes)} at its peak ({parts}){free}")
    if plan.seconds is not None:
        spread = f"± {plan.seconds_spread:.0%}"
        measuring = f", and {clock(plan.evaluation_seconds)} to evaluate" if plan.evaluation_seconds else ""
        line("time", f"about {clock(plan.seconds)} {spread} to train{measuring}, measured here")
    line("disk", f"about {in_bytes(plan.disk_bytes)} for checkpoints and the model")
    for choice in plan.choices:
        line("chosen", choice)
    for warning in plan.warnings:
        warn(f"{'warning':<10}{warning}")
    say()


def _rows(plan: Plan) -> str:
    aside = f", {plan.validation_rows:,} set aside to say when to stop" if plan.validation_rows else ""
    return f"{plan.rows:,} to learn from{aside}, {plan.heldout_rows:,} held out"


def _decisions(plan: Plan) -> str:
    if plan.epochs is None:
        return f"up to {plan.decisions:,} sampled in a step"
    return f"{plan.decisions:,} learnt in an epoch"


def _steps(plan: Plan) -> str:
    if plan.epochs is None:
        return f"{plan.steps:,} of {plan.batch:,} prompts"
    most = "up to " if any(choice.startswith("sft.epochs") and "at most" in choice for choice in plan.choices) else ""
    return f"{most}{plan.steps:,} of {plan.batch:,} rows, {most}{plan.epochs} epochs"
