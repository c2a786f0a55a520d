"""what the policy earns on its training tasks before it learns from rewards, and whether that can work

RFT learns from differences within a group: outputs of one prompt, some better than others. A policy that is always
right has nothing to learn, one that is never right nothing to learn from, and both cost hours to find out. So before
the first step some training prompts are sampled just as the run will sample them, and graded.

Shares of the reward need its range. Graders that say theirs (string_check, text_similarity, label_model, score_model,
reasoning_gym) are taken at their word; for others rewards that were all seen within 0 and 1 are taken to stay there.
Of a reward without a range only the groups are judged: how many have rewards that differ.

Source of the limits 95 %, 0 % and 5 %: docs.aws.amazon.com, Amazon Bedrock, "Reinforcement fine-tuning", before you
start.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from melior.errors import TrainingError
from melior.evaluation.evaluate import (
    REWARD,
    TRUNCATED,
    UNIT,
    Evaluation,
    Grades,
    Progress,
    Samples,
    evaluate,
    item_key,
)
from melior.statistics import Bounds, ByItem, Interval, bootstrap_mean, wilson
from melior.types import Sampling, Task

Outlook = Literal["good", "easy", "sparse", "hopeless"]

PROMPTS = 64  # four steps of sixteen; none useful among 64 means under 5.7 % of all, at 95 %
ENOUGH = 32  # prompts, before a run is refused: none useful among 32 means under 10.7 %
EASY = 0.95  # mean reward, as a share of its range
SPARSE = 0.05  # share of outputs that earned something
SOMETHING = 0.05  # of the range; verifiers give less than that for an answer that is wrong but well-formed
MANY_ERRORS = 0.05  # share of failed gradings that is worth a word
MANY_CUT = 0.10  # share of truncated outputs that is worth a word


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What was seen, with intervals over prompts, and what it means."""

    outlook: Outlook
    sentence: str
    prompts: int  # those with a graded output
    samples: int  # of each prompt
    reward: Interval
    bounds: Bounds | None  # the reward's range, if it is known
    earned: Interval | None  # share of outputs with more than 5 % of the range; None without a range
    useful: Interval  # share of groups whose rewards differ
    useful_per_step: Interval  # the same, in groups
    truncated: Interval  # share of outputs cut by max_tokens
    errors: float  # share of failed gradings
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        told = {name: value.to_json() if isinstance(value, Interval) else value for name, value in vars(self).items()}
        return {**told, "bounds": list(self.bounds) if self.bounds else None}

    @property
    def refused(self) -> bool:
        """Whether training would be hours of nothing, so far as so many prompts can tell."""
        return self.outlook == "hopeless" and self.prompts >= ENOUGH

    def check(self, method: str = "rft") -> None:
        """Nothing, if the run may go on.

        Raises:
            TrainingError: if it is hopeless.
        """
        if self.refused:
            advice = f"to train all the same, pass --anyway or write {method}.hopeless: train"
            raise TrainingError(f"{self.sentence}; {advice}")


def sample_baseline(
    policy: Samples,
    tasks: Sequence[Task],
    graders: Grades,
    sampling: Sampling,
    *,
    prompts: int = PROMPTS,
    seed: int = 0,
    grader: str = "",
    progress: Progress | None = None,
) -> Evaluation:
    """The policy's rewards on some of the tasks, drawn at random, `sampling.n` outputs each.

    The draw and the samples are a function of the seed, and not those of any training step.
    """
    chance = random.Random(f"baseline {seed}")
    distinct = list({item_key(task): task for task in tasks}.values())
    drawn = chance.sample(distinct, min(prompts, len(distinct)))
    settings = replace(sampling, seed=chance.getrandbits(31))
    return evaluate(policy, drawn, graders, settings, greedy=False, grader=grader, progress=progress)


