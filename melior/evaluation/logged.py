"""what a policy would have earned on a log of another: estimated, with an interval, and with what speaks against it

Every row of the log is an item, and its value an estimator's contribution of that row, so that comparisons and gates
work as they do on sampled outputs: paired, row by row, in clusters of records that share a group.

estimator          needs              right where
ips, snips         propensities       what the policy decides could have been logged
dm                 a reward model     the model is right
dr, sndr           both               either is
dr_shrinkage       both               either is, nearly; large weights are shrunk
switch_dr          both               either is, nearly; where weights are above `limit` the model alone is believed
cascade_ips, _snips, _dr              a position's reward depends on nothing behind it; needs rewards by decision
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from melior import off_policy
from melior.data.formats import fingerprint
from melior.errors import ConfigError, DataError
from melior.evaluation.evaluate import REWARD, Evaluation
from melior.masking import select
from melior.policies.base import LOG_PROBS, Batch, Want, score_all
from melior.rollouts.logged import Expects, Incomplete, Log, earned_by, encode_log, predictions_of, usable
from melior.statistics import bootstrap_mean
from melior.types import Record, Sampling, Score

Estimator = Literal[
    "ips", "snips", "dm", "dr", "sndr", "dr_shrinkage", "switch_dr", "cascade_ips", "cascade_snips", "cascade_dr"
]

MODELS = ("dm", "dr", "sndr", "dr_shrinkage", "switch_dr", "cascade_dr")
WEIGHT = "weight"


@dataclass(frozen=True)
class Weighed:
    """A log as one policy sees it."""

    log: Log
    contributions: Tensor  # [B] their mean is the estimate
    weights: Tensor  # [B] of whole outputs, as they are before anything is clipped
    impossible: int  # rows whose output the policy would never decide


def evaluate_logged(
    policy: Any,
    records: Sequence[Record],
    scores: Sequence[Score],
    *,
    estimator: Estimator = "snips",
    sampling: Sampling | None = None,
    expects: Expects | None = None,
    limit: float | None = None,
    strength: float | None = None,
    incomplete: Incomplete = "refuse",
    grader: str = "",
) -> Evaluation:
    """The policy's reward if it had decided instead, as it will be served: `sampling` has the temperature, 0 is greedy.

    Args:
        expects: the reward model of the estimators that need one; it must not have seen a row's own reward.
        limit: the largest weight; by default none, and √N for "switch_dr".
        strength: of "dr_shrinkage"; by default N, which leaves weights below √N nearly as they are, so that the bias
            vanishes faster than the interval.

    Raises:
        ConfigError: if the estimator is unknown or lacks what it needs, or top-k or top-p cut off what is served.
        DataError: if no row is usable, or the policy would decide nothing of what was logged.
        MissingLogProbs: if records lack usable propensities and are not to be dropped.
    """
    started = time.monotonic()
    sampling = sampling or Sampling()
    found = weigh(
        policy,
        usable(records, scores, incomplete=incomplete),
        estimator=estimator,
        sampling=sampling,
        expects=expects,
        limit=limit,
        strength=strength,
    )
    values = {REWARD: found.contributions.tolist(), WEIGHT: found.weights.tolist()}
    rewards = torch.tensor([rollout.reward for rollout in found.log.rollouts], dtype=torch.float64)
    overlap = off_policy.overlap(found.weights, rewards)
    notes = [*overlap.warnings(), *_notes(found)]
    evaluation = _evaluation(records, scores, found.log, values, sampling, grader, notes)
    effective = min(overlap.effective, overlap.rewarded)
    return replace(evaluation, effective=effective, seconds=time.monotonic() - started)


def evaluate_log(
    records: Sequence[Record],
    scores: Sequence[Score],
    *,
    sampling: Sampling | None = None,
    incomplete: Incomplete = "refuse",
    grader: str = "",
) -> Evaluation:
    """What the logging policy itself earned, row by row: the baseline to compare with. `sampling` as the candidate's.

    Raises:
        DataError: if no row is usable.
        MissingLogProbs: if records lack usable propensities and are not to be dropped.
    """
    log = usable(records, scores, incomplete=incomplete)
    values = {REWARD: [rollout.reward for rollout in log.rollouts], WEIGHT: [1.0] * len(log.rollouts)}
    return _evaluation(records, scores, log, values, sampling or Sampling(), grader, _left_out(log.excluded))


def weigh(
    policy: Any,
    log: Log,
    *,
    estimator: Estimator = "snips",
    sampling: Sampling | None = None,
    expects: Expects | None = None,
    limit: float | None = None,
    strength: float | None = None,
) -> Weighed:
    """Every usable row's contribution to the estimate.

    Raises:
        ConfigError: if the estimator is unknown or lacks what it needs, or top-k or top-p cut off what is served.
        DataError: if the policy cannot encode a row, or would decide nothing of what was logged.
    """
    sampling = sampling or Sampling()
    if estimator not in get_args(Estimator):
        raise ConfigError(f"unknown estimator {estimator!r}; there are {', '.join(get_args(Estimator))}")
    if sampling.temperature > 0 and sampling.truncated:
        raise ConfigError(
            f"top_k={sampling.top_k} and top_p={sampling.top_p} serve something else than the policy scores; judge the "
            "whole distribution, or greedy serving with temperature=0"
        )
    if estimator in MODELS and expects is None:
        raise ConfigError(f"estimator {estimator!r} needs a reward model; give expects=…, or use snips")
    served = [replace(rollout, record=replace(rollout.record, sampling=sampling)) for rollout in log.rollouts]
    log, batch = encode_log(policy, replace(log, rollouts=tuple(served)))
    log_probs = (
        score_all(policy, batch) if sampling.temperature > 0 else _greedy_log_probs(policy, log, batch, sampling)
    )
    prefix = off_policy.prefix_weights(log_probs, batch.columns["behavior_log_probs"], batch.mask)
    weights = prefix[:, -1]
    models = _models(policy, log, batch, expects, sampling) if estimator in MODELS and expects is not None else None
    if estimator.startswith("cascade"):
        contributions = _cascade(estimator, log, batch.mask, prefix, models, limit)
    else:
        contributions = _whole(estimator, log, weights, models, limit, strength)
    impossible = int((select(log_probs, batch.mask) == -torch.inf).any(1).sum())
    return Weighed(log, contributions, weights, impossible)


class HeldoutValue:
    """An evaluation for `fit`: the policy's estimated reward on logged records that never train."""

    def __init__(
        self,
        records: Sequence[Record],
        scores: Sequence[Score],
        *,
        estimator: Estimator = "snips",
        sampling: Sampling | None = None,
        expects: Expects | None = None,
        limit: float | None = None,
        strength: float | None = None,
        incomplete: Incomplete = "refuse",
    ) -> None:
        self.log = usable(records, scores, incomplete=incomplete)
        self.settings: dict[str, Any] = {
            "estimator": estimator,
            "sampling": sampling,
            "expects": expects,
            "limit": limit,
            "strength": strength,
        }

    def __call__(self, policy: Any) -> Mapping[str, float]:
        found = weigh(policy, self.log, **self.settings)
        spread = float(found.contributions.std()) / math.sqrt(len(found.contributions))
        return {
            "heldout_value": float(found.contributions.mean()),
            "heldout_value_error": spread,  # standard error, of independent rows
            "heldout_effective": off_policy.effective_sample_size(found.weights),
        }


