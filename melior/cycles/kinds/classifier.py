"""classifiers in a cycle: a row is one decision, and held-out labels judge it"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from melior.cycles.kinds.base import Counts, Pace
from melior.cycles.likelihood import PREFERRED, preferred, row_key
from melior.cycles.models import Found
from melior.cycles.recipe import Recipe
from melior.cycles.rows import Rows
from melior.data.formats import fingerprint
from melior.data.formats.rows import Reading
from melior.durable import write_file
from melior.errors import ConfigError, DataError
from melior.evaluation.classification import Classification, classification
from melior.evaluation.evaluate import REWARD, Evaluation
from melior.evaluation.judging import CORRECT
from melior.policies.classifier import ClassifierPolicy
from melior.policies.kinds import kind_of
from melior.statistics import bootstrap_mean
from melior.types import Demonstration, Preference, Rated, Record, Sampling, Task

ACCURACY = "accuracy"  # what evaluations call it, in the place of a grader's name
# Networks from random weights take Adam's usual rate (arXiv:1412.6980); encoders that know something already a
# twentieth of it (arXiv:1810.04805, appendix A.3).
FRESH = Pace(what="fresh networks", sft=1e-3, limits=(1e-4, 1e-2), rft=3e-4, dpo=1e-3)
TRAINED = Pace(what="pre-trained encoders", sft=5e-5, limits=(5e-6, 1e-3), rft=1e-5, dpo=1e-5)


class Classifiers:
    """What a cycle must know of classifiers."""

    judges: Mapping[str, str] = {"demonstrations": ACCURACY, "preferences": PREFERRED}

    def load(self, recipe: Recipe, found: Found, rows: Rows) -> ClassifierPolicy:
        """The classifier of a folder, or one made for the training rows: it learns columns and scales of no others.

        Raises:
            ConfigError: if the folder holds another kind of policy, or the rows fewer than two labels.
        """
        if found.path:
            held = kind_of(found.path)
            if held != ClassifierPolicy.kind:
                raise ConfigError(f"{found.path} holds a {held} policy; write model.kind: {held}")
            return ClassifierPolicy.load(found.path)
        config = recipe.classifier
        if not config.labels:  # names of labels are known to everybody; only what is counted must not be held out
            every = (rows.train, rows.validation, rows.heldout)
            names = {name for side in every for row in side for name in labels_of(row)}
            config = replace(config, labels=tuple(sorted(names)))
        return ClassifierPolicy.make(config, rows.train, seed=recipe.seed)

    def pace(self, policy: ClassifierPolicy) -> Pace:
        """What knows something already learns more slowly."""
        return TRAINED if policy.inputs.pretrained else FRESH

    def check(self, policy: ClassifierPolicy, tasks: Sequence[Task], sampling: Sampling) -> None:
        """Nothing, if every input can be read.

        Raises:
            DataError: naming the first that cannot.
        """
        policy.inputs.encode([task.inputs for task in tasks])

    def reading(self, policy: ClassifierPolicy, reading: Reading) -> Reading:
        """With every column of a table read as the same in all files: a few rows may hold nothing but numbers."""
        return replace(reading, columns={**policy.columns, **reading.columns})

    def counts(self, policy: ClassifierPolicy, rows: Rows, recipe: Recipe, steps: Any) -> Counts:
        """One decision per row and label."""
        if recipe.way.samples:
            most = recipe.rollouts.n * min(recipe.section.prompts, len(rows.train)) * policy.labels.width
            return Counts(decisions=most)
        dropped = getattr(steps, "dropped", 0)
        return Counts(dropped_rows=dropped, decisions=int(steps.batch.mask.sum()))

    def lengths(self, policy: ClassifierPolicy, rows: Rows, steps: Any) -> Mapping[str, Sequence[float]]:
        """None: every row is one decision per label."""
        return {}

    def head_bytes(self, policy: ClassifierPolicy) -> int:
        """Nothing worth counting."""
        return 0

    def measure(self, policy: ClassifierPolicy, rows: Sequence[Any], of: str = "demonstrations") -> Evaluation:
        """Accuracy on held-out rows whose labels are known; log-probs of the truth beside it, for guards.

        Of preferences: whether it moved towards what was preferred.

        Raises:
            DataError: if no row has a label.
        """
        if of == "preferences":
            return preferred(policy, rows)
        started = time.monotonic()
        keys = [row_key(row) for row in rows]
        made = judged(policy, rows, keys=keys)
        values = made.values()
        values[REWARD] = values[CORRECT]
        clusters = {key: row.group for key, row in zip(keys, rows, strict=True) if row.group}
        bounds = made.bounds()
        bounds[REWARD] = bounds[CORRECT]
        return Evaluation(
            sampling=Sampling(temperature=0.0, max_tokens=1),
            grader=ACCURACY,
            items=made.items,
            fingerprint=fingerprint(rows),
            values=values,
            bounds=bounds,
            clusters=clusters,
            reward=bootstrap_mean(values[REWARD], bounds=bounds[REWARD], clusters=clusters),
            graded=len(rows),
            tokens=len(rows) * policy.labels.width,
            seconds=time.monotonic() - started,
        )

    def tell(self, policy: ClassifierPolicy, rows: Rows, recipe: Recipe, folder: Path) -> None:
        """Everything there is to say about its decisions on held-out rows, as classification.json."""
        if not all(truth_of(row) for row in rows.heldout):
            return
        made = judged(policy, rows.heldout, recipe.data.audit, costs=costs_of(recipe.evaluation_grader))
        write_file(folder / "classification.json", json.dumps(made.to_json(), indent=1))


def judged(
    policy: ClassifierPolicy,
    rows: Sequence[Any],
    audit: Sequence[str] = (),
    keys: Sequence[str] | None = None,
    costs: Mapping[str, Mapping[str, float]] | None = None,
) -> Classification:
    """A classifier on rows whose labels are known, told apart by the values of the audited columns.

    Raises:
        DataError: if a row has no label, or labels that the classifier does not know stand in all of them.
    """
    truth = [truth_of(row) for row in rows]
    missing = sum(not found for found in truth)
    if missing or not rows:
        raise DataError(f"{missing} of {len(rows)} held-out rows have no label to judge by; add it, or give a grader")
    several = policy.labels.several
    # Labels that only held-out rows have are never decided: they are wrong, not unreadable.
    strange = sorted({name for found in truth for name in found} - set(policy.labels.names))
    names = (*policy.labels.names, *strange)
    chances = policy.probabilities([row.inputs for row in rows]).double()
    padded = chances.new_zeros(len(rows), len(names))
    padded[:, : chances.shape[1]] = chances
    clusters = [row.group or row_key(row) for row in rows] if any(row.group for row in rows) else None
    return classification(
        names,
        truth if several else [found[0] for found in truth],
        padded.tolist(),
        several=several,
        costs=costs,
        groups={name: [_value(row, name) for row in rows] for name in audit},
        items=keys if keys is not None else [row_key(row) for row in rows],
        clusters=clusters,
    )


def costs_of(spec: Any) -> Mapping[str, Mapping[str, float]] | None:
    """The cost matrix of a grader's setting, if that is what it is."""
    if isinstance(spec, Mapping) and spec.get("type") == "cost_matrix":
        return dict(spec["costs"])
    return None


def truth_of(row: Any) -> tuple[str, ...]:
    """The labels that are right for a row; () where nobody said."""
    if isinstance(row, Demonstration):
        output = row.output
    elif isinstance(row, Task):
        output = row.item.get("completion")
    else:
        return ()
    if output is None:
        return ()
    return (output,) if isinstance(output, str) else tuple(output)


def labels_of(row: Any) -> Iterator[str]:
    """The labels a row names, right or not."""
    yield from truth_of(row)
    given: list[Any] = []
    if isinstance(row, Preference):
        given = [row.chosen, row.rejected]
    elif isinstance(row, Rated | Record):
        given = [row.output]
    for output in given:
        yield from (output,) if isinstance(output, str) else output


def _value(row: Any, name: str) -> Any:
    """The value of an audited column, whether or not the policy reads it."""
    if name in row.item:
        return row.item[name]
    return row.inputs.get(name) if isinstance(row.inputs, Mapping) else None
