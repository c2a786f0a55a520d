"""SFT alone, RL alone, SFT then RL, both at once, and best-of-n with RL: at equal compute, which wins?

    python benchmarks/hybrids.py --folder runs/hybrids     # what is missing of all tasks, five arms and three seeds
    python benchmarks/hybrids.py --tasks letters --folder runs/hybrids --arms "RL" "SFT then RL" --seeds 3

Compute is counted in floating-point operations of matrix products, of sampling, scoring and learning alike: seconds
would depend on what else the machine does. Each kind of step has a price, the mean over some steps of a policy that has
seen some demonstrations; an arm's steps follow from prices and budget, equal within 3 % or refused. CPU-seconds are
kept beside. Groups whose outputs are all equally good are not learnt from, so arms with rewards spend a little less
than planned, the more the better they are. Judging costs nothing.
Each arm and seed is one file, so a run goes on where it was stopped. Rows that judge are the same everywhere; intervals
are 95 % for new seeds and new rows. Writes hybrids-TASK.md and .svg into the folder as soon as two seeds are complete.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hybrid_tasks import TASKS, Compared
from torch.utils.flop_counter import FlopCounterMode

from melior.durable import write_file
from melior.evaluation.learning_curve import crossed_interval
from melior.reports.plots import estimates_chart
from melior.reports.schema import Named
from melior.statistics import Interval
from melior.trainers.alarms import Alarms
from melior.trainers.best_of import BestOf
from melior.trainers.loop import FitConfig, fit
from melior.trainers.mixture import Anneal, Part, mixture
from melior.trainers.steps import Objective, Steps
from melior.trainers.supervised import supervised

SFT, RL, THEN, BOTH, BEST = "SFT", "RL", "SFT then RL", "SFT and RL, annealed", "SFT, then RL and best-of-n in turns"
ARMS = (SFT, RL, THEN, BOTH, BEST)
TOLERANCE = 0.03  # of the budget
OWN = 1_000  # added to a seed: best-of-n draws its own tasks
UNWATCHED = Alarms(enabled=False)  # an arm that an alarm stopped would not have had its budget
COUNTED = 3  # steps of each kind behind a price
TUNING = 100  # a seed that does not judge

STYLE = (  # of a picture that stands alone
    "<style>svg{background:#fff;font-family:sans-serif}text{font-size:11.5px;fill:#5b6370}"
    ".name,.figure{font-size:13px;fill:#1d2129}.grid{stroke:#ece9e1}"
    ".whisker{stroke:#0072b2;stroke-width:3;stroke-linecap:round;opacity:.5}.dot{fill:#0072b2}</style>"
)

Prices = dict[str, float]  # kind of step → millions of floating-point operations
Stage = tuple[Steps, Objective, FitConfig]


@dataclass(frozen=True)
class Plan:
    """How many steps of each kind an arm makes, and what that costs."""

    steps: dict[str, int]
    cost: float  # millions of floating-point operations


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and writes the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=sorted(TASKS))
    parser.add_argument("--folder", type=Path, default=Path("runs/hybrids"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])  # 0 to 2 judged other settings
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in chosen.tasks:
        folder = chosen.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        sys.stdout.write(finished(TASKS[name](chosen.folder), folder, chosen.arms, chosen.seeds))


def finished(task: Compared, folder: Path, arms: Sequence[str], seeds: Sequence[int]) -> str:
    """The task's table, once what was missing has run; empty before two seeds are complete."""
    prices = priced(task, folder)
    for seed in seeds:
        for arm in arms:
            path = folder / f"{ARMS.index(arm)}-{seed}.json"
            if not kept(path, task):
                found = run(task, arm, seed, prices)
                write_file(path, json.dumps({"settings": repr(task), **found}))
                print(f"{task.name}: {arm}, seed {seed}: {found['mean']:.3f}, {found['cpu_s']:.0f} CPU-s", flush=True)
    results = [found for path in sorted(folder.glob("?-*.json")) if (found := kept(path, task))]
    if text := told(task, results, prices):
        write_file(folder.parent / f"hybrids-{task.name}.md", text)
        write_file(folder.parent / f"hybrids-{task.name}.svg", picture(task, results))
    return text


