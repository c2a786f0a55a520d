"""default of credit card clients: as good as gradient boosting, then tuned to what a wrong decision costs

    python recipes/uci_default.py --out runs/uci-default

A fifth of 30,000 clients is held out. A table classifier learns from the others by SFT, stopped by a tenth of them,
and is compared with scikit-learn's gradient boosting on the same rows: the floor is its area under the curve minus
.005. Then RFT, with minus the cost of a decision as reward, is compared with SFT at its best threshold, client by
client, under two prices:

- flat: a default nobody foresaw costs 5, a needless alarm 1
- by stake: a needless alarm costs 1; an unforeseen default 5 on a line of mean size, and in proportion on others
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melior.data.formats import read_examples
from melior.data.splits import split
from melior.evaluation.classification import Classification, classification
from melior.metrics import auc
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.policies.columns import Columns
from melior.reports.classification import classification_section
from melior.reports.document import Part, paragraph, write_document
from melior.reports.plots import table
from melior.statistics import Interval, mean_interval, percentile_interval, resampled_weights
from melior.trainers.loop import FitConfig, fit
from melior.trainers.reinforcement import Rollouts, reinforcement
from melior.trainers.supervised import Examples, HeldoutLoss, supervised
from melior.types import Demonstration, Record, Sampling, Score, Task

Numbers = NDArray[np.float64]  # one per row
Flags = NDArray[np.bool_]

LABELS = ("paid", "default")
MISSED, ALARM = 5.0, 1.0  # what an unforeseen default and a needless alarm cost
LINE = "LIMIT_BAL"  # column of the credit line
MARGIN = 0.005  # of the area under the curve that may be missing to gradient boosting's
THRESHOLDS = 400  # that are tried, at as many quantiles of the chances


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained.

    Those of RFT were chosen on 2,400 clients of another split, about a fifth of whom are held out here
    (docs/experiments.md).
    """

    heldout: float = 0.2
    validation: float = 0.1  # of the others: when SFT stops, and every threshold
    epochs: int = 8
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    patience: int = 4  # half epochs without a lower loss of the validation rows
    reward_steps: int = 150
    reward_rate: float = 3e-4
    prompts: int = 256
    samples: int = 4
    beta: float = 0.3  # weight of KL(policy ‖ SFT)
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Prices:
    """What decisions cost; as a grader, minus that."""

    name: str
    missed: Callable[[Demonstration], float]  # of an unforeseen default
    rates: Mapping[str, float]  # of RFT, by pattern: 0 keeps a part as SFT left it

    def of(self, rows: Sequence[Demonstration], alarms: Flags) -> Numbers:
        """The cost of each row's decision."""
        missed = np.array([self.missed(row) for row in rows])
        return np.where(truth_of(rows), np.where(alarms, 0.0, missed), np.where(alarms, ALARM, 0.0))

    def grade(self, records: Sequence[Record]) -> list[Score]:
        """Minus the cost of each record's decision."""
        rows = [Demonstration(inputs=record.inputs, output=record.item["label"]) for record in records]
        costs = self.of(rows, np.array([record.output == "default" for record in records]))
        return [Score(value=-float(cost), name=self.name) for cost in costs]

    def threshold(self, rows: Sequence[Demonstration], found: Numbers) -> float:
        """The cheapest threshold for chances of these rows."""
        tried = np.unique(np.quantile(found, np.linspace(0, 1, THRESHOLDS)))
        return float(min(tried, key=lambda line: self.of(rows, found >= line).mean()))


def truth_of(rows: Sequence[Demonstration]) -> Flags:
    return np.array([row.output == "default" for row in rows])


@dataclass(frozen=True)
class Clients:
    """The rows, by what they are for."""

    learnt: Sequence[Demonstration]
    validation: Sequence[Demonstration]
    heldout: Sequence[Demonstration]

    @classmethod
    def read(cls, settings: Settings, rows: int | None = None) -> Clients:
        """All of them, or the first so many."""
        found = list(read_examples("known:uci-default").rows)[:rows]
        others, heldout = split(found, settings.heldout, seed=settings.seed)
        learnt, validation = split(others, settings.validation, seed=settings.seed)
        return cls(learnt, validation, heldout)


# ---------------------------------------------------------------------- training


