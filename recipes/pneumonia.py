"""chest X-rays of children, normal or pneumonia: a network that learnt on ImageNet, fine-tuned on 4,708 pictures

    python recipes/pneumonia.py --out runs/pneumonia        # about 10 minutes on two cores

The data set's training rows train; a tenth of them chooses where to stop. Its validation rows, 524 pictures, are looked
at once, at the end: they come from the same hospital and are far easier than its test rows, on which a ResNet-18 has an
AUC of .944, so no figure here says how good a reader of X-rays this is. Lower layers learn at lower rates. Pictures are
shifted, turned and lit a little, and never mirrored: the heart has a side. Not for clinical use.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from melior.data.formats import read_examples
from melior.data.splits import split
from melior.evaluation.classification import Classification, classification
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.policies.freezing import factors_of
from melior.policies.images import Pictures
from melior.reports.classification import classification_section
from melior.reports.document import Part, paragraph, write_document
from melior.statistics import Interval
from melior.trainers.loop import FitConfig, Metrics, fit
from melior.trainers.supervised import Examples, HeldoutLoss, supervised
from melior.types import Demonstration

Rows = Sequence[Demonstration]
FLOOR = 0.98  # AUC on the validation rows
SHOWN = 10  # steps between two lines of progress


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the classifier is trained; how these were found stands in docs/experiments.md."""

    backbone: str = "efficientnet-lite0"
    size: int = 48  # pixels a side; the pictures have 28, and the network halves a side five times
    train: str = "all"  # or head, last-4
    layer_decay: float = 0.9  # each block's rate over that of the block above it
    epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 10
    stopping: float = 0.1  # share of the training rows that chooses where to stop
    seed: int = 0


def classifier(rows: Rows, settings: Settings) -> ClassifierPolicy:
    """The classifier as it begins."""
    pictures = Pictures(size=settings.size, shift=0.08, rotate=8.0, brightness=0.15)
    config = Classifier(inputs="image", backbone=settings.backbone, image=pictures)
    return ClassifierPolicy.make(config, rows, seed=settings.seed)


def train(policy: ClassifierPolicy, rows: Rows, settings: Settings, folder: Path) -> None:
    """Fine-tunes the classifier; the weights with the best loss on the rows set aside stay."""
    learnt, aside = split(rows, settings.stopping, seed=settings.seed)
    names = [name for name, _ in policy.candidates()]
    rates = policy.freeze(factors_of(names, train=settings.train, layer_decay=settings.layer_decay))
    steps = Examples(policy, learnt, batch_size=settings.batch_size, epochs=settings.epochs, seed=settings.seed)
    every = max(1, steps.per_epoch // 2)
    config = FitConfig(
        folder=folder / "run",
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        rates=rates,
        checkpoint_every=every,
        evaluate_every=every,
        best_metric="heldout_loss",
        best_is="min",
    )
    print(f"{policy.share}; {len(learnt):,} pictures learn, {len(aside):,} say when to stop", flush=True)
    fit(policy, steps, supervised(), config, evaluation=HeldoutLoss(policy, aside), on_step=progress)


def progress(done: int, total: int, metrics: Metrics) -> None:
    if done % SHOWN == 0 or done == total:
        print(f"step {done}/{total}: loss {metrics['loss']:.3f}", flush=True)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the recipe measured, and whether its claim holds."""

    found: Classification
    majority: float  # share of the more common label
    seconds: float

    @property
    def auc(self) -> Interval:
        return self.found.measures["auc"]

    @property
    def met(self) -> bool:
        return self.auc.estimate >= FLOOR

    @property
    def sentence(self) -> str:
        return (
            f"{'Met' if self.met else 'Not met'}: on {self.found.rows} validation pictures the AUC is {self.auc} "
            f"(floor {FLOOR}) and the accuracy {self.found.measures['accuracy']}; always naming the more common label "
            f"is right for {self.majority:.3f}."
        )

    def to_json(self) -> dict[str, Any]:
        """The figures of `summary.json`."""
        told = {"met": self.met, "sentence": self.sentence, "auc": self.auc.to_json(), "majority": self.majority}
        return {**told, "seconds": round(self.seconds), "classification": self.found.to_json()}


def measured(policy: ClassifierPolicy, rows: Rows, seconds: float) -> Outcome:
    """How well the classifier names held-out pictures."""
    truth = [str(row.output) for row in rows]
    chances = policy.probabilities([row.inputs for row in rows]).double().cpu().numpy()
    found = classification(policy.labels.names, truth, chances, positive="pneumonia", items=[row.id for row in rows])
    common = max(Counter(truth).values()) / len(truth)
    return Outcome(found=found, majority=common, seconds=seconds)


def write_page(folder: Path, result: Outcome) -> Path:
    """A page for people."""
    return write_document(
        folder / "report.html",
        "Chest X-rays: normal or pneumonia",
        [
            Part("Validation pictures", [paragraph(result.sentence), classification_section(result.found.to_json())]),
            Part("What not to trust", [paragraph(caution) for caution in CAUTIONS]),
        ],
        lead="EfficientNet-lite0 with ImageNet's weights, fine-tuned on 4,708 pictures of 28 × 28 pixels.",
        verdict=("promote" if result.met else "reject", result.sentence),
    )


CAUTIONS = (
    "These rows are the data set's validation rows. They are far easier than its test rows, which are not used here.",
    "All pictures are of children, from one hospital, at 28 × 28 pixels: not for clinical use.",
    "Sick and healthy children may differ in more than their lungs; a network takes whatever tells them apart.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pneumonia"), help="folder for model, summary and page")
    parser.add_argument("--backbone", default=Settings.backbone, help="efficientnet-lite0, or small")
    parser.add_argument("--train", default=Settings.train, help="which layers: all, head, last-4 …")
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and the rows that say when to stop")
    parser.add_argument("--quick", action="store_true", help="few pictures: whether it runs, not how good it is")
    given = parser.parse_args()
    settings = replace(Settings(), backbone=given.backbone, train=given.train, epochs=given.epochs, seed=given.seed)
    start = time.monotonic()
    rows, heldout = (list(read_examples(f"known:pneumonia-mnist@{part}").rows) for part in ("train", "validation"))
    if given.quick:
        rows, heldout = rows[::40], heldout[::10]
    policy = classifier(rows, settings)
    train(policy, rows, settings, given.out)
    policy.save(given.out / "model")
    result = measured(policy, heldout, time.monotonic() - start)
    summary = {**result.to_json(), "settings": asdict(settings)}
    (given.out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    print(f"{result.sentence}\nPage: {write_page(given.out, result)}")
    if not result.met and not given.quick:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
