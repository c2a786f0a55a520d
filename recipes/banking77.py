"""banking77: naming what a customer wants, by fine-tuning a small encoder or a small language model

    python recipes/banking77.py minilm --out runs/banking77-minilm        # about 20 minutes on two cores
    python recipes/banking77.py smollm2 --out runs/banking77-smollm2      # about 35 minutes on two cores

10,003 messages to a bank, 77 intents. A fifth of the messages is held out and looked at once, at the end; the other
rows train, for a number of epochs fixed beforehand. SmolLM2 writes the intent as words, and is asked for the
most probable of the 77: nothing else can come out. TF-IDF with logistic regression learns from the same rows and is
measured on the same messages, so that differences are paired.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melior.data.formats import read_examples
from melior.data.splits import split
from melior.evaluation.classification import Classification, classification
from melior.policies.adapters import LoRA
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.policies.language import LanguagePolicy
from melior.reports.classification import classification_section
from melior.reports.document import Part, paragraph, write_document
from melior.reports.plots import table
from melior.statistics import Interval, mean_interval
from melior.trainers.loop import FitConfig, Metrics, fit
from melior.trainers.supervised import Examples, supervised
from melior.types import Demonstration, Sampling

Rows = Sequence[Demonstration]
HELDOUT = 0.2
FLOORS = {"minilm": 0.93, "smollm2": 0.894}  # of accuracy: a probe of MiniLM, TF-IDF; as known before, on another split
SHOWN = 25  # steps between two lines of progress


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is trained; how these were found, and what else was tried, stands in docs/experiments.md."""

    epochs: int
    batch_size: int
    learning_rate: float
    warmup: int
    head: float = 1.0  # learning rate of a classifier's new head, as a factor
    weight_decay: float = 0.0
    rank: int = 16  # of the language model's LoRA
    smoothing: float = 0.0
    seed: int = 0


SETTINGS = {
    "minilm": Settings(
        epochs=6, batch_size=32, learning_rate=2e-4, warmup=50, head=10, weight_decay=0.01, smoothing=0.1
    ),
    "smollm2": Settings(epochs=2, batch_size=16, learning_rate=1e-3, warmup=20),
}


# ---------------------------------------------------------------------- the two models


@dataclass(frozen=True)
class Answers:
    """What a model decided for the held-out messages, and how probable it found each intent, where it was asked."""

    decided: list[str]
    probabilities: NDArray[np.float64] | None = None


def minilm(train: Rows, heldout: Rows, labels: Sequence[str], settings: Settings, folder: Path) -> Answers:
    """MiniLM with a new head, every weight trained, towards labels that are never quite certain."""
    config = Classifier(inputs="text", labels=tuple(labels))
    policy = ClassifierPolicy.make(config, train, seed=settings.seed)
    steps = Examples(policy, train, batch_size=settings.batch_size, epochs=settings.epochs, seed=settings.seed)
    fit(
        policy,
        steps,
        supervised(smoothing=settings.smoothing),
        FitConfig(
            folder=folder / "run",
            learning_rate=settings.learning_rate,
            warmup=settings.warmup,
            weight_decay=settings.weight_decay,
            rates={"^head": settings.head},
            checkpoint_every=steps.per_epoch,
        ),
        on_step=progress,
    )
    policy.save(folder / "model")
    chances = policy.probabilities([row.inputs for row in heldout]).double().numpy()
    return Answers([policy.labels.names[best] for best in chances.argmax(1)], chances)


def smollm2(train: Rows, heldout: Rows, labels: Sequence[str], settings: Settings, folder: Path) -> Answers:
    """SmolLM2-135M-Instruct with a LoRA; an intent is written with spaces, which is fewer tokens and more like text."""
    words = {label: label.replace("_", " ") for label in labels}
    policy = LanguagePolicy.load("smollm2-135m-instruct", adapter=LoRA(r=settings.rank, seed=settings.seed))
    rows = [replace(row, output=words[str(row.output)]) for row in train]
    steps = Examples(policy, rows, batch_size=settings.batch_size, epochs=settings.epochs, seed=settings.seed)
    config = FitConfig(folder=folder / "run", learning_rate=settings.learning_rate, warmup=settings.warmup)
    fit(policy, steps, supervised(), config, on_step=progress)
    policy.save(folder / "model")
    written = {words[label]: label for label in labels}
    best = Sampling(temperature=0, choices=tuple(written))
    return Answers([written[record.output] for record in policy.sample([row.inputs for row in heldout], best)])


