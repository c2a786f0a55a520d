"""the two tasks on which SFT, RL and their mixtures are compared: sorted letters, and a banner of five products"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from letters import LETTERS, PRETRAINING, different_words, pretrained, sorted_word
from numpy.typing import NDArray

from melior.policies.language import LanguagePolicy
from melior.policies.slate import SlatePolicy
from melior.policies.slate_network import Slate
from melior.rollouts.banner import Banner, logging_policy
from melior.trainers.optimizers import Schedule
from melior.trainers.reinforcement import Reinforcement, reinforcement
from melior.trainers.rollouts import Rollouts
from melior.trainers.supervised import Examples
from melior.types import Demonstration, Record, Sampling, Score, Task

MOST = 10.0  # points that a slate counts at most in SFT: one purchase outweighs ten clicks, not more


@dataclass(frozen=True)
class Rate:
    """How one stage of an arm learns."""

    learning_rate: float
    schedule: Schedule = "constant"


def rated(**rates: float) -> dict[str, Rate]:
    """Constant rates of stages; that of SFT falls along a cosine."""
    return {stage: Rate(rate, "cosine" if stage == "sft" else "constant") for stage, rate in rates.items()}


class Compared(Protocol):
    """What an arm learns, and how it is judged."""

    name: str
    unit: str  # of the values
    budget: int  # what every arm may spend, in steps of RL alone
    share: float  # of the budget that goes to demonstrations, where an arm has them and rewards
    rates: dict[str, Rate]  # of the stages "sft", "rl", "then" (RL after SFT), "hybrid" and "turns"
    objective: Reinforcement

    def policy(self, seed: int) -> Any: ...
    def examples(self, policy: Any, seed: int) -> Examples: ...
    def rollouts(self, policy: Any, seed: int) -> Rollouts: ...

    def judged(self, policy: Any) -> NDArray[np.float64]:
        """One value per held-out row; the rows are the same for every arm and seed."""
        ...


@dataclass
class BannerTask:
    """Five of forty products; a log of 10,000 slates to imitate, the simulated shop to practise in.

    Rates were chosen in another shop (`shop=100`), see docs/experiments.md.
    """

    name: str = "banner"
    unit: str = "expected points of a greedy slate"
    budget: int = 120
    share: float = 0.3
    shop: int = 3
    impressions: int = 10_000
    fresh: int = 1_000  # visits that judge
    prompts: int = 64  # visits of a step, eight slates each
    sft_batch: int = 128
    rates: dict[str, Rate] = field(default_factory=lambda: rated(sft=3e-3, rl=3e-4, then=1e-3, hybrid=3e-3, turns=3e-4))
    objective: Reinforcement = field(default_factory=lambda: reinforcement(estimator="leave_one_out", length=5))

    @cached_property
    def world(self) -> Banner:
        return Banner("logit", self.shop)

    @cached_property
    def liked(self) -> list[Demonstration]:
        """The logged slates people did something with, by their points."""
        records = self.world.log(logging_policy(self.world), self.impressions, self.shop)
        scores = self.world.logged_scores(records)
        return [
            Demonstration(record.inputs, record.output, weight=min(score.value, MOST))
            for record, score in zip(records, scores, strict=True)
            if score.value
        ]

    def policy(self, seed: int) -> SlatePolicy:
        settings = Slate(positions=5, combinations=True, width=32)
        return SlatePolicy.make(settings, self.world.catalogue, [row.inputs for row in self.liked[:2_000]], seed=seed)

    def examples(self, policy: Any, seed: int) -> Examples:
        return Examples(policy, self.liked, batch_size=self.sft_batch, seed=seed)

    def rollouts(self, policy: Any, seed: int) -> Rollouts:
        tasks = self.world.tasks(self.budget * self.prompts, seed=2_000_000 + seed)
        sampling = Sampling(n=8, temperature=0.3, seed=seed)
        return Rollouts(policy, tasks, self.world, sampling, prompts=self.prompts, seed=seed)

    def judged(self, policy: Any) -> NDArray[np.float64]:
        fresh = self.world.requests(self.fresh, seed=1_000_000)
        slates = [record.output for record in policy.sample(fresh, Sampling(temperature=0))]
        return np.asarray(self.world.expected(fresh, slates).numpy())


@dataclass(frozen=True)
class Sorted:
    """1 for the word's letters in order and nothing else, 0 for any other text."""

    name: str = "sorted"

    def grade(self, records: Sequence[Record]) -> list[Score]:
        return [Score(value=float(record.output == sorted_word(record.inputs))) for record in records]


@dataclass
class LettersTask:
    """A small language model that learnt four things to do with a word, and shall do one of them: sort its letters.

    Rates were chosen with seed 100, see docs/experiments.md.
    """

    folder: Path = field(repr=False)  # keeps the model that all arms begin with
    name: str = "letters"
    unit: str = "chance of the right answer"
    budget: int = 100
    share: float = 0.3
    prompts: int = 8  # of a step, eight samples each
    demonstrations: int = 64  # of as many tasks, others for every seed
    tasks: int = 1_000
    fresh: int = 500  # words that judge
    sft_batch: int = 16
    rates: dict[str, Rate] = field(default_factory=lambda: rated(sft=1e-3, rl=1e-3, then=1e-4, hybrid=3e-4, turns=1e-4))
    objective: Reinforcement = field(default_factory=lambda: reinforcement(length=LETTERS + 1))

    @cached_property
    def words(self) -> list[str]:
        """All different: those that judge, those of tasks, then those of pre-training."""
        return different_words(self.fresh + self.tasks + PRETRAINING, seed=0)

    def policy(self, seed: int) -> LanguagePolicy:
        return LanguagePolicy.load(pretrained(self.words[-PRETRAINING:], self.folder / "base"), dtype="float32")

    def examples(self, policy: Any, seed: int) -> Examples:
        shown = np.random.default_rng(seed).permutation(self.tasks)[: self.demonstrations] + self.fresh
        rows = [Demonstration(self.words[place], sorted_word(self.words[place])) for place in shown.tolist()]
        return Examples(policy, rows, batch_size=self.sft_batch, seed=seed)

    def rollouts(self, policy: Any, seed: int) -> Rollouts:
        tasks = [Task(word) for word in self.words[self.fresh : self.fresh + self.tasks]]
        sampling = Sampling(n=8, max_tokens=LETTERS + 1, seed=seed)
        return Rollouts(policy, tasks, Sorted(), sampling, prompts=self.prompts, seed=seed)

    def judged(self, policy: Any) -> NDArray[np.float64]:
        """Exact: the model's own probability of the one right answer, so no sample blurs it."""
        rows = [Demonstration(word, sorted_word(word)) for word in self.words[: self.fresh]]
        return np.array([math.exp(float(each.detach().sum())) for each in policy.log_probs(rows)])


TASKS: dict[str, Callable[[Path], Compared]] = {
    "banner": lambda folder: BannerTask(),
    "letters": LettersTask,
    "letters-8": lambda folder: LettersTask(folder, name="letters-8", demonstrations=8),
}