def judged(evaluation: Evaluation, *, prompts_per_step: int, bounds: Bounds | None = None) -> Baseline:
    """What a baseline sample means for a run with so many prompts a step; `bounds`: the reward's declared range."""
    rewards = evaluation.values[REWARD]
    bounds = bounds or evaluation.bounds.get(REWARD)
    if bounds is not None and not all(bounds[0] <= x <= bounds[1] for found in rewards.values() for x in found):
        bounds = None  # a grader that does not keep its word
    differing: ByItem = {key: (float(max(found) > min(found)),) for key, found in rewards.items()}
    useful = _share(differing, evaluation.clusters)
    earned = None
    if bounds is not None:
        line = bounds[0] + SOMETHING * (bounds[1] - bounds[0])
        over: ByItem = {key: tuple(float(x > line) for x in found) for key, found in rewards.items()}
        earned = _share(over, evaluation.clusters)
    calls = evaluation.graded + evaluation.excluded
    found = Baseline(
        outlook="good",
        sentence="",
        prompts=len(rewards),
        samples=evaluation.sampling.n,
        reward=bootstrap_mean(rewards, bounds=bounds, clusters=evaluation.clusters),
        bounds=bounds,
        earned=earned,
        useful=useful,
        useful_per_step=Interval(*(prompts_per_step * x for x in (useful.estimate, useful.low, useful.high))),
        truncated=_share(evaluation.values[TRUNCATED], evaluation.clusters),
        errors=evaluation.excluded / calls,
        seconds=evaluation.seconds,
    )
    outlook, advice = _advice(found, outputs=sum(map(len, rewards.values())))
    return replace(found, outlook=outlook, sentence="; ".join([advice, *_asides(found, evaluation.error)]))


def declared_bounds(spec: Any) -> Bounds | None:
    """The range of rewards that a grader's setting promises, if it does."""
    if not isinstance(spec, Mapping):
        return None
    kind = spec.get("type")
    if kind == "score_model":
        low, high = spec.get("range") or UNIT
        return float(low), float(high)
    return UNIT if kind in ("string_check", "text_similarity", "label_model", "pair_model", "reasoning_gym") else None


def _share(by_item: ByItem, clusters: Mapping[str, str]) -> Interval:
    """A share of outputs or of groups, with its interval over prompts."""
    values = [x for found in by_item.values() for x in found]
    if not clusters and len(values) == len(by_item):
        return wilson(int(sum(values)), len(values))
    return bootstrap_mean(by_item, bounds=UNIT, clusters=clusters)


def _advice(found: Baseline, outputs: int) -> tuple[Outlook, str]:
    reward = found.reward.estimate
    few = "" if found.prompts >= ENOUGH else f" (but only {found.prompts} prompts were graded, so the run goes on)"
    if found.bounds is not None:
        low, high = found.bounds
        share = (reward - low) / (high - low)
        if share > EASY:
            return "easy", f"The reward is {share:.1%} of its best before training: RFT has little to add to that"
        if reward == low:
            return "hopeless", f"None of {outputs} outputs earned a reward: teach the task by demonstrations first{few}"
    if found.useful.estimate == 0:
        return "hopeless", f"Rewards are equal in each of {found.prompts} groups, so nothing can be compared{few}"
    if found.earned is not None and found.earned.estimate < SPARSE:
        return "sparse", (
            f"Only {_percent(found.earned)} of outputs earned something, which is too sparse to learn from well: "
            "more demonstrations, easier tasks or a larger sampling.n would help"
        )
    steps = found.useful_per_step
    return "good", (
        f"Reward {found.reward} before training; about {steps.estimate:.1f} [{steps.low:.1f}, {steps.high:.1f}] groups "
        "of a step have rewards that differ"
    )


def _asides(found: Baseline, error: str) -> list[str]:
    """What else is worth knowing before hours are spent."""
    asides = []
    if found.truncated.estimate > MANY_CUT:
        asides.append(f"{_percent(found.truncated)} of outputs were cut by max_tokens; raise it if answers need room")
    if found.errors > MANY_ERRORS:
        asides.append(f"{found.errors:.1%} of gradings failed, first with: {error:.120}")
    return asides


def _percent(share: Interval) -> str:
    return f"{share.estimate:.1%} [{share.low:.1%}, {share.high:.1%}]"
