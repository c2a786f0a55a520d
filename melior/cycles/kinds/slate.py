"""slate policies in a cycle: requests, catalogues, and what was learnt about items together"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from melior.cycles.kinds.base import Counts, Pace
from melior.cycles.kinds.learnt import tell_learnt
from melior.cycles.likelihood import JUDGES, measured
from melior.cycles.models import Found
from melior.cycles.recipe import Recipe
from melior.cycles.rows import Rows
from melior.data.catalogues import read_catalogue
from melior.data.formats.rows import Reading
from melior.errors import ConfigError
from melior.evaluation.evaluate import Evaluation
from melior.policies.kinds import kind_of
from melior.policies.slate import SlatePolicy
from melior.types import Item, Sampling, Task

SMALL = Pace(what="slate policies", sft=3e-3, limits=(1e-4, 2e-2), rft=1e-3, dpo=1e-3)  # docs/experiments.md


class Slates:
    """What a cycle must know of slate policies."""

    judges: Mapping[str, str] = JUDGES

    def load(self, recipe: Recipe, found: Found, rows: Rows) -> SlatePolicy:
        """The policy of a folder, or one made for the catalogue and the training requests.

        Raises:
            ConfigError: if the folder holds another kind of policy.
            DataError: if there are no items.
        """
        catalogue = self._catalogue(recipe, rows)
        if not found.path:
            return SlatePolicy.make(recipe.slate, catalogue, [row.inputs for row in rows.train], seed=recipe.seed)
        held = kind_of(found.path)
        if held != SlatePolicy.kind:
            raise ConfigError(f"{found.path} holds a {held} policy; write model.kind: {held}")
        policy = SlatePolicy.load(found.path)
        if catalogue:
            policy.restock(catalogue)
        return policy

    def _catalogue(self, recipe: Recipe, rows: Rows) -> Sequence[Item]:
        if rows.world is not None:
            return rows.world.catalogue
        return read_catalogue(recipe.data.catalogue) if recipe.data.catalogue else ()

    def pace(self, policy: SlatePolicy) -> Pace:
        """Small networks learn fast."""
        return SMALL

    def check(self, policy: SlatePolicy, tasks: Sequence[Task], sampling: Sampling) -> None:
        """Nothing, if every request has candidates that can be read.

        Raises:
            DataError: naming the first that has not.
        """
        policy.reader.ask([task.inputs for task in tasks])

    def reading(self, policy: SlatePolicy, reading: Reading) -> Reading:
        """The same: rows say of themselves what they are."""
        return reading

    def counts(self, policy: SlatePolicy, rows: Rows, recipe: Recipe, steps: Any) -> Counts:
        """One decision per position."""
        if recipe.way.samples:
            most = recipe.rollouts.n * min(recipe.section.prompts, len(rows.train)) * policy.config.positions
            return Counts(decisions=most)
        return Counts(dropped_rows=getattr(steps, "dropped", 0), decisions=int(steps.batch.mask.sum()))

    def lengths(self, policy: SlatePolicy, rows: Rows, steps: Any) -> Mapping[str, Sequence[float]]:
        """How long histories are."""
        return {"history": [len(row.inputs.history) for row in rows.train]}

    def head_bytes(self, policy: SlatePolicy) -> int:
        """Nothing worth counting."""
        return 0

    def measure(self, policy: SlatePolicy, rows: Sequence[Any], of: str = "demonstrations") -> Evaluation:
        """The likelihood of what was chosen, or whether it moved towards what was preferred."""
        return measured(policy, rows, of)

    def tell(self, policy: SlatePolicy, rows: Rows, recipe: Recipe, folder: Path) -> None:
        """What it learnt of items together and after one another, as slates.json."""
        tell_learnt(policy, [row.inputs for row in rows.heldout or rows.train], folder)
