"""hybrids: any weighted sum of objectives, on any mix of steps, in one run

    steps, objective = mixture(
        Part("rl", Rollouts(policy, tasks, grader, sampling), reinforcement()),
        Part("sft", Examples(policy, rows), supervised(), weight=Anneal(1.0, 0.0, steps=100)),
    )
    fit(policy, steps, objective, FitConfig(steps=100))

Parts that share a step share its forward passes; parts may take turns instead. A part's objective sees its own rows and
its own columns only, so whatever trains alone trains in a mixture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from melior.errors import ConfigError
from melior.policies.base import CANDIDATE_IDS, Batch, Scored, Want
from melior.policies.inputs import SEEDS
from melior.trainers.steps import Objective, Step, Steps, Term, digest

PART, WEIGHT = "part", "part_weight"  # columns [B]: the number of a row's part, and what its part weighs in this step
READ = (CANDIDATE_IDS, SEEDS)  # columns that policies read; -1 says that a row has none

Shape = Literal["linear", "cosine", "switch"]


@dataclass(frozen=True)
class Anneal:
    """A weight that goes from `start` to `end` within the first `steps` steps, and stays there.

    "switch" keeps `start` until then and changes at once.
    """

    start: float
    end: float
    steps: int
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        if self.steps < 1 or not all(math.isfinite(end) and end >= 0 for end in (self.start, self.end)):
            raise ConfigError(
                f"annealing needs steps ≥ 1 and finite weights ≥ 0, got {self.start} to {self.end} in {self.steps}"
            )
        if self.shape not in ("linear", "cosine", "switch"):
            raise ConfigError(f'a weight is annealed "linear", "cosine" or by a "switch", got {self.shape!r}')

    def __call__(self, index: int) -> float:
        """The weight at step `index`."""
        share = min(1.0, index / self.steps)
        if self.shape == "switch":
            share = math.floor(share)
        if self.shape == "cosine":
            share = 0.5 - 0.5 * math.cos(math.pi * share)
        return self.start + (self.end - self.start) * share


@dataclass(frozen=True)
class Part:
    """Steps and the objective that learns from them, with a weight and a place in the order of turns.

    A part has its turn at every `every`-th step, the first at `offset`; its own steps are counted by turns. While its
    weight is 0 it is left out, and costs nothing.
    """

    name: str
    steps: Steps
    objective: Objective
    weight: float | Anneal = 1.0
    every: int = 1
    offset: int = 0

    def __post_init__(self) -> None:
        if not self.name or set(self.name) & set("./"):
            raise ConfigError(f"a part's name is a word without '.' and '/', got {self.name!r}")
        if not (0 <= self.offset < self.every):
            raise ConfigError(
                f"part {self.name!r} needs every ≥ 1 and 0 ≤ offset < every, got {self.every} and {self.offset}"
            )
        if not isinstance(self.weight, Anneal) and not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ConfigError(f"part {self.name!r} needs a finite weight ≥ 0, got {self.weight}")

    def weighs(self, index: int) -> float:
        """What the part weighs at a step of the mixture; 0 where it is not its turn."""
        if index % self.every != self.offset:
            return 0.0
        return self.weight(index) if isinstance(self.weight, Anneal) else self.weight

    def step(self, index: int) -> Step:
        """The part's own step at a step of the mixture."""
        return self.steps(index // self.every)

    @property
    def total(self) -> int | None:
        """Steps of the mixture until the part has shown all it has."""
        own = self.steps.total
        return None if own is None else (own - 1) * self.every + self.offset + 1


@dataclass(frozen=True)
class MixedStep(Step):
    """The steps of several parts as one."""

    parts: Mapping[str, Step] = field(default_factory=dict)  # of the parts that have a turn
    weights: Mapping[str, float] = field(default_factory=dict)  # of all parts
    names: Sequence[str] = ()  # of all parts: a row's part is a place in this list

    @classmethod
    def of(cls, steps: Mapping[str, Step], weights: Mapping[str, float], names: Sequence[str]) -> MixedStep:
        """The given parts' rows in one batch; what they measured stands under "part.metric"."""
        batch = _joined([_marked(step.batch, name, names.index(name), weights[name]) for name, step in steps.items()])
        return cls(
            batch,
            {
                **{f"{name}.{told}": value for name, step in steps.items() for told, value in step.metrics.items()},
                **{f"{name}.weight": weights[name] for name in names},
                "decisions": float(batch.mask.sum()),
            },
            [{"part": name, **sample} for name, step in steps.items() for sample in step.samples],
            {f"{name}.{told}": each for name, step in steps.items() for told, each in step.histograms.items()},
            memory={f"{name}.{told}": value for name, step in steps.items() for told, value in step.memory.items()},
            parts=steps,
            weights=weights,
            names=names,
        )


class Mixture:
    """Steps that hold the rows of every part whose turn it is, each with its part and what that weighs.

    It never ends where a part never ends; else it ends with the longest part, and shorter ones go on with further
    epochs. Where one part's groups must stay whole, as pairs must, all do: their micro-batches cost what groups cost.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Raises ConfigError if names are no names of their own, or at some step no part would have a turn."""
        self.parts = list(parts)
        names = [part.name for part in self.parts]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"a mixture needs parts with names of their own, got {names}")
        settled = max((part.weight.steps for part in self.parts if isinstance(part.weight, Anneal)), default=0)
        period = math.lcm(*(part.every for part in self.parts))
        idle = next((i for i in range(settled + period) if not any(part.weighs(i) for part in self.parts)), None)
        if idle is not None and (self.total is None or idle < self.total):
            raise ConfigError(f"no part of the mixture has a weight at step {idle}; change every, offset or weights")

    @property
    def total(self) -> int | None:
        totals = [part.total for part in self.parts]
        known = [total for total in totals if total is not None]
        return max(known) if len(known) == len(totals) else None

    def __call__(self, index: int) -> Step:
        weights = {part.name: part.weighs(index) for part in self.parts}
        steps = {part.name: part.step(index) for part in self.parts if weights[part.name]}
        return MixedStep.of(steps, weights, [part.name for part in self.parts])

    def fingerprint(self) -> str:
        return digest("mixture", [_identity(part) for part in self.parts])