def kept(path: Path, task: Compared) -> dict[str, Any]:
    """What a file holds; empty if there is none.

    Raises:
        SystemExit: if it was made with other settings.
    """
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if found and found["settings"] != repr(task):
        sys.exit(f"{path} was made with other settings of {task.name}; give another --folder")
    return found


# ---------------------------------------------------------------------- arms


def planned(task: Compared, arm: str, prices: Prices) -> Plan:
    """The steps of an arm, as many as the budget pays for.

    Raises:
        SystemExit: if they miss the budget by more than three in a hundred.
    """
    budget = task.budget * prices["rl"]
    first = round(task.share * budget / prices["sft"])
    counts: dict[str, int]
    if arm == SFT:
        counts = {"sft": round(budget / prices["sft"])}
    elif arm == RL:
        counts = {"rl": task.budget}
    elif arm == THEN:
        counts = {"sft": first, "rl": round((budget - first * prices["sft"]) / prices["rl"])}
    elif arm == BOTH:
        counts = {"both": round(budget / prices["both"])}
    else:
        rounds = (budget - first * prices["sft"]) / (prices["rl"] + prices["best"])
        counts = {"sft": first, "rl": math.ceil(rounds - 0.25), "best": math.floor(rounds + 0.25)}
    cost = sum(prices[kind] * count for kind, count in counts.items())
    if abs(cost / budget - 1) > TOLERANCE or min(counts.values()) < 1:
        sys.exit(
            f"{arm} would cost {cost:.0f} of {budget:.0f} million operations with steps {counts}; raise the budget"
        )
    return Plan(counts, cost)


def stages(task: Compared, arm: str, plan: Plan, policy: Any, seed: int) -> list[Stage]:
    """What `fit` is called with, one call after the other."""
    steps = plan.steps
    examples, rollouts = task.examples(policy, seed), task.rollouts(policy, seed)
    if arm == BOTH:
        weight = Anneal(1.0, 0.0, steps["both"])
        hybrid = mixture(Part("rl", rollouts, task.objective), Part("sft", examples, supervised(), weight))
        return [(*hybrid, config(task, "hybrid", steps["both"]))]
    found: list[Stage] = []
    if "sft" in steps:
        found.append((examples, supervised(), config(task, "sft", steps["sft"])))
    if arm == BEST:
        turns = mixture(
            Part("rl", rollouts, task.objective, every=2),
            Part("best", BestOf(task.rollouts(policy, seed + OWN), contrast=True), supervised(), every=2, offset=1),
        )
        found.append((*turns, config(task, "turns", steps["rl"] + steps["best"])))
    elif "rl" in steps:
        found.append((rollouts, task.objective, config(task, "then" if found else "rl", steps["rl"])))
    return found


def config(task: Compared, stage: str, steps: int) -> FitConfig:
    """How a stage is fitted."""
    rate = task.rates[stage]
    return FitConfig(steps=steps, learning_rate=rate.learning_rate, schedule=rate.schedule)


def run(task: Compared, arm: str, seed: int, prices: Prices) -> dict[str, Any]:
    """Trains one arm and judges it on rows that never train."""
    plan = planned(task, arm, prices)
    policy = task.policy(seed)
    cpu = time.process_time()
    metrics: list[dict[str, float]] = []
    for steps, objective, how in stages(task, arm, plan, policy, seed):
        metrics += fit(policy, steps, objective, how, alarms=UNWATCHED).metrics
    spent = time.process_time() - cpu
    values = task.judged(policy)
    return {
        "task": task.name,
        "arm": arm,
        "seed": seed,
        "steps": plan.steps,
        "planned": round(plan.cost, 1),
        "cpu_s": round(spent, 2),
        "mean": float(values.mean()),
        "values": [round(float(value), 5) for value in values],
        "rewards": [round(row[name], 4) for row in metrics for name in ("reward", "rl.reward") if name in row],
        "loss": [round(row["loss"], 4) for row in metrics],
    }


# ---------------------------------------------------------------------- prices


