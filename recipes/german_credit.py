"""german credit: a classifier tuned to what a wrong decision costs, against logistic regression on the same ten folds

    python recipes/german_credit.py --out runs/german-credit

A bad risk called good costs 5, a good one called bad 1. Everything is chosen inside the training rows of each outer
fold: inner folds, cut twice, give ten policies (SFT, then RFT with the cost matrix as reward), whose predictions for
rows that they did not learn from choose the threshold; the ten together then decide the outer fold's rows. Logistic
regression has inner folds and the same rule. What is compared is the cost of every row, paired.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melior.data.formats import read_examples
from melior.data.splits import folds
from melior.evaluation.classification import Classification, classification
from melior.metrics import cheapest_threshold, fair_threshold
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.policies.tables import Table
from melior.reports.classification import classification_section
from melior.reports.document import Part, paragraph, write_document
from melior.reports.plots import table
from melior.rewards.workers import GraderPool
from melior.statistics import Interval, items_needed, mean_interval
from melior.trainers.loop import FitConfig, fit
from melior.trainers.reinforcement import Rollouts, reinforcement
from melior.trainers.supervised import Examples, supervised
from melior.types import Demonstration, Sampling, Task

Chances = NDArray[np.float64]  # of being bad, one per row

LABELS = ("good", "bad")
COSTS = {"bad": {"good": 5.0}, "good": {"bad": 1.0}}  # true label → decided label → cost
MATRIX = np.array([[0.0, 1.0], [5.0, 0.0]])  # the same, as LABELS
PUBLISHED = 0.55  # mean cost of logistic regression
FEMALE = ("A92", "A95")  # of personal_status_and_sex
YOUNG = 25  # years up to which an applicant is young, as studies of fairness cut this data (Kamiran & Calders 2009)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained. Chosen on thousands of rows of two other data sets (docs/experiments.md), never on this one."""

    outer: int = 10
    inner: int = 5  # folds
    repeats: int = 2  # of the inner folds, cut differently: their policies decide together
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    reward_steps: int = 40
    reward_rate: float = 3e-3
    beta: float = 0.3  # weight of KL(policy ‖ SFT)
    draws: int = 200  # resamples of the rows whose cheapest thresholds are averaged
    seed: int = 0


# ---------------------------------------------------------------------- melior's classifier


def after_sft(rows: Sequence[Demonstration], settings: Settings) -> ClassifierPolicy:
    """A new policy that imitates the rows' labels."""
    config = Classifier(labels=LABELS, table=Table(bins=8))
    policy = ClassifierPolicy.make(config, rows, seed=settings.seed)
    steps = Examples(policy, rows, batch_size=settings.batch_size, epochs=settings.epochs, seed=settings.seed)
    fit(
        policy,
        steps,
        supervised(),
        FitConfig(learning_rate=settings.learning_rate, weight_decay=settings.weight_decay),
    )
    return policy


def after_rft(policy: ClassifierPolicy, rows: Sequence[Demonstration], settings: Settings) -> ClassifierPolicy:
    """The policy trained further with minus the cost of its decisions as reward; itself is the reference."""
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder) / "sft")
        tuned = ClassifierPolicy.load(Path(folder) / "sft")
    tasks = [Task(inputs=row.inputs, item={"label": row.output}) for row in rows]
    tuned.freeze({"encoder": 0})  # the head alone: a thousand rows are soon learnt by heart
    config = FitConfig(steps=settings.reward_steps, learning_rate=settings.reward_rate)
    with GraderPool({"type": "cost_matrix", "costs": COSTS}) as grader:
        steps = Rollouts(tuned, tasks, grader, Sampling(n=4), prompts=settings.batch_size, seed=settings.seed)
        fit(tuned, steps, reinforcement(beta=settings.beta), config)
    return tuned


def chances(policy: ClassifierPolicy, rows: Sequence[Demonstration]) -> Chances:
    """What the policy gives for "bad"."""
    return policy.probabilities([row.inputs for row in rows])[:, LABELS.index("bad")].double().cpu().numpy()


