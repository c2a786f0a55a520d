"""what each method learns from, what it needs for that, and how fast it goes"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from melior.data.formats import Kind

Single = Literal[
    "sft",
    "rft",
    "off_policy",
    "dpo",
    "ipo",
    "simpo",
    "orpo",
    "kto",
    "online_dpo",
    "awr",
    "best_of",
    "ppo",
    "distill",
    "on_policy_distill",
    "reward_model",
]
Method = Literal[Single, "hybrid"]  # a hybrid is made of the others


@dataclass(frozen=True, kw_only=True)
class Way:
    """One method, as a cycle sees it."""

    learns: tuple[Kind, ...]  # rows it can learn from; one, where nothing else will do
    source: str  # what it learns from, in words
    pace: Literal["sft", "rft", "dpo"]  # whose learning rates it shares
    outputs: int = 0  # of its own that it needs of each prompt; 0 where rows show them
    graded: bool = False  # whether it cannot do without a grader, or a log's rewards

    @property
    def samples(self) -> bool:
        """Whether it learns from outputs of its own."""
        return self.outputs > 0


WAYS: Mapping[Single, Way] = {
    "sft": Way(learns=("demonstrations",), source="demonstrations", pace="sft"),
    "rft": Way(learns=("tasks",), source="rewards", pace="rft", outputs=2, graded=True),
    "off_policy": Way(learns=("logged",), source="rewards", pace="rft", graded=True),
    "dpo": Way(learns=("preferences",), source="preferences", pace="dpo"),
    "ipo": Way(learns=("preferences",), source="preferences", pace="dpo"),
    "simpo": Way(learns=("preferences",), source="preferences", pace="dpo"),
    "orpo": Way(learns=("preferences",), source="preferences", pace="sft"),
    "kto": Way(learns=("rated", "preferences"), source="what was called good or bad", pace="dpo"),
    "online_dpo": Way(learns=("tasks",), source="preferences", pace="dpo", outputs=2, graded=True),
    "awr": Way(learns=("rated",), source="ratings", pace="sft"),
    "best_of": Way(learns=("tasks",), source="demonstrations of their own", pace="sft", outputs=2, graded=True),
    "ppo": Way(learns=("tasks",), source="rewards", pace="rft", outputs=2, graded=True),
    "distill": Way(learns=("demonstrations",), source="a teacher", pace="sft"),
    "on_policy_distill": Way(learns=("tasks",), source="a teacher", pace="sft", outputs=1),
    "reward_model": Way(learns=("preferences", "rated"), source="what people said", pace="sft"),
}
