"""melior beside TRL 1.16: SFT, DPO, a reward model and GRPO, interleaved, written to results.json and results.md

    python benchmarks/run.py                 three rounds, about two hours on two cores
    python benchmarks/run.py --rounds 1 --sft-steps 4 --quick
    python benchmarks/run.py --jobs dpo reward --rounds 1 --pair-steps 1 --quick      prints, writes nothing
    python benchmarks/run.py --jobs dpo reward --curves-only                         losses of 8 steps, no times

The peer lives in an environment of its own (`.benchmark-venv`, made on first use). Every measurement is a
process of its own; a round runs melior, TRL by its defaults and TRL tuned, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from workload import COMPLETION, MODEL, SHORT, SHORT_PROMPT

HERE = Path(__file__).resolve().parent
PEER = ["torch==2.13.0", "trl==1.16.0", "transformers==5.23.0", "peft==0.21.2", "datasets==5.2.0"]
TUNED = {  # tried once; the best is measured in every round
    "sft": ("plain", "sorted", "packed"),
    "dpo": ("plain", "sorted", "single"),
    "reward": ("plain", "sorted", "single"),
    "grpo": ("plain",),
}
PAIRED = ("dpo", "reward", "dpo" + SHORT, "reward" + SHORT)
GOALS = {"sft": (3.0, 1.5), **dict.fromkeys(PAIRED, (4.0, None)), "grpo": (5.0, 5.0)}  # against defaults, tuned
PEAK_GOAL = 0.7  # of the matrix-product peak, where nothing is sampled; sampling is bound by more than arithmetic
TOLERANCE = 1e-3  # nats between the losses of the same rows; share between gradient norms on the same completions


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sft-steps", type=int, default=10, help="of 16 rows each")
    parser.add_argument("--pair-steps", type=int, default=3, help="of 8 preference pairs each")
    parser.add_argument("--curve-steps", type=int, default=8, help="of 8 pairs each, whose losses are compared")
    parser.add_argument("--curves-only", action="store_true", help="of preference pairs; prints them, times nothing")
    parser.add_argument("--model", default=MODEL, help="a name or folder")
    parser.add_argument("--grpo-steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peer-python", type=Path, help="an environment with TRL; default: .benchmark-venv")
    parser.add_argument("--quick", action="store_true", help="tune the peer by leaving gradient checkpointing off only")
    parser.add_argument(
        "--jobs", nargs="+", choices=list(GOALS), default=list(GOALS), help="prints figures, keeps none"
    )
    args = parser.parse_args()
    peer = args.peer_python or environment()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "workload.json"
        call(sys.executable, "ours.py", "prepare", "--workload", file, "--model", args.model, "--threads", args.threads)
        asked = args.curves_only or not args.quick
        curves = {job: curve(job, args, peer, file) for job in args.jobs if job in PAIRED and asked}
        if args.curves_only:
            print(json.dumps(curves, indent=1))
            return
        pairs_from = json.loads(file.read_text())["pairs_from"]
        found = {job: measure(job, args, peer, file) for job in args.jobs}
        gaps = {job: norms_gap(runs, args, file) if job == "grpo" else losses_gap(runs) for job, runs in found.items()}
        for job, gap in (*gaps.items(), *((job, found["largest"]) for job, found in curves.items())):
            if not gap <= TOLERANCE:
                sys.exit(f"{job}: the two sides differ by {gap:.2g}, allowed is {TOLERANCE}; no time was written")
        peak = call(sys.executable, "ours.py", "peak", "--workload", file, "--threads", args.threads)["peak"]["mixed"]
        results = {job: {**summary(job, runs, peak), "agreement": gaps[job]} for job, runs in found.items()}
        for job, compared in curves.items():
            results[job] |= {"curve_steps": args.curve_steps, "curve_agreement": compared["largest"]}
        if set(args.jobs) < set(GOALS):
            print(json.dumps(results, indent=1))
            return
        tables = call(sys.executable, "ours.py", "profile", "--workload", file, "--threads", args.threads)["profile"]
    (HERE / "results.json").write_text(json.dumps({"cpu": results}, indent=1) + "\n")
    (HERE / "results.md").write_text(page(results, found, curves, tables, peak, args, pairs_from))


def environment() -> Path:
    """The peer's interpreter, installed on first use."""
    folder = HERE.parent / ".benchmark-venv"
    python = folder / "bin" / "python"
    if not (folder / ".installed").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for packages in ([PEER[0]], PEER):  # torch first, so that nothing else chooses it
            pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(HERE / "constraints.txt")]
            subprocess.run([*pip, *packages], check=True)
        (folder / ".installed").touch()
    return python


def call(python: Any, script: str, *arguments: Any) -> dict[str, Any]:
    """Runs one measurement; its last line is JSON."""
    command = [str(python), script, *map(str, arguments)]
    print(time.strftime("%H:%M:%S"), " ".join(command[1:]), file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}