def priced(task: Compared, folder: Path) -> Prices:
    """What a step of each kind costs; counted once, on a policy that has seen some demonstrations."""
    path = folder / "prices.json"
    if known := kept(path, task):
        return dict(known["prices"])
    policy = task.policy(TUNING)
    examples, rollouts = task.examples(policy, TUNING), task.rollouts(policy, TUNING)
    kinds: dict[str, tuple[Steps, Objective]] = {
        "sft": (examples, supervised()),  # first, so that the others find what it taught
        "rl": (rollouts, task.objective),
        "both": mixture(Part("rl", rollouts, task.objective), Part("sft", examples, supervised())),
        "best": (BestOf(rollouts, contrast=True), supervised()),
    }
    prices = {}
    for kind, (steps, objective) in kinds.items():
        with FlopCounterMode(display=False) as counter:
            fit(policy, steps, objective, config(task, "sft", COUNTED), alarms=UNWATCHED)
        prices[kind] = counter.get_total_flops() / COUNTED / 1e6
    write_file(path, json.dumps({"settings": repr(task), "prices": prices}))
    return prices


# ---------------------------------------------------------------------- what came out


def compared(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[int], np.ndarray]:
    """Arms, the seeds that all of them have, and values [arm, seed, row]."""
    known = {(one["arm"], one["seed"]): one["values"] for one in results}
    arms = [arm for arm in ARMS if any(name == arm for name, _ in known)]
    seeds = sorted({seed for _, seed in known if all((arm, seed) in known for arm in arms)})
    return arms, seeds, np.array([[known[arm, seed] for seed in seeds] for arm in arms])


def told(task: Compared, results: Sequence[dict[str, Any]], prices: Prices) -> str:
    """Markdown: every arm's mean, and its paired gain over SFT then RL; empty before two seeds are complete."""
    arms, seeds, values = compared(results)
    if len(seeds) < 2:
        return ""
    lines = [
        f"{task.name}: {task.unit}; {values.shape[2]} held-out rows, seeds {', '.join(map(str, seeds))}; budget "
        f"{task.budget * prices['rl']:,.0f} million operations an arm. Prices of a step: "
        + ", ".join(f"{kind} {price:.0f}" for kind, price in prices.items())
        + ".",
        "",
        f"| arm | steps | of the budget | CPU-seconds | each seed | mean | gain over {THEN} |",
        "| --- | --- | ---: | ---: | --- | --- | --- |",
    ]
    for arm, found in zip(arms, values, strict=True):
        own = [one for one in results if one["arm"] == arm and one["seed"] in seeds]
        steps = ", ".join(f"{count} {kind}" for kind, count in own[0]["steps"].items())
        share = own[0]["planned"] / (task.budget * prices["rl"])
        measured = " ".join(f"{one['cpu_s']:.0f}" for one in own)
        each = " ".join(f"{mean:.3f}" for mean in found.mean(1))
        gain = "" if THEN not in arms or arm == THEN else _signed(crossed_interval(found - values[arms.index(THEN)]))
        mean = crossed_interval(found)
        lines.append(f"| {arm} | {steps} | {share:.3f} | {measured} | {each} | {mean} | {gain} |")
    return "\n".join(lines) + "\n"


def picture(task: Compared, results: Sequence[dict[str, Any]]) -> str:
    """Every arm's mean with its interval."""
    arms, _, values = compared(results)
    found = [(arm, crossed_interval(each)) for arm, each in zip(arms, values, strict=True)]
    rows = [Named(name=arm, estimate=each.estimate, low=each.low, high=each.high) for arm, each in found]
    drawn = estimates_chart(f"{task.name} at equal compute", f"{task.unit}, 95 % for new seeds and rows.", rows)
    alone = drawn[drawn.index("<svg") : drawn.index("</svg>")] + "</svg>\n"
    for before, after in (("<svg", '<svg xmlns="http://www.w3.org/2000/svg"'), ("><title>", f">{STYLE}<title>")):
        alone = alone.replace(before, after, 1)
    return alone


def _signed(gain: Interval) -> str:
    return f"{gain.estimate:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


if __name__ == "__main__":
    main()
