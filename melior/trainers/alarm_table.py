"""every alarm: what it reads, its limits and where they come from, and what to do when it rings"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from melior.trainers.alarm_rules import Contrasts, Dominance, Growth, Jump, Last, LengthAsReward, Parting, Recent, Rule

PATIENCE = 3  # readings running that must lie beyond a limit
GAO = "Gao et al. 2022, arXiv:2210.10760"


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """One thing to watch: a value, the limits it is held against, and what to do where it lies beyond them."""

    name: str
    reads: tuple[str, ...]  # metrics by their whole name, or by what follows a "/" or "." in it; "*" is any word
    rule: Rule
    warn: float | None
    stop: float | None = None  # None: it never stops a run by itself
    falling: bool = False  # it rings below its limits
    patience: int = PATIENCE
    one_update: bool = False  # says something only where a step is one update
    texts: bool = False  # says something only of outputs that a policy ends itself; a label or a slate has its length
    watches: str  # what it looks at, in a few words, for the table
    told: str  # what is the matter; {value} {limit} and what the rule adds
    remedy: str
    source: str  # where the limits come from

    def beyond(self, value: float, limit: float | None) -> bool:
        """Whether a value lies beyond a limit."""
        return limit is not None and (value < limit if self.falling else value > limit)


# What is sourced is the measure and, where a number is named, the number; "own judgement" is what it says.
ALARMS: Sequence[Alarm] = (
    Alarm(
        name="heldout",
        reads=(),  # named by `Alarms.proxy` and `Alarms.heldout`
        rule=Parting(),
        warn=0.05,
        stop=0.005,
        falling=True,
        patience=1,  # the test is over evaluations already
        watches="chance that the reward rises and the held-out metric falls by luck",
        told="{proxy} rose to {reward} while {heldout} fell from {start} to {recent}, held out; the chance of luck "
        "is {value:.2g} (limit {limit})",
        remedy="the reward is being gamed: mend the grader, raise beta, and keep the weights from before",
        source=f"{GAO} (what parts); test and limits are this project's, simulated in its tests",
    ),
    Alarm(
        name="canary",
        reads=("canaries/*",),
        rule=Last(),
        warn=0.05,
        stop=0.05,
        patience=1,  # a reading is made of twenty prompts, and what is accepted there is learnt
        watches="share of prompts on which a judge accepts an output that says nothing",
        told="the judge accepts the canary {name!r} on {value:.0%} of prompts (limit {limit:.0%})",
        remedy="that is what is being learnt: mend the judge's prompt, or ask another judge, and start anew",
        source="Zhao et al. 2025, arXiv:2507.08794 (what judges accept); limit: own judgement, two of twenty prompts",
    ),
    Alarm(
        name="length_as_reward",
        reads=("completions/length_correlation", "completions/mean_length"),
        rule=LengthAsReward(),
        warn=0.5,
        stop=0.8,
        texts=True,
        watches="correlation of reward and length within groups, once outputs grew by half",
        told="within groups reward and length correlate by {value} (limit {limit}), and outputs grew from {start} to "
        "{recent} decisions",
        remedy="the reward pays for length: punish it (overlong_margin), or grade what is said",
        source="Singhal et al. 2023, arXiv:2310.03716 (the correlation); limits: own judgement",
    ),
    Alarm(
        name="repetition",
        reads=("completions/repetition",),
        rule=Recent(share=True, rises=1.5),
        warn=0.2,
        stop=0.5,
        texts=True,
        watches="share of 4-grams of an output that it had already, once half more than at the start",
        told="{value:.0%} of the 4-grams in outputs repeat (limit {limit:.0%}, {start:.0%} at the start)",
        remedy="outputs degenerate: raise beta or lower learning_rate, and look at samples",
        source="Welleck et al. 2019, arXiv:1908.04319 (seq-rep-4: about 0.01 in human text, 0.4 and more in greedy "
        "loops); limits between them: own judgement",
    ),
    Alarm(
        name="kl_reference",
        reads=("kl_reference",),
        rule=Recent(),
        warn=0.5,
        watches="KL divergence from the reference, nats per decision",
        told="the policy is {value} nats per decision away from its reference (limit {limit})",
        remedy="raise beta, lower learning_rate, or stop earlier: rewards can be trusted less the further it goes",
        source=f"{GAO} (the true score falls as this distance grows); limit: own judgement",
    ),
    Alarm(
        name="kl_sampler",
        reads=("kl_old",),
        rule=Recent(),
        warn=0.1,
        watches="KL divergence from the policy that sampled, nats per decision",
        told="updates move the policy {value} nats per decision away from the one that sampled (limit {limit})",
        remedy="lower learning_rate or minibatches",
        source="Achiam 2018, Spinning Up, PPO: updates end at 0.015 (1.5 × target_kl 0.01); limit: own judgement, a "
        "mean over whole steps",
    ),
    Alarm(
        name="ratio",
        reads=("policy/ratio",),
        rule=Recent(centre=1.0),
        warn=0.1,
        watches="distance of the mean ratio from 1, where it lies in expectation",
        told="the mean ratio of decisions lies {value} away from 1 (limit {limit})",
        remedy="lower learning_rate or minibatches; with one update per step, sampler and scorer disagree",
        source="own judgement; the mean of p/q under q is 1",
    ),
    Alarm(
        name="ratio_tails",
        reads=("ratio_tails",),
        rule=Recent(),
        warn=0.05,
        watches="share of decisions whose ratio is below 1/2 or above 2",
        told="{value:.1%} of decisions became more than twice as probable or half as (limit {limit:.0%})",
        remedy="lower learning_rate or minibatches",
        source="2 is where ms-swift cuts importance weights by default (rollout_importance_sampling_threshold); limit: "
        "own judgement",
    ),
    Alarm(
        name="sampler_gap",
        reads=("sampler_gap",),
        rule=Recent(),
        warn=1e-3,
        one_update=True,
        watches="mean difference of log-probs, sampled against scored, with one update per step",
        told="sampler and scorer differ by {value} nats per decision (limit {limit})",
        remedy="log-probs of samples cannot be trusted: sample and train in one precision, at temperature 1",
        source="this project's floor for its own sampler is 1e-4 at most; limit: ten times that",
    ),
    Alarm(
        name="entropy",
        reads=("sampled_entropy",),
        rule=Growth(),
        warn=0.1,
        falling=True,
        watches="entropy of samples, as a share of what it was at the start",
        told="entropy fell from {start} to {recent} nats per decision, {value:.0%} of its start (limit {limit:.0%})",
        remedy="samples of a group become equal: add entropy or beta, raise clip_high, or stop if the task is learnt",
        source="Cui et al. 2025, arXiv:2505.22617 (more than nine tenths gone is where gains end)",
    ),
    Alarm(
        name="contrast",
        reads=("frac_reward_zero_std",),
        rule=Recent(share=True),
        warn=0.8,
        watches="share of groups whose rewards are all equal",
        told="{value:.0%} of groups have equal rewards and teach nothing (limit {limit:.0%})",
        remedy="take other tasks, more samples of each, or resample; stop if the task is learnt",
        source="Yu et al. 2025, arXiv:2503.14476, §3.2 (why they teach nothing); limit: own judgement",
    ),
    Alarm(
        name="length",
        reads=("completions/mean_length",),
        rule=Growth(),
        warn=2.0,
        texts=True,
        watches="mean length, as a multiple of what it was at the start",
        told="outputs grew from {start} to {recent} decisions, {value}× (limit {limit}×)",
        remedy="look whether reward grew with them; punish length (overlong_margin) where it is padding",
        source="Singhal et al. 2023, arXiv:2310.03716; Liu et al. 2025, arXiv:2503.20783 (why lengths grow); limit: "
        "own judgement",
    ),
    Alarm(
        name="truncation",
        reads=("completions/clipped_ratio",),
        rule=Recent(share=True),
        warn=0.3,
        texts=True,
        watches="share of outputs cut at max_tokens",
        told="{value:.0%} of outputs are cut at max_tokens (limit {limit:.0%})",
        remedy="raise sampling.max_tokens, or punish length (overlong_margin)",
        source="Yu et al. 2025, arXiv:2503.14476, §3.4 (what it does to rewards); limit: own judgement",
    ),
    Alarm(
        name="grader_errors",
        reads=("grader_error_rate",),
        rule=Recent(share=True),
        warn=0.05,
        watches="share of outputs that no grader could judge",
        told="graders failed on {value:.0%} of outputs (limit {limit:.0%})",
        remedy="what they judge is no fair sample any more: mend the grader; the report shows its first error",
        source="own judgement; a run stops by itself at 20 %",
    ),
    Alarm(
        name="parts_part",
        reads=("rewards/*/mean",),
        rule=Contrasts(),
        warn=0.2,
        watches="what a part of the reward lost, as a share of its start, while another part rose",
        told="part {fallen} of the reward fell by {value:.0%} (limit {limit:.0%}), from {start} to {recent}, while "
        "part {risen} rose",
        remedy="one part is bought with another: change their weights, or look at samples",
        source="own judgement; the rise and the fall are both beyond 1 in 10,000 by Student's t",
    ),
    Alarm(
        name="parts_share",
        reads=("rewards/*/mean",),
        rule=Dominance(),
        warn=0.9,
        watches="share of the largest part in the sum of all parts, once it grew by a fifth of the sum",
        told="part {risen} makes up {value:.0%} of the reward (limit {limit:.0%}), {start:.0%} at the start",
        remedy="the other parts have no say any more: weigh them anew, or look at samples",
        source="own judgement",
    ),
    Alarm(
        name="grad_norm",
        reads=("grad_norm",),
        rule=Jump(),
        warn=10.0,
        patience=1,  # the value is a median of several steps
        watches="median of the last five gradient norms over that of the fifty before, or of the first twenty",
        told="gradient norms jumped from {start} to {recent}, {value}× (limit {limit}×)",
        remedy="lower learning_rate, or look at the rows of these steps",
        source="own judgement; clipping at max_grad_norm takes care of single spikes",
    ),
    Alarm(
        name="not_finite",
        reads=("skipped",),
        rule=Recent(share=True, window=20),
        warn=0.1,
        patience=1,
        watches="share of the last twenty steps whose loss or gradient was not finite",
        told="{value:.0%} of the last 20 steps had a loss or gradient that was not finite (limit {limit:.0%})",
        remedy="lower learning_rate, or take float32",
        source="own judgement; a run stops by itself after max_skipped such steps in a row",
    ),
)