Learner = Callable[[Rows, Rows, Sequence[str], Settings, Path], Answers]
LEARNERS: dict[str, Learner] = {"minilm": minilm, "smollm2": smollm2}


def progress(done: int, total: int, metrics: Metrics) -> None:
    if done % SHOWN == 0 or done == total:
        print(f"step {done}/{total}: loss {metrics['loss']:.3f}", flush=True)


# ---------------------------------------------------------------------- what it is compared with


def logistic(train: Rows, heldout: Rows) -> list[str]:
    """scikit-learn's logistic regression of TF-IDF weights of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=30, max_iter=1000)
    )
    model.fit([row.inputs for row in train], [row.output for row in train])
    return [str(label) for label in model.predict([row.inputs for row in heldout])]


# ---------------------------------------------------------------------- what is told


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the recipe measured, and whether its claim holds."""

    model: str
    found: Classification
    baseline: Interval  # accuracy of logistic regression
    gain: Interval  # over it, paired by message
    seconds: float

    @property
    def accuracy(self) -> Interval:
        return self.found.measures["accuracy"]

    @property
    def met(self) -> bool:
        return self.accuracy.estimate >= FLOORS[self.model]

    @property
    def sentence(self) -> str:
        return (
            f"{'Met' if self.met else 'Not met'}: {self.model} names the intent of {self.accuracy} of "
            f"{self.found.rows:,} held-out messages, where {FLOORS[self.model]} is asked; TF-IDF with logistic "
            f"regression {self.baseline}, paired difference {self.gain}."
        )

    def to_json(self) -> dict[str, Any]:
        """The figures of `summary.json`."""
        told: Mapping[str, Interval] = {"accuracy": self.accuracy, "baseline": self.baseline, "gain": self.gain}
        return {
            "model": self.model,
            "met": self.met,
            "sentence": self.sentence,
            **{name: interval.to_json() for name, interval in told.items()},
            "seconds": round(self.seconds),
            "classification": self.found.to_json(),
        }


def outcome(model: str, labels: Sequence[str], heldout: Rows, answers: Answers, others: list[str], s: float) -> Outcome:
    """The figures of the model and of logistic regression on the same messages."""
    truth = [str(row.output) for row in heldout]
    right, rival = (
        np.array([decided == true for decided, true in zip(found, truth, strict=True)], dtype=float)
        for found in (answers.decided, others)
    )
    return Outcome(
        model=model,
        found=classification(
            labels, truth, answers.probabilities, outputs=answers.decided, items=[row.id for row in heldout]
        ),
        baseline=mean_interval(rival, bounds=(0, 1)),
        gain=mean_interval(right - rival, bounds=(-1, 1)),
        seconds=s,
    )


def write_page(folder: Path, result: Outcome) -> Path:
    """A page for people, with the intents that are taken for one another."""
    compared = [(result.model, str(result.accuracy)), ("TF-IDF, logistic regression", str(result.baseline))]
    return write_document(
        folder / "report.html",
        f"banking77 with {result.model}",
        [
            Part("Right intents", [paragraph(result.sentence), table(("model", "accuracy"), compared)]),
            Part("Held-out messages", [classification_section(result.found.to_json())]),
        ],
        lead="Messages to a bank, 77 intents; a fifth of the messages was held out.",
        verdict=("promote" if result.met else "reject", result.sentence),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(LEARNERS))
    parser.add_argument("--out", type=Path, help="folder for model, summary and page; by default runs/banking77-MODEL")
    parser.add_argument("--seed", type=int, default=0, help="of weights and row order; the held-out fifth stays")
    parser.add_argument("--quick", action="store_true", help="few rows: whether it runs, not how good it is")
    given = parser.parse_args()
    folder = given.out or Path("runs") / f"banking77-{given.model}"
    settings = replace(SETTINGS[given.model], seed=given.seed)
    start = time.monotonic()
    rows = list(read_examples("known:banking77").rows)
    labels = sorted({str(row.output) for row in rows})
    train, heldout = split(rows, HELDOUT)
    if given.quick:
        train, heldout, settings = train[::50], heldout[::50], replace(settings, epochs=1)
    print(f"{len(train):,} messages to learn from, {len(heldout):,} held out, {len(labels)} intents", flush=True)
    answers = LEARNERS[given.model](train, heldout, labels, settings, folder)
    result = outcome(given.model, labels, heldout, answers, logistic(train, heldout), time.monotonic() - start)
    summary = {**result.to_json(), "settings": asdict(settings)}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    print(f"{result.sentence}\nPage: {write_page(folder, result)}")
    if not result.met and not given.quick:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
