"""what a run will do, cost and need, told before it starts

Rows, tokens and steps are counted with the real tokenizer and the real batches. Time is measured: micro-batches of the
run's first steps are computed, forward and backward, and no weight moves. Memory is counted: what is held now,
gradients, optimizer, and what autograd keeps of the largest micro-batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from melior.cycles.auto import Resolved, resolve
from melior.cycles.judges import check_judges
from melior.cycles.lesson import Lesson, check_tasks, lesson, load_trainable
from melior.cycles.measures import Measures
from melior.cycles.methods import WAYS
from melior.cycles.models import find_model
from melior.cycles.recipe import Recipe
from melior.cycles.rows import Rows, load_rows
from melior.errors import ConfigError
from melior.policies.base import Batch, Rates
from melior.store import Store
from melior.trainers import memory
from melior.trainers.preference import encode_pairs
from melior.types import Preference, Task

TIMED = 3  # micro-batches computed for the clock, after one that warms up
COUNTED_STEPS = 8  # steps whose tokens are counted; the others are taken to be like them
LEAST_SPREAD = 0.25  # of the time: what it varies by on a machine that does other things as well
FORWARD = 1 / 3  # of a training pass: the backward pass costs twice the forward one
WORKING = 1.5  # a backward pass makes gradients of what it unwinds, and allocators keep freed blocks
CAUTIOUS = 0.9  # of the memory there is: what a run may count on
SAMPLED = 4  # prompts answered for the clock of rft
STEP_COPIES = 3  # of what trains: what AdamW's update, a list of tensors at a time, holds for a moment


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is ahead. Bytes, seconds, counts; None where it was not measured."""

    method: str
    model: str
    rows: int
    validation_rows: int
    heldout_rows: int
    dropped_rows: int  # every decision lies beyond the context, so nothing is learnt from them
    truncated_rows: int  # end beyond the context, so a part is learnt
    tokens: int | None  # read and decided, of all training rows, once
    decisions: int  # of them, learnt in an epoch; rft: the most that are sampled in a step
    longest: int  # tokens of the longest row
    context: int  # the model's limit
    batch: int  # rows of a step; prompts of one for rft
    epochs: int | None
    steps: int
    trainable: int
    parameters: int
    layout: str
    weights_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int | None
    peak_bytes: int | None  # of the process while it trains
    available_bytes: int | None  # to the process now, on top of what it holds
    disk_bytes: int
    seconds: float | None  # of training
    seconds_spread: float  # share of it that it may be off by
    evaluation_seconds: float | None  # before and after together, and of rft's baseline
    choices: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self)


def plan_run(
    resolved: Resolved,
    taught: Lesson,
    policy: Any,
    rows: Rows,
    measures: Measures,
) -> Plan:
    """What the run will cost; weights, gradients and random numbers are afterwards what they were."""
    recipe = resolved.recipe
    total = taught.config.steps or taught.steps.total
    if total is None:
        raise ConfigError("These steps never end; say how many in fit.steps")
    held = memory.held()  # before anything is measured: what a pass frees, the allocator keeps for a while
    kind = measures.kind
    counted = kind.counts(policy, rows, recipe.leading, taught.leading)
    sizes = _sizes(taught)
    free = memory.available()
    fits = free is None or sizes["gradient_bytes"] + sizes["optimizer_bytes"] < CAUTIOUS * free
    clock = _clock(policy, taught, rows, recipe, measures, total) if fits else _Clock()
    peak = _peak(held, sizes, clock.activation_bytes, kind.head_bytes(policy))
    made = Plan(
        method=recipe.method,
        model=recipe.model.path or recipe.model.kind,
        rows=len(rows.train),
        validation_rows=len(rows.validation),
        heldout_rows=len(rows.heldout),
        batch=min(recipe.section.prompts, len(rows.train)) if recipe.way.samples else recipe.shown[0],
        epochs=None if recipe.way.samples else recipe.shown[1],
        steps=total,
        trainable=policy.share.trainable,
        parameters=policy.share.total,
        layout=policy.layout,
        **vars(counted),
        **sizes,
        activation_bytes=clock.activation_bytes,
        peak_bytes=peak,
        available_bytes=free,
        seconds=clock.seconds,
        seconds_spread=clock.spread,
        evaluation_seconds=clock.evaluation_seconds,
        choices=tuple(map(str, resolved.choices)),
        disk_bytes=_disk(sizes, policy, recipe),
    )
    return _warned(made, held, recipe)


def dry_run(recipe: Recipe, store: Store) -> Plan:
    """The plan of a recipe that is not started: nothing is written, and no rate is searched for.

    Raises:
        MeliorError: for whatever would be wrong with settings, rows, model or grader.
    """
    found = find_model(recipe.model.path, store)
    rows = load_rows(recipe)
    check_judges(recipe, store)
    with Measures(recipe, rows, store) as measures:
        policy = load_trainable(recipe, found, rows)
        check_tasks(recipe, policy, rows, measures)
        resolved = resolve(recipe, policy, rows, sweep=False)
        taught = lesson(resolved, recipe, policy, rows, measures, None)
        return plan_run(resolved, taught, policy, rows, measures)