# ------------------------------------------------------------------ estimators


def _whole(
    estimator: Estimator,
    log: Log,
    weights: Tensor,
    models: tuple[Tensor, Tensor] | None,
    limit: float | None,
    strength: float | None,
) -> Tensor:  # [B]
    """One reward and one weight per output."""
    rewards = torch.tensor([rollout.reward for rollout in log.rollouts], dtype=torch.float64)
    if models is not None and models[0].shape[1] != 1:
        raise ConfigError(f'outputs have {models[0].shape[1]} decisions; with a reward model use "cascade_dr"')
    if limit is not None and estimator != "switch_dr":
        weights = off_policy.clipped(weights, limit=limit)
    if models is None:
        return off_policy.ips(rewards, weights) if estimator == "ips" else off_policy.snips(rewards, weights)
    predicted, expected = models[0][:, 0], models[1][:, 0]
    if estimator == "dm":
        return off_policy.direct_method(expected)
    if estimator == "sndr":
        return off_policy.self_normalized_doubly_robust(rewards, weights, predicted, expected)
    if estimator == "dr_shrinkage":
        weights = off_policy.shrunk(weights, strength=strength if strength is not None else float(len(rewards)))
    if estimator == "switch_dr":
        weights = off_policy.switched(weights, limit=math.sqrt(len(rewards)) if limit is None else limit)
    return off_policy.doubly_robust(rewards, weights, predicted, expected)