def measure(job: str, args: argparse.Namespace, peer: Path, file: Path) -> dict[str, list[dict[str, Any]]]:
    """Per side the measurements of every round. The peer's tuned setting is chosen in the first."""
    steps = {"sft": args.sft_steps, "grpo": args.grpo_steps}.get(job, args.pair_steps)
    common = ("--workload", file, "--steps", steps, "--threads", args.threads, "--started")

    def theirs(setting: str) -> dict[str, Any]:
        return {**call(peer, "peer.py", job, setting, *common, time.time()), "setting": setting}

    runs: dict[str, list[dict[str, Any]]] = {"melior": [], "default": [], "tuned": []}
    settings = TUNED[job.removesuffix(SHORT)]
    choices = settings[:1] if args.quick else settings
    for number in range(args.rounds):
        runs["melior"].append(call(sys.executable, "ours.py", job, *common, time.time()))
        runs["default"].append(theirs("default"))
        tried = [theirs(setting) for setting in choices]
        best = min(tried, key=lambda run: sum(run["seconds"]))
        runs["tuned"].append(best)
        if number == 0:
            choices = (best["setting"],)
    return runs


def curve(job: str, args: argparse.Namespace, peer: Path, file: Path) -> dict[str, Any]:
    """Losses and gradient norms of both sides, step by step, and the largest differences.

    The peer trains without gradient checkpointing, which changes no number and saves a third of its time.
    """
    common = ("--workload", file, "--steps", args.curve_steps, "--threads", args.threads, "--started", time.time())
    ours = call(sys.executable, "ours.py", job, *common)
    theirs = call(peer, "peer.py", job, "plain", *common)
    losses = [abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)]
    norms = [abs(a - b) / a for a, b in zip(ours["grad_norms"], theirs["grad_norms"], strict=True)]
    sides = {"melior": ours["losses"], "peer": theirs["losses"]}
    found = {**sides, "loss_gaps": losses, "norm_gaps": norms, "largest": max(losses + norms)}
    print(job, json.dumps(found), file=sys.stderr, flush=True)  # a run that is stopped has told what it knew
    return found


def losses_gap(runs: dict[str, list[dict[str, Any]]]) -> float:
    """The largest difference of a step's loss, in nats, or of its gradient norm, as a share; both see the same rows."""
    ours, theirs = (runs[side][0] for side in ("melior", "default"))
    losses = [abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)]
    norms = [abs(a - b) / a for a, b in zip(ours["grad_norms"], theirs["grad_norms"], strict=True)]
    return max(losses + norms)


def norms_gap(runs: dict[str, list[dict[str, Any]]], args: argparse.Namespace, file: Path) -> float:
    """By what share melior's gradient norm differs from TRL's on the completions that TRL drew in its first step.

    The first loss itself is 0 on both sides, whatever the completions: advantages sum to nothing.
    """
    theirs = runs["tuned"][0]
    drawn = file.with_name("drawn.json")
    drawn.write_text(json.dumps(theirs["drawn"]))
    again = ("replay", "--workload", file, "--drawn", drawn, "--threads", args.threads)
    ours = call(sys.executable, "ours.py", *again)
    return abs(ours["grad_norms"][0] / theirs["grad_norms"][0] - 1)


def summary(job: str, runs: dict[str, list[dict[str, Any]]], peak: float) -> dict[str, Any]:
    """The figures of one job: ratios of medians."""
    ours, default, tuned = (seconds(runs[side]) for side in ("melior", "default", "tuned"))
    mine = runs["melior"][0]
    tokens = mine.get("tokens") or mine["rows"] * COMPLETION * len(mine["seconds"])
    rate = mine["flops"] * len(mine["seconds"]) / ours
    spent, default_spent = (
        statistics.median(sum(run["cpu_seconds"]) for run in runs[side]) for side in ("melior", "default")
    )
    return {
        "speedup_vs_default": round(default / ours, 2),
        "speedup_vs_tuned": round(tuned / ours, 2),
        "cpu_time_vs_default": round(default_spent / spent, 2),
        "share_of_peak": round(rate / peak, 3),
        "memory_ratio": round(middle(runs["melior"], "peak_bytes") / middle(runs["default"], "peak_bytes"), 3),
        "memory_ratio_vs_tuned": round(middle(runs["melior"], "peak_bytes") / middle(runs["tuned"], "peak_bytes"), 3),
        "cold_start_ratio": round(cold(runs["melior"]) / cold(runs["default"]), 3),
        "tokens_per_second": round(tokens / ours, 1),
        "peer": f"TRL {runs['default'][0]['versions']['trl']}, tuned: {runs['tuned'][0]['setting']}",
        "machine": f"{os.cpu_count()} cores {cpu()}, torch {mine['versions']['torch']} fp32",
        "date": date.today().isoformat(),
    }


def seconds(runs: list[dict[str, Any]]) -> float:
    """The median over rounds of all steps' time."""
    return statistics.median(sum(run["seconds"]) for run in runs)


