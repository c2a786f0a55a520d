"""pairs as steps and objectives over them: whole pairs, exact gradients, and the policies they should lead to"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import distance, gradient
from tabular import Tabular

from melior.errors import ConfigError, DataError, NeedsProbabilities, ShapeError
from melior.losses.preference import dpo_loss, ipo_loss, odds_ratio_loss, simpo_loss
from melior.masking import mean_decisions, sum_decisions
from melior.policies.language import LanguagePolicy
from melior.trainers.loop import FitConfig, fit
from melior.trainers.preference import (
    Dpo,
    HeldoutPairs,
    Ipo,
    Orpo,
    Pairs,
    Pairwise,
    SimPo,
    dpo,
    encode_pairs,
    ipo,
    orpo,
    simpo,
)
from melior.trainers.steps import Step
from melior.types import Demonstration, Preference

ROWS = [
    Preference("a", (n % 4, 1, 2)[: 1 + n % 3], (3 - n % 4, 0), probability=1 - n / 20, margin=n / 10) for n in range(9)
]


class Whole(Tabular):
    """Cuts at a budget, but never through a group that is to stay whole."""

    def cut(self, batch: Any, budget: int | None = None) -> Any:
        if not batch.whole:
            yield from super().cut(batch, budget)
            return
        groups = batch.groups.tolist()
        rows: list[int] = []
        for group in dict.fromkeys(groups):
            members = [row for row, each in enumerate(groups) if each == group]
            if rows and budget is not None and int(batch.mask[rows + members].sum()) > budget:
                yield rows
                rows = []
            rows = rows + members
        yield rows


def test_every_pair_comes_once_per_epoch_and_whole() -> None:
    steps = Pairs(Tabular(), ROWS, batch_size=4, epochs=2)
    assert (steps.per_epoch, steps.total, steps.dropped) == (3, 6, 0)
    for epoch in range(2):
        batches = [steps(3 * epoch + index).batch for index in range(3)]
        assert sorted(int(group) for batch in batches for group in batch.groups) == sorted(list(range(9)) * 2)
        for batch in batches:
            assert batch.whole and int(batch.columns["chosen"].sum()) * 2 == len(batch)
    assert steps(1).batch.outputs != steps(4).batch.outputs
    assert Pairs(Tabular(), ROWS, batch_size=4).fingerprint() != Pairs(Tabular(), ROWS[1:], batch_size=4).fingerprint()


def test_the_loss_is_that_of_the_formula_over_whole_outputs() -> None:
    policy = Tabular()
    with torch.no_grad():
        policy.logits.add_(torch.randn_like(policy.logits))
    step = Dpo(beta=0.3).prepare(Pairs(policy, ROWS, batch_size=9)(0), policy)
    (term,) = Dpo(beta=0.3).loss(policy.score(step.batch), step.batch)
    sides = {}
    for side in ("chosen", "rejected"):
        batch = policy.encode([side_of(row, side) for row in ROWS])
        sides[side] = sum_decisions(policy.score(batch).log_probs, batch.mask)
        sides["ref_" + side] = sum_decisions(policy.reference_log_probs(batch), batch.mask)
    expected = dpo_loss(
        **sides,
        beta=0.3,
        probability=torch.tensor([row.probability for row in ROWS], dtype=torch.float64),
        margin=torch.tensor([row.margin for row in ROWS], dtype=torch.float64),
    )
    torch.testing.assert_close(term.total, expected.sum())
    assert Dpo().counts(step.batch)["preference"] == 9
    gap = 0.3 * (sides["chosen"] - sides["ref_chosen"] - sides["rejected"] + sides["ref_rejected"])
    torch.testing.assert_close(term.metrics["margin"], gap.sum().detach())
    assert float(term.metrics["accuracy"]) == float((gap > 0).sum() + 0.5 * (gap == 0).sum())


def side_of(row: Preference, side: str) -> Demonstration:
    return Demonstration(row.inputs, getattr(row, side))


def test_at_the_start_it_is_ln_two_and_half_right() -> None:
    rows = [replace(row, margin=0.0) for row in ROWS]
    run = fit(Tabular(), Pairs(Tabular(), rows, batch_size=9), Dpo(), FitConfig(steps=1, learning_rate=1e-12))
    row = run.metrics[0]
    assert row["preference"] == pytest.approx(math.log(2)) and row["preference/accuracy"] == 0.5
    assert row["preference/margin"] == 0.0


def test_how_a_batch_is_cut_changes_no_gradient(tmp_path: Path) -> None:
    policy = Whole()
    batch = Pairs(policy, ROWS, batch_size=9)(0).batch
    found = [gradient(policy, batch, Dpo(), tmp_path / str(cut), micro_batch=cut) for cut in (None, 1, 8)]
    assert distance(found[0], found[1]) < 1e-12 and distance(found[0], found[2]) < 1e-12


def test_language_pairs_over_budget_stay_whole(learner: Callable[..., LanguagePolicy], tmp_path: Path) -> None:
    policy = learner()
    rows = [Preference("hi", "the cat sat", "a dog"), Preference("and", "b", "the mat the mat the mat")]
    batch = Pairs(policy, rows, batch_size=2)(0).batch
    assert {tuple(sorted(batch.groups[cut].tolist())) for cut in policy.cut(batch, 1)} == {(0, 0), (1, 1)}
    found = [gradient(policy, batch, Dpo(), tmp_path / str(cut), micro_batch=cut) for cut in (None, 1)]
    assert distance(found[0], found[1]) < 1e-9


def test_a_pair_that_was_parted_is_refused() -> None:
    policy = Tabular()
    step = Dpo().prepare(Pairs(policy, ROWS, batch_size=9)(0), policy)
    part = step.batch.select([0, 1, 2])
    with pytest.raises(ShapeError, match="1 of 2 pairs lack a side"):
        Dpo().loss(policy.score(part), part)


def test_a_second_policy_may_be_the_reference() -> None:
    policy, other = Tabular(), Tabular(seed=5)
    step = Pairs(policy, ROWS, batch_size=9, reference=other)(0)
    found = Dpo().prepare(step, policy).batch.columns["ref_log_probs"]
    torch.testing.assert_close(found, other.score(step.batch).log_probs.detach())


def test_it_learns_what_people_prefer_and_held_out_pairs_agree() -> None:
    """People prefer whichever output begins with the smaller number, nine times of ten."""
    outputs = [(a, b, 0) for a in range(5) for b in range(3)]
    rows = [
        Preference("a", *((x, y) if x[0] < y[0] else (y, x)), probability=0.9)
        for at, x in enumerate(outputs)
        for y in outputs[at + 1 :]
        if x[0] != y[0]
    ]
    policy = Tabular()
    held_out = HeldoutPairs(policy, rows[::5], Dpo(beta=1.0))
    train = [row for at, row in enumerate(rows) if at % 5]
    assert held_out(policy)["heldout_loss"] == pytest.approx(math.log(2))
    config = FitConfig(learning_rate=0.2, evaluate_every=10)
    run = fit(policy, Pairs(policy, train, batch_size=40, epochs=12), Dpo(beta=1.0), config, evaluation=held_out)
    assert run.last("heldout_accuracy") == 1.0 and run.last("preference/accuracy") > 0.95
    # Where nine of ten agree, the reward differs by log 9 on average; rewards of one input are known up to a number.
    assert run.last("heldout_loss") < 0.45


def test_pairs_without_two_sides_are_dropped_and_counted(learner: Callable[..., LanguagePolicy]) -> None:
    policy = learner()
    policy.max_length = 40
    rows = [Preference("hi", "a", "b"), Preference("the cat sat " * 60, "a", "b")]
    steps = Pairs(policy, rows)
    assert (steps.dropped, steps.total, len(steps(0).batch)) == (1, 1, 2)
    with pytest.raises(DataError, match="None of 1 pairs"):
        Pairs(policy, rows[1:])


def test_what_is_no_preference_is_refused() -> None:
    with pytest.raises(DataError, match="0 preferences"):
        encode_pairs(Tabular(), [])
    with pytest.raises(DataError, match="2 of 3 preferences"):
        encode_pairs(Tabular(), [ROWS[0], replace(ROWS[0], probability=1.2), replace(ROWS[0], margin=math.nan)])
    with pytest.raises(ConfigError, match=r"beta must be above 0, got 0\.0"):
        dpo(beta=0.0)


# ---------------------------------------------------------------- the family


WEIGHED = [replace(row, weight=(0.0, 1.0, 2.5)[n % 3]) for n, row in enumerate(ROWS)]
FAMILY = [Dpo(nll=0.4), Dpo(label_smoothing=0.2, robust=True), Ipo(), Ipo(length_normalised=False), SimPo(), Orpo()]


def drifted(policy: Tabular) -> Tabular:
    with torch.no_grad():
        policy.logits.add_(torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(3)))
    return policy


def loss_of(objective: Pairwise, policy: Tabular, rows: list[Preference]) -> float:
    batch = objective.prepare(Pairs(policy, rows, batch_size=len(rows))(0), policy).batch
    counts, part = objective.counts(batch), batch.select(objective.active(batch))
    terms = objective.loss(policy.score(part), part)
    return sum(float(term.total) * term.weight / counts[term.name] for term in terms)


@pytest.mark.parametrize("objective", FAMILY, ids=repr)
def test_a_weight_of_two_is_the_pair_twice_and_of_zero_is_no_pair(objective: Pairwise) -> None:
    policy = drifted(Tabular())
    weighed = [replace(row, weight=float(n % 3)) for n, row in enumerate(ROWS)]
    repeated = [row for n, row in enumerate(ROWS) for _ in range(n % 3)]
    assert loss_of(objective, policy, weighed) == pytest.approx(loss_of(objective, policy, repeated), abs=1e-12)


@pytest.mark.parametrize("objective", FAMILY, ids=repr)
def test_weighed_pairs_may_be_cut_anywhere(objective: Pairwise, tmp_path: Path) -> None:
    policy = Whole()
    batch = Pairs(policy, WEIGHED, batch_size=9)(0).batch
    drifted(policy)
    found = [gradient(policy, batch, objective, tmp_path / str(cut), micro_batch=cut) for cut in (None, 1, 8)]
    assert distance(found[0], found[1]) < 1e-12 and distance(found[0], found[2]) < 1e-12


def test_objectives_are_their_losses_of_sums_or_means() -> None:
    policy = drifted(Tabular())
    rows = [replace(row, margin=0.0, probability=1.0) for row in ROWS]

    def reduced(how: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
        batches = [policy.encode([side_of(row, side) for row in rows]) for side in ("chosen", "rejected")]
        ours = [how(policy.score(batch).log_probs, batch.mask) for batch in batches]
        return (*ours, *(how(policy.reference_log_probs(batch), batch.mask) for batch in batches))

    sums, means = reduced(sum_decisions), reduced(mean_decisions)
    lengths = torch.tensor([len(row.chosen) for row in rows], dtype=torch.float64)
    nll = float(-(means[0] * lengths).sum() / lengths.sum())
    wanted = {
        Dpo(beta=0.2): dpo_loss(*sums, beta=0.2).mean(),
        Dpo(beta=2.0, length_normalised=True): dpo_loss(*means, beta=2.0).mean(),
        Dpo(label_smoothing=0.1): dpo_loss(*sums, beta=0.1, probability=0.9).mean(),
        Dpo(nll=0.5): dpo_loss(*sums, beta=0.1).mean() + 0.5 * nll,
        Ipo(): ipo_loss(*means, beta=0.1).mean(),
        Ipo(length_normalised=False): ipo_loss(*sums, beta=0.1).mean(),
        SimPo(gamma=0.5): simpo_loss(*means[:2], beta=2.0, gamma=0.5).mean(),
        Orpo(beta=0.3): nll + 0.3 * odds_ratio_loss(*means[:2]).mean(),
    }
    for objective, expected in wanted.items():
        assert loss_of(objective, policy, rows) == pytest.approx(float(expected), abs=1e-12), objective


def test_a_side_of_several_turns_is_one_output(learner: Callable[..., LanguagePolicy]) -> None:
    """Its mean is over all of its decisions, however many turns they are in."""
    policy = learner()
    turns = [
        {"role": "assistant", "content": "the cat"},
        {"role": "user", "content": "and"},
        {"role": "assistant", "content": "sat on the mat"},
    ]
    row = Preference([{"role": "user", "content": "hi"}], turns, [{"role": "assistant", "content": "no"}])
    batch = Pairs(policy, [row])(0).batch
    assert len(batch) == 3
    (term,) = SimPo(gamma=0.0, beta=1.0).loss(policy.score(batch), batch)
    spoken = policy.log_probs([Demonstration(row.inputs, row.chosen), Demonstration(row.inputs, row.rejected)])
    gap = float(spoken[0].mean() - spoken[1].mean())
    assert float(term.total) == pytest.approx(math.log1p(math.exp(-gap)), abs=1e-6)


def test_agreement_is_with_what_people_say_and_undecided_is_half() -> None:
    policy = drifted(Tabular())
    rows = [Preference("a", (n, 1), (4 - n, 2), probability=p) for n, p in ((0, 1.0), (1, 0.0), (3, 0.5))]
    batch = Dpo().prepare(Pairs(policy, rows, batch_size=3)(0), policy).batch
    (term,) = Dpo().loss(policy.score(batch), batch)
    turned = [replace(row, chosen=row.rejected, rejected=row.chosen, probability=1 - row.probability) for row in rows]
    batch = Dpo().prepare(Pairs(policy, turned, batch_size=3)(0), policy).batch
    (other,) = Dpo().loss(policy.score(batch), batch)
    assert float(term.metrics["accuracy"]) == float(other.metrics["accuracy"]) in (0.5, 1.5, 2.5)


class Density(Tabular):
    discrete = False


def test_odds_of_densities_are_refused() -> None:
    policy = Density()
    with pytest.raises(NeedsProbabilities, match="ORPO compares odds"):
        Orpo().prepare(Pairs(policy, ROWS)(0), policy)


def test_settings_out_of_range_are_refused() -> None:
    for make, settings, told in (
        (dpo, {"label_smoothing": 0.5}, "label_smoothing"),
        (ipo, {"beta": math.nan}, "beta must be above 0"),
        (simpo, {"gamma": -1.0}, "gamma is a margin"),
        (orpo, {"nll": -0.1}, "nll is a weight"),
    ):
        with pytest.raises(ConfigError, match=told):
            make(**settings)
    with pytest.raises(DataError, match="1 of 9 preferences have a weight below 0"):
        encode_pairs(Tabular(), [replace(ROWS[0], weight=-1.0), *ROWS[1:]])


@pytest.mark.parametrize("objective", FAMILY, ids=repr)
def test_held_out_pairs_judge_every_objective(objective: Pairwise) -> None:
    policy = drifted(Tabular())
    found = HeldoutPairs(policy, WEIGHED, objective)(policy)
    assert found["heldout_loss"] == pytest.approx(loss_of(objective, policy, WEIGHED), abs=1e-12)
    assert 0 <= found["heldout_accuracy"] <= 1 and math.isfinite(found["heldout_margin"])
    with pytest.raises(DataError, match="weighs anything"):
        HeldoutPairs(policy, [replace(row, weight=0.0) for row in ROWS], objective)


# ---------------------------------------------------------------- bandits with a known optimum


def bandit(seed: int) -> tuple[Tabular, torch.Tensor, list[Preference]]:
    """Three arms, their rewards, and Bradley-Terry's preferences among them."""
    policy = Tabular(vocabulary=3, length=1, seed=seed)
    rewards = torch.randn(3, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64)
    chance = lambda a, b: float(torch.sigmoid(rewards[a] - rewards[b]))  # noqa: E731
    return policy, rewards, [Preference("a", (a,), (b,), chance(a, b)) for a in range(3) for b in range(a)]


