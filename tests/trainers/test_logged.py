"""learning from logs: which records count, what expectation the gradient has, and whether it gets anywhere"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import NO_CLIP, distance, gradient
from tabular import Tabular
from torch import Tensor

from melior.errors import ConfigError, DataError, MissingLogProbs
from melior.masking import sum_decisions
from melior.policies.base import LOG_PROBS, Batch, Scored, Want
from melior.trainers.logged import Logged, OffPolicy, off_policy
from melior.trainers.loop import FitConfig, fit
from melior.trainers.steps import Step
from melior.types import Record, Sampling, Score


class Listing(Tabular):
    """Lists its candidates too: all numbers below the vocabulary, at every position."""

    def score(self, batch: Batch, want: frozenset[Want] = LOG_PROBS) -> Scored:
        scored = super().score(batch, want)
        if Want.CANDIDATES not in want:
            return scored
        decided = torch.zeros(batch.mask.shape, dtype=torch.long)
        for row, (output, _) in enumerate(batch.outputs):
            kept = output[: decided.shape[1]]
            decided[row, : len(kept)] = torch.tensor(kept, dtype=torch.long)
        table = self.logits[torch.tensor(batch.inputs)[:, None], self._nodes(decided)]
        return replace(scored, candidates=torch.log_softmax(table, -1))


def policies(length: int, vocabulary: int = 4) -> tuple[Listing, Listing]:
    """The policy that learns, and the one that logged."""
    return tuple(Listing(vocabulary=vocabulary, length=length, seed=seed) for seed in (0, 1))  # type: ignore[return-value]


def every_record(logger: Tabular) -> tuple[list[Record], Tensor]:
    """Every output with its propensities, and the probability of each."""
    batch = logger.every_row()
    with torch.no_grad():
        log_probs = logger.score(batch).log_probs
    records = [
        Record(inputs="a", output=output, decisions=output, behavior_log_probs=tuple(chances), group=str(row))
        for row, (output, chances) in enumerate(zip(logger.every_output(), log_probs.tolist(), strict=True))
    ]
    return records, sum_decisions(log_probs, batch.mask).exp()


def scores_of(rewards: Tensor) -> list[Score]:  # [N, T]
    return [Score(value=math.fsum(row), decisions=tuple(row)) for row in rewards.tolist()]


def rewards_any(records: Sequence[Record], length: int) -> Tensor:
    """Each position's reward depends on the whole output."""
    return torch.randn(len(records), length, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def rewards_cascade(records: Sequence[Record], length: int) -> Tensor:
    """Each position's reward depends on what was decided up to it."""
    return torch.tensor(
        [[math.sin(1 + sum((at + 2) * each for at, each in enumerate(r.decisions[: t + 1]))) for t in range(length)]
         for r in records if r.decisions is not None],
        dtype=torch.float64,
    )  # fmt: skip


def expected_gradient(objective: OffPolicy, policy: Tabular, logger: Tabular, rewards: Tensor, **how: Any) -> Tensor:
    """Of the loss under the logging policy, exactly: each output's gradient weighed by its probability."""
    records, chances = every_record(logger)
    total = torch.zeros_like(policy.logits)
    log = Logged(policy, records, scores_of(rewards), batch_size=len(records), **how)
    whole = objective.prepare(Step(log.batch), policy).batch
    for row in range(len(records)):
        part = whole.select([row])
        terms = objective.loss(policy.score(part, objective.want), part)
        value = torch.stack([term.total * term.weight for term in terms if term.name != "kl_logging"]).sum()
        if value.requires_grad:
            total += float(chances[row]) * torch.autograd.grad(value, policy.logits)[0]
    return total


def true_gradient(policy: Tabular, rewards: Tensor) -> Tensor:
    batch = policy.every_row()
    chances = sum_decisions(policy.score(batch).log_probs, batch.mask).exp()
    return torch.autograd.grad((chances * rewards.sum(1)).sum(), policy.logits)[0]


def fixed_model(length: int, vocabulary: int = 4) -> Callable[[Sequence[Record]], Tensor]:
    """A reward model that is wrong everywhere, and depends on what was decided before."""

    def expects(records: Sequence[Record]) -> Tensor:
        rows = [
            [[math.cos(k + 3 * sum(r.decisions[:t]) + t) for k in range(vocabulary)] for t in range(length)]
            for r in records
            if r.decisions is not None
        ]
        return torch.tensor(rows, dtype=torch.float64)

    return expects


EXACT: dict[str, tuple[int, Any, OffPolicy]] = {
    "output": (3, rewards_any, OffPolicy(clip=NO_CLIP)),
    "output, no baseline": (3, rewards_any, OffPolicy(clip=NO_CLIP, baseline="none")),
    "output, to go": (3, rewards_cascade, OffPolicy(clip=NO_CLIP, credit="to_go")),
    "prefix": (3, rewards_cascade, OffPolicy(clip=NO_CLIP, ratio="prefix", credit="to_go")),
    "prefix, no baseline": (
        3, rewards_cascade, OffPolicy(clip=NO_CLIP, ratio="prefix", credit="to_go", baseline="none")
    ),
    "one decision": (1, rewards_any, OffPolicy(clip=NO_CLIP, ratio="decision")),
    "doubly robust": (1, rewards_any, OffPolicy(clip=NO_CLIP, baseline="model")),
    "cascade, doubly robust": (
        3, rewards_cascade, OffPolicy(clip=NO_CLIP, ratio="prefix", credit="to_go", baseline="model")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_the_expected_gradient_is_that_of_the_mean_reward(name: str) -> None:
    length, rewards_of, objective = EXACT[name]
    policy, logger = policies(length)
    rewards = rewards_of(every_record(logger)[0], length)
    expects = fixed_model(length) if objective.baseline == "model" else None
    found = expected_gradient(objective, policy, logger, rewards, expects=expects)
    expected = true_gradient(policy, rewards)
    torch.testing.assert_close(found, -expected, rtol=0, atol=1e-12)
    assert float(expected.abs().max()) > 1e-2


@pytest.mark.parametrize(
    "objective",
    [
        OffPolicy(clip=NO_CLIP, ratio="decision"),
        OffPolicy(clip=NO_CLIP, credit="to_go"),
        OffPolicy(clip=NO_CLIP, ratio="prefix", credit="to_go"),
        OffPolicy(clip=1.0),
    ],
)
def test_where_their_assumptions_fail_they_are_biased(objective: OffPolicy) -> None:
    policy, logger = policies(3)
    rewards = rewards_any(every_record(logger)[0], 3)
    found, expected = expected_gradient(objective, policy, logger, rewards), true_gradient(policy, rewards)
    assert float((found + expected).norm() / expected.norm()) > 0.05


def test_a_good_reward_model_takes_the_variance_out() -> None:
    """With the true rewards as the model no output says anything new, and every output has the same gradient."""
    policy, logger = policies(1)
    records, _ = every_record(logger)
    rewards = rewards_any(records, 1)
    objective = OffPolicy(clip=NO_CLIP, baseline="model")
    log = Logged(
        policy, records, scores_of(rewards), expects=lambda given: rewards[None, :, 0].expand(len(given), 1, -1)
    )
    whole = objective.prepare(Step(log.batch), policy).batch
    found = []
    for row in range(len(records)):
        part = whole.select([row])
        terms = objective.loss(policy.score(part, objective.want), part)
        found.append(torch.autograd.grad(torch.stack([term.total for term in terms]).sum(), policy.logits)[0])
    for each in found:
        torch.testing.assert_close(each, -true_gradient(policy, rewards), rtol=0, atol=1e-12)


def test_normalised_it_is_the_gradient_of_the_self_normalised_estimate() -> None:
    policy, logger = policies(2)
    records, _ = every_record(logger)
    scores = scores_of(rewards_any(records, 2))
    log = Logged(policy, records[3:12], scores[3:12])
    objective = OffPolicy(clip=NO_CLIP, normalized=True)
    batch = objective.prepare(Step(log.batch), policy).batch
    terms = objective.loss(policy.score(batch), batch)
    found = torch.autograd.grad(terms[0].total / objective.counts(batch)["policy"], policy.logits)[0]
    ratios = sum_decisions(policy.score(batch).log_probs - batch.columns["behavior_log_probs"], batch.mask).exp()
    estimate = (ratios * batch.columns["rewards"]).sum() / ratios.sum()
    torch.testing.assert_close(found, -torch.autograd.grad(estimate, policy.logits)[0], rtol=0, atol=1e-12)


SETTINGS = [
    OffPolicy(),
    OffPolicy(frozen=True, credit="own"),
    OffPolicy(normalized=True),
    OffPolicy(ratio="prefix", credit="to_go", beta=0.2, entropy=0.1),
    OffPolicy(ratio="prefix", credit="to_go", baseline="model"),
    OffPolicy(ratio="decision", credit="to_go", baseline="none"),
]


@pytest.mark.parametrize("objective", SETTINGS, ids=repr)
def test_how_a_batch_is_cut_changes_no_gradient(objective: OffPolicy, tmp_path: Path) -> None:
    policy, logger = policies(3)
    records, _ = every_record(logger)
    expects = fixed_model(3) if objective.baseline == "model" else None
    log = Logged(policy, records, scores_of(rewards_cascade(records, 3)), expects=expects)
    found = [gradient(policy, log.batch, objective, tmp_path / str(cut), micro_batch=cut) for cut in (None, 3, 30)]
    assert distance(found[0], found[1]) < 1e-12 and distance(found[0], found[2]) < 1e-12


@pytest.mark.parametrize("objective", SETTINGS[2:4], ids=repr)
def test_what_this_policy_never_decides_leaves_no_trace(objective: OffPolicy) -> None:
    policy, logger = policies(2)
    records, _ = every_record(logger)
    with torch.no_grad():
        policy.logits[0, 0, 2] = -math.inf  # no output begins with 2
    kept = [place for place, record in enumerate(records) if record.decisions and record.decisions[0] != 2]
    scores = scores_of(rewards_cascade(records, 2))
    totals = []
    for places in (kept, range(len(records))):
        log = Logged(policy, [records[place] for place in places], [scores[place] for place in places])
        means = {name: torch.zeros_like(log.batch.columns[name]) for name in ("mean_reward", "mean_rewards")}
        batch = objective.prepare(Step(log.batch.with_columns(**means)), policy).batch
        terms = [term for term in objective.loss(policy.score(batch, objective.want), batch) if term.name == "policy"]
        totals.append(torch.autograd.grad(terms[0].total, policy.logits)[0])
    assert bool(torch.isfinite(totals[1]).all())
    torch.testing.assert_close(totals[0], totals[1], rtol=0, atol=1e-12)


def test_frozen_weights_are_those_of_the_policy_as_it_was_made() -> None:
    """Then the loss is a likelihood weighted by rewards: its slope does not grow with what was already learned."""
    policy, logger = policies(2)
    records, _ = every_record(logger)
    log = Logged(policy, records, scores_of(rewards_cascade(records, 2).abs()))
    objective = OffPolicy(clip=NO_CLIP, frozen=True, baseline="none")
    starting = sum_decisions(policy.reference_log_probs(log.batch), log.batch.mask)
    with torch.no_grad():
        policy.logits.add_(torch.randn_like(policy.logits))
    batch = objective.prepare(Step(log.batch), policy).batch
    (term,) = objective.loss(policy.score(batch), batch)
    logged = sum_decisions(batch.columns["behavior_log_probs"], batch.mask)
    likelihood = sum_decisions(policy.score(batch).log_probs, batch.mask)
    expected = -((starting - logged).exp() * batch.columns["rewards"] * likelihood).sum()
    torch.testing.assert_close(term.total, expected)


def test_own_credit_leaves_out_what_other_positions_earned() -> None:
    policy, logger = policies(2)
    records, _ = every_record(logger)
    log = Logged(policy, records, scores_of(rewards_any(records, 2)))
    objective = OffPolicy(clip=NO_CLIP, credit="own", baseline="none")
    batch = objective.prepare(Step(log.batch), policy).batch
    (term,) = objective.loss(policy.score(batch), batch)
    weights = sum_decisions(policy.score(batch).log_probs - batch.columns["behavior_log_probs"], batch.mask).exp()
    rewards = batch.columns["decision_rewards"]
    expected = -(weights.detach()[:, None] * rewards * policy.score(batch).log_probs).sum()
    torch.testing.assert_close(term.total, expected)


# ---------------------------------------------------------------- which records count


def record(chances: Any, *, sampling: Sampling | None = None, decisions: Any = (1, 2)) -> Record:
    return Record(inputs="a", output=(1, 2), decisions=decisions, behavior_log_probs=chances, sampling=sampling)


GOOD, SCORE = record((-1.0, -2.0)), Score(value=1.0)
UNUSABLE = {
    "no propensities": record(None),
    "no propensities, being greedy": record(None, sampling=Sampling(temperature=0)),
    "a propensity that is zero or impossible": record((-1.0, -math.inf)),
    "another number of propensities than of decisions": record((-1.0,)),
}


def test_unusable_records_are_refused_with_their_number_or_dropped_and_counted() -> None:
    policy = Tabular(length=2)
    records = [GOOD, *UNUSABLE.values(), record((math.nan, -1.0)), record((0.5, -1.0)), GOOD]
    scores = [SCORE] * len(records)
    with pytest.raises(MissingLogProbs, match=r"6 of 8 records .* 3 have a propensity that is zero"):
        Logged(policy, records, scores)
    log = Logged(policy, records, scores, incomplete="drop")
    assert len(log.batch) == 2
    assert dict(log.excluded) == {**dict.fromkeys(UNUSABLE, 1), "a propensity that is zero or impossible": 3}


def test_unscored_records_never_teach_and_are_always_counted() -> None:
    log = Logged(Tabular(length=2), [GOOD, GOOD, GOOD], [SCORE, Score(value=None, error="500"), Score(value=math.inf)])
    assert (len(log.batch), dict(log.excluded)) == (1, {"no score": 2})


def test_records_this_policy_cannot_encode_whole_are_counted() -> None:
    log = Logged(Tabular(length=1), [replace(GOOD, decisions=(1,), behavior_log_probs=(-1.0,)), GOOD], [SCORE, SCORE])
    assert (len(log.batch), dict(log.excluded)) == (1, {"decisions this policy cannot encode": 1})


def test_what_cannot_be_learned_from_is_refused() -> None:
    policy = Tabular(length=2)
    with pytest.raises(DataError, match="0 logged records can be used: 1 have no score"):
        Logged(policy, [GOOD], [Score(value=None)])
    with pytest.raises(DataError, match="there are none"):
        Logged(policy, [], [])
    with pytest.raises(DataError, match="2 records have 1 scores"):
        Logged(policy, [GOOD, GOOD], [SCORE])
    with pytest.raises(DataError, match="no sum of what their decisions earned"):
        Logged(policy, [GOOD], [Score(value=1.0, decisions=(0.2, 0.2))])
    with pytest.raises(DataError, match="the reward model gave"):
        Logged(policy, [GOOD], [SCORE], expects=lambda records: torch.zeros(1, 4))
    with pytest.raises(DataError, match="beyond the reward model's 2 candidates"):
        Logged(policy, [GOOD], [SCORE], expects=lambda records: torch.zeros(1, 2, 2))
    step = Logged(policy, [GOOD], [SCORE])(0)
    with pytest.raises(DataError, match=r"to_go.*some scores lack"):
        OffPolicy(credit="to_go").prepare(step, policy)
    with pytest.raises(ConfigError, match="give Logged"):
        OffPolicy(baseline="model").prepare(step, policy)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"clip": 0.5}, "at least 1.*got 0.5"),
        ({"clip": math.nan}, "got nan"),
        ({"ratio": "prefix"}, 'needs credit="to_go"'),
        ({"baseline": "model", "normalized": True}, "not normalized"),
        ({"normalized": True, "ratio": "decision"}, "one weight and one reward per output"),
        ({"normalized": True, "credit": "to_go"}, "one weight and one reward per output"),
        ({"normalized": True, "frozen": True}, "needs normalized=False"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        off_policy(**settings)


# ---------------------------------------------------------------- steps


def log_of(seed: int, n: int = 200) -> tuple[list[Record], list[Score]]:
    """Samples of a logging policy; an output earns 1 for each 0 it decides, and the pair (3, 3) earns 4."""
    logger = Tabular(vocabulary=4, length=2, seed=seed, spread=0.5)
    records = logger.sample(["a"], Sampling(n=n, seed=seed))
    earned = [[4.0, 0.0] if r.decisions == (3, 3) else [float(d == 0) for d in r.decisions or ()] for r in records]
    return records, [Score(value=math.fsum(row), decisions=tuple(row)) for row in earned]


def test_every_record_comes_once_per_epoch_in_a_new_order() -> None:
    steps = Logged(Tabular(vocabulary=4, length=2), *log_of(1, 50), batch_size=16, epochs=2)
    assert (steps.per_epoch, steps.total) == (4, 8)
    epochs = [[int(e) for i in range(4) for e in steps(4 * epoch + i).batch.columns["examples"]] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50)) and epochs[0] != epochs[1]
    again = Logged(Tabular(vocabulary=4, length=2), *log_of(1, 50), batch_size=16, epochs=2)
    assert again(5).batch.outputs == steps(5).batch.outputs and again.fingerprint() == steps.fingerprint()
    prints = {
        Logged(Tabular(vocabulary=4, length=2), *log, **how).fingerprint()
        for log, how in [
            (log_of(1, 50), {}),
            (log_of(2, 50), {}),
            (log_of(1, 49), {}),
            (log_of(1, 50), {"batch_size": 9}),
            (log_of(1, 50), {"epochs": 2}),
            (log_of(1, 50), {"seed": 1}),
            ((log_of(1, 50)[0], [Score(value=0.0)] * 50), {}),
        ]
    }
    assert len(prints) == 7


def test_a_run_that_was_killed_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    def run(folder: str, steps: int | None) -> Tensor:
        policy = Tabular(vocabulary=4, length=2, spread=0.0)
        log = Logged(policy, *log_of(1, 60), batch_size=20, epochs=2)
        stop = FitConfig(folder=tmp_path / folder, learning_rate=0.1, checkpoint_every=1, schedule="constant")
        if steps is None:
            fit(policy, log, OffPolicy(), stop)
            return policy.logits.detach()

        def interrupt(done: int, total: int, metrics: Any) -> None:
            if done == steps:
                raise RuntimeError("killed")

        with pytest.raises(RuntimeError):
            fit(policy, log, OffPolicy(), stop, on_step=interrupt)
        return run(folder, None)

    assert torch.equal(run("whole", None), run("killed", 2))


@pytest.mark.parametrize(
    "objective",
    [OffPolicy(clip=100.0), OffPolicy(normalized=True)],  # one logger of the five decides (3, 3) six times in 250
    ids=["plain", "normalized"],
)
@pytest.mark.parametrize("seed", range(5))
def test_from_logs_alone_it_finds_the_best_output_of_a_known_bandit(objective: OffPolicy, seed: int) -> None:
    """The pair earns only together: neither of its halves is worth anything alone."""
    policy = Tabular(vocabulary=4, length=2, spread=0.0)
    steps = Logged(policy, *log_of(seed, 250), batch_size=250, epochs=25)
    run = fit(policy, steps, objective, FitConfig(learning_rate=0.3, schedule="constant"))
    chances = sum_decisions(policy.score(policy.every_row()).log_probs, policy.every_row().mask).exp().detach()
    best = policy.every_output().index((3, 3))
    assert float(chances[best]) > 0.9, float(chances[best])
    assert run.metrics[0]["policy/weight"] == pytest.approx(1, abs=0.5)


def test_staying_near_the_log_keeps_to_what_was_logged() -> None:
    records, scores = log_of(0, 250)
    apart = []
    for beta in (0.0, 50.0):
        policy = Tabular(vocabulary=4, length=2, spread=0.0)
        steps = Logged(policy, records, scores, batch_size=250, epochs=20)
        fit(policy, steps, OffPolicy(beta=beta), FitConfig(learning_rate=0.3))
        batch = policy.encode(records)
        logged = torch.tensor([math.fsum(record.behavior_log_probs or ()) for record in records])
        apart.append(float((logged - sum_decisions(policy.score(batch).log_probs, batch.mask).detach()).mean()))
    assert apart[1] < 0.05 < apart[0]


def test_what_rides_along_says_how_far_the_policy_is_from_the_log() -> None:
    policy = Tabular(vocabulary=4, length=2, seed=1, spread=0.5)
    steps = Logged(policy, *log_of(1), batch_size=200)
    run = fit(policy, steps, OffPolicy(clip=1.0), FitConfig(learning_rate=1e-12))
    row = run.metrics[0]
    assert row["policy/weight"] == row["policy/clipped"] == pytest.approx(1)  # the policy is the one that logged
    assert (row["policy/weight_square"], row["policy/impossible"]) == (pytest.approx(1), 0)
    assert row["logged_reward"] == pytest.approx(float(steps.batch.columns["rewards"].mean()))
    assert list(itertools.islice(row, 1)) == ["step"]


def test_frozen_weights_give_a_weighted_likelihood_whatever_the_policy_became() -> None:
    policy, logger = policies(2)
    records, _ = every_record(logger)
    rewards = rewards_any(records, 2).abs()
    objective = off_policy(frozen=True, baseline="none", clip=NO_CLIP)
    start = expected_gradient(objective, policy, logger, rewards)
    torch.testing.assert_close(start, -true_gradient(policy, rewards))  # as long as it is what it was
    reference = policy.every_row()
    chances = sum_decisions(policy.reference_log_probs(reference), reference.mask).exp()
    with torch.no_grad():
        policy.logits += torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(5)).double()
    likelihood = (chances * rewards.sum(1) * sum_decisions(policy.score(reference).log_probs, reference.mask)).sum()
    wanted = -torch.autograd.grad(likelihood, policy.logits)[0]
    torch.testing.assert_close(expected_gradient(objective, policy, logger, rewards), wanted)
    with pytest.raises(ConfigError, match="frozen"):
        off_policy(frozen=True, normalized=True)


def test_own_credit_follows_what_each_position_earns_after_logged_prefixes() -> None:
    policy, logger = policies(3)
    records, chances = every_record(logger)
    rewards = rewards_cascade(records, 3)
    objective = off_policy(ratio="decision", credit="own", baseline="none", clip=NO_CLIP)
    every = policy.every_row()
    behavior = torch.tensor([record.behavior_log_probs for record in records], dtype=torch.float64)
    weights = (policy.score(every).log_probs - behavior).exp()
    wanted = -torch.autograd.grad((chances * (weights * rewards).sum(1)).sum(), policy.logits)[0]
    torch.testing.assert_close(expected_gradient(objective, policy, logger, rewards), wanted)