def classifiers(
    rows: Sequence[Demonstration], unseen: Sequence[Demonstration], settings: Settings
) -> dict[str, tuple[Chances, Chances]]:
    """By stage: chances of the rows from policies that did not learn from them, and of unseen rows from them all."""
    place = {row.id: number for number, row in enumerate(rows)}
    found = {stage: (np.zeros(len(rows)), np.zeros(len(unseen))) for stage in ("SFT", "SFT, then RFT")}
    for repeat in range(settings.repeats):
        for number, (learnt, held) in enumerate(folds(rows, settings.inner, seed=settings.seed + repeat)):
            chosen = replace(settings, seed=settings.seed + repeat * settings.inner + number)
            sft = after_sft(learnt, chosen)
            for (inside, outside), policy in zip(found.values(), (sft, after_rft(sft, learnt, chosen)), strict=True):
                inside[[place[row.id] for row in held]] += chances(policy, held) / settings.repeats
                outside += chances(policy, unseen) / (settings.inner * settings.repeats)
    return found


# ---------------------------------------------------------------------- what it is compared with


def logistic(
    rows: Sequence[Demonstration], unseen: Sequence[Demonstration], settings: Settings
) -> tuple[Chances, Chances]:
    """The same two from scikit-learn's logistic regression, one column per category, numbers standardised."""
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    def cells(some: Sequence[Demonstration]) -> NDArray[Any]:
        return np.array([list(row.inputs.values()) for row in some], dtype=object)

    texts = [number for number, cell in enumerate(rows[0].inputs.values()) if isinstance(cell, str)]
    numbers = [number for number in range(len(rows[0].inputs)) if number not in texts]

    def fitted(learnt: Sequence[Demonstration]) -> Any:
        columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), texts), (StandardScaler(), numbers))
        return make_pipeline(columns, LogisticRegression(max_iter=5000)).fit(cells(learnt), truth_of(learnt))

    place = {row.id: number for number, row in enumerate(rows)}
    inside = np.zeros(len(rows))
    for learnt, held in folds(rows, settings.inner, seed=settings.seed):
        inside[[place[row.id] for row in held]] = fitted(learnt).predict_proba(cells(held))[:, 1]
    return inside, fitted(rows).predict_proba(cells(unseen))[:, 1]


# ---------------------------------------------------------------------- decisions and what they cost


def threshold(found: Chances, bad: NDArray[np.bool_], settings: Settings) -> float:
    """The cheapest threshold on rows that were not learnt from, averaged over resamples of them: it varies less."""
    chance = np.random.default_rng(settings.seed)
    drawn = (chance.integers(len(bad), size=len(bad)) for _ in range(settings.draws))
    thresholds = [cheapest_threshold(found[rows], bad[rows], MATRIX) for rows in drawn]
    return float(np.median(thresholds))


@dataclass(frozen=True)
class Decided:
    """One method's chances and decisions for every row, each by what never saw the row."""

    chances: Chances
    bad: NDArray[np.bool_]

    def costs(self, truth: NDArray[np.bool_]) -> Chances:
        """What each row's decision cost."""
        return MATRIX[truth.astype(int), self.bad.astype(int)]


def cross_validated(rows: Sequence[Demonstration], settings: Settings) -> dict[str, Decided]:
    """Every method's decisions on the same outer folds."""
    place = {row.id: number for number, row in enumerate(rows)}
    found: dict[str, Decided] = {}
    for number, (learnt, unseen) in enumerate(folds(rows, settings.outer, seed=settings.seed), start=1):
        start = time.monotonic()
        bad = truth_of(learnt)
        told = {"logistic regression": logistic(learnt, unseen, settings), **classifiers(learnt, unseen, settings)}
        constant = np.full(len(unseen), bad.mean())
        decided = {name: (outside, threshold(inside, bad, settings)) for name, (inside, outside) in told.items()}
        decided |= {
            "logistic regression, threshold 1/6": (told["logistic regression"][1], fair_threshold(MATRIX)),
            "the majority's label": (constant, 0.5),
            "the cheaper label for all": (constant, fair_threshold(MATRIX)),
        }
        for name, (outside, line) in decided.items():
            whole = found.setdefault(name, Decided(np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)))
            places = [place[row.id] for row in unseen]
            whole.chances[places], whole.bad[places] = outside, outside >= line
        print(f"fold {number}/{settings.outer}: {time.monotonic() - start:.0f} s", flush=True)
    return found


def truth_of(rows: Sequence[Demonstration]) -> NDArray[np.bool_]:
    return np.array([row.output == "bad" for row in rows])