def probabilities(policy: Tabular) -> torch.Tensor:
    return torch.softmax(policy.logits[0, 0].detach(), 0)


def learnt(policy: Tabular, rows: list[Preference], objective: Pairwise, *, epochs: int = 200) -> torch.Tensor:
    steps = Pairs(policy, rows, batch_size=len(rows), epochs=epochs)
    fit(policy, steps, objective, FitConfig(learning_rate=0.2, schedule="cosine"))
    return probabilities(policy)


@pytest.mark.parametrize("seed", range(5))
def test_dpo_finds_the_reference_tilted_by_the_reward(seed: int) -> None:
    policy, rewards, rows = bandit(seed)
    best = torch.softmax(policy.reference[0, 0] + rewards / 0.5, 0)
    torch.testing.assert_close(learnt(policy, rows, Dpo(beta=0.5)), best, rtol=0, atol=5e-4)


@pytest.mark.parametrize("seed", range(5))
def test_robust_dpo_finds_it_though_labels_were_flipped_and_plain_dpo_does_not(seed: int) -> None:
    policy, rewards, rows = bandit(seed)
    flipped = [replace(row, probability=0.8 * row.probability + 0.2 * (1 - row.probability)) for row in rows]
    best = torch.softmax(policy.reference[0, 0] + rewards / 0.5, 0)
    found = learnt(policy, flipped, Dpo(beta=0.5, label_smoothing=0.2, robust=True))
    torch.testing.assert_close(found, best, rtol=0, atol=5e-4)
    plain = learnt(bandit(seed)[0], flipped, Dpo(beta=0.5))
    assert float((plain - best).abs().max()) > 0.01


