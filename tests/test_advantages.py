"""advantages: unbiased, exact at zero, blind to what nobody could grade"""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from melior.advantages import gae, group_relative, informative, leave_one_out, whiten

ESTIMATORS = {
    "mean": group_relative,
    "std": lambda rewards, groups: group_relative(rewards, groups, divide_by_std=True),
    "leave_one_out": leave_one_out,
}


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def oracle(name: str, rewards: list[float]) -> list[float]:
    """One group, from the papers, in plain floats."""
    mean = statistics.fmean(rewards)
    if name == "mean":
        return [reward - mean for reward in rewards]
    if name == "std":
        return [(reward - mean) / (statistics.stdev(rewards) + 1e-4) for reward in rewards]
    return [r - statistics.fmean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]


@pytest.mark.parametrize("name", ESTIMATORS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_estimator_is_its_papers_formula_in_any_order(name: str, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(2, 5), min_size=1, max_size=4))
    quarter = st.integers(-40, 40).map(lambda number: number / 4)
    rows = [
        (group, reward)
        for group, size in enumerate(sizes)
        for reward in data.draw(st.lists(quarter, min_size=size, max_size=size, unique=True))
    ]
    shuffled = data.draw(st.permutations(rows))
    found = ESTIMATORS[name](tensor(*(r for _, r in shuffled)), torch.tensor([7 * g for g, _ in shuffled]))
    for place, (group, reward) in enumerate(shuffled):
        members = [r for g, r in rows if g == group]
        assert found[place].item() == pytest.approx(oracle(name, members)[members.index(reward)], abs=1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_group_of_one_or_of_equals_has_advantage_exactly_zero(name: str) -> None:
    rewards = tensor(0.3, *[0.1] * 7, math.nan, math.nan, math.nan, 0.7)
    groups = torch.tensor([0] + [1] * 7 + [2] * 2 + [3] * 2)
    assert ESTIMATORS[name](rewards, groups).tolist() == [0.0] * 12
    assert not bool(informative(rewards, groups).any())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_row_nobody_could_grade_gets_zero_and_counts_in_nobodys_mean(name: str) -> None:
    rewards, groups = tensor(1.0, math.nan, 0.0, 0.25, 5.0, 4.0), torch.tensor([0, 0, 0, 0, 1, 1])
    found = ESTIMATORS[name](rewards, groups)
    known = ~torch.isnan(rewards)
    assert found[1] == 0
    assert torch.equal(found[known], ESTIMATORS[name](rewards[known], groups[known]))
    assert informative(rewards, groups).tolist() == known.tolist()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_rows_give_no_advantages(name: str) -> None:
    assert ESTIMATORS[name](tensor(), torch.zeros(0, dtype=torch.long)).tolist() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_whitened_values_have_mean_zero_and_std_one(values: list[float]) -> None:
    given = tensor(*values)
    found = whiten(given)
    if max(values) == min(values):
        assert not bool(found.any())
    elif max(values) - min(values) > 1e-3:
        assert abs(float(found.mean())) < 1e-6
        assert float(found.std(unbiased=False)) == pytest.approx(1.0, abs=1e-4)


def test_whitening_ignores_what_is_not_selected() -> None:
    mask = torch.tensor([True, False, True, True])
    found = whiten(tensor(1.0, math.nan, 2.0, 6.0), mask)
    assert torch.equal(found[mask], whiten(tensor(1.0, 2.0, 6.0)))
    assert found[1] == 0
    assert whiten(tensor(3.0)).tolist() == [0.0]


def test_without_centring_signs_stay_and_the_spread_is_one() -> None:
    given = tensor(1.0, 2.0, 6.0)
    found = whiten(given, centre=False)
    torch.testing.assert_close(found, given / given.std(unbiased=False))
    assert whiten(tensor(3.0, 3.0), centre=False).tolist() == [3.0, 3.0]
    assert whiten(tensor(0.0, 0.0), centre=False).tolist() == [0.0, 0.0]


def test_what_hardly_varies_is_not_blown_up() -> None:
    """`epsilon` stands beside the standard deviation: where they are equal, half a unit is left."""
    assert whiten(tensor(0.0, 2e-8)).tolist() == pytest.approx([-0.5, 0.5])
    assert whiten(tensor(1.0, 3.0), epsilon=3.0).tolist() == pytest.approx([-0.25, 0.25])
    # the sample standard deviation of a group of two is their distance over the root of two
    pair = group_relative(tensor(0.0, math.sqrt(2)), torch.tensor([0, 0]), divide_by_std=True, epsilon=3.0)
    assert pair.tolist() == pytest.approx([-math.sqrt(2) / 8, math.sqrt(2) / 8])


def test_nothing_selected_whitens_to_nothing() -> None:
    assert whiten(tensor(1.0, 2.0), torch.tensor([False, False])).tolist() == [0.0, 0.0]


def test_whitening_of_decisions_counts_each_of_them_once() -> None:
    values = torch.tensor([[1.0, 1.0, 9.0], [4.0, 7.0, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    found = whiten(values, mask)
    assert torch.equal(found[mask], whiten(tensor(1.0, 1.0, 4.0)))
    assert not bool(found[~mask].any())


def test_all_is_made_where_the_rewards_are() -> None:
    """Not where torch makes tensors when it is told nothing."""
    rewards, groups = tensor(1.0, math.nan, 3.0), torch.tensor([0, 0, 0])
    mask, truncated = torch.ones(1, 3, dtype=torch.bool), torch.tensor([True])
    values = torch.ones(1, 4).double()
    with torch.device("meta"):
        found = [estimator(rewards, groups) for estimator in ESTIMATORS.values()]
        found += [whiten(rewards[::2]), informative(rewards, groups)]
        found += [gae(torch.ones_like(values[:, :3]), values, mask, truncated)]
    assert {each.device.type for each in found} == {"cpu"}


# ---------------------------------------------------------------- generalised advantages


def episodes(data: st.DataObject) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards [B, T], values [B, T + 1], mask and which rows were cut short; garbage wherever nothing is decided."""
    lengths = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    width = max(lengths) + data.draw(st.integers(0, 2))
    mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    source = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    rewards = torch.randn(mask.shape, generator=source, dtype=torch.float64).masked_fill(~mask, math.nan)
    values = torch.randn(len(lengths), width + 1, generator=source, dtype=torch.float64)
    behind = torch.arange(width + 1)[None, :] > torch.tensor(lengths)[:, None]
    truncated = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    return rewards, values.masked_fill(behind, math.nan), mask, truncated


def naive(rewards: Tensor, values: Tensor, mask: Tensor, cut: Tensor, discount: float, trace: float) -> list[list]:
    """The definition: a sum over all later decisions of each one's temporal difference error."""
    rows = []
    for row, length in enumerate(mask.sum(1).tolist()):
        value = [*values[row, :length].tolist(), float(values[row, length]) if cut[row] else 0.0]
        error = [float(rewards[row, t]) + discount * value[t + 1] - value[t] for t in range(length)]
        sums = [sum((discount * trace) ** (k - t) * error[k] for k in range(t, length)) for t in range(length)]
        rows.append(sums + [0.0] * (mask.shape[1] - length))
    return rows


@settings(max_examples=80, deadline=None)
@given(st.data(), st.floats(0, 1), st.floats(0, 1))
def test_generalised_advantages_are_their_definition(data: st.DataObject, discount: float, trace: float) -> None:
    given = episodes(data)
    found = gae(*given, discount=discount, trace=trace).tolist()
    for row, wanted in zip(found, naive(*given, discount, trace), strict=True):
        assert row == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.floats(0, 1))
def test_with_a_full_trace_they_are_returns_less_values(data: st.DataObject, discount: float) -> None:
    rewards, values, mask, truncated = episodes(data)
    found = gae(rewards, values, mask, truncated, discount=discount, trace=1.0)
    for row, length in enumerate(mask.sum(1).tolist()):
        to_go = float(values[row, length]) if truncated[row] else 0.0
        for place in reversed(range(length)):
            to_go = float(rewards[row, place]) + discount * to_go
            assert float(found[row, place]) == pytest.approx(to_go - float(values[row, place]), abs=1e-12)


def test_without_a_trace_only_the_next_value_is_believed() -> None:
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0, 40.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    ended, cut = torch.tensor([False]), torch.tensor([True])
    assert gae(rewards, values, mask, ended, discount=0.5, trace=0.0).tolist() == [[1 + 10 - 10, 2 - 20]]
    assert gae(rewards, values, mask, cut, discount=0.5, trace=0.0).tolist() == [[1 + 10 - 10, 2 + 20 - 20]]


def test_the_defaults_are_undiscounted_with_a_trace_of_095() -> None:
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 3)
    found = gae(rewards, values, torch.ones(1, 2, dtype=torch.bool), torch.tensor([False]))
    assert found.tolist() == [pytest.approx([1 + 0.95 * 2, 2.0])]