def after_sft(clients: Clients, settings: Settings) -> ClassifierPolicy:
    """A policy that imitates the labels, at its lowest loss of validation rows."""
    policy = ClassifierPolicy.make(Classifier(labels=LABELS), clients.learnt, seed=settings.seed)
    steps = Examples(policy, clients.learnt, batch_size=settings.batch_size, epochs=settings.epochs, seed=settings.seed)
    config = FitConfig(
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        evaluate_every=max(1, steps.per_epoch // 2),
        best_metric="heldout_loss",
        best_is="min",
        patience=settings.patience,
    )
    fit(policy, steps, supervised(), config, evaluation=HeldoutLoss(policy, clients.validation))
    return policy


def after_rft(policy: ClassifierPolicy, clients: Clients, prices: Prices, settings: Settings) -> ClassifierPolicy:
    """The policy trained further by the prices; itself is the reference."""
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder) / "sft")
        tuned = ClassifierPolicy.load(Path(folder) / "sft")
    tuned.freeze(prices.rates)
    tasks = [Task(inputs=row.inputs, item={"label": row.output}) for row in clients.learnt]
    sampling = Sampling(n=settings.samples)
    steps = Rollouts(tuned, tasks, prices, sampling, prompts=settings.prompts, seed=settings.seed)
    config = FitConfig(steps=settings.reward_steps, learning_rate=settings.reward_rate)
    fit(tuned, steps, reinforcement(beta=settings.beta), config)
    return tuned


def chances(policy: ClassifierPolicy, rows: Sequence[Demonstration]) -> Numbers:
    """What the policy gives for "default"."""
    return policy.probabilities([row.inputs for row in rows])[:, LABELS.index("default")].double().cpu().numpy()


def boosted(clients: Clients) -> Numbers:
    """Chances of the held-out rows from gradient boosting, which stops early on a tenth of the other rows itself.

    Of scikit-learn's own learning rate and a slower one, the better on validation rows: the default is easily beaten.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows = [*clients.learnt, *clients.validation]
    columns = Columns.of([row.inputs for row in rows])

    def cells(some: Sequence[Demonstration]) -> NDArray[Any]:
        numbers, codes = columns.encode([row.inputs for row in some])
        return np.concatenate([numbers.numpy(), codes.numpy()], axis=1)

    named = [False] * len(columns.numeric) + [True] * len(columns.categorical)

    def fitted(rate: float, some: Sequence[Demonstration]) -> Any:
        model = HistGradientBoostingClassifier(
            learning_rate=rate, max_iter=400, early_stopping=True, categorical_features=named, random_state=0
        )
        return model.fit(cells(some), truth_of(some))

    def validated(rate: float) -> float:
        found = fitted(rate, clients.learnt).predict_proba(cells(clients.validation))[:, 1]
        return float(auc(found, truth_of(clients.validation)))

    best = max((0.1, 0.05), key=validated)
    return np.asarray(fitted(best, rows).predict_proba(cells(clients.heldout))[:, 1])


# ---------------------------------------------------------------------- comparisons


def area_gap(ours: Numbers, theirs: Numbers, truth: Flags, resamples: int) -> Interval:
    """Our area under the curve minus theirs, both on the same resampled rows."""
    draws = [
        auc(ours, truth, weights) - auc(theirs, truth, weights)
        for weights in resampled_weights(len(truth), resamples=resamples)
    ]
    estimate = float(auc(ours, truth) - auc(theirs, truth))
    return percentile_interval(estimate, np.concatenate(draws), len(truth), resamples, bounds=(-1, 1))


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Mean costs under one set of prices; each threshold is the cheapest on validation rows."""

    half: Interval  # SFT, the more probable label
    sft: Interval  # SFT at its best threshold
    rft_half: Interval  # RFT, the more probable label: the policy as it is served
    rft: Interval  # RFT, at its best threshold too
    informed: Interval  # SFT with the threshold that each row's prices imply, which needs right probabilities
    saved: Interval  # SFT at its best threshold minus RFT, paired by row
    saved_hindsight: Interval  # the same, where SFT's threshold is the cheapest on the held-out rows themselves


