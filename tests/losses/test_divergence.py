"""estimates of KL, each against its definition, and the weight that is steered by them"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior.losses.divergence import adaptive_beta, kl_k1, kl_k2, kl_k3


def test_each_estimate_is_its_formula() -> None:
    log_probs, reference = torch.tensor([[-1.0, -2.0, -0.5]]).double(), torch.tensor([[-1.0, -1.5, -3.0]]).double()
    ratios = [1.0, math.exp(0.5), math.exp(-2.5)]  # of the reference over the policy
    assert kl_k1(log_probs, reference).tolist()[0] == pytest.approx([-math.log(r) for r in ratios])
    assert kl_k2(log_probs, reference).tolist()[0] == pytest.approx([math.log(r) ** 2 / 2 for r in ratios])
    assert kl_k3(log_probs, reference).tolist()[0] == pytest.approx([r - 1 - math.log(r) for r in ratios])


@given(st.floats(-1e-9, 1e-9), st.floats(-20, 0))
def test_where_policies_agree_nothing_is_lost_to_rounding(gap: float, log_prob: float) -> None:
    here = torch.tensor([log_prob], dtype=torch.float64)
    found = float(kl_k3(here, here + gap))
    assert 0 <= found <= 1e-18 and float(kl_k3(here, here)) == 0


def test_expectations_are_the_divergence_or_near_it() -> None:
    source = torch.Generator().manual_seed(1)
    policy = torch.log_softmax(torch.randn(7, generator=source, dtype=torch.float64), 0)
    reference = torch.log_softmax(policy + 0.1 * torch.randn(7, generator=source, dtype=torch.float64), 0)
    truth = float((policy.exp() * (policy - reference)).sum())
    mean = {name: float((policy.exp() * of(policy, reference)).sum()) for name, of in ESTIMATES.items()}
    assert mean["k1"] == pytest.approx(truth, abs=1e-15) and mean["k3"] == pytest.approx(truth, abs=1e-15)
    assert mean["k2"] == pytest.approx(truth, rel=0.1) and abs(mean["k2"] - truth) > 1e-6


ESTIMATES = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(6.0, 1.0), (6.6, 1.01), (7.2, 1.02), (60.0, 1.02), (5.4, 0.99), (0.0, 0.98), (-3.0, 0.98)],
)
def test_the_weight_grows_beyond_the_target_and_shrinks_below_by_two_percent_at_most(kl: float, factor: float) -> None:
    assert adaptive_beta(0.5, kl, target=6.0) == pytest.approx(0.5 * factor, abs=1e-15)
