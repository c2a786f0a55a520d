"""how often alarms ring: in honest runs that learn well, and in runs whose reward can be gamed

    python benchmarks/alarms.py --folder runs/alarms           # about two minutes; goes on where it was stopped
    python benchmarks/alarms.py --folder runs/new --first 100  # the same with seeds that nobody has looked at
    python benchmarks/alarms.py --replay runs/first runs/more  # what would ring over the metrics that runs have kept

The folder gets `alarms.json`, and the folder of every run with its report.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from alarm_runs import GAMED, HONEST

from melior.statistics import wilson
from melior.trainers.alarms import NAMES, Alarms, Watch
from melior.trainers.loop import Run

FEW = 3  # readings that a run's beginning and its end are told by
Row = dict[str, Any]


def main() -> None:
    """Runs what is not there yet, and prints both tables."""
    parser = argparse.ArgumentParser(description="Count how often alarms ring in honest and in gamed runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/alarms"))
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--times", type=int, default=1, help="how many times the usual number of seeds")
    parser.add_argument("--replay", type=Path, nargs="+", help="folders of runs, whose metrics are looked at instead")
    told = parser.parse_args()
    torch.set_num_threads(1)
    if told.replay:
        for folder in told.replay:
            print(f"{folder}: {replayed(folder)}")
        return
    print(tables(counted(told.folder, told.first, told.times)))


def counted(folder: Path, first: int = 0, times: int = 1) -> list[Row]:
    """A row per run, those kept in `alarms.json` first."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "alarms.json"
    rows: list[Row] = json.loads(file.read_text()) if file.is_file() else []
    known = {(row["name"], row["seed"]) for row in rows}
    for honest, family in ((False, GAMED), (True, HONEST)):  # the fewer and shorter ones first
        for name, runs in family.items():
            for seed in range(first, first + times * runs.seeds):
                if (name, seed) not in known:
                    told = told_of(runs.run(folder, seed), runs.learns)
                    rows.append({"name": name, "seed": seed, "honest": honest, **told})
                    file.write_text(json.dumps(rows, indent=1))
    return rows


def told_of(run: Run, shown: str) -> Row:
    """What rang in a run, and what it learnt."""
    values = [row[shown] for row in run.metrics if math.isfinite(row.get(shown, math.nan))]
    stops = next((breach.alarm for breach in run.breaches if breach.stops), "")
    return {
        "steps": run.steps,
        "warned": sorted({breach.alarm for breach in run.breaches if not breach.stops}),
        "stopped": stops,
        "metric": shown,
        "first": fmean(values[:FEW]),
        "last": fmean(values[-FEW:]),
        "sentence": run.stopped,
    }


def replayed(folder: Path) -> str:
    """What rings over the metrics of one run."""
    watch = Watch(Alarms())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rang = [breach for line in lines for breach in watch.see({k: v for k, v in line.items() if v is not None})]
    said = ", ".join(f"{each.alarm} {'stops' if each.stops else 'warns'} after {each.step + 1}" for each in rang)
    return f"{len(lines)} steps, {said or 'nothing rings'}"


def tables(rows: Sequence[Row]) -> str:
    """Both tables, and the rates with their 95 % intervals."""
    honest, gamed = ([row for row in rows if row["honest"] is kind] for kind in (True, False))
    lines = ["| honest runs | runs | learnt | warned | stopped |", "|---|---|---|---|---|"]
    for name, found in by_name(honest).items():
        learnt = f"{found[0]['metric']} {mean(found, 'first')} → {mean(found, 'last')}"
        lines.append(f"| {name} | {len(found)} | {learnt} | {rang(found)} | {sum(bool(r['stopped']) for r in found)} |")
    lines += [
        "",
        "| gamed runs | runs | reward, first → last | stopped | after steps | by |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in by_name(gamed).items():
        ended = [row for row in found if row["stopped"]]
        steps = sorted(row["steps"] for row in ended)
        after = f"{median(steps):g} ({steps[0]}–{steps[-1]})" if steps else "—"
        who = ", ".join(sorted({row["stopped"] for row in ended})) or "—"
        learnt = f"{mean(found, 'first')} → {mean(found, 'last')}"
        lines.append(f"| {name} | {len(found)} | {learnt} | {len(ended)} | {after} | {who} |")
    for what, found in (("honest", honest), ("gamed", gamed)):
        ended = sum(bool(row["stopped"]) for row in found)
        lines.append(f"\n{what} runs stopped: {ended} of {len(found)}, 95 % {wilson(ended, len(found))}")
    return "\n".join(lines)


def by_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {name: [row for row in rows if row["name"] == name] for name in dict.fromkeys(row["name"] for row in rows)}


def mean(rows: Sequence[Row], key: str) -> str:
    return f"{fmean(row[key] for row in rows):.2f}"


def rang(rows: Sequence[Row]) -> str:
    """Alarms that warned, each with the number of runs it warned in."""
    counts = {name: sum(name in row["warned"] for row in rows) for name in NAMES}
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "—"


if __name__ == "__main__":
    main()