@pytest.mark.parametrize("seed", range(5))
def test_ipo_finds_its_closed_form(seed: int) -> None:
    """Two arms: log-ratios (2p - 1) / (2 beta) apart, for certain labels too, where DPO would never stop."""
    for probability in (1.0, 0.7):
        policy = Tabular(vocabulary=2, length=1, seed=seed)
        rows = [Preference("a", (0,), (1,), probability)]
        found = learnt(policy, rows, Ipo(beta=0.4))
        best = torch.softmax(policy.reference[0, 0] + torch.tensor([(2 * probability - 1) / 0.8, 0.0]).double(), 0)
        torch.testing.assert_close(found, best, rtol=0, atol=5e-4)


@pytest.mark.parametrize("seed", range(5))
def test_simpo_and_orpo_find_theirs(seed: int) -> None:
    """With soft labels SimPO's gap and ORPO's log odds (without imitation) settle where the sigmoid says the label."""
    rows = [Preference("a", (0,), (1,), 0.7)]
    policy = Tabular(vocabulary=2, length=1, seed=seed)
    gap = learnt(policy, rows, SimPo(beta=2.0, gamma=0.0)).log()
    assert float(gap[0] - gap[1]) == pytest.approx(math.log(0.7 / 0.3) / 2, abs=5e-4)
    policy = Tabular(vocabulary=2, length=1, seed=seed)
    odds = learnt(policy, rows, Orpo(nll=0.0, beta=1.0)).log()  # of two arms, log odds are twice as far apart
    assert float(odds[0] - odds[1]) == pytest.approx(math.log(0.7 / 0.3) / 2, abs=5e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("objective", [SimPo(), Orpo(), Dpo(), Dpo(length_normalised=True, beta=0.5)], ids=repr)
def test_the_best_arm_is_found_from_certain_labels(objective: Pairwise, seed: int) -> None:
    policy, rewards, rows = bandit(seed)
    certain = [replace(row, probability=float(row.probability > 0.5)) for row in rows]
    assert int(learnt(policy, certain, objective, epochs=100).argmax()) == int(rewards.argmax())


def test_an_objective_may_be_prepared_twice() -> None:
    policy = Tabular()
    step = Dpo().prepare(Pairs(policy, ROWS, batch_size=9)(0), policy)
    again = Dpo().prepare(step, drifted(policy))
    assert torch.equal(again.batch.columns["ref_log_probs"], step.batch.columns["ref_log_probs"])
    bare = Step(replace(step.batch, columns={k: v for k, v in step.batch.columns.items() if k != "ref_log_probs"}))
    assert torch.equal(Dpo().prepare(bare, policy).batch.columns["ref_log_probs"], again.batch.columns["ref_log_probs"])