@dataclass(frozen=True)
class Mixed:
    """The weighted sum of the parts' losses, each normalised as it would be alone; terms are named "part.term".

    With `Rollouts` and `Reinforcement`, and `Examples` of what was learnt before and `Supervised`, this is PPO-ptx.

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 2.
    """

    objectives: dict[str, Any]  # part → its Objective, in the order of the mixture's parts

    @property
    def want(self) -> frozenset[Want]:
        return frozenset().union(*(objective.want for objective in self.objectives.values()))

    def prepare(self, step: Step, policy: Any) -> Step:
        """Each part prepared by its own objective.

        Raises:
            ConfigError: if the step is not one of a mixture.
        """
        if not isinstance(step, MixedStep):
            raise ConfigError("the objective of a mixture needs the steps of one; take both from mixture(…)")
        prepared = {}
        for name, part in step.parts.items():
            prefix = f"{name}."
            own = {key.removeprefix(prefix): value for key, value in step.memory.items() if key.startswith(prefix)}
            remembering = replace(part, memory=own)
            prepared[name] = self.objectives[name].prepare(remembering, policy) if len(part.batch) else remembering
        mixed = MixedStep.of(prepared, step.weights, step.names)
        return replace(mixed, memory={**step.memory, **mixed.memory})  # who has no turn forgets nothing

    def counts(self, batch: Batch) -> Mapping[str, float]:
        return {
            f"{name}.{term}": count
            for name, objective, rows in self._present(batch)
            for term, count in objective.counts(self._own(batch, name, rows)).items()
        }

    def active(self, batch: Batch) -> list[int]:
        found = [
            rows[row]
            for name, objective, rows in self._present(batch)
            for row in objective.active(self._own(batch, name, rows))
        ]
        return sorted(found)

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        terms = []
        for name, objective, rows in self._present(batch):
            own = self._own(batch, name, rows)
            weight = float(batch.columns[WEIGHT][rows[0]])
            terms += [
                replace(
                    term,
                    name=f"{name}.{term.name}",
                    weight=term.weight * weight,
                    histograms={f"{name}.{told}": each for told, each in term.histograms.items()},
                )
                for term in objective.loss(_scored(scored, rows, own), own)
            ]
        return terms

    def _present(self, batch: Batch) -> Iterator[tuple[str, Objective, list[int]]]:
        """Name, objective and rows of each part that has rows."""
        for number, (name, objective) in enumerate(self.objectives.items()):
            if rows := self._rows(batch, number):
                yield name, objective, rows

    def _rows(self, batch: Batch, number: int) -> list[int]:
        return (batch.columns[PART] == number).nonzero()[:, 0].tolist()

    def _own(self, batch: Batch, name: str, rows: list[int]) -> Batch:
        """The part's rows with the columns it brought; as wide as the batch, so that scores fit.

        Raises:
            ConfigError: if the part wants all candidates where another names its own.
        """
        index, prefix = torch.tensor(rows), f"{name}."
        columns = {
            column.removeprefix(prefix): values[index]
            for column, values in batch.columns.items()
            if column.startswith(prefix)
        }
        if Want.CANDIDATES in self.objectives[name].want and CANDIDATE_IDS in batch.columns.keys() - columns.keys():
            raise ConfigError(
                f"part {name!r} wants every candidate and another part of the step only some; let them take turns "
                "(every=2, and offset=1 for one of them)"
            )
        return Batch(
            inputs=[batch.inputs[row] for row in rows],
            outputs=[batch.outputs[row] for row in rows],
            mask=batch.mask[index],
            weights=batch.weights[index],
            groups=batch.groups[index],
            columns=columns,
            whole=batch.whole,
        )