def _cascade(
    estimator: Estimator,
    log: Log,
    mask: Tensor,
    prefix: Tensor,
    models: tuple[Tensor, Tensor] | None,
    limit: float | None,
) -> Tensor:  # [B]
    """One reward and one weight per decision."""
    rewards = earned_by(log, mask)
    weights = prefix if limit is None else off_policy.clipped(prefix, limit=limit)
    if models is not None:
        return off_policy.cascade_doubly_robust(rewards, weights, *models, mask)
    return (off_policy.slate_ips if estimator == "cascade_ips" else off_policy.slate_snips)(rewards, weights, mask)


def _models(
    policy: Any, log: Log, batch: Batch, expects: Expects, sampling: Sampling
) -> tuple[Tensor, Tensor]:  # [B, T], [B, T]
    """What the reward model expects of what was logged, and of the policy given what was logged before."""
    rewards, predicted = predictions_of(expects, log, batch.mask)
    expected = torch.zeros_like(predicted)
    for rows in policy.cut(batch):
        part = batch.select(rows)
        chances = _chances(policy, part, sampling)
        width = part.mask.shape[1]
        if chances.shape[-1] != rewards.shape[-1]:
            raise DataError(
                f"the reward model speaks of {rewards.shape[-1]} candidates, the policy of {chances.shape[-1]}; give "
                "one expected reward per candidate, in the policy's order"
            )
        expected[rows, :width] = select((chances * rewards[rows, :width]).sum(-1), part.mask)
    return predicted, expected


@torch.no_grad()
def _chances(policy: Any, batch: Batch, sampling: Sampling) -> Tensor:  # [B, T, K]
    """Probabilities of all candidates as served."""
    candidates = policy.score(batch, LOG_PROBS | {Want.CANDIDATES}).candidates
    if candidates is None:
        raise ConfigError("this policy does not list its candidates, which a reward model needs; use snips")
    candidates = candidates.double().cpu()
    if sampling.temperature > 0:
        return candidates.exp()
    return torch.nn.functional.one_hot(candidates.argmax(-1), candidates.shape[-1]).double()


def _greedy_log_probs(policy: Any, log: Log, batch: Batch, sampling: Sampling) -> Tensor:  # [B, T]
    """0 where the policy's best output begins like the logged one, up to and with a decision; -inf from there on."""
    missing = sum(record.decisions is None for record in log.records)
    if missing:
        raise DataError(f"{missing} of {len(log.records)} records have no decision ids; greedy serving needs them")
    best = policy.sample([record.inputs for record in log.records], replace(sampling, n=1))
    log_probs = torch.zeros(batch.mask.shape, dtype=torch.float64)
    for row, (ours, theirs) in enumerate(zip(best, log.records, strict=True)):
        decided, logged = ours.decisions or (), theirs.decisions or ()
        agreed = next((at for at, each in enumerate(logged) if decided[at : at + 1] != (each,)), len(logged))
        log_probs[row, agreed : len(logged)] = -torch.inf
    return log_probs


# ------------------------------------------------------------------ what comes out


def _evaluation(
    records: Sequence[Record],
    scores: Sequence[Score],
    log: Log,
    values: Mapping[str, Sequence[float]],
    sampling: Sampling,
    grader: str,
    notes: Sequence[str],
) -> Evaluation:
    """Rows are named by their number: a log may hold one input many times."""
    keys = [f"row {row}" for row in range(len(records))]
    used = [keys[row] for row in log.rows]
    by_item = {name: {key: (value,) for key, value in zip(used, found, strict=True)} for name, found in values.items()}
    clusters = {keys[row]: rollout.record.group for row, rollout in zip(log.rows, log.rollouts) if rollout.record.group}
    names = sorted({score.name for score in scores if score.name})
    told = [[score.value, score.decisions] for score in scores]
    return Evaluation(
        sampling=sampling,
        grader=grader or "+".join(names),
        items=tuple(keys),
        fingerprint=hashlib.sha256((fingerprint(records) + fingerprint(told)).encode()).hexdigest(),
        values=by_item,
        bounds={},
        clusters=clusters,
        reward=bootstrap_mean(by_item[REWARD], clusters=clusters),
        missing=tuple(key for key in keys if key not in by_item[REWARD]),
        excluded=log.excluded.total(),
        graded=len(used),
        notes=tuple(notes),
    )


def _notes(found: Weighed) -> list[str]:
    told = _left_out(found.log.excluded)
    if found.impossible:
        told.append(
            f"{found.impossible} of {len(found.weights)} logged outputs are ones this policy would never decide; "
            "they weigh nothing"
        )
    return told


def _left_out(excluded: Counter[str]) -> list[str]:
    return [f"{count} records are left out: {flaw}" for flaw, count in excluded.items()]
