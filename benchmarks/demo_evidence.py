"""the demonstration with several seeds: per seed and pooled, as a Markdown table for docs/experiments.md

    python benchmarks/demo_evidence.py --folder runs/evidence --seeds 0 1 2

Held-out items, and the samples drawn from them, are the same for every seed; pooled intervals take the item as the unit,
so they are conditional on these seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from melior.cycles.demo import Demo, run_demo
from melior.evaluation.compare import Comparison, compare, pooled


def main() -> None:
    """Runs or resumes every seed and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    demos = [run_demo(folder=arguments.folder / f"seed-{seed}", seed=seed) for seed in arguments.seeds]
    print("| seed | stage | sampled reward | greedy | paired gain over the stage before | seconds |")
    print("|---|---|---|---|---|---|")
    for seed, demo in zip(arguments.seeds, demos, strict=True):
        print("\n".join(rows(seed, demo)))
    for stage, gains in {"SFT − base": ("sft", "base"), "RFT − SFT": ("rft", "sft")}.items():
        joint = pooled([gain(demo, *gains) for demo in demos])
        print(f"| pooled | {stage} | | {joint.interval('greedy')} | {joint.gain} | |")
    verdicts = [demo.summary["gate"] for demo in demos]
    print(json.dumps({"gates": verdicts, "promoted": [demo.summary["promoted"] for demo in demos]}, default=str))


def rows(seed: int, demo: Demo) -> list[str]:
    """One line per stage."""
    lines = []
    before = None
    for name, evaluation in demo.evaluations.items():
        gained = str(compare(evaluation, before).gain) if before is not None else ""
        seconds = next(stage["seconds"] for stage in demo.summary["stages"] if stage["name"] == name)
        lines.append(f"| {seed} | {name} | {evaluation.reward} | {evaluation.greedy} | {gained} | {seconds:.0f} |")
        before = evaluation
    return lines


def gain(demo: Demo, after: str, before: str) -> Comparison:
    """A stage against an earlier one, item by item."""
    return compare(demo.evaluations[after], demo.evaluations[before])


if __name__ == "__main__":
    main()
