"""models of any kind on rows that somebody names: graded, compared with labels, or weighed on a log"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from melior.cycles.kinds import Kind, kind_named, load_model
from melior.cycles.kinds.classifier import costs_of, judged, truth_of
from melior.cycles.ledger import record_evaluation
from melior.cycles.lesson import noticing
from melior.cycles.measures import LOGGED, logged_scores, open_pool
from melior.cycles.models import Found, find_model
from melior.cycles.recipe import recipe_of
from melior.cycles.rows import read_tasks, task_of
from melior.cycles.sections import GraderSpec
from melior.data.formats import read_examples
from melior.data.formats.rows import Reading
from melior.errors import ConfigError, MeliorError
from melior.evaluation.classification import Classification
from melior.evaluation.evaluate import Evaluation, evaluate
from melior.evaluation.logged import evaluate_logged
from melior.rewards.workers import GraderPool
from melior.store import Store
from melior.types import Sampling

Told = Callable[[str, int, int], None]  # what is going on, how much is done, of how much
GENERATED = "reasoning_gym:"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What models are evaluated on; None is what suits the kind of policy."""

    data: str  # a source of rows, or reasoning_gym:data_set
    grader: GraderSpec | None = None
    items: int | None = None  # the first so many rows
    n: int | None = None
    max_tokens: int = 128
    temperature: float | None = None
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)  # of a reasoning-gym data set
    reading: Reading = field(
        default_factory=Reading
    )  # what the rows do not say; a version knows it from its own training

    @property
    def spec(self) -> GraderSpec | None:
        """The grader, or a generated data set's own verifier."""
        if self.grader is None and self.data.startswith(GENERATED):
            return {"type": "reasoning_gym", "dataset": self.data.removeprefix(GENERATED)}
        return self.grader

    def sampling(self, kind: str) -> Sampling:
        """As such a policy is served: language models by chance, all others at their best."""
        chance = kind == "language"
        temperature = self.temperature if self.temperature is not None else float(chance)
        n = self.n if self.n is not None else (2 if temperature else 1)
        if temperature == 0 and n > 1:
            raise ConfigError(f"--temperature 0 has one output per row, and --n {n} asks for more")
        return Sampling(n=n, max_tokens=self.max_tokens, temperature=temperature, seed=self.seed)


@dataclass(frozen=True)
class Measured:
    """What one model came to."""

    evaluation: Evaluation
    classification: Classification | None = None  # of a classifier, where the rows have labels
    passed_over: Mapping[str, int] = field(default_factory=dict)  # what could not be read of the rows, how often


def evaluate_models(models: Sequence[str], asked: Asked, store: Store, told: Told) -> list[Measured]:
    """One per model, on the same rows with the same grader; those of versions go into the store.

    Raises:
        MeliorError: for whatever is wrong with models, rows or grader.
    """
    found = [find_model(model, store) for model in models]
    asked = replace(asked, reading=known_reading(found, asked.reading, store))
    spec = asked.spec
    results = []
    with open_pool(spec, store=store) if spec is not None else nullcontext() as pool:
        for model, one in zip(models, found, strict=True):
            told(f"loading {model}", 0, 1)
            policy = load_model(one.path)

            def progress(done: int, total: int, model: str = model) -> None:
                told(f"evaluating {model}", done, total)

            results.append(_measured(policy, asked, pool, progress))
            if one.version is not None:
                record_evaluation(store, results[-1].evaluation, version_id=one.version.id)
    return results


def known_reading(found: Sequence[Found], asked: Reading, store: Store) -> Reading:
    """How the rows are read: as the first version's own rows were, but for what was asked."""
    reading = replace(asked, least_rows=1)  # these rows are measured, not learnt from
    for one in found:
        if one.version is not None and one.version.run_id:
            try:
                data = recipe_of(dict(store.run(one.version.run_id).config)).data
            except MeliorError:  # of a release with other settings
                continue
            own = data.reading
            return replace(own, least_rows=1, label=asked.label or own.label, audit=asked.audit or own.audit)
    return reading


def _measured(policy: Any, asked: Asked, pool: GraderPool | None, progress: Callable[[int, int], None]) -> Measured:
    kind = kind_named(policy.kind)
    if asked.data.startswith(GENERATED):
        return Measured(_graded(policy, kind, _tasks(asked), asked, pool, progress))
    rows = read_examples(asked.data, reading=kind.reading(policy, asked.reading))
    some = rows.rows[: asked.items]
    if policy.kind != "language":
        tasks = [task_of(row) for row in some]
        _, passed_over = noticing(policy, lambda: kind.check(policy, tasks, asked.sampling(policy.kind)))
        return replace(_of_rows(policy, kind, rows.kind, some, asked, pool, progress), passed_over=passed_over)
    return _of_rows(policy, kind, rows.kind, some, asked, pool, progress)


def _of_rows(
    policy: Any,
    kind: Kind,
    found: str,
    some: list[Any],
    asked: Asked,
    pool: GraderPool | None,
    progress: Callable[[int, int], None],
) -> Measured:
    if found == "logged":
        scores = pool.grade(some) if pool is not None else logged_scores(some)
        name = pool.name if pool is not None else LOGGED
        return Measured(evaluate_logged(policy, some, scores, sampling=asked.sampling(policy.kind), grader=name))
    labelled = policy.kind == "classifier" and all(truth_of(row) for row in some)
    made = judged(policy, some, asked.reading.audit, costs=costs_of(asked.spec)) if labelled else None
    if pool is None and policy.kind != "language" and found in kind.judges:
        return Measured(kind.measure(policy, some, found), made)
    if pool is None:
        raise ConfigError(f"nobody grades the answers to {asked.data}; give --grader")
    return Measured(_graded(policy, kind, [task_of(row) for row in some], asked, pool, progress), made)


def _tasks(asked: Asked) -> list[Any]:
    return read_tasks(asked.data, items=asked.items, seed=asked.seed, config=asked.config)


def _graded(
    policy: Any,
    kind: Kind,
    tasks: list[Any],
    asked: Asked,
    pool: GraderPool | None,
    progress: Callable[[int, int], None],
) -> Evaluation:
    assert pool is not None  # a generated data set brings its own
    sampling = asked.sampling(policy.kind)
    kind.check(policy, tasks, sampling)
    greedy = sampling.temperature > 0
    return evaluate(policy, tasks, pool, sampling, greedy=greedy, progress=progress, grader=pool.name)
