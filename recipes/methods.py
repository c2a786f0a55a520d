"""methods: one small real task learnt by every method, each from the feedback that is its own

    python recipes/methods.py dpo                  # one method: some ten seconds of one core
    python recipes/methods.py all                  # every one, and the table that compares them
    python recipes/methods.py dpo --quick          # one seed and one rate: whether it runs

Which of four ketchups 300 households bought, by price, display, advertisement and what they bought last (catsup). All
methods go on from one small model, which imitated the purchases of 24 households, and get feedback on those of others:
the brand bought (sft), pairs (dpo, ipo, simpo, orpo), thumbs for one brand shown (kto, awr), a grader of their own
choices (rft, ppo, online_dpo, best_of, hybrid), or a teacher (distill, on_policy_distill). Two rates are tried on
households that do not judge; the best one trains from every seed, and is judged once, by households of its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from melior.data.formats import canonical
from melior.data.known_parts import data_folder
from melior.durable import write_file
from melior.errors import DataError
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.policies.tables import Table
from melior.policies.values import ActorCritic
from melior.statistics import ByItem, Interval, bootstrap_mean, pooled_difference
from melior.trainers.best_of import BestOf
from melior.trainers.distillation import candidate_distillation, on_policy_distillation
from melior.trainers.loop import FitConfig, fit
from melior.trainers.mixture import Anneal, Part, mixture
from melior.trainers.online import OnlinePairs
from melior.trainers.pairs import Pairs
from melior.trainers.ppo import ppo
from melior.trainers.preference import dpo, ipo, orpo, simpo
from melior.trainers.prospect import Judged, Kto
from melior.trainers.ratings import advantage_weighted
from melior.trainers.reinforcement import Rollouts, reinforcement
from melior.trainers.supervised import Examples, supervised
from melior.trainers.teachers import TeacherExamples, TeacherRollouts
from melior.types import Demonstration, Preference, Rated, Record, Sampling, Score, Task

SOURCE = "brand_choice/catsup.csv"  # Jain, Vilcassim & Chintagunta 1994; Ecdat's Catsup
BRANDS = ("heinz28", "heinz32", "heinz41", "hunts32")
START = "start"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every method shares, so that they can be compared."""

    seen: int = 24  # households whose purchases the common start imitated
    heldout: float = 0.3  # of all households: they judge
    validation: float = 0.15  # of all: they choose the rate
    cut: int = 0  # draws which household is which
    steps: int = 80
    rows: int = 64  # of a step: purchases, pairs, or outputs
    samples: int = 4  # of one purchase, where a method samples
    rates: tuple[float, ...] = (1e-3, 3e-3)
    seeds: int = 3
    beta: float = 0.05  # of what is held to the start by a KL term

    @property
    def prompts(self) -> int:
        return self.rows // self.samples


@dataclass(frozen=True)
class Purchases:
    """The rows by what they are for; no household stands in two of them."""

    start: Sequence[Demonstration]
    learnt: Sequence[Demonstration]
    validation: Sequence[Demonstration]
    heldout: Sequence[Demonstration]

    @classmethod
    def read(cls, settings: Settings) -> Purchases:
        """Raises DataError where the file is not."""
        rows = purchases(data_folder() / SOURCE)
        # by household alone: those of two often look the same, and `split` would keep all of them together
        houses = np.random.default_rng(settings.cut).permutation(sorted({row.group for row in rows}, key=int)).tolist()
        ends = [settings.seen, round(settings.heldout * len(houses)), round(settings.validation * len(houses))]
        parts = [houses[sum(ends[:place]) : sum(ends[: place + 1])] for place in range(3)]
        owners = {house: place for place, part in enumerate(parts) for house in part}
        start, heldout, validation, learnt = (
            [row for row in rows if owners.get(row.group, 3) == place] for place in range(4)
        )
        return cls(start, learnt, validation, heldout)


