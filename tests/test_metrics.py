"""pass@k is the probability it claims to be"""

from __future__ import annotations

from itertools import combinations, product

import pytest

from melior.errors import DataError
from melior.metrics import accuracy, pass_at_k


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_pass_at_k_counts_the_subsets_with_a_success(samples: int) -> None:
    for successes in range(samples + 1):
        outcomes = [1] * successes + [0] * (samples - successes)
        for k in range(1, samples + 1):
            subsets = list(combinations(outcomes, k))
            assert pass_at_k(samples, successes, k) == pytest.approx(sum(map(max, subsets)) / len(subsets))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_pass_at_k_is_unbiased(p: float) -> None:
    samples, k = 5, 3
    expected = sum(
        p ** sum(draw) * (1 - p) ** (samples - sum(draw)) * pass_at_k(samples, sum(draw), k)
        for draw in product((0, 1), repeat=samples)
    )
    assert expected == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(("samples", "successes", "k"), [(2, 3, 1), (2, 1, 3), (2, 1, 0), (0, 0, 1), (2, -1, 1)])
def test_pass_at_k_refuses_what_cannot_be_drawn(samples: int, successes: int, k: int) -> None:
    with pytest.raises(DataError):
        pass_at_k(samples, successes, k)


def test_accuracy() -> None:
    assert accuracy(["a", "b", "c", "d"], ["a", "b", "x", "d"]) == 0.75
    with pytest.raises(DataError, match="2 outputs for 1"):
        accuracy(["a", "b"], ["a"])
    with pytest.raises(DataError):
        accuracy([], [])
