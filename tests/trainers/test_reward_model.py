"""reward models learn: exact gradients however a batch is cut, teachers that are found again, runs that go on"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probes import distance, gradient
from torch import nn

from melior.errors import ConfigError, DataError, ShapeError
from melior.losses.reward import bradley_terry_loss
from melior.policies.language import LanguagePolicy
from melior.policies.reward_model import Reward, RewardModel
from melior.policies.reward_segments import Segments
from melior.policies.tables import Table
from melior.trainers.loop import FitConfig, fit
from melior.trainers.reward_model import (
    Comparisons,
    HeldoutComparisons,
    HeldoutRatings,
    OnRatings,
    Ratings,
    bradley_terry,
    logistic,
    ordinal,
    squared_error,
)
from melior.types import Preference, Rated

QUIET = Segments(hidden=(5,), dropout=0.0)
HEADS = ("help", "safety")


def segment(seed: int, columns: int = 3) -> np.ndarray:
    """Three to seven steps."""
    return np.random.default_rng(seed).normal(1.0, 2.0, (3 + seed % 5, columns))


PAIRS = [
    Preference(
        None,
        segment(n),
        segment(n + 50),
        probability=(1.0, 0.8, 0.5, 0.2)[n % 4],
        margin=n / 20,
        weight=1 + n % 2,
        item={"head": HEADS[n % 3 == 0]},
    )
    for n in range(10)
]
RATED = [Rated(None, segment(n), rating=float(n % 3), weight=1 + n % 2, item={"head": HEADS[n % 2]}) for n in range(11)]
YES = [replace(row, rating=row.rating / 2) for row in RATED]


def exact(rows: Sequence[Any], seed: int = 0, **how: Any) -> RewardModel:
    """A small model in fp64."""
    model = RewardModel.make(Reward(segment=QUIET, heads=HEADS, **how), rows, seed=seed, device="cpu")
    model.trunk.reader.double()  # type: ignore[attr-defined]
    return RewardModel(model.trunk, model.heads)


# ---------------------------------------------------------------------- steps


def test_every_row_comes_once_per_epoch_with_its_own_labels() -> None:
    model = exact(PAIRS)
    steps = Comparisons(model, PAIRS, batch_size=4, epochs=2)
    assert (steps.per_epoch, steps.total, steps.dropped) == (3, 6, 0)
    for epoch in range(2):
        batches = [steps(3 * epoch + index).batch for index in range(3)]
        assert sorted(group for batch in batches for group in batch.groups.tolist()) == sorted([*range(10)] * 2)
        for batch in batches:
            assert batch.whole
            for pair, head in zip(batch.groups.tolist(), batch.columns["heads"].tolist(), strict=True):
                assert HEADS[head] == PAIRS[pair].item["head"]
    rated = Ratings(model, RATED, batch_size=4)
    seen = [rated(index).batch for index in range(rated.total)]
    owners = [owner for batch in seen for owner in batch.columns["examples"].tolist()]
    ratings = [rating for batch in seen for rating in batch.columns["ratings"].tolist()]
    assert sorted(owners) == list(range(11)) and ratings == [RATED[owner].rating for owner in owners]
    assert rated.fingerprint() != Ratings(model, RATED[1:], batch_size=4).fingerprint()
    assert steps.fingerprint() != Comparisons(model, PAIRS[1:], batch_size=4, epochs=2).fingerprint()


# ---------------------------------------------------------------------- objectives


def test_the_loss_is_that_of_the_formula() -> None:
    model = exact(PAIRS)
    batch = Comparisons(model, PAIRS, batch_size=10)(0).batch
    objective = bradley_terry(centring=0.05)
    preference, centring = objective.loss(model.score(batch), batch)
    places = [HEADS.index(row.item["head"]) for row in PAIRS]
    chosen, rejected = (
        torch.stack([model.values(model.encode([Rated(None, side, 0.0)]))[0, place] for side, place in found])
        for found in (
            [(row.chosen, place) for row, place in zip(PAIRS, places, strict=True)],
            [(row.rejected, place) for row, place in zip(PAIRS, places, strict=True)],
        )
    )
    labels = {
        name: torch.tensor([getattr(row, name) for row in PAIRS], dtype=torch.float64)
        for name in ("probability", "margin", "weight")
    }
    weight = labels.pop("weight")
    torch.testing.assert_close(preference.total, (weight * bradley_terry_loss(chosen, rejected, **labels)).sum())
    torch.testing.assert_close(centring.total, (weight * (chosen + rejected) ** 2).sum())
    counts = objective.counts(batch)
    assert centring.weight == 0.05 and counts["preference"] == counts["centring"] == float(weight.sum()) == 15
    decided = weight * (labels["probability"] != 0.5)
    agrees = (chosen > rejected) == (labels["probability"] > 0.5)
    assert float(preference.metrics["accuracy"]) == pytest.approx(float((decided * agrees).sum()))
    assert counts["preference/accuracy"] == float(decided.sum())


@pytest.mark.parametrize("name", ["bradley_terry", "squared_error", "logistic", "ordinal"])
def test_how_a_batch_is_cut_changes_no_gradient(tmp_path: Path, name: str) -> None:
    objectives: dict[str, Any] = {
        "bradley_terry": bradley_terry(centring=0.05),
        "squared_error": squared_error(),
        "logistic": logistic(),
        "ordinal": ordinal(),
    }
    model = exact(RATED, levels={head: (0.0, 1.0, 2.0) for head in HEADS} if name == "ordinal" else {})
    if name == "squared_error":
        model.standardise(RATED)
    if name == "bradley_terry":
        batch = Comparisons(model, PAIRS, batch_size=10)(0).batch
    else:
        batch = Ratings(model, YES if name == "logistic" else RATED, batch_size=11)(0).batch
    found = [
        gradient(model, batch, objectives[name], tmp_path / str(cut), micro_batch=cut) for cut in (None, 1, 12, 30)
    ]
    assert "trunk.layers.0.weight" in found[0] and float(found[0]["head.weight"].abs().max()) > 1e-3
    assert max(distance(each, found[0]) for each in found[1:]) < 1e-12


def test_language_pairs_are_cut_whole_with_exact_gradients(
    learner: Callable[..., LanguagePolicy], tmp_path: Path
) -> None:
    model = RewardModel.on(learner())
    rows = [
        Preference("hi", "the cat sat", "a dog"),
        Preference("and", "b", "the mat the mat the mat", probability=0.7),
        Preference("hi the", "man", "hat of the"),
    ]
    batch = Comparisons(model, rows, batch_size=3)(0).batch
    assert {tuple(sorted(batch.groups[cut].tolist())) for cut in model.cut(batch, 1)} == {(0, 0), (1, 1), (2, 2)}
    whole, cut = (gradient(model, batch, bradley_terry(), tmp_path / str(size), micro_batch=size) for size in (None, 1))
    assert any("lora" in name for name in whole) and distance(whole, cut) < 1e-9
    part = batch.select([0, 1, 2])
    with pytest.raises(ShapeError, match="1 of 2 pairs lack a side"):
        bradley_terry().loss(model.score(part), part)


def test_swapping_the_sides_of_every_pair_is_turning_its_label(tmp_path: Path) -> None:
    model = exact(PAIRS)
    turned = [
        replace(row, chosen=row.rejected, rejected=row.chosen, probability=1 - row.probability, margin=-row.margin)
        for row in PAIRS
    ]
    one, other = (
        gradient(model, Comparisons(model, rows, batch_size=10)(0).batch, bradley_terry(), tmp_path / str(number))
        for number, rows in enumerate((PAIRS, turned))
    )
    assert distance(one, other) < 1e-12


def test_a_row_teaches_its_own_head_alone(tmp_path: Path) -> None:
    model = exact(PAIRS)
    mine = [row for row in PAIRS if row.item["head"] == "safety"]
    found = gradient(model, Comparisons(model, mine, batch_size=10)(0).batch, bradley_terry(), tmp_path)
    assert float(found["head.weight"][0].abs().max()) == 0.0 < float(found["head.weight"][1].abs().max())


# ---------------------------------------------------------------------- teachers that are found again


def taught(seed: int, count: int) -> list[Preference]:
    """Pairs of outputs of which a linear teacher prefers one; what stands in the inputs says nothing."""
    drawn = np.random.default_rng(seed)
    teacher = drawn.normal(size=3)
    rows = []
    for _ in range(count):
        sides = drawn.normal(size=(2, 3))
        better, worse = sides[np.argsort(-(sides @ teacher))]
        cells = [{f"b{n}": float(value) for n, value in enumerate(side)} for side in (better, worse)]
        rows.append(Preference({"a": float(drawn.normal())}, *cells))
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_a_linear_teacher_s_preferences_are_found_again(seed: int) -> None:
    rows = taught(seed, 560)
    table = Table(width=12, blocks=0, bins=4, embedding=3, hidden=0.0)
    model = RewardModel.make(Reward(table=table), rows, seed=seed, device="cpu")
    held_out = HeldoutComparisons(model, rows[:200])
    config = FitConfig(learning_rate=0.05)
    run = fit(model, Comparisons(model, rows[200:], batch_size=90, epochs=10), bradley_terry(), config)
    told = held_out(model)
    assert told["heldout_accuracy"] > 0.9 and told["heldout_loss"] < 0.3
    assert run.metrics[0]["preference"] == pytest.approx(math.log(2), abs=0.02)
    assert "skipped" in run.metrics[0] and run.skipped == 0


@pytest.mark.parametrize("seed", range(5))
def test_ratings_are_foretold_on_their_own_scale(seed: int) -> None:
    teacher = np.array([1.0, -2.0, 0.5])
    shown = [segment(80 * seed + n) for n in range(80)]
    rows = [Rated(None, one, rating=float(50 + 3 * one.sum(0) @ teacher)) for one in shown]
    model = RewardModel.make(Reward(segment=Segments(hidden=())), rows, seed=seed, device="cpu")
    model.standardise(rows[20:])
    held_out = HeldoutRatings(model, rows[:20], squared_error())
    fit(model, Ratings(model, rows[20:], batch_size=30, epochs=100), squared_error(), FitConfig(learning_rate=0.1))
    told = held_out(model)
    assert told["heldout_correlation"] > 0.98 and told["heldout_loss"] < 0.02
    found, ratings = model.rewards(rows[:20])[:, 0].numpy(), np.array([row.rating for row in rows[:20]])
    assert float(np.abs(found - ratings).mean()) < 0.15 * float(ratings.std())


def test_grades_and_yes_and_no_are_learnt_and_thresholds_keep_their_order() -> None:
    drawn = np.random.default_rng(0)
    teacher = np.array([1.0, -1.0, 0.5])
    latent = [float(segment(n).sum(0) @ teacher) / 3 for n in range(240)]
    noisy = np.array(latent) + drawn.logistic(size=240)
    edges = np.quantile(noisy, [0.2, 0.4, 0.9])  # the middle grades are unlike in width
    grades = [Rated(None, segment(n), rating=float(np.searchsorted(edges, noisy[n]) + 1)) for n in range(240)]
    model = RewardModel.make(Reward(segment=Segments(hidden=()), levels={"reward": (1, 2, 3, 4)}), grades, device="cpu")
    fit(model, Ratings(model, grades, batch_size=120, epochs=40), ordinal(), FitConfig(learning_rate=0.05))
    raw = model.values(model.encode(grades))[:, 0].numpy()
    assert np.corrcoef(raw, latent)[0, 1] > 0.95
    table = model.heads.grades(torch.tensor([[float(raw.mean())]])).detach().exp()[0, 0]
    assert float(table.sum()) == pytest.approx(1.0, abs=1e-5) and float(table[2]) > 2 * float(table[1])
    told = model.rewards(grades)[:, 0]
    assert 1 <= float(told.min()) < 2 and 3.3 < float(told.max()) <= 4

    yes = [replace(row, rating=float(row.rating > 2)) for row in grades]
    model = RewardModel.make(Reward(segment=Segments(hidden=())), yes, device="cpu")
    fit(model, Ratings(model, yes, batch_size=120, epochs=40), logistic(), FitConfig(learning_rate=0.05))
    told_auc = HeldoutRatings(model, yes, logistic())(model)["heldout_auc"]
    assert told_auc > 0.8
    share = float(torch.sigmoid(model.rewards(yes)).mean())
    assert share == pytest.approx(float(np.mean([row.rating for row in yes])), abs=0.02)  # as a logistic fit must


def test_centring_keeps_rewards_around_zero_and_costs_no_accuracy() -> None:
    rows = [Preference(None, segment(n) + 0.4, segment(n + 100)) for n in range(40)]
    means, accuracies = [], []
    for centring in (0.0, 0.1):
        model = RewardModel.make(Reward(segment=Segments(hidden=())), rows, device="cpu")
        with torch.no_grad():
            model.heads.bias.fill_(3.0)  # preferences alone would leave it there
        steps = Comparisons(model, rows, batch_size=40, epochs=60)
        fit(model, steps, bradley_terry(centring=centring), FitConfig(learning_rate=0.1))
        sides = [Rated(None, side, 0.0) for row in rows for side in (row.chosen, row.rejected)]
        means.append(abs(float(model.rewards(sides).mean())))
        accuracies.append(HeldoutComparisons(model, rows)(model)["heldout_accuracy"])
    assert means[1] < 0.5 < 2 < means[0]
    assert accuracies[1] > accuracies[0] - 0.1


# ---------------------------------------------------------------------- runs


class Killed(Exception):
    """What ends a run in the middle of a step."""


def test_a_run_that_was_killed_ends_with_the_same_weights(tmp_path: Path) -> None:
    noisy = Reward(segment=Segments(hidden=(5,), dropout=0.3), heads=HEADS)

    def run(folder: Path, dies_at: int | None = None) -> RewardModel:
        model = RewardModel.make(noisy, PAIRS, seed=3, device="cpu")
        steps = Comparisons(model, PAIRS, batch_size=4, epochs=4, seed=1)

        def on_step(done: int, total: int, metrics: dict[str, float]) -> None:
            if done == dies_at:
                raise Killed

        config = FitConfig(folder=folder, learning_rate=0.01, checkpoint_every=2)
        fit(model, steps, bradley_terry(centring=0.01), config, on_step=on_step)
        return model

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "cut", dies_at=7)
    resumed = run(tmp_path / "cut")
    assert {name: tensor.tolist() for name, tensor in resumed.state().items()} == {
        name: tensor.tolist() for name, tensor in whole.state().items()
    }
    nn.Module.eval(whole.heads)  # scoring does not depend on a module's mode
    torch.testing.assert_close(whole.values(whole.encode(RATED)), resumed.values(resumed.encode(RATED)), rtol=0, atol=0)


def test_held_out_pairs_are_told_whole_and_by_head() -> None:
    model = exact(PAIRS)
    told = HeldoutComparisons(model, PAIRS)(model)
    assert set(told) == {
        "heldout_loss", "heldout_margin", "heldout_accuracy", "heldout_accuracy/help", "heldout_accuracy/safety"
    }  # fmt: skip
    turned = [replace(row, chosen=row.rejected, rejected=row.chosen) for row in PAIRS]
    other = HeldoutComparisons(model, turned)(model)
    assert told["heldout_accuracy"] + other["heldout_accuracy"] == pytest.approx(1.0)
    ties = HeldoutComparisons(model, [replace(row, probability=0.5) for row in PAIRS])(model)
    assert "heldout_accuracy" not in ties


def test_what_cannot_teach_is_refused() -> None:
    model = exact(RATED)
    with pytest.raises(DataError, match="'nobody'"):
        Comparisons(model, [replace(PAIRS[0], item={"head": "nobody"})])
    with pytest.raises(DataError, match="1 of 2 ratings are not finite"):
        Ratings(model, [RATED[0], replace(RATED[1], rating=math.nan)])
    step = Ratings(model, RATED, batch_size=11)(0)
    with pytest.raises(DataError, match="3 of 11 ratings are no yes"):
        logistic().prepare(step, model)
    with pytest.raises(DataError, match="has no levels"):
        ordinal().prepare(step, model)
    graded = exact(RATED, levels={head: (0.0, 1.0) for head in HEADS})
    with pytest.raises(DataError, match="none of its levels"):
        ordinal().prepare(step, graded)
    with pytest.raises(ConfigError, match="centring"):
        bradley_terry(centring=-1.0)
    with pytest.raises(ConfigError, match="stars"):
        OnRatings(scale="stars")  # type: ignore[arg-type]
