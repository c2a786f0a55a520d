"""logged decisions: which of them can be learned from and judged by"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from melior.errors import DataError, MissingLogProbs
from melior.masking import padded, select
from melior.policies.base import Batch
from melior.rollouts.collect import Rollout
from melior.types import Record, Score

Incomplete = Literal["refuse", "drop"]  # what to do with records whose propensities cannot be used

Expects = Callable[[Sequence[Record]], Tensor]  # records → [N, T, K] reward expected of each candidate at each position

NO_SCORE = "no score"
NONE, GREEDY = "no propensities", "no propensities, being greedy"
HELD = "a constraint, which this policy is not held to"  # their log-probs are those of another distribution
BROKEN_OFF = "no end, being cancelled"
COUNT, IMPOSSIBLE = "another number of propensities than of decisions", "a propensity that is zero or impossible"
CUT = "decisions this policy cannot encode"
ROUNDING = 1e-6  # nats by which a certain decision may be recorded above probability one


@dataclass(frozen=True)
class Log:
    """The records that can be used, and how many could not, by reason."""

    rollouts: tuple[Rollout, ...]
    rows: tuple[int, ...]  # their places among all records
    excluded: Counter[str]

    @property
    def records(self) -> list[Record]:
        """The usable records."""
        return [rollout.record for rollout in self.rollouts]

    @property
    def propensities(self) -> list[Sequence[float]]:
        """Behavior log-probs of each usable record, in nats."""
        return [rollout.record.behavior_log_probs or () for rollout in self.rollouts]

    def keep(self, places: Sequence[int], reason: str) -> Log:
        """The log with the usable records at these places only; the others are counted under the reason."""
        left = Counter({reason: len(self.rollouts) - len(places)})
        rollouts, rows = tuple(self.rollouts[p] for p in places), tuple(self.rows[p] for p in places)
        return Log(_some(rollouts, self.excluded + left), rows, self.excluded + left)


def usable(records: Sequence[Record], scores: Sequence[Score], *, incomplete: Incomplete = "refuse") -> Log:
    """Records with a score and with the propensity of every decision; those without a score are left out and counted.

    `incomplete="drop"` leaves out and counts those without usable propensities too.

    Raises:
        DataError: if records and scores differ in number, or no record is usable.
        MissingLogProbs: if records lack usable propensities and are not to be dropped.
    """
    if len(records) != len(scores):
        raise DataError(f"{len(records)} records have {len(scores)} scores; give one score per record")
    flaws = [_flaw(record, score) for record, score in zip(records, scores, strict=True)]
    excluded = Counter(flaw for flaw in flaws if flaw)
    lacking = sum(count for flaw, count in excluded.items() if flaw != NO_SCORE)
    if lacking and incomplete == "refuse":
        told = ", ".join(f"{count} have {flaw}" for flaw, count in excluded.items() if flaw != NO_SCORE)
        raise MissingLogProbs(
            f"{lacking} of {len(records)} records cannot be weighed: {told}; record propensities when deciding, "
            'leave these out with incomplete="drop", or learn by ratings (awr), which needs none'
        )
    rows = tuple(row for row, flaw in enumerate(flaws) if not flaw)
    rollouts = tuple(Rollout(records[row], scores[row]) for row in rows)
    return Log(_some(rollouts, excluded), rows, excluded)


def encode_log(policy: Any, log: Log) -> tuple[Log, Batch]:
    """The log as one batch with column "behavior_log_probs", without the records this policy cannot encode whole.

    Raises:
        DataError: if none can be encoded.
    """
    batch: Batch = policy.encode(log.records)
    lengths = batch.mask.sum(1).tolist()
    fits = [row for row, chances in enumerate(log.propensities) if lengths[row] == len(chances)]
    if len(fits) < len(log.rollouts):
        log, batch = log.keep(fits, CUT), batch.select(fits)
    return log, batch.with_columns(behavior_log_probs=padded(log.propensities, batch.mask))


def earned_by(log: Log, mask: Tensor) -> Tensor:  # [B, T]
    """What each logged decision earned.

    Raises:
        DataError: if a score does not tell decisions apart, or they do not add up to it.
    """
    scores = [rollout.score for rollout in log.rollouts]
    missing = sum(not score.decisions for score in scores)
    if missing:
        raise DataError(
            f"{missing} of {len(scores)} scores do not tell what each decision earned (Score.decisions); use a grader "
            "that does, or learn and judge by whole outputs"
        )
    wrong = sum(not math.isclose(math.fsum(s.decisions), s.value or 0.0, rel_tol=1e-6, abs_tol=1e-6) for s in scores)
    if wrong:
        raise DataError(f"{wrong} of {len(scores)} scores are no sum of what their decisions earned; mend the grader")
    return padded([score.decisions for score in scores], mask)


def predictions_of(expects: Expects, log: Log, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What a reward model expects of every candidate [B, T, K], and of what was logged [B, T].

    Raises:
        DataError: if its numbers are not finite or do not fit the log, or records have no decision ids.
    """
    expected = expects(log.records)
    if expected.dim() != 3 or expected.shape[:2] != mask.shape or not bool(torch.isfinite(expected).all()):
        raise DataError(
            f"the reward model gave {tuple(expected.shape)} for {tuple(mask.shape)} decisions; it must give one finite "
            "number per record, decision and candidate"
        )
    missing = sum(record.decisions is None for record in log.records)
    if missing:
        raise DataError(f"{missing} of {len(log.records)} records have no decision ids; a reward model needs them")
    decided = padded([record.decisions or () for record in log.records], mask).long()
    outside = int((decided >= expected.shape[2]).any(1).sum())
    if outside:
        raise DataError(
            f"{outside} of {len(log.records)} records decided something beyond the reward model's {expected.shape[2]} "
            "candidates; give one expected reward per candidate, in the policy's order"
        )
    predicted = expected.gather(2, decided[:, :, None])[:, :, 0].double()
    return expected, select(predicted, mask)


def _flaw(record: Record, score: Score) -> str:
    """Why the record cannot be used; empty where it can."""
    if score.value is None or not math.isfinite(score.value):
        return NO_SCORE
    if record.finish == "cancelled":
        return BROKEN_OFF
    if record.sampling is not None and record.sampling.constraint:
        return HELD
    chances = record.behavior_log_probs
    if chances is None or not len(chances):
        return GREEDY if record.sampling is not None and record.sampling.temperature == 0 else NONE
    if record.decisions is not None and len(record.decisions) != len(chances):
        return COUNT
    return "" if all(math.isfinite(chance) and chance <= ROUNDING for chance in chances) else IMPOSSIBLE


def _some(rollouts: tuple[Rollout, ...], excluded: Counter[str]) -> tuple[Rollout, ...]:
    if rollouts:
        return rollouts
    told = ", ".join(f"{count} have {flaw}" for flaw, count in excluded.items()) or "there are none"
    raise DataError(f"0 logged records can be used: {told}; log decisions with their propensities and scores")