# ---------------------------------------------------------------------- what is told


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the recipe measured, and whether its claim holds."""

    costs: Mapping[str, Interval]
    gains: Mapping[str, Interval]  # each baseline's cost minus the tuned classifier's, paired by row
    rows_needed: int  # to see the gain over logistic regression with a power of .8, if it is what was measured
    tuned: Classification
    seconds: float

    @property
    def met(self) -> bool:
        """Whether the tuned classifier is cheaper than majority and logistic regression, beyond chance."""
        return all(gain.low > 0 for gain in self.gains.values())

    @property
    def sentence(self) -> str:
        told = "; ".join(f"saves {gain} against {name}" for name, gain in self.gains.items())
        if self.met:
            return f"Met: per applicant, SFT and RFT {told} (95 % paired intervals)."
        short = f"about {self.rows_needed:,} rows would be needed to tell" if self.rows_needed else "it gains nothing"
        return f"Not met: per applicant, SFT and RFT {told} (95 % paired intervals); {short}."


def outcome(rows: Sequence[Demonstration], found: Mapping[str, Decided], seconds: float) -> Outcome:
    """The figures of all methods on all rows."""
    truth = truth_of(rows)
    costs = {name: each.costs(truth) for name, each in found.items()}
    tuned = found["SFT, then RFT"]
    saved = {
        name: costs[name] - costs["SFT, then RFT"]
        for name in ("the majority's label", "the cheaper label for all", "logistic regression")
    }
    mean = float(saved["logistic regression"].mean())
    sexes = ["female" if row.inputs["personal_status_and_sex"] in FEMALE else "male" for row in rows]
    ages = [f"up to {YOUNG}" if row.inputs["age_in_years"] <= YOUNG else f"over {YOUNG}" for row in rows]
    return Outcome(
        costs={name: mean_interval(each, bounds=(0, 5)) for name, each in costs.items()},
        gains={name: mean_interval(each, bounds=(-5, 5)) for name, each in saved.items()},
        rows_needed=items_needed(saved["logistic regression"], mean) if mean > 0 else 0,
        tuned=classification(
            LABELS,
            [row.output for row in rows],
            np.stack([1 - tuned.chances, tuned.chances], axis=1),
            outputs=[LABELS[int(bad)] for bad in tuned.bad],
            costs=COSTS,
            groups={"sex": sexes, "age": ages},
            items=[row.id for row in rows],
        ),
        seconds=seconds,
    )


def told(result: Outcome) -> dict[str, Any]:
    """The figures as JSON."""
    return {
        "met": result.met,
        "sentence": result.sentence,
        "costs": {name: cost.to_json() for name, cost in result.costs.items()},
        "gains": {name: gain.to_json() for name, gain in result.gains.items()},
        "rows_needed": result.rows_needed,
        "seconds": round(result.seconds),
    }


def write_page(folder: Path, result: Outcome) -> Path:
    """A page for people, with measures by sex and age."""
    costs = [(name, str(cost)) for name, cost in sorted(result.costs.items(), key=lambda item: item[1].estimate)]
    gains = [(name, str(gain)) for name, gain in result.gains.items()]
    return write_document(
        folder / "report.html",
        "German credit",
        [
            Part("What a decision costs", [table(("method", "mean cost of a row"), costs)]),
            Part("What SFT and RFT save", [paragraph(result.sentence), table(("against", "saved per row"), gains)]),
            Part("The tuned classifier", [classification_section(result.tuned.to_json())]),
        ],
        lead="1,000 applicants, ten folds; a bad risk called good costs 5, a good one called bad 1.",
        verdict=("met" if result.met else "not met", result.sentence.partition(": ")[2]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/german-credit"), help="folder for summary and page")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few folds and steps: whether it runs, not how good it is")
    given = parser.parse_args()
    quick = {"outer": 2, "inner": 2, "repeats": 1, "epochs": 2, "reward_steps": 3} if given.quick else {}
    settings = Settings(seed=given.seed, **quick)
    start = time.monotonic()
    rows = list(read_examples("known:german-credit").rows)
    result = outcome(rows, cross_validated(rows, settings), time.monotonic() - start)
    given.out.mkdir(parents=True, exist_ok=True)
    summary = {**told(result), "settings": asdict(settings), "tuned": result.tuned.to_json()}
    (given.out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    for name, cost in sorted(result.costs.items(), key=lambda item: item[1].estimate):
        print(f"{name:36s} mean cost {cost}")
    for name, measure in result.tuned.measures.items():
        print(f"{name:36s} {measure}")
    for attribute in result.tuned.groups:
        print(attribute.sentence)
    print(result.sentence)
    print(f"Logistic regression is published at {PUBLISHED}. Page: {write_page(given.out, result)}")
    if not result.met and not given.quick:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
