"""a trained reward model as a grader: in training from rewards, best-of-n and evaluation

{"type": "learned", "model": "models/helpful"}                            one head
{"type": "learned", "model": "models/hs", "head": {"helpfulness": 1, "safety": 2}}     a sum of several
{"type": "learned", "model": "models/ensemble", "pessimism": 1.0}         the members' mean less their deviation
{"type": "learned", "model": "models/good", "probability": true}          the share of people who would say yes
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from melior.errors import GraderError, MeliorError
from melior.rewards.base import failed, nearest
from melior.types import Demonstration, Record, Score

KEYS = ("head", "pessimism", "probability")
DISAGREEMENT = "disagreement"  # the part that says how far the members of an ensemble are apart


class Rewards(Protocol):
    """A reward model, or an ensemble of them."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the heads."""
        ...

    def member_rewards(self, examples: Sequence[Any]) -> Any:  # [M, N, H]
        """What each member says of each output under each head; an array or tensor."""
        ...


@dataclass(frozen=True, kw_only=True)
class LearnedGrader:
    """What a reward model says of an output. Its parts are the heads, and how far an ensemble's members disagree."""

    name: str = "learned"
    model: str | Rewards
    head: str | Mapping[str, float] | None = None  # one, or weights of a sum; None where there is only one
    pessimism: float = 0.0  # standard deviations over the members that are taken off
    probability: bool = False  # of yes: the log-odds' sigmoid

    @property
    def spec(self) -> Mapping[str, Any] | None:
        """JSON that rebuilds the grader; None for a model that stands in no folder."""
        if not isinstance(self.model, str):
            return None
        told: dict[str, Any] = {"type": "learned", "name": self.name, "model": self.model}
        chosen = {"head": self.head, "pessimism": self.pessimism, "probability": self.probability}
        return {**told, **{key: value for key, value in chosen.items() if value}}

    def load(self) -> None:
        """Loads the model, and finds the heads in it."""
        assert self.weights

    @cached_property
    def rewards(self) -> Rewards:
        """The model, loaded once."""
        if not isinstance(self.model, str):
            return self.model
        from melior.rewards.local import reward_model

        return reward_model(self.model, self.name)

    @cached_property
    def weights(self) -> Mapping[str, float]:
        """Head → its weight in the sum.

        Raises:
            GraderError: for a head that the model has not, or none chosen of several.
        """
        names = self.rewards.names
        if self.head is None and len(names) > 1:
            raise GraderError(
                f"{self.name} has {len(names)} heads, {', '.join(names)}; choose with head, or weigh them"
            )
        chosen = self.head if isinstance(self.head, Mapping) else {self.head or names[0]: 1.0}
        for name in chosen:
            if name not in names:
                raise GraderError(f"{self.name} has no head {name!r}{nearest(name, names)}; it has {', '.join(names)}")
        return chosen

    def grade(self, record: Record) -> Score:
        """The score of one output."""
        (score,) = self.grade_many([record])
        return score

    def grade_many(self, records: Sequence[Record]) -> list[Score]:
        """One score per record, in order; an output that cannot be read fails alone."""
        weights = self.weights
        # The text is read anew: ids that another tokenizer made would mean other words here.
        examples = [Demonstration(record.inputs, record.output, item=record.item) for record in records]
        try:
            return self._scores(examples, weights)
        except MeliorError:
            return [self._alone(example, weights) for example in examples]

    def _alone(self, example: Demonstration, weights: Mapping[str, float]) -> Score:
        try:
            (score,) = self._scores([example], weights)
        except MeliorError as error:
            return failed(self.name, str(error), kind="model_grader_parse_error")
        return score

    def _scores(self, examples: Sequence[Demonstration], weights: Mapping[str, float]) -> list[Score]:
        told = self.rewards.member_rewards(examples).tolist()  # [M][N][H]
        places = {name: place for place, name in enumerate(self.rewards.names)}
        return [
            self._score([{name: member[row][place] for name, place in places.items()} for member in told], weights)
            for row in range(len(examples))
        ]

    def _score(self, members: Sequence[Mapping[str, float]], weights: Mapping[str, float]) -> Score:
        """One output's score, of what each member says under each head."""
        if not all(math.isfinite(value) for member in members for value in member.values()):
            return failed(self.name, "nothing of the output fits into the reward model's context")
        if self.probability:
            members = [{name: _sigmoid(value) for name, value in member.items()} for member in members]
        sums = [math.fsum(weight * member[name] for name, weight in weights.items()) for member in members]
        mean = math.fsum(sums) / len(sums)
        spread = math.sqrt(math.fsum((each - mean) ** 2 for each in sums) / len(sums))
        parts = {name: math.fsum(member[name] for member in members) / len(members) for name in members[0]}
        parts = parts if len(parts) > 1 else {}
        if len(members) > 1:
            parts = {**parts, DISAGREEMENT: spread}
        return Score(value=mean - self.pessimism * spread, name=self.name, parts=parts)


def learned_grader(spec: Mapping[str, Any], name: str | None) -> LearnedGrader:
    """The grader of a setting; "model" is a folder, or a reward model.

    Raises:
        GraderError: if a key's value is none it can have.
    """
    model, head, pessimism = spec["model"], spec.get("head"), spec.get("pessimism", 0.0)
    if not model or isinstance(model, int | float | list | Mapping):
        raise GraderError(f"grader learned needs the folder of a reward model as 'model', got {model!r:.60}")
    if isinstance(pessimism, bool) or not isinstance(pessimism, int | float) or not 0 <= pessimism < math.inf:
        raise GraderError(f"grader learned needs a number of 0 or more as 'pessimism', got {pessimism!r}")
    if not isinstance(spec.get("probability", False), bool):
        raise GraderError(f"grader learned needs true or false as 'probability', got {spec['probability']!r}")
    weighed = isinstance(head, Mapping) and head and all(_is_number(weight) for weight in head.values())
    if not (head is None or weighed or (isinstance(head, str) and head)):
        raise GraderError(f"grader learned needs a head's name, or a number for each name, as 'head', got {head!r:.60}")
    grader = LearnedGrader(model=model, head=head, pessimism=float(pessimism))
    return replace(grader, name=name or "learned", probability=spec.get("probability", False))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
