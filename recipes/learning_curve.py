"""how many labels it takes: networks that learnt elsewhere against the same networks from random weights

    python recipes/learning_curve.py --out runs/learning-curve

Two fields with few labels: chest X-rays (EfficientNet-lite0 with ImageNet's weights, the same network from random
weights, and a small network made for such pictures; the data set's own training and validation rows) and questions to a
bank (MiniLM, and the same encoder from random weights; a fifth of the rows held out). Every contestant learns from the
same nested subsets by the same loop, over three seeds, and is measured on the same held-out rows. A stopped run goes on
from its results. Not for clinical use.

The recipe promises that with the fewest labels the pre-trained network is ahead of the same network from random weights
by a 95 % interval; where that fails, the page and the exit status say so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from melior.cli.classification import show_learning_curve
from melior.data.formats import read_examples
from melior.data.splits import split
from melior.evaluation.learning_curve import Contestant, LearningCurve, learning_curve
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.policies.images import Pictures
from melior.policies.lite0 import Convolution
from melior.reports.document import Part, paragraph, write_document
from melior.reports.learning import learning_section
from melior.reports.plots import table
from melior.trainers.loop import FitConfig, fit
from melior.trainers.supervised import Examples, supervised
from melior.types import Demonstration

SPREAD = 0.02  # standard deviation of a new encoder's matrices, as BERT's (arXiv:1810.04805, appendix A)
KNOWN_ROWS = 64  # of the training rows, from which a new network's normalisation takes its statistics


@dataclass(frozen=True, kw_only=True)
class Learner:
    """How one contestant learns.

    Rates for X-rays were chosen on 250 training rows outside the hundred that were learnt from, but other subsets may
    hold them; those for questions are a guess.
    """

    config: Classifier
    learning_rate: float
    scratch: bool = False  # its pre-trained weights are drawn anew first
    steps: int = 30
    batch_size: int = 16
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Field:
    """A task: its rows, the sizes of subsets, and who learns."""

    title: str
    sizes: tuple[int, ...]
    learners: Mapping[str, Learner]  # the first is compared with each other one


LITE0 = Classifier(backbone="efficientnet-lite0", image=Pictures(size=48), dropout=0.0)
FIELDS = {
    "pneumonia": Field(
        title="Chest X-rays",
        sizes=(10, 50, 200, 1000),
        learners={
            "pre-trained": Learner(config=LITE0, learning_rate=1e-3, rates={r"^encoder\.": 0.3}),
            "random weights": Learner(config=LITE0, learning_rate=1e-3, scratch=True),
            "small network": Learner(config=Classifier(backbone="small", dropout=0.0), learning_rate=2e-3, steps=80),
        },
    ),
    "banking77": Field(
        title="Questions to a bank",
        sizes=(77, 231, 770),
        learners={
            "pre-trained": Learner(
                config=Classifier(backbone="minilm", dropout=0.0),
                learning_rate=2e-2,
                rates={r"^encoder\.": 0.025},
                batch_size=32,
            ),
            "random weights": Learner(
                config=Classifier(backbone="minilm", dropout=0.0),
                learning_rate=2e-3,
                rates={r"^encoder\.": 0.25},
                scratch=True,
                batch_size=32,
            ),
        },
    ),
}
QUICK = {"pneumonia": (10, 40), "banking77": (77, 154)}  # sizes
HELDOUT = 1000  # rows of banking77: an interval of ± .03


def rows_of(name: str, quick: bool) -> tuple[list[Demonstration], list[Demonstration]]:
    """Rows to learn from, and held-out ones."""
    if name == "pneumonia":
        learn, held = (list(read_examples(f"known:pneumonia-mnist@{part}").rows) for part in ("train", "validation"))
    else:
        learn, held = split(list(read_examples("known:banking77").rows), heldout=0.2, seed=0)
        held = held[:HELDOUT]
    return (learn, held[:60]) if quick else (learn, held)


def train(learner: Learner, rows: Sequence[Demonstration], seed: int, labels: Sequence[str]) -> ClassifierPolicy:
    """A policy that learnt from the rows alone."""
    config = replace(learner.config, labels=tuple(labels))
    policy = ClassifierPolicy.make(config, rows, seed=seed)
    if learner.scratch:
        forget(policy, rows, seed)
    batch = min(learner.batch_size, len(rows))
    epochs = -(-learner.steps * batch // len(rows))
    steps = Examples(policy, rows, batch_size=batch, epochs=epochs, seed=seed)
    settings = FitConfig(steps=learner.steps, learning_rate=learner.learning_rate, rates=dict(learner.rates), warmup=5)
    fit(policy, steps, supervised(), settings)
    return policy


@torch.no_grad()
def forget(policy: ClassifierPolicy, rows: Sequence[Demonstration], seed: int) -> None:
    """Draws the encoder's weights anew, so that nothing is left of what it learnt elsewhere.

    A convolution is drawn for its number of inputs, and its normalisation takes its statistics from the training rows,
    layer by layer (Mishkin & Matas 2015, arXiv:1511.06422): without that the network would not learn at all, and to
    beat it would mean nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in policy.network["encoder"].modules():
            if isinstance(module, Convolution):
                nn.init.kaiming_normal_(module.weight, mode="fan_in")
                module.scale.fill_(1.0), module.shift.zero_()
                module.register_forward_pre_hook(_measured)
            elif isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=SPREAD)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0), module.bias.zero_()
    policy.probabilities([row.inputs for row in rows[:KNOWN_ROWS]])  # one pass, in which each layer is measured
    for module in policy.network["encoder"].modules():
        module._forward_pre_hooks.clear()


