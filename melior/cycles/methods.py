"""what each method learns from, what it needs for that, and how fast it goes"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from melior.data.formats import Kind

Method = Literal["sft", "rft", "off_policy", "dpo", "ipo", "simpo", "orpo", "awr", "ppo"]


@dataclass(frozen=True, kw_only=True)
class Way:
    """One method, as a cycle sees it."""

    learns: tuple[Kind, ...]  # rows it can learn from; one, where nothing else will do
    source: str  # what it learns from, in words
    pace: Literal["sft", "rft", "dpo"]  # whose learning rates it shares
    samples: bool = False  # whether it learns from outputs of its own: a group of each prompt
    graded: bool = False  # whether it cannot do without a grader, or a log's rewards


WAYS: Mapping[Method, Way] = {
    "sft": Way(learns=("demonstrations",), source="demonstrations", pace="sft"),
    "rft": Way(learns=("tasks",), source="rewards", pace="rft", samples=True, graded=True),
    "off_policy": Way(learns=("logged",), source="rewards", pace="rft", graded=True),
    "dpo": Way(learns=("preferences",), source="preferences", pace="dpo"),
    "ipo": Way(learns=("preferences",), source="preferences", pace="dpo"),
    "simpo": Way(learns=("preferences",), source="preferences", pace="dpo"),
    "orpo": Way(learns=("preferences",), source="preferences", pace="sft"),
    "ppo": Way(learns=("tasks",), source="rewards", pace="rft", samples=True, graded=True),
    "awr": Way(learns=("rated",), source="ratings", pace="sft"),
}