def purchases(path: Path) -> list[Demonstration]:
    """One row per purchase: the brand bought behind what could be seen and what the household had bought last."""
    if not path.is_file():
        raise DataError(f"{path} is not there; save Ecdat's data set Catsup as CSV, or set MELIOR_DATA")
    found, last = [], {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            house, choice = row.pop("id"), row.pop("choice")
            inputs = {**{name: float(value) for name, value in row.items()}, "last": last.get(house, "none")}
            # numbered, since two purchases may look the same and are two rows nonetheless
            found.append(Demonstration(inputs, choice, id=str(number), group=house))
            last[house] = choice
    return found


class Bought:
    """Grades a choice: 1 for the brand that was bought, else 0."""

    name = "bought"

    def grade(self, records: Sequence[Record]) -> list[Score]:
        return [Score(value=float(record.output == record.item["brand"]), name=self.name) for record in records]


# ---------------------------------------------------------------------- feedback, each method's own


@dataclass(frozen=True)
class Lesson:
    """What a method may learn from: a policy that begins, purchases and what can be told of them."""

    policy: Any
    rows: Sequence[Demonstration]
    start: Sequence[Demonstration]
    settings: Settings
    seed: int
    teacher: Callable[[], Any]
    drawn: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))  # the same for all methods

    @cached_property
    def tasks(self) -> list[Task]:
        return [Task(row.inputs, item={"brand": row.output}, id=row.id) for row in self.rows]

    @cached_property
    def pairs(self) -> list[Preference]:
        """The brand bought against one that was not, drawn."""
        others = [[brand for brand in BRANDS if brand != row.output] for row in self.rows]
        return [
            Preference(row.inputs, row.output, str(self.drawn.choice(rest)), id=row.id)
            for row, rest in zip(self.rows, others, strict=True)
        ]

    @cached_property
    def shown(self) -> list[Rated]:
        """One brand per purchase as the common start would propose it, and whether it was bought."""
        proposed = self.policy.sample([row.inputs for row in self.rows], Sampling(seed=0))
        return [
            Rated(row.inputs, record.output, float(record.output == row.output), id=row.id)
            for row, record in zip(self.rows, proposed, strict=True)
        ]

    @property
    def order(self) -> dict[str, Any]:
        """How given rows are gone over: the settings' steps end it, never the rows."""
        return {"batch_size": self.settings.rows, "epochs": self.settings.steps, "seed": self.seed}

    @property
    def sampled(self) -> dict[str, Any]:
        return {"prompts": self.settings.prompts, "seed": self.seed}

    @property
    def rollouts(self) -> Rollouts:
        return Rollouts(self.policy, self.tasks, Bought(), Sampling(n=self.settings.samples), **self.sampled)

    @property
    def reward(self) -> Any:
        return reinforcement(beta=self.settings.beta)


Taught = tuple[Any, Any]  # steps and objective


def _pairs(objective: Any) -> Callable[[Lesson], Taught]:
    return lambda lesson: (Pairs(lesson.policy, lesson.pairs, **lesson.order), objective)


