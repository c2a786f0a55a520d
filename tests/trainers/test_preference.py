"""pairs as steps and DPO as an objective: whole pairs, exact gradients, and the policy it should lead to"""

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

from melior.errors import ConfigError, DataError, ShapeError
from melior.losses.preference import dpo_loss
from melior.masking import sum_decisions
from melior.policies.language import LanguagePolicy
from melior.trainers.loop import FitConfig, fit
from melior.trainers.preference import Dpo, HeldoutPairs, Pairs, dpo, encode_pairs
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