def middle(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def cold(runs: list[dict[str, Any]]) -> float:
    """Seconds from the start of the process to the first step, the step itself left out."""
    return statistics.median(run["cold_s"] - run["seconds"][0] for run in runs)


def cpu() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def page(
    results: dict[str, Any],
    found: dict[str, Any],
    curves: dict[str, Any],
    tables: dict[str, Any],
    peak: float,
    args: argparse.Namespace,
    pairs_from: str,
) -> str:
    """The results as a page."""
    from melior.policies.language import DEFAULT_BUDGET as budget

    lines = [
        "# Benchmark results",
        "",
        "Written by `python benchmarks/run.py`; do not edit. SmolLM2-135M-Instruct, LoRA r = 16 on every matrix, fp32, "
        f"{args.threads} threads, micro-batches of at most {budget} tokens, {args.rounds} interleaved round(s). Same "
        "rows, same ids, same adapter, same AdamW on both sides. SFT: "
        f"{args.sft_steps} steps of 16 mixed reasoning rows. GRPO: "
        f"{args.grpo_steps} step(s) of 8 prompts × 8 "
        "completions of exactly 32 tokens, generation included. DPO and the reward model: "
        f"{args.pair_steps} steps of 8 preference pairs ({pairs_from}); DPO's reference log-probs are computed within "
        "each step on both sides, never beforehand. Jobs that end in -short train those of these pairs whose prompt "
        f"has at most {SHORT_PROMPT} tokens, the hard case for melior: there is little to share. "
        "*Default* is TRL's defaults in fp32; *tuned* has gradient "
        "checkpointing off"
        + (
            ", as the only change (quick mode)."
            if args.quick
            else " and is the best of plain, sorted and packed rows, or plain, sorted and single pairs."
        ),
        "",
        f"Peak of bare matrix products on the model's shapes in the same run: {peak / 1e9:.0f} GFLOP/s.",
        "",
        "| job | side | seconds per round (median; all) | peak memory GiB | start to first step s | first losses |",
        "|---|---|---|---|---|---|",
    ]
    for job, runs in found.items():
        for side, measured in runs.items():
            each = ", ".join(f"{sum(run['seconds']):.1f}" for run in measured)
            losses = ", ".join(f"{loss:.4f}" for loss in measured[0]["losses"][:4])
            memory, spent = middle(measured, "peak_bytes") / 2**30, f"{seconds(measured):.1f} ({each})"
            lines.append(f"| {job} | {side} | {spent} | {memory:.2f} | {cold(measured):.1f} | {losses} |")
    lines += [
        "",
        "Same work: losses, in nats, and gradient norms, as a share, differ from TRL's in every step by at most "
        + ", ".join(f"{results[job]['agreement']:.1g} ({job})" for job in found if job != "grpo")
        + (f"; over {args.curve_steps} steps of pairs by at most " if curves else "")
        + ", ".join(f"{compared['largest']:.1g} ({job})" for job, compared in curves.items())
        + "; on completions that TRL drew, the norm of melior's GRPO gradient differs by "
        f"{results['grpo']['agreement']:.1g} of it. {shared(found)} The share of peak counts only what was computed.",
        "",
        "| job | figure | goal | measured | |",
        "|---|---|---|---|---|",
    ]
    for job, figures in results.items():
        default, tuned = GOALS[job]
        goals = (
            ("speedup_vs_default", "≥", default),
            ("speedup_vs_tuned", "≥", tuned),
            ("share_of_peak", "≥", None if job == "grpo" else PEAK_GOAL),
            ("memory_ratio", "≤", 0.6),
            ("cold_start_ratio", "≤", 0.5),
        )
        lines += [f"| {job} | {name} | {judged(figures[name], sign, goal)} |" for name, sign, goal in goals]
    for job, table in tables.items():
        lines += [
            "",
            f"## Where one {job} step of melior spends its time",
            "",
            "| operation | calls | seconds | share |",
            "|---|---|---|---|",
        ]
        lines += [f"| {r['name']} | {r['calls']} | {r['seconds']:.2f} | {r['share']:.1%} |" for r in table]
    lines += [
        "",
        "## How cost grows",
        "",
        "Against sequence length, rows of a step, group size and rows decoded together: [scaling.md](scaling.md), "
        "written by `python benchmarks/scaling.py`.",
        "",
        "![ms per token against sequence length, rows, group size and rows decoded together](scaling.svg)",
    ]
    return "\n".join(lines) + "\n"


def shared(found: dict[str, Any]) -> str:
    """How many of the rows' tokens were computed with a gradient, and why."""
    told = []
    for job in ("sft", *PAIRED):
        mine = found[job]["melior"][0]
        told.append(f"{mine['nodes'] * len(mine['seconds']):.0f} of {mine['tokens']} tokens ({job})")
    return (
        f"With a gradient melior computed {', '.join(told)}: the chat template opens every row with the same system "
        "message, and the two sides of a pair have the same prompt. Rows without a common opening gain less."
    )


def judged(figure: float, sign: str, goal: float | None) -> str:
    """A figure beside its goal, as cells of the table."""
    if goal is None:
        return f"no goal | {figure} | "
    met = figure >= goal if sign == "≥" else figure <= goal
    return f"{sign} {goal} | {figure} | {'met' if met else 'missed'}"


if __name__ == "__main__":
    main()