def _hybrid(lesson: Lesson) -> Taught:
    known = Examples(lesson.policy, lesson.start, **lesson.order)
    half = Anneal(1.0, 0.0, steps=lesson.settings.steps // 2)
    return mixture(Part("rft", lesson.rollouts, lesson.reward), Part("sft", known, supervised(), weight=half))


def _fresh_pairs(lesson: Lesson) -> Taught:
    sampling = Sampling(n=lesson.settings.samples)
    return OnlinePairs(lesson.policy, lesson.tasks, Bought(), sampling, **lesson.sampled), dpo()


def _distill(lesson: Lesson) -> Taught:
    steps = TeacherExamples(lesson.policy, lesson.teacher(), lesson.rows, k=len(BRANDS), **lesson.order)
    return steps, candidate_distillation()


def _distill_own(lesson: Lesson) -> Taught:
    sampling = Sampling(n=lesson.settings.samples)
    steps = TeacherRollouts(lesson.policy, lesson.teacher(), lesson.tasks, sampling, **lesson.sampled)
    return steps, on_policy_distillation()


@dataclass(frozen=True)
class Method:
    """How one is taught, and what it is told of each purchase."""

    told: str
    taught: Callable[[Lesson], Taught]
    values: bool = False  # whether it needs a value function


METHODS: Mapping[str, Method] = {
    "sft": Method(
        "the brand bought", lambda lesson: (Examples(lesson.policy, lesson.rows, **lesson.order), supervised())
    ),
    "dpo": Method("bought against one other", _pairs(dpo())),
    "ipo": Method("bought against one other", _pairs(ipo())),
    "simpo": Method("bought against one other", _pairs(simpo())),
    "orpo": Method("bought against one other", _pairs(orpo())),
    "kto": Method(
        "thumbs for one brand shown", lambda lesson: (Judged(lesson.policy, lesson.shown, **lesson.order), Kto())
    ),
    "awr": Method(
        "thumbs for one brand shown",
        lambda lesson: (Examples(lesson.policy, advantage_weighted(lesson.shown), **lesson.order), supervised()),
    ),
    "rft": Method("right or wrong, of 4 own choices", lambda lesson: (lesson.rollouts, lesson.reward)),
    "ppo": Method(
        "right or wrong, of 4 own choices",
        lambda lesson: (lesson.rollouts, ppo(beta=lesson.settings.beta)),
        values=True,
    ),
    "online_dpo": Method("right or wrong, of 4 own choices", _fresh_pairs),
    "best_of": Method(
        "right or wrong, of 4 own choices", lambda lesson: (BestOf(lesson.rollouts, contrast=True), supervised())
    ),
    "hybrid": Method("right or wrong, and the start's rows", _hybrid),
    "distill": Method("a teacher's chances of all four", _distill),
    "on_policy_distill": Method("a teacher's chance of 4 own choices", _distill_own),
}


# ---------------------------------------------------------------------- training and judging


def imitated(rows: Sequence[Demonstration], *, steps: int, width: int, seed: int = 0) -> ClassifierPolicy:
    """A classifier that imitates purchases."""
    config = Classifier(labels=BRANDS, table=Table(width=width, blocks=1, bins=8, hidden=0.0, dropout=0.0))
    policy = ClassifierPolicy.make(config, rows, seed=seed)
    fit(
        policy,
        Examples(policy, rows, batch_size=64, epochs=steps, seed=seed),
        supervised(),
        FitConfig(steps=steps, learning_rate=1e-3, weight_decay=0.01),
    )
    return policy


@dataclass
class School:
    """The common start and the common teacher, each trained once."""

    data: Purchases
    settings: Settings
    folder: Path

    @cached_property
    def begun(self) -> Path:
        """Where the start is kept: all four brands and all columns are known to it, 24 households' choices are."""
        imitated(self.data.start, steps=40, width=32).save(self.folder / START)
        return self.folder / START

    @cached_property
    def teacher(self) -> ClassifierPolicy:
        """Wider, and it imitated every purchase that may be learnt from."""
        return imitated([*self.data.start, *self.data.learnt], steps=2 * self.settings.steps, width=128)

    def taught(self, method: Method, rate: float, seed: int) -> ClassifierPolicy:
        """The start, taught by a method."""
        policy = ClassifierPolicy.load(self.begun)
        learner: Any = ActorCritic.make(policy) if method.values else policy
        lesson = Lesson(learner, self.data.learnt, self.data.start, self.settings, seed, lambda: self.teacher)
        steps, objective = method.taught(lesson)
        fit(learner, steps, objective, FitConfig(steps=self.settings.steps, learning_rate=rate))
        return policy


def right(policy: ClassifierPolicy, rows: Sequence[Demonstration]) -> ByItem:
    """For each purchase whether the most probable brand was bought."""
    found = policy.probabilities([row.inputs for row in rows]).argmax(1).tolist()
    return {row.id: [float(BRANDS[place] == row.output)] for row, place in zip(rows, found, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a method reached: one run per seed on the same held-out purchases."""

    method: str
    rate: float
    validation: Mapping[str, float]  # rate → accuracy of the rows that choose
    runs: Sequence[ByItem]
    seconds: float  # of the core, for all of it

    @property
    def mean(self) -> ByItem:
        return {key: [value for run in self.runs for value in run[key]] for key in self.runs[0]}


def measured(name: str, school: School) -> Outcome:
    """Rates tried on validation households, then every seed judged once by the held-out ones."""
    begun, settings, data = time.process_time(), school.settings, school.data
    if name == START:
        runs = [right(ClassifierPolicy.load(school.begun), data.heldout)] * settings.seeds
        return Outcome(method=name, rate=0.0, validation={}, runs=runs, seconds=time.process_time() - begun)
    method = METHODS[name]
    tried = {
        rate: bootstrap_mean(right(school.taught(method, rate, seed=0), data.validation)).estimate
        for rate in settings.rates
    }
    best = max(tried, key=lambda rate: tried[rate])
    runs = [right(school.taught(method, best, seed), data.heldout) for seed in range(1, settings.seeds + 1)]
    told = {f"{rate:g}": value for rate, value in tried.items()}
    return Outcome(method=name, rate=best, validation=told, runs=runs, seconds=time.process_time() - begun)


def kept(name: str, school: School, folder: Path) -> Outcome:
    """The outcome of a run before, of the same settings; else a new one."""
    path, key = folder / f"{name}.json", canonical(asdict(school.settings))
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.pop("key", None) == key:
        return Outcome(**found)
    outcome = measured(name, school)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps({"key": key, **asdict(outcome)}).encode())
    print(f"{name}: {outcome.seconds:.0f} s, validation {outcome.validation}", flush=True)
    return outcome


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    method: str
    told: str
    rate: float
    accuracy: Interval
    gain: Interval  # over the start, paired by purchase, whole households resampled
    short: Interval | None  # of what sft reached, which was told the brand bought
    seconds: float


def compared(outcomes: Mapping[str, Outcome], data: Purchases) -> list[Row]:
    """Every method beside the start, and beside sft where that was run."""
    houses = {row.id: row.group for row in data.heldout}

    def apart(one: Outcome, other: Outcome) -> Interval:
        runs = list(zip(one.runs, other.runs, strict=True))
        return pooled_difference(runs, bounds=(0, 1), clusters=houses)

    return [
        Row(
            name,
            METHODS[name].told,
            found.rate,
            bootstrap_mean(found.mean, bounds=(0, 1), clusters=houses),
            apart(found, outcomes[START]),
            apart(found, outcomes["sft"]) if "sft" in outcomes and name != "sft" else None,
            found.seconds,
        )
        for name, found in outcomes.items()
        if name != START
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["all", *METHODS], help="what learns; all compares them")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"), help="folder of what each reached")
    parser.add_argument("--seeds", type=int, default=Settings.seeds)
    parser.add_argument("--quick", action="store_true", help="one seed, one rate, few steps: whether it runs")
    given = parser.parse_args()
    settings = Settings(seeds=given.seeds)
    if given.quick:
        settings = replace(settings, seeds=1, rates=(1e-3,), steps=4)
    data = Purchases.read(settings)
    names = list(METHODS) if given.method == "all" else [given.method]
    with tempfile.TemporaryDirectory() as folder:
        school = School(data, settings, Path(folder))
        outcomes = {name: kept(name, school, given.out) for name in [START, *names]}
    common = max(BRANDS, key=lambda brand: sum(row.output == brand for row in data.learnt))
    rate = np.mean([row.output == common for row in data.heldout])
    first = bootstrap_mean(outcomes[START].mean, bounds=(0, 1), clusters={row.id: row.group for row in data.heldout})
    again = np.mean([row.output == row.inputs["last"] for row in data.heldout])
    print(f"{len(data.heldout)} purchases of {settings.heldout:.0%} of the households")
    print(f"always {common}: {rate:.3f}; what was bought last: {again:.3f}")
    print(f"before any method: {first}\n" + LINE.format("method", "told of each purchase", "rate", *HEADS, "s"))
    for row in compared(outcomes, data):
        numbers = [str(each) for each in (row.accuracy, row.gain, row.short or "")]
        print(LINE.format(row.method, row.told, f"{row.rate:g}", *numbers, f"{row.seconds:.0f}"))


LINE = "{:18s} {:36s} {:>6s}  {:22s} {:26s} {:26s} {:>3s}"
HEADS = ("accuracy", "more than before", "more than sft")


if __name__ == "__main__":
    main()
