"""a reward model without parameters: what each candidate earned on average, at each position"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from melior.data.formats import canonical
from melior.errors import ConfigError, DataError
from melior.rollouts.logged import usable
from melior.types import Record, Score

Names = Callable[[Record], Sequence[Hashable]]  # what stands behind each decision id of a record: labels, item ids
Key = tuple[int, Hashable]  # position, candidate
Sums = dict[Key, tuple[float, int]]


class MeanRewards:
    """Called with records, the reward expected of every candidate at every position, [N, T, K].

    A candidate's mean is mixed with that of its position, as if `prior` more rewards had been seen there. A record is
    told what the other folds earned, never its own fold; records of one group share a fold. It knows nothing of
    contexts: a better model makes doubly robust estimates sharper, not righter.
    """

    def __init__(
        self, records: Sequence[Record], scores: Sequence[Score], names: Names, *, folds: int = 5, prior: float = 10.0
    ) -> None:
        """Raises DataError if a usable record has no decision ids or a score does not tell positions apart."""
        if folds < 2 or prior <= 0:
            raise ConfigError(f"mean rewards need folds ≥ 2 and prior > 0, got folds={folds}, prior={prior}")
        self.names, self.folds, self.prior = names, folds, prior
        self.sums: list[Sums] = [defaultdict(lambda: (0.0, 0)) for _ in range(folds)]
        for rollout in usable(records, scores, incomplete="drop").rollouts:
            record, score = rollout.record, rollout.score
            earned = score.decisions or (rollout.reward,)
            if record.decisions is None or len(record.decisions) != len(earned):
                raise DataError(
                    f"a record of {len(record.decisions or ())} decision ids has {len(earned)} rewards; use a grader "
                    "that tells decisions apart, and records with their decision ids"
                )
            shown = names(record)
            if max(record.decisions) >= len(shown):
                raise DataError(
                    f"a record decided number {max(record.decisions)} of {len(shown)} names; name every candidate, in "
                    "the policy's order"
                )
            for fold in range(folds):
                if fold != self._fold(record):
                    for position, (decision, reward) in enumerate(zip(record.decisions, earned, strict=True)):
                        _add(self.sums[fold], (position, shown[decision]), reward)
                        _add(self.sums[fold], (position, None), reward)

    def __call__(self, records: Sequence[Record]) -> Tensor:  # [N, T, K] float32
        """The expected rewards; every record must have as many candidates."""
        width = max((len(record.behavior_log_probs or ()) for record in records), default=0)
        known: dict[Hashable, Tensor] = {}
        found = []
        for record in records:
            shown = tuple(self.names(record))
            key = (self._fold(record), shown)
            if key not in known:
                known[key] = self._expected(self.sums[key[0]], shown, width)
            found.append(known[key])
        if len({len(each[0]) for each in found if width}) > 1:
            raise DataError("records have different numbers of candidates; mean rewards need one number for all")
        return torch.stack(found)

    def _expected(self, sums: Sums, shown: Sequence[Hashable], width: int) -> Tensor:
        rows = []
        for position in range(width):
            total, count = sums.get((position, None), (0.0, 0))
            usual = total / count if count else 0.0
            seen = [sums.get((position, name), (0.0, 0)) for name in shown]
            rows.append([(earned + self.prior * usual) / (times + self.prior) for earned, times in seen])
        return torch.tensor(rows, dtype=torch.float32)

    def _fold(self, record: Record) -> int:
        """A function of the record's group, or of its inputs where it has none."""
        key = record.group or canonical(record.inputs)
        return int(hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) % self.folds


def _add(sums: Sums, key: Key, reward: float) -> None:
    total, count = sums[key]
    sums[key] = (total + reward, count + 1)
