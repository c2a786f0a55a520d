"""a method of the OpenAI dialect is a recipe's sections, or a sentence that says what is wrong with it"""

from __future__ import annotations

from typing import Any

import pytest

from melior.cycles.hyperparameters import MOST_GROUP, sections_of, settled
from melior.errors import ConfigError


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ({}, "method.type is None"),
        ({"type": []}, r"method.type is \[\]"),
        ({"type": {"type": "supervised"}}, "method.type is {"),
        ({"type": "supervised", "supervised": "x"}, "method.supervised is 'x'; write an object"),
        ({"type": "dpo", "dpo": {"hyperparameters": [1]}}, r"method.dpo.hyperparameters is \[1\]; write an object"),
        ({"type": "dpo", "dpo": {"hyperparameters": {"beta": {}}}}, "beta is {}; write a number above 0"),
        (
            {"type": "supervised", "supervised": {"hyperparameters": {"learning_rate_multiplier": 10**400}}},
            "learning_rate_multiplier is 1000",
        ),
        (
            {"type": "reinforcement", "reinforcement": {"hyperparameters": {"compute_multiplier": float("inf")}}},
            "compute_multiplier is inf",
        ),
    ],
)
def test_what_is_no_method_is_told(method: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        sections_of(method)


def test_any_amount_of_compute_is_as_many_outputs_as_there_may_be() -> None:
    method = {"type": "reinforcement", "reinforcement": {"hyperparameters": {"compute_multiplier": 1e308}}}
    assert sections_of(method) == {"sampling": {"n": MOST_GROUP}}


@pytest.mark.parametrize(
    "more", [{}, {"supervised": None}, {"supervised": {}}, {"supervised": {"hyperparameters": None}}]
)
def test_what_is_left_out_is_settled_too(more: dict[str, Any]) -> None:
    method = {"type": "supervised", **more}
    assert sections_of(method) == {}
    came = settled(method, {"sft": {"epochs": 2, "batch_size": 16}})["supervised"]["hyperparameters"]
    assert came == {"learning_rate_multiplier": 1.0, "n_epochs": 2, "batch_size": 16}