# ---------------------------------------------------------------------- counting


def _sizes(taught: Lesson) -> dict[str, Any]:
    """Bytes that follow from the parameters alone."""
    policy = taught.trainable
    groups = policy.parameter_groups(Rates(1.0, taught.config.weight_decay, taught.config.rates))
    trained = sum(p.numel() * p.element_size() for group in groups for p in group.parameters)
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    return {"weights_bytes": weights, "gradient_bytes": trained, "optimizer_bytes": 2 * trained}


def _peak(held: int, sizes: dict[str, Any], activations: int | None, head: int) -> int | None:
    """The larger of two moments: in the backward pass, and while the optimizer steps."""
    if activations is None:
        return None
    lasting = sizes["gradient_bytes"] + sizes["optimizer_bytes"]
    return held + lasting + int(max(WORKING * activations + head, STEP_COPIES * sizes["gradient_bytes"]))


def _disk(sizes: dict[str, Any], policy: Any, recipe: Recipe) -> int:
    """Checkpoints (one more while a new one is written), the best one, and the model."""
    checkpoint = sizes["gradient_bytes"] + sizes["optimizer_bytes"]
    copies = recipe.fit.keep_checkpoints + 1 + (1 if recipe.fit.best_metric else 0)
    return copies * checkpoint + (sizes["gradient_bytes"] if policy.adapted else sizes["weights_bytes"])


# ---------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class _Clock:
    seconds: float | None = None
    spread: float = LEAST_SPREAD
    evaluation_seconds: float | None = None
    activation_bytes: int | None = None


def _clock(policy: Any, taught: Lesson, rows: Rows, recipe: Recipe, measures: Measures, total: int) -> _Clock:
    if not recipe.way.samples:
        indices = range(min(total, COUNTED_STEPS))
        batches = [taught.objective.prepare(taught.steps(index), taught.trainable).batch for index in indices]
        parts = [part for batch in batches for part in _parts(policy, batch, taught.config.micro_batch)]
        pace, spread, kept = _timed(taught.trainable, taught.objective, parts)
        nodes = math.fsum(map(policy.cost, parts)) / len(batches)
        update = _update_seconds(policy, taught)
        evaluating = _evaluation_seconds(policy, rows, recipe, measures, pace, taught, total)
        return _Clock(total * (nodes * pace + update) + evaluating[1], spread, evaluating[0], kept)
    return _clock_of_rewards(policy, taught, rows, recipe, measures, total)


def _clock_of_rewards(
    policy: Any, taught: Lesson, rows: Rows, recipe: Recipe, measures: Measures, total: int
) -> _Clock:
    """The clock of a method that samples: a few prompts are answered, and their answers learnt."""
    tasks = rows.train[:SAMPLED]
    started = time.perf_counter()
    records = policy.sample([task.inputs for task in tasks], recipe.rollouts)
    per_output = (time.perf_counter() - started) / len(records)
    parts = _parts(policy, policy.encode(records), taught.config.micro_batch)
    pace, spread, kept = _timed(policy, None, parts)
    outputs = min(recipe.section.prompts, len(rows.train)) * recipe.rollouts.n
    learning = pace * (math.fsum(map(policy.cost, parts)) / len(records) * outputs + _beside(policy, taught, recipe))
    step = outputs * per_output + learning + _update_seconds(policy, taught)
    evaluating = _evaluation_seconds(policy, rows, recipe, measures, pace, taught, total, per_output)
    baseline = min(recipe.section.baseline, len(rows.train)) * recipe.rollouts.n * per_output
    return _Clock(total * step + evaluating[1], max(spread, 0.5), evaluating[0] + baseline, kept)


def _beside(policy: Any, taught: Lesson, recipe: Recipe) -> float:
    """Tokens of rows that a step of a hybrid is shown beside what it samples, where they weigh something."""
    shares = recipe.hybrid.parts if recipe.method == "hybrid" else {}
    shown = [part for part in taught.steps.parts if not WAYS[shares[part.name].method].samples] if shares else []
    return math.fsum(policy.cost(part.steps(0).batch) / part.every for part in shown)


