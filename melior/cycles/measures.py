"""held-out rows: a grader's reward, or the likelihood of demonstrations"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from melior.cycles.kinds import kind_named
from melior.cycles.methods import WAYS
from melior.cycles.models import with_judges
from melior.cycles.recipe import Recipe
from melior.cycles.rows import Rows
from melior.cycles.sections import GraderSpec, Grading
from melior.durable import write_file
from melior.errors import ConfigError, DataError
from melior.evaluation.evaluate import GREEDY, Evaluation, Progress, evaluate
from melior.evaluation.logged import evaluate_log, evaluate_logged
from melior.rewards.graders import load_grader
from melior.rewards.workers import GraderPool
from melior.store import Store
from melior.trainers.supervised import HeldoutLoss
from melior.types import Record, Score

LOGGED = "reward"  # the column of a log, in the place of a grader's name


class Graded(Protocol):
    """A grader in force: a pool of processes, or a simulated shop."""

    @property
    def name(self) -> str: ...
    def grade(self, records: Sequence[Record]) -> list[Score]: ...


class Measures:
    """Everything that grades in one run. Close it, or use it in a `with` statement: graders are processes."""

    def __init__(self, recipe: Recipe, rows: Rows, store: Store | None = None) -> None:
        """Raises GraderError if a grader cannot be loaded; judges of the registry are found in `store`.

        Raises:
            ConfigError: if nobody could tell how good the policy is on the held-out rows.
        """
        self.recipe, self.rows, self.store = recipe, rows, store
        self.kind = kind_named(recipe.kind)
        self.latest: Evaluation | None = None  # made while training, and not taken up yet
        self._stack = ExitStack()
        pools: dict[str, GraderPool] = {}
        learns = any(WAYS[method].samples or WAYS[method].graded for method in recipe.methods)
        self.reward: Graded | None = self._pool(recipe.reward_grader if learns else None, pools) or rows.world
        self.heldout: Graded | None = self._pool(recipe.evaluation_grader, pools) or rows.world
        if self.heldout is None and rows.heldout_kind not in (*self.kind.judges, "logged"):
            raise ConfigError(
                f"{len(rows.heldout)} held-out {rows.heldout_kind} say nothing of other outputs than their own; write "
                "grader:, or give a file of demonstrations as data.heldout"
            )

    def _pool(self, spec: GraderSpec | None, pools: dict[str, GraderPool]) -> GraderPool | None:
        if spec is None:
            return None
        key = json.dumps(spec, sort_keys=True)
        if key not in pools:
            pools[key] = self._stack.enter_context(open_pool(spec, self.recipe.grading, self.store))
        return pools[key]

    def __enter__(self) -> Measures:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def name(self) -> str:
        """What evaluations of held-out rows are made by."""
        if self.rows.heldout_kind == "logged":
            return self.reward.name if self.reward is not None else LOGGED
        if self.heldout is not None:
            return self.heldout.name
        return self.kind.judges[self.rows.heldout_kind]

    def evaluation(self, policy: Any, progress: Progress | None = None) -> Evaluation:
        """The policy on every held-out row, as it will be served."""
        rows, how = self.rows, self.recipe.evaluation
        if rows.heldout_kind == "logged":
            scores, drops = self.scores(rows.heldout), self.recipe.off_policy.incomplete
            return evaluate_logged(policy, rows.heldout, scores, sampling=how, incomplete=drops, grader=self.name)
        if self.heldout is None:
            return self.kind.measure(policy, rows.heldout, rows.heldout_kind)
        chance = how.temperature > 0
        return evaluate(
            policy, rows.tasks, self.heldout, how, greedy=chance, progress=progress, grader=self.heldout.name
        )

    def baseline(self, policy: Any, progress: Progress | None = None) -> Evaluation:
        """What a trained policy is compared with: what it was, or, made from a log alone, the log's own policy."""
        rows, how = self.rows, self.recipe.evaluation
        if rows.heldout_kind != "logged" or self.recipe.model.path is not None:
            return self.evaluation(policy, progress)
        scores, drops = self.scores(rows.heldout), self.recipe.off_policy.incomplete
        return evaluate_log(rows.heldout, scores, sampling=how, incomplete=drops, grader=self.name)

    def __call__(self, trainable: Any) -> Mapping[str, float]:
        """The same in a few numbers, for `fit` while it trains."""
        shown = self.rows.heldout_kind == "demonstrations"
        loss = HeldoutLoss(trainable, self.rows.heldout)(trainable) if shown else {}
        return {**loss, **self.graded(trainable)}

    def graded(self, trainable: Any) -> dict[str, float]:
        """Held-out rewards, where more than the likelihood of demonstrations judges."""
        if self.heldout is None and self.rows.heldout_kind == "demonstrations" and self.recipe.model.kind == "language":
            return {}
        measured = self.latest = self.evaluation(trainable)
        greedy = {"heldout_greedy": measured.greedy.estimate} if measured.greedy else {}
        return {"heldout_reward": measured.reward.estimate, **greedy}

    def scores(self, records: Sequence[Record]) -> list[Score]:
        """What logged outputs earned: by the grader, or as the log says.

        Raises:
            DataError: if there is no grader and a record has no reward.
        """
        return self.reward.grade(records) if self.reward is not None else logged_scores(records)


def logged_scores(records: Sequence[Record]) -> list[Score]:
    """What the log says that outputs earned.

    Raises:
        DataError: if a record has no reward.
    """
    missing = sum("reward" not in record.item for record in records)
    if missing:
        raise DataError(
            f"{missing} of {len(records)} logged rows have no reward; write a column reward, or a grader that gives "
            "events their points: {type: events, points: …}"
        )
    return [Score(value=float(record.item["reward"]), name=LOGGED) for record in records]


def open_pool(spec: GraderSpec, grading: Grading | None = None, store: Store | None = None) -> GraderPool:
    """A grader in processes of its own; its judges may be versions of the store's registry."""
    grading = grading or Grading()
    spec = with_judges(spec, store) if store is not None else spec
    return GraderPool(load_grader(spec), processes=grading.processes, timeout_s=grading.timeout_s)


def kept(path: Path, measure: Callable[[], Evaluation]) -> Evaluation:
    """The evaluation in a file, measured and written first if there is none."""
    if not path.is_file():
        write_file(path, json.dumps(measure().to_json(), indent=1, ensure_ascii=False))
    return read_evaluation(path)


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in a file.

    Raises:
        DataError: if it is not one.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not an evaluation written by melior ({error}); evaluate again") from error
    if not isinstance(fields, dict):
        raise DataError(f"{path} is not an evaluation written by melior; evaluate again")
    return Evaluation.from_json(fields)


def headline(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation in the few numbers that people ask for."""
    return {
        "reward": evaluation.reward.to_json(),
        GREEDY: evaluation.greedy.to_json() if evaluation.greedy else None,
        "grader": evaluation.grader,
        "items": len(evaluation.items),
        "missing": len(evaluation.missing),
        "pass_at": {str(k): share for k, share in evaluation.pass_at.items()},
        "tokens": evaluation.tokens,
        "seconds": evaluation.seconds,
    }