def saving(sft: ClassifierPolicy, rft: ClassifierPolicy, clients: Clients, prices: Prices) -> Saving:
    """What RFT saved on held-out rows."""
    rows = clients.heldout
    ours = {name: chances(policy, rows) for name, policy in (("sft", sft), ("rft", rft))}
    lines = {
        name: prices.threshold(clients.validation, chances(policy, clients.validation))
        for name, policy in (("sft", sft), ("rft", rft))
    }
    cost = {name: prices.of(rows, ours[name] >= lines[name]) for name in ours}
    missed = np.array([prices.missed(row) for row in rows])
    hindsight = prices.of(rows, ours["sft"] >= prices.threshold(rows, ours["sft"]))
    return Saving(
        half=mean_interval(prices.of(rows, ours["sft"] >= 0.5)),
        sft=mean_interval(cost["sft"]),
        rft_half=mean_interval(prices.of(rows, ours["rft"] >= 0.5)),
        rft=mean_interval(cost["rft"]),
        informed=mean_interval(prices.of(rows, ours["sft"] * missed >= (1 - ours["sft"]) * ALARM)),
        saved=mean_interval(cost["sft"] - cost["rft"]),
        saved_hindsight=mean_interval(hindsight - cost["rft"]),
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the recipe measured."""

    area: Interval
    gap: Interval  # to gradient boosting's area
    savings: Mapping[str, Saving]
    sft: Classification
    seconds: float

    @property
    def claims(self) -> dict[str, bool]:
        """Each claim, and whether it holds."""
        return {
            f"the area under the curve is at least gradient boosting's − {MARGIN}": self.gap.estimate >= -MARGIN,
            **{
                f"RFT costs less than SFT at its best threshold, prices {name}": each.saved.low > 0
                for name, each in self.savings.items()
            },
        }

    @property
    def sentences(self) -> list[str]:
        figures = [f"area {self.area}, gap {self.gap}", *(f"saved {each.saved}" for each in self.savings.values())]
        return [
            f"{'Met' if held else 'Not met'}: {claim} ({figure})."
            for (claim, held), figure in zip(self.claims.items(), figures, strict=True)
        ]


def measured(clients: Clients, settings: Settings) -> Outcome:
    """Everything, in order."""
    start = time.monotonic()
    sft = after_sft(clients, settings)
    print(f"SFT: {time.monotonic() - start:.0f} s", flush=True)
    mean_line = float(np.mean([row.inputs[LINE] for row in clients.learnt]))
    priced = (
        # Flat prices move the line between labels, which the head can; the encoder would learn rows by heart.
        Prices("flat", lambda row: MISSED, {"encoder": 0}),
        Prices("by stake", lambda row: MISSED * row.inputs[LINE] / mean_line, {}),
    )
    savings = {}
    for prices in priced:
        savings[prices.name] = saving(sft, after_rft(sft, clients, prices, settings), clients, prices)
        print(f"RFT, prices {prices.name}: {time.monotonic() - start:.0f} s", flush=True)
    rows, truth, ours = clients.heldout, truth_of(clients.heldout), chances(sft, clients.heldout)
    told = classification(
        LABELS,
        [row.output for row in rows],
        np.stack([1 - ours, ours], axis=1),
        costs={"default": {"paid": MISSED}, "paid": {"default": ALARM}},
        groups={"sex": ["male" if row.item["SEX"] == "1" else "female" for row in rows]},
    )
    gap = area_gap(ours, boosted(clients), truth, settings.resamples)
    return Outcome(area=told.measures["auc"], gap=gap, savings=savings, sft=told, seconds=time.monotonic() - start)


# ---------------------------------------------------------------------- what is told

COLUMNS = {
    "half": "SFT, the more probable label",
    "sft": "SFT at its best threshold",
    "informed": "SFT, each row's own threshold",
    "rft_half": "SFT, then RFT, the more probable label",
    "rft": "SFT, then RFT, at its best threshold",
    "saved": "saved by RFT",
    "saved_hindsight": "saved against SFT's best threshold in hindsight",
}


def write_page(folder: Path, result: Outcome) -> Path:
    """A page for people."""
    head = ("mean cost of a row", *(f"prices {name}" for name in result.savings))
    failed = [claim for claim, held in result.claims.items() if not held]
    body = [(told, *(str(getattr(each, name)) for each in result.savings.values())) for name, told in COLUMNS.items()]
    return write_document(
        folder / "report.html",
        "Default of credit card clients",
        [
            Part("Claims", [paragraph(sentence) for sentence in result.sentences]),
            Part("What decisions cost", [table(head, body)]),
            Part("After SFT", [classification_section(result.sft.to_json())]),
        ],
        lead=f"{result.sft.rows:,} held-out clients.",
        verdict=("met", "all claims hold.") if not failed else ("not met", f"{'; '.join(failed)}. The others hold."),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/uci-default"), help="folder for summary and page")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few rows and steps: whether it runs, not how good it is")
    given = parser.parse_args()
    quick = {"epochs": 1, "reward_steps": 3, "resamples": 100} if given.quick else {}
    settings = Settings(seed=given.seed, **quick)
    result = measured(Clients.read(settings, 2000 if given.quick else None), settings)
    given.out.mkdir(parents=True, exist_ok=True)
    summary = {
        "claims": result.claims,
        "area": result.area.to_json(),
        "gap": result.gap.to_json(),
        "savings": {
            name: {column: getattr(each, column).to_json() for column in COLUMNS}
            for name, each in result.savings.items()
        },
        "sft": result.sft.to_json(),
        "settings": asdict(settings),
        "seconds": round(result.seconds),
    }
    (given.out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    for name, each in result.savings.items():
        for column, told in COLUMNS.items():
            print(f"prices {name:9s} {told:50s} {getattr(each, column)}")
    print("\n".join(result.sentences))
    print(f"{result.seconds:.0f} s. Page: {write_page(given.out, result)}")
    if not all(result.claims.values()) and not given.quick:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
