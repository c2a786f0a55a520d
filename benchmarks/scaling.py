"""how melior's cost per token grows with sequence length, rows, group size and rows decoded together

    python benchmarks/scaling.py             about eight minutes on two cores; writes scaling.json, .svg and .md

A flat curve means that nothing is wasted; where a curve rises, the page says why. Every point is the best of two
interleaved passes over all points, so that a busy moment spoils no curve.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import workload

from melior.policies.adapters import LoRA
from melior.policies.engine import Engine, Request
from melior.policies.language import LanguagePolicy
from melior.trainers.loop import FitConfig, fit
from melior.trainers.steps import Step
from melior.trainers.supervised import Supervised
from melior.types import Record, Sampling

HERE = Path(__file__).resolve().parent
TOKENS = 2048  # computed per point, so that short and long rows are measured on as much work
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
ROWS = (1, 2, 4, 8, 16, 32)
ROW_LENGTH = 128
GROUPS = (1, 2, 4, 8, 16, 32)
PROMPT, COMPLETION = 256, 32
DECODED = (1, 2, 4, 8, 16, 32, 64, 128)
DECODE_PROMPT, DECODE_TOKENS = 64, 12
PASSES = 2

Point = dict[str, float]


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    policy = LanguagePolicy.load(workload.MODEL, adapter=LoRA(r=workload.LORA_RANK, alpha=workload.LORA_ALPHA))
    policy.renderer.stop_ids = frozenset()
    measures: dict[str, list[tuple[float, Callable[[], Point]]]] = {
        "sequence length": [(n, lambda n=n: trained(policy, rows(TOKENS // n, n))) for n in LENGTHS],
        "rows of a step": [(n, lambda n=n: trained(policy, rows(n, ROW_LENGTH))) for n in ROWS],
        "group size": [(n, lambda n=n: trained(policy, group(n))) for n in GROUPS],
        "rows decoded together": [(n, lambda n=n: decoded(policy, n)) for n in DECODED],
    }
    trained(policy, rows(4, 64))  # the first step pays for reading the weights
    found: dict[str, dict[float, Point]] = {name: {} for name in measures}
    for _ in range(PASSES):
        for name, points in measures.items():
            for at, measure in points:
                point = measure()
                best = found[name].get(at)
                found[name][at] = point if best is None or point["ms_per_token"] < best["ms_per_token"] else best
                print(f"{name} {at}: {point}", flush=True)
    write(found, args.threads)


def rows(count: int, length: int) -> list[Record]:
    """Random rows that share nothing; half of each is read and half decided."""
    draw = torch.randint(1000, 40_000, (count, length), generator=torch.Generator().manual_seed(count * length))
    return [record(row[: length // 2], row[length // 2 :], str(number)) for number, row in enumerate(draw.tolist())]


def group(size: int) -> list[Record]:
    """One prompt under `size` completions."""
    generator = torch.Generator().manual_seed(size)
    prompt = torch.randint(1000, 40_000, (PROMPT,), generator=generator).tolist()
    completions = torch.randint(1000, 40_000, (size, COMPLETION), generator=generator).tolist()
    return [record(prompt, completion, "0") for completion in completions]


def record(context: list[int], decisions: list[int], name: str) -> Record:
    ids = {"context": tuple(context), "decisions": tuple(decisions)}
    return Record(inputs="", output="", group=name, sampling=Sampling(), **ids)


class Once:
    """One step over one batch."""

    total = 1

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __call__(self, index: int) -> Step:
        return Step(self.batch)

    def fingerprint(self) -> str:
        return "once"


def trained(policy: LanguagePolicy, records: list[Record]) -> Point:
    """One supervised update on the records: time per token, decision and row, and tokens computed per padded one."""
    batch = policy.encode(records)
    backbone = policy.backbone
    backbone.nodes = backbone.padded_tokens = 0
    start = time.perf_counter()
    fit(policy, Once(batch), Supervised(), FitConfig(learning_rate=1e-9, schedule="constant"))
    seconds = time.perf_counter() - start
    tokens = sum(len(found.context or ()) + len(found.decisions or ()) for found in records)
    return {"ms_per_token": 1e3 * seconds / tokens, "computed": backbone.nodes / tokens}


def decoded(policy: LanguagePolicy, count: int) -> Point:
    """Sampling `count` rows of as many different prompts, the prompts' own pass left out."""
    generator = torch.Generator().manual_seed(count)
    prompts = torch.randint(1000, 40_000, (count, DECODE_PROMPT), generator=generator).tolist()
    engine = Engine(policy.backbone, policy.renderer, max_rows=max(DECODED))
    for number, prompt in enumerate(prompts):
        engine.submit(Request(id=number, context=tuple(prompt), settings=Sampling(max_tokens=DECODE_TOKENS)))
    while engine.waiting:
        engine.step()
    before, start = engine.tokens, time.perf_counter()
    while engine.rows:
        engine.step()
    return {"ms_per_token": 1e3 * (time.perf_counter() - start) / (engine.tokens - before), "computed": 1.0}


def write(found: dict[str, dict[float, Point]], threads: int) -> None:
    """The numbers, the picture and the page."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    told = {name: [{"at": at, **point} for at, point in points.items()] for name, points in found.items()}
    (HERE / "scaling.json").write_text(json.dumps(told, indent=1) + "\n")
    figure, axes = pyplot.subplots(1, len(found), figsize=(13, 3), layout="constrained")
    for axis, (name, points) in zip(axes, found.items(), strict=True):
        axis.plot(list(points), [point["ms_per_token"] for point in points.values()], marker="o", color="#3056a0")
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms per token")
    figure.savefig(HERE / "scaling.svg", metadata={"Date": None})
    (HERE / "scaling.md").write_text(page(told, threads))


def page(told: dict[str, list[Point]], threads: int) -> str:
    """The curves as a page."""
    lines = [
        "# How cost grows",
        "",
        f"Written by `python benchmarks/scaling.py` on {date.today().isoformat()}; do not edit. {workload.MODEL}, LoRA "
        f"r = {workload.LORA_RANK}, fp32, {threads} threads; the best of {PASSES} interleaved passes. Training is one "
        "supervised update, forward and backward; *computed* is what the forest computed per token of the rows.",
        "",
        "![ms per token against sequence length, rows, group size and rows decoded together](scaling.svg)",
        "",
        f"- **sequence length**: {TOKENS} tokens of rows that share nothing. What rises is attention.",
        f"- **rows of a step**: rows of {ROW_LENGTH} tokens. What falls is the fixed cost of an update and of small "
        "matrix products.",
        f"- **group size**: one prompt of {PROMPT} tokens under completions of {COMPLETION}. What falls is the "
        "prompt's share, which is computed once.",
        f"- **rows decoded together**: {DECODE_TOKENS} tokens behind prompts of {DECODE_PROMPT}. What falls is reading "
        "the weights, once per step for all rows.",
    ]
    for name, points in told.items():
        lines += ["", f"| {name} | ms per token | computed |", "|---|---|---|"]
        lines += [f"| {p['at']:.0f} | {p['ms_per_token']:.2f} | {p['computed']:.2f} |" for p in points]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