def _measured(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    """Gives a convolution the mean and the variance of what it makes of these inputs."""
    module.mean.zero_(), module.variance.fill_(1.0)
    module._forward_pre_hooks.clear()
    found = module(*inputs)
    module.mean.copy_(found.mean((0, 2, 3))), module.variance.copy_(found.var((0, 2, 3)).clamp_min(1e-6))


def curve_of(name: str, out: Path, seeds: Sequence[int], quick: bool, steps: int | None) -> LearningCurve:
    """One field's curve; results so far stand in `out`."""
    task = FIELDS[name]
    rows, heldout = rows_of(name, quick)
    labels = sorted({row.output for row in rows})

    def contestant(title: str, learner: Learner) -> Contestant:
        def learn(part: Sequence[Demonstration], seed: int) -> dict[str, float]:
            policy = train(learner, part, seed, labels)
            best = policy.probabilities([row.inputs for row in heldout]).argmax(1).tolist()
            return {
                row.id: float(policy.labels.names[found] == row.output)
                for row, found in zip(heldout, best, strict=True)
            }

        return Contestant(title, learn, {"learner": repr(learner), "heldout": len(heldout)})

    learners = {title: replace(one, steps=steps or one.steps) for title, one in task.learners.items()}
    started = time.monotonic()
    return learning_curve(
        [contestant(title, learner) for title, learner in learners.items()],
        rows,
        QUICK[name] if quick else task.sizes,
        seeds=seeds,
        label_of=lambda row: str(row.output),
        path=out / f"{name}-results.json",
        progress=lambda done, total: print(
            f"{name}: {done} of {total} trained, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True
        ),
    )


def failures(curves: Mapping[str, LearningCurve]) -> list[str]:
    """What was promised and does not hold."""
    told = []
    for name, curve in curves.items():
        first = curve.comparisons[0]
        fewest = min(first.differences)
        gap = first.differences[fewest]
        if not gap.low > 0:
            told.append(
                f"{name}: with {fewest} labels {first.first} is not ahead of {first.second} beyond chance ({gap})."
            )
    return told


def write(out: Path, curves: Mapping[str, LearningCurve], missed: Sequence[str], seconds: float) -> Path:
    """summary.json, and the page."""
    told = {name: curve.to_json() for name, curve in curves.items()}
    summary = {"curves": told, "missed": list(missed), "seconds": round(seconds, 1)}
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    parts = []
    for name, curve in curves.items():
        head = ("labels", *curve.points, *(f"seconds, {title}" for title in curve.seconds))
        sizes = sorted(next(iter(curve.points.values())))
        rows = [
            (
                f"{size:,}",
                *(str(by[size]) for by in curve.points.values()),
                *(f"{by[size]:.1f}" for by in curve.seconds.values()),
            )
            for size in sizes
        ]
        parts.append(Part(FIELDS[name].title, [learning_section(curve.to_json()), table(head, rows)]))
    parts.append(Part("What not to trust", [paragraph(caution) for caution in CAUTIONS]))
    verdict = ("reject", " ".join(missed)) if missed else ("promote", PROMISE)
    lead = "Pre-trained networks against the same networks from random weights, on nested subsets of the labels."
    return write_document(out / "report.html", "How many labels it takes", parts, lead=lead, verdict=verdict)


PROMISE = "With the fewest labels what was learnt elsewhere is ahead by a 95 % interval."
CAUTIONS = (
    "Every training has a fixed, small number of steps, so that the whole runs in minutes; with many labels all "
    "contestants would gain from more.",
    "The X-rays’ validation rows are easier than the data set’s test rows, and they have 28 × 28 pixels: not for "
    "clinical use.",
    "Intervals are for one size at a time. Where nothing tells two contestants apart they need not be equal: the "
    "interval of the difference says how far apart they could be.",
)


def main() -> int:
    """Exit status 1 if a promise failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/learning-curve"), help="folder of results and report")
    parser.add_argument("--field", choices=FIELDS, action="append", help="one of the fields; both by default")
    parser.add_argument("--seeds", type=int, default=3, help="how many, two or more")
    parser.add_argument("--steps", type=int, default=None, help="of each training")
    parser.add_argument("--quick", action="store_true", help="two sizes and 60 held-out rows, to see that it runs")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    started, curves = time.monotonic(), {}
    for name in asked.field or FIELDS:
        curves[name] = curve_of(name, asked.out, range(asked.seeds), asked.quick, asked.steps)
        print(f"\n{FIELDS[name].title}")
        show_learning_curve(curves[name])
    missed = failures(curves)
    page = write(asked.out, curves, missed, time.monotonic() - started)
    print(f"\n{page}")
    for sentence in missed:
        print(f"promise missed: {sentence}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
