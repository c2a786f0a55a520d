"""held-out rows: a grader's reward, or the likelihood of demonstrations"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from melior.cycles.kinds import kind_named
from melior.cycles.models import with_judges
from melior.cycles.recipe import Recipe
from melior.cycles.rows import Rows
from melior.cycles.sections import GraderSpec, Grading
from melior.durable import write_file
from melior.errors import DataError
from melior.evaluation.evaluate import GREEDY, Evaluation, Progress, evaluate
from melior.rewards.graders import load_grader
from melior.rewards.workers import GraderPool
from melior.store import Store
from melior.trainers.supervised import HeldoutLoss


class Measures:
    """Everything that grades in one run. Close it, or use it in a `with` statement: graders are processes."""

    def __init__(self, recipe: Recipe, rows: Rows, store: Store | None = None) -> None:
        """Raises GraderError if a grader cannot be loaded; judges of the registry are found in `store`."""
        self.recipe, self.rows, self.store = recipe, rows, store
        self.kind = kind_named(recipe.model.kind)
        self.latest: Evaluation | None = None  # made while training, and not taken up yet
        self._stack = ExitStack()
        pools: dict[str, GraderPool] = {}
        self.reward = self._pool(recipe.reward_grader if recipe.method == "rft" else None, pools)
        self.heldout = self._pool(recipe.evaluation_grader, pools)

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

    def evaluation(self, policy: Any, progress: Progress | None = None) -> Evaluation:
        """The policy on every held-out row."""
        if self.heldout is None:
            return self.kind.measure(policy, self.rows.heldout)
        grader = self.heldout.grader.name
        return evaluate(policy, self.rows.tasks, self.heldout, self.recipe.evaluation, progress=progress, grader=grader)

    def __call__(self, trainable: Any) -> Mapping[str, float]:
        """The same in a few numbers, for `fit` while it trains."""
        loss = HeldoutLoss(trainable, self.rows.heldout)(trainable) if self.recipe.method == "sft" else {}
        return {**loss, **self.graded(trainable)}

    def graded(self, trainable: Any) -> dict[str, float]:
        """Held-out rewards, where there is a grader."""
        if self.heldout is None:
            return {}
        measured = self.latest = self.evaluation(trainable)
        greedy = measured.greedy.estimate if measured.greedy else math.nan
        return {"heldout_reward": measured.reward.estimate, "heldout_greedy": greedy}


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