def _evaluation_seconds(
    policy: Any,
    rows: Rows,
    recipe: Recipe,
    measures: Measures,
    pace: float,
    taught: Lesson,
    total: int,
    per_output: float | None = None,
) -> tuple[float, float]:
    """Seconds of the evaluations before and after, and of those while training."""
    looks = total // taught.config.evaluate_every if taught.config.evaluate_every and taught.evaluation else 0
    reading = pace * FORWARD
    if measures.heldout is None:
        once = reading * _tokens(policy, rows.heldout)
    else:
        if per_output is None:
            per_output = _seconds_per_output(policy, rows.tasks, recipe)
        once = len(rows.tasks) * (recipe.evaluate.n + 1) * per_output
    if not looks:
        return 2 * once, 0.0
    look = once if recipe.way.samples else reading * 2 * _tokens(policy, rows.validation or rows.heldout)
    return 2 * once, looks * look


def _seconds_per_output(policy: Any, tasks: Sequence[Task], recipe: Recipe) -> float:
    started = time.perf_counter()
    records = policy.sample([task.inputs for task in tasks[:SAMPLED]], recipe.evaluation)
    return (time.perf_counter() - started) / max(1, len(records))


def _timed(policy: Any, objective: Any, parts: Sequence[Batch]) -> tuple[float, float, int]:
    """Seconds per token of a training pass, its spread, and the bytes the largest micro-batch keeps."""
    known = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    largest = max(parts, key=policy.cost)
    first = largest.groups[0]
    small = largest.select([row for row, group in enumerate(largest.groups) if group == first])  # pairs stay whole
    _pass(policy, objective, small)  # the first one pays for what is only made once
    kept = memory.saved_for_backward(lambda: _loss(policy, objective, largest), but=known)
    paces = [_pass(policy, objective, part) / policy.cost(part) for part in sorted(parts, key=policy.cost)[-TIMED:]]
    pace = sorted(paces)[len(paces) // 2]
    return pace, max(LEAST_SPREAD, (max(paces) - min(paces)) / pace / 2), kept


def _pass(policy: Any, objective: Any, part: Batch) -> float:
    """Seconds of one forward and backward pass; the gradients are thrown away."""
    started = time.perf_counter()
    _loss(policy, objective, part).backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    for _, parameter in policy.candidates():
        parameter.grad = None
    return seconds


def _loss(policy: Any, objective: Any, part: Batch) -> torch.Tensor:
    if objective is None:
        return policy.score(part).log_probs.sum()
    return torch.stack([term.total for term in objective.loss(policy.score(part, objective.want), part)]).sum()


def _update_seconds(policy: Any, taught: Lesson) -> float:
    """Seconds of an optimizer step, by what it must read and write: seven times what trains, at the copy's speed."""
    trained = _sizes(taught)["gradient_bytes"]
    probe = torch.ones(1 << 22)
    probe.clone()
    started = time.perf_counter()
    probe.clone()
    return 7 * trained / (2 * probe.nbytes / max(1e-6, time.perf_counter() - started))


def _parts(policy: Any, batch: Batch, budget: int | None) -> list[Batch]:
    return [batch.select(rows) for rows in policy.cut(batch, budget)]


def _tokens(policy: Any, rows: Sequence[Any]) -> int:
    if not rows:
        return 0
    return policy.cost(encode_pairs(policy, rows)[0] if isinstance(rows[0], Preference) else policy.encode(rows))


# ---------------------------------------------------------------------- warning


def _warned(plan: Plan, held: int, recipe: Recipe) -> Plan:
    told: list[str] = []
    say = told.append
    if plan.peak_bytes is None and plan.available_bytes is not None:
        needed = memory.in_bytes(plan.gradient_bytes + plan.optimizer_bytes)
        free = memory.in_bytes(plan.available_bytes)
        say(f"gradients and optimizer need {needed} and {free} are free: use an adapter or a smaller model")
    elif plan.peak_bytes is not None and plan.available_bytes is not None:
        more = plan.peak_bytes - held
        if more > CAUTIOUS * plan.available_bytes:
            say(
                f"about {memory.in_bytes(more)} more memory is needed and {memory.in_bytes(plan.available_bytes)} is "
                "free: lower fit.micro_batch, set model.gradient_checkpointing, or use an adapter"
            )
    if plan.dropped_rows:
        say(f"{plan.dropped_rows} rows have no decision within the context of {plan.context} and teach nothing")
    if plan.truncated_rows:
        say(f"{plan.truncated_rows} rows are cut at the context of {plan.context} tokens")
    least, metric = recipe.gate.minimum_items, recipe.fit.best_metric
    if plan.heldout_rows < least:
        say(f"{plan.heldout_rows} held-out rows are fewer than the {least} the gate needs; raise data.heldout")
    if metric is not None and not (metric == "heldout_loss" and plan.validation_rows):
        remedy = "choose by heldout_loss, which has rows of its own" if plan.method == "sft" else "leave it out"
        say(
            f"fit.best_metric={metric} chooses weights by the {plan.heldout_rows} held-out rows that the gate measures "
            f"by, so the gain will look larger than it is: {remedy}"
        )
    return replace(plan, warnings=tuple(told))
