"""ensembles: members that differ, an origin they share, rows drawn with replacement, and runs that go on"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from melior.errors import ConfigError, DataError, ModelError
from melior.policies.reward_ensemble import RewardEnsemble, load_rewards
from melior.policies.reward_model import Reward, RewardModel, sides
from melior.policies.reward_segments import Segments
from melior.trainers.loop import FitConfig
from melior.trainers.reward_ensemble import Ensemble, fit_ensemble, resampled
from melior.trainers.reward_model import bradley_terry, squared_error
from melior.types import Demonstration, Preference, Rated

TEACHER = np.array([1.0, -1.0])


def pair(seed: int) -> Preference:
    found = [np.random.default_rng([seed, side]).normal(size=(4, 2)) for side in (0, 1)]
    better, worse = sorted(found, key=lambda each: -float(each.sum(0) @ TEACHER))
    return Preference(None, better, worse, group=f"g{seed // 2}")


ROWS = [pair(seed) for seed in range(40)]


def member(seed: int) -> RewardModel:
    return RewardModel.make(Reward(segment=Segments(hidden=(6,))), ROWS, seed=seed, device="cpu")


def trained(folder: Path | None = None, **how: bool) -> RewardEnsemble:
    config = FitConfig(folder=folder, learning_rate=0.03)
    settings = Ensemble(members=3, batch_size=20, epochs=8, **how)
    return fit_ensemble(member, ROWS, bradley_terry(), config, ensemble=settings)


def test_members_differ_agree_where_there_were_rows_and_are_unsure_elsewhere(tmp_path: Path) -> None:
    found = trained(tmp_path / "run")
    examples = sides(ROWS)
    each = found.member_rewards(examples)
    assert each.shape == (3, 80, 1)
    torch.testing.assert_close(found.rewards(examples), each.mean(0))
    torch.testing.assert_close(found.uncertainty(examples), each.std(0, correction=0))
    assert float(each.mean(1).abs().max()) < 1e-5  # centred on what they learnt from
    assert all(float((each[a] - each[b]).abs().max()) > 1e-3 for a, b in ((0, 1), (0, 2), (1, 2)))
    gaps = found.rewards(examples)[0::2, 0] - found.rewards(examples)[1::2, 0]
    assert float((gaps > 0).double().mean()) > 0.85
    far = [Demonstration(None, 8 * np.random.default_rng(seed).normal(size=(4, 2))) for seed in range(20)]
    assert float(found.uncertainty(far).mean()) > 2 * float(found.uncertainty(examples).mean())
    again = trained(tmp_path / "run")  # every member's run is over, and is found so
    torch.testing.assert_close(again.rewards(examples), found.rewards(examples), rtol=0, atol=0)


def test_an_ensemble_is_saved_and_loaded_and_one_model_is_one_of_one(tmp_path: Path) -> None:
    found = RewardEnsemble([member(seed) for seed in (1, 2)])
    found.save(tmp_path / "e")
    loaded = load_rewards(tmp_path / "e", device="cpu")
    torch.testing.assert_close(loaded.member_rewards(sides(ROWS)), found.member_rewards(sides(ROWS)))
    found.members[0].save(tmp_path / "m")
    one = load_rewards(tmp_path / "m", device="cpu")
    assert len(one.members) == 1 and float(one.uncertainty(sides(ROWS)).max()) == 0.0
    torch.testing.assert_close(found.members[0].member_rewards(sides(ROWS)), one.member_rewards(sides(ROWS)))
    with pytest.raises(ModelError, match="no folder"):
        load_rewards(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="not a reward model"):
        load_rewards(tmp_path / "empty")


def test_rescaling_moves_the_mean_and_every_member_alike() -> None:
    found = RewardEnsemble([member(seed) for seed in (1, 2)])
    before, spread = found.rewards(sides(ROWS)), found.uncertainty(sides(ROWS))
    found.rescale("reward", location=1.0, spread=3.0)
    torch.testing.assert_close(found.rewards(sides(ROWS)), 1 + 3 * before, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.uncertainty(sides(ROWS)), 3 * spread, rtol=1e-5, atol=1e-6)


def test_rows_of_one_group_are_drawn_together() -> None:
    drawn = resampled(ROWS, 3)
    assert len(drawn) == 40 and [id(row) for row in drawn] == [id(row) for row in resampled(ROWS, 3)]
    assert [id(row) for row in drawn] != [id(row) for row in resampled(ROWS, 4)]
    counts = {group: [0, 0] for group in {row.group for row in ROWS}}
    for row in drawn:
        counts[row.group][int(row is not first_of(row.group))] += 1
    assert all(first == second for first, second in counts.values())
    assert 0.5 < sum(first > 0 for first, _ in counts.values()) / len(counts) < 0.8  # 1 - 1/e of them
    with pytest.raises(DataError, match="0 rows"):
        resampled([], 0)


def first_of(group: str) -> Preference:
    return next(row for row in ROWS if row.group == group)


def test_without_a_bootstrap_members_differ_by_their_start_and_order_alone() -> None:
    found = trained(bootstrap=False).member_rewards(sides(ROWS))
    assert float((found[0] - found[1]).abs().max()) > 1e-3


def test_ratings_make_ensembles_too_in_their_own_unit() -> None:
    rows = [Rated(None, row.chosen, rating=100 + float(row.chosen.sum(0) @ TEACHER)) for row in ROWS]

    def made(seed: int) -> RewardModel:
        model = RewardModel.make(Reward(segment=Segments(hidden=())), rows, seed=seed, device="cpu")
        model.standardise(rows)
        return model

    settings = Ensemble(members=2, batch_size=20, epochs=60)
    found = fit_ensemble(made, rows, squared_error(), FitConfig(learning_rate=0.1), ensemble=settings)
    assert float(found.rewards(rows).mean()) == pytest.approx(np.mean([row.rating for row in rows]), abs=0.3)


def test_members_have_the_same_heads() -> None:
    other = RewardModel.make(Reward(heads=("a", "b"), segment=Segments()), ROWS, device="cpu")
    with pytest.raises(ConfigError, match="same heads"):
        RewardEnsemble([member(0), other])
    with pytest.raises(ConfigError, match="one or more"):
        RewardEnsemble([])
