"""the evidence behind the demonstration: it runs with several seeds, and their gains are pooled item by item

    python benchmarks/demo_evidence.py --folder runs/evidence --seeds 0 1 2

prints Markdown tables for docs/experiments.md. Runs are kept in the folder, so it goes on where it was stopped.
Held-out items, and the samples drawn from them, are the same for every seed; pooled intervals take the item as the
unit, so they are conditional on these seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from melior.cli.progress import Progress
from melior.cycles.demo import Demo, DemoSettings, run_demo
from melior.evaluation.compare import compare, pooled
from melior.evaluation.evaluate import GREEDY
from melior.policies.weights import pull
from melior.statistics import Interval

STEPS = (("sft", "base"), ("rft", "sft"), ("rft", "base"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    chosen = parser.parse_args(arguments)
    settings = DemoSettings()
    pull(settings.model)
    demos: dict[int, Demo] = {}
    for seed in chosen.seeds:
        with Progress() as progress:

            def told(what: str, done: int, total: int, note: str, seed: int = seed) -> None:
                progress(f"seed {seed}, {what}", done, total, note)

            demos[seed] = run_demo(settings, chosen.folder / f"seed-{seed}", seed=seed, report=told)
    sys.stdout.write(table(demos))


def table(demos: dict[int, Demo]) -> str:
    """Rewards of each seed, then gains of each seed and of all together."""
    first = next(iter(demos.values()))
    items, samples = first.summary["heldout_items"], first.sft.after.sampling.n
    lines = [
        f"{items} held-out items, {samples} samples each at temperature {first.sft.after.sampling.temperature:g}; "
        "95 % intervals over items.",
        "",
        "| seed | stage | reward, sampled | greedy | decisions | seconds | computed / padded tokens |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for seed, demo in demos.items():
        for stage, measured in zip(demo.summary["stages"], demo.evaluations.values(), strict=True):
            numbers = f"{stage['tokens']:,} | {stage['seconds']:.0f} | {stage['nodes']:,} / {stage['padded_tokens']:,}"
            lines.append(f"| {seed} | {stage['name']} | {measured.reward} | {measured.greedy} | {numbers} |")
    lines += ["", "| gain | seed | sampled | greedy |", "| --- | --- | --- | --- |"]
    for after, before in STEPS:
        pairs = [compare(demo.evaluations[after], demo.evaluations[before]) for demo in demos.values()]
        named = [*zip(map(str, demos), pairs, strict=True), ("pooled", pooled(pairs))]
        for name, pair in named:
            lines.append(f"| {after} − {before} | {name} | {_signed(pair.gain)} | {_signed(pair.interval(GREEDY))} |")
    lines += ["", "| seed | gate | verdict |", "| --- | --- | --- |"]
    for seed, demo in demos.items():
        for told in demo.summary["gate"]["verdicts"]:
            lines.append(f"| {seed} | {told['candidate']} over {told['baseline']} | {told['sentence']} |")
    return "\n".join(lines) + "\n"


def _signed(gain: Interval) -> str:
    return f"{gain.estimate:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


if __name__ == "__main__":
    main()