def mixture(*parts: Part) -> tuple[Mixture, Mixed]:
    """Steps and objective of a hybrid of the given parts."""
    steps = Mixture(parts)
    return steps, Mixed({part.name: part.objective for part in parts})


def _identity(part: Part) -> list[Any]:
    """All that matters of a part; settings of two objectives may be equal, so their names count."""
    objective: Any = part.objective
    settings = asdict(objective) if is_dataclass(objective) and not isinstance(objective, type) else {}
    weight = asdict(part.weight) if isinstance(part.weight, Anneal) else part.weight
    name = type(objective).__name__
    return [part.name, part.steps.fingerprint(), name, settings, weight, part.every, part.offset]


def _marked(batch: Batch, name: str, number: int, weight: float) -> Batch:
    """The batch with its columns under its part's name, since two parts may mean different things by one word."""
    columns = {f"{name}.{column}": values for column, values in batch.columns.items()}
    read = {column: batch.columns[column] for column in READ if column in batch.columns}
    whose = {PART: torch.full((len(batch),), number), WEIGHT: torch.full((len(batch),), weight, dtype=torch.float64)}
    return replace(batch, columns={**columns, **read, **whose})


def _joined(batches: Sequence[Batch]) -> Batch:
    """Rows of all parts; what a policy would read of a row is -1 where its part has none."""
    for column in READ:
        known = [batch.columns[column] for batch in batches if column in batch.columns]
        if known:
            batches = [batch.with_columns(**{column: _filled(batch, column, known)}) for batch in batches]
    return Batch.join(batches)


def _filled(batch: Batch, column: str, known: Sequence[Tensor]) -> Tensor:
    """The column, or one of -1, with as many last places as the largest known one."""
    if known[0].dim() == 1:
        return batch.columns.get(column, known[0].new_full((len(batch),), -1))
    most = max(values.shape[2] for values in known)
    if column not in batch.columns:
        return known[0].new_full((*batch.mask.shape, most), -1)
    found = batch.columns[column]
    return pad(found, (0, most - found.shape[2]), value=-1)


def _scored(scored: Scored, rows: list[int], own: Batch) -> Scored:
    """What was scored of the given rows."""
    found = {each.name: getattr(scored, each.name) for each in fields(scored)}
    chosen: dict[str, Any] = {name: None if values is None else values[rows] for name, values in found.items()}
    if CANDIDATE_IDS in own.columns and chosen["candidates"] is not None:
        chosen["candidates"] = chosen["candidates"][..., : own.columns[CANDIDATE_IDS].shape[2]]
    return Scored(**chosen)
