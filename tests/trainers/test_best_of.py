"""a policy's own best outputs: which are kept, with which decisions and weights, and that it learns from them"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tabular import Reward, Tabular, tasks_for

from melior.errors import ConfigError
from melior.trainers.best_of import BestOf, best_rows
from melior.trainers.loop import FitConfig, fit
from melior.trainers.ratings import AdvantageWeighted, advantage_weighted
from melior.trainers.rollouts import Rollouts
from melior.trainers.supervised import supervised
from melior.types import Rated, Sampling, Score

INPUTS = ("a", "b", "c")
SUM = Reward(lambda record: Score(value=float(sum(record.decisions) % 5)))
GRADED = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0, 2.0, math.nan])), max_size=16)


def rollouts(policy: Tabular, grader: Any = SUM, *, n: int = 6, **settings: Any) -> Rollouts:
    return Rollouts(policy, tasks_for(policy), grader, Sampling(n=n, max_tokens=3), alone=n == 1, **settings)


@given(GRADED, st.one_of(st.none(), st.integers(1, 4)), st.one_of(st.none(), st.just(0.5)), st.booleans())
def test_what_is_kept_is_best_first_and_good_enough(
    graded: list[tuple[int, float]], keep: int | None, at_least: float | None, contrast: bool
) -> None:
    groups, rewards = [group for group, _ in graded], [reward for _, reward in graded]
    tensors = torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups, dtype=torch.long)
    kept = best_rows(*tensors, keep=keep, at_least=at_least, contrast=contrast)
    assert kept == sorted(set(kept))
    for group in set(groups):
        known = [row for row, one in enumerate(groups) if one == group and not math.isnan(rewards[row])]
        ours = [row for row in kept if groups[row] == group]
        assert set(ours) <= set(known)
        if contrast and len({rewards[row] for row in known}) < 2:
            assert not ours
            continue
        able = [row for row in known if at_least is None or rewards[row] >= at_least]
        assert len(ours) == min(len(able), keep or len(able))
        for left in set(able) - set(ours):  # worse than all that were kept, or equal and later
            assert all((rewards[row], -row) > (rewards[left], -left) for row in ours)


def test_a_step_holds_the_very_decisions_that_were_sampled() -> None:
    policy = Tabular(INPUTS)
    whole, step = rollouts(policy)(3), BestOf(rollouts(policy), keep=2)(3)
    rewards, groups = whole.batch.columns["rewards"], whole.batch.groups
    rows = best_rows(rewards, groups, keep=2)
    assert step.batch.outputs == [whole.batch.outputs[row] for row in rows]
    assert step.batch.inputs == [whole.batch.inputs[row] for row in rows]
    drawn = [INPUTS[row] for row in dict.fromkeys(whole.batch.inputs)]  # in the order of this step's draw
    records = policy.sample(drawn, Sampling(n=6, max_tokens=3), step=3)
    sampled = {(policy.rows[record.inputs], record.decisions) for record in records}
    assert {(row, output[0]) for row, output in zip(step.batch.inputs, step.batch.outputs)} <= sampled
    assert step.metrics["kept"] == pytest.approx(2 / 6)
    assert step.metrics["kept_reward"] == float(rewards[rows].mean()) > step.metrics["reward"]


def test_a_step_is_a_function_of_seed_index_and_policy() -> None:
    policy = Tabular(INPUTS)
    first, second = BestOf(rollouts(policy)), BestOf(rollouts(policy))
    second(0)
    assert first(4).batch.outputs == second(4).batch.outputs != first(5).batch.outputs
    prints = [
        BestOf(rollouts(policy), **settings).fingerprint()
        for settings in ({}, {"keep": 2}, {"at_least": 1.0}, {"weighted": AdvantageWeighted()}, {"contrast": True})
    ]
    assert len({*prints, BestOf(rollouts(policy, seed=1)).fingerprint()}) == 6


def test_weights_are_those_of_ratings() -> None:
    policy = Tabular(INPUTS)
    how = AdvantageWeighted(beta=0.5)
    step = BestOf(rollouts(policy), keep=None, weighted=how)(0)
    rewards, groups = step.batch.columns["rewards"].tolist(), step.batch.groups.tolist()
    wanted = advantage_weighted([Rated(group, None, reward) for group, reward in zip(groups, rewards)], how)
    assert step.batch.weights[:, 0].tolist() == pytest.approx([row.weight for row in wanted])
    assert len(step.batch) == 18 and len(set(step.batch.weights[:, 0].tolist())) > 2


def test_one_sample_is_enough_where_only_right_ones_are_kept() -> None:
    policy = Tabular(INPUTS)
    whole, best = rollouts(policy, n=1), BestOf(rollouts(policy, n=1), keep=None, at_least=2.0)
    sizes = set()
    for index in range(6):
        wanted = [reward for reward in whole(index).batch.columns["rewards"].tolist() if reward >= 2]
        step = best(index)
        assert step.batch.columns["rewards"].tolist() == wanted
        sizes.add(len(step.batch))
    assert len(sizes) > 1  # not all were right, and not always as many


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"keep": None}, "all 6 outputs"),
        ({"keep": 6}, "all 6 outputs"),
        ({"keep": 0}, "at least 1"),
        ({"at_least": math.nan}, "at_least is a reward"),
    ],
)
def test_settings_that_teach_nothing_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        BestOf(rollouts(Tabular(INPUTS)), **settings)


def test_where_nothing_is_good_enough_the_weights_stay_bitwise_as_they_were() -> None:
    policy = Tabular(INPUTS)
    before = policy.state()["logits"].clone()
    some = Reward(lambda r: Score(value=None, error="lost") if r.decisions[0] == 0 else Score(value=1.0))
    run = fit(policy, BestOf(rollouts(policy, some), at_least=2.0), supervised(), FitConfig(steps=2, weight_decay=0.1))
    assert torch.equal(policy.state()["logits"], before)
    assert run.last("kept") == 0 and run.last("loss") == 0 and run.skipped == 0


def test_imitating_every_right_output_follows_the_gradient_of_being_right() -> None:
    """In expectation, over all 125 outputs: rejection sampling is the policy gradient of the chance of success."""
    policy = Tabular(("a",))
    batch = policy.every_row()
    chance = policy.score(batch).log_probs.sum(1).exp()
    rewards = torch.tensor([float(sum(output[0]) % 5) for output in batch.outputs], dtype=torch.float64)
    rows = best_rows(rewards, batch.groups * 0, keep=None, at_least=3.0)
    kept = batch.select(rows)
    kept = type(kept)(
        kept.inputs, kept.outputs, kept.mask, chance.detach()[rows][:, None] * kept.mask, kept.groups, kept.columns
    )
    (term,) = supervised().loss(policy.score(kept), kept)
    (found,) = torch.autograd.grad(term.total, policy.logits)
    (wanted,) = torch.autograd.grad(-chance[rows].sum(), policy.logits)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert float(wanted.abs().max()) > 1e-2


@pytest.mark.parametrize(
    "settings",
    [
        {"keep": 1, "contrast": True},
        {"keep": None, "at_least": 1.0},
        {"keep": None, "weighted": AdvantageWeighted(beta=0.3)},
    ],
    ids=["best of n", "rejection sampling", "advantage-weighted"],
)
@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_best_output_of_a_known_bandit(settings: dict[str, Any], seed: int) -> None:
    """One arm of five pays 1, its neighbour half as much."""
    policy = Tabular(INPUTS, length=1, seed=seed, spread=0.3)
    paid = {text: (place + seed) % 5 for place, text in enumerate(INPUTS)}
    grader = Reward(
        lambda r: Score(value={0: 1.0, 1: 0.5}.get((r.decisions[0] - paid[r.inputs]) % 5, 0.0))
    )  # fmt: skip
    steps = BestOf(rollouts(policy, grader, n=12, seed=seed), **settings)
    fit(policy, steps, supervised(), FitConfig(steps=60, learning_rate=0.15))
    best = policy.logits.detach()[:, 0].softmax(-1)
    assert all(float(best[place, paid[text]]) > 0.9 for place, text in enumerate(INPUTS))
