"""learning from a teacher policy: what it says of the student's own outputs, or what it would decide itself"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from melior.advantages import group_relative
from melior.errors import ConfigError, DataError
from melior.losses.distillation import candidate_divergence, reverse_kl_loss
from melior.losses.divergence import kl_k3
from melior.losses.likelihood import nll_loss
from melior.losses.policy_gradient import policy_gradient_loss, truncated_importance_weights
from melior.masking import select
from melior.policies.base import CANDIDATE_IDS, LOG_PROBS, Batch, Scored, Want
from melior.trainers.ratios import column, old_log_probs
from melior.trainers.steps import Step, Term
from melior.trainers.teachers import TEACHER_CANDIDATES, TEACHER_LOG_PROBS

WATCHED = ("agreement", "teacher_share", "student_share")  # means over decisions


@dataclass(frozen=True, kw_only=True)
class OnPolicyDistillation:
    """Brings a student towards a teacher on outputs it sampled itself: the reverse KL, averaged over decisions.

    Its mistakes are corrected where it makes them, and it seeks what the teacher finds good rather than all of what the
    teacher might say. Rewards can teach beside the teacher; they are compared within groups. Needs `TeacherRollouts`.

    Source: Agarwal et al. 2023, arXiv:2306.13649; Gu et al. 2023, arXiv:2306.08543.
    """

    discount: float = 0.0  # how far a decision answers for gaps behind it; 1 is the KL of whole outputs, noisier
    reward: float = 0.0  # weight of the policy gradient on graded outputs, per decision as the KL is
    # The largest weight of a decision that is likelier now than when it was sampled; on fresh samples all weigh 1.
    clip: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.discount <= 1:
            raise ConfigError(f"discount is from 0 (each decision's own gap) to 1 (all behind it), got {self.discount}")
        if not self.clip >= 1:
            raise ConfigError(f"clip is the largest weight and at least 1, where policies agree; got {self.clip}")
        if not self.reward >= 0:
            raise ConfigError(f"reward weighs what graders said and is at least 0, got {self.reward}")

    @property
    def want(self) -> frozenset[Want]:
        return LOG_PROBS

    def prepare(self, step: Step, policy: Any) -> Step:
        batch = step.batch
        if TEACHER_LOG_PROBS not in batch.columns:
            raise DataError("These steps have no teacher's log-probs; take TeacherRollouts(policy, teacher, …)")
        columns = {"old_log_probs": old_log_probs(batch, policy)}
        if self.reward:
            columns["advantages"] = group_relative(batch.columns["rewards"], batch.groups)
        return step.with_columns(**columns)

    def counts(self, batch: Batch) -> Mapping[str, float]:
        decisions = float(max(1, int(batch.mask.sum())))
        return {"distillation": decisions, "policy": decisions}

    def active(self, batch: Batch) -> list[int]:
        return batch.mask.any(1).nonzero()[:, 0].tolist()

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        mask = batch.mask.to(scored.log_probs.device)
        log_probs = select(scored.log_probs, mask)
        teacher = column(batch, TEACHER_LOG_PROBS, log_probs)
        weights = truncated_importance_weights(log_probs, column(batch, "old_log_probs", log_probs), clip=self.clip)
        apart = weights * reverse_kl_loss(log_probs, teacher, discount=self.discount)
        told = {"kl_teacher": select(kl_k3(log_probs.detach(), teacher), mask).sum()}
        terms = [Term("distillation", select(apart, mask).sum(), metrics=told)]
        if self.reward:
            gain = policy_gradient_loss(log_probs, weights * column(batch, "advantages", log_probs))
            terms.append(Term("policy", select(gain, mask).sum(), self.reward))
        return terms


@dataclass(frozen=True, kw_only=True)
class CandidateDistillation:
    """Brings a student's distribution at each place towards a teacher's, on the teacher's likeliest decisions.

    Far more is learnt from a place than by demonstration: not only what was decided, but all that might have been, and
    how likely. Steps are `TeacherExamples` (offline, the teacher asked once) or `TeacherRollouts(k=…)` (on the
    student's own outputs). `beta`, `temperature`, `remainder` are those of `losses.distillation.candidate_divergence`.

    Source: Hinton et al. 2015, arXiv:1503.02531; Agarwal et al. 2023, arXiv:2306.13649, eq. 1.
    """

    beta: float = 0.0  # 0: KL(teacher ‖ student); 1: KL(student ‖ teacher)
    temperature: float = 1.0
    remainder: bool = True
    demonstration: float = 0.0  # weight of the likelihood of what was decided, beside the teacher

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"beta goes from 0, KL(teacher ‖ student), to 1, KL(student ‖ teacher), got {self.beta}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}")
        if not self.demonstration >= 0:
            raise ConfigError(f"demonstration weighs what was decided and is at least 0, got {self.demonstration}")

    @property
    def want(self) -> frozenset[Want]:
        return frozenset({Want.CANDIDATES}) | (LOG_PROBS if self.demonstration else frozenset())

    def prepare(self, step: Step, policy: Any) -> Step:
        if not {CANDIDATE_IDS, TEACHER_CANDIDATES} <= step.batch.columns.keys():
            raise DataError("These steps have no teacher's candidates; take TeacherExamples or TeacherRollouts(k=…)")
        return step

    def counts(self, batch: Batch) -> Mapping[str, float]:
        weight = max(float(select(batch.weights, batch.mask).sum()), 1e-300)  # of rows that all weigh nothing, none
        decisions = float(max(1, int(batch.mask[self.active(batch)].sum())))
        return {"distillation": weight, "nll": weight, **{f"distillation/{name}": decisions for name in WATCHED}}

    def active(self, batch: Batch) -> list[int]:
        return (batch.mask & (batch.weights != 0)).any(1).nonzero()[:, 0].tolist()

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        assert scored.candidates is not None
        candidates = scored.candidates
        mask, weights = batch.mask.to(candidates.device), batch.weights.to(candidates)
        teacher = batch.columns[TEACHER_CANDIDATES].to(candidates).masked_fill(~mask[:, :, None], -torch.inf)
        apart = candidate_divergence(
            candidates, teacher, beta=self.beta, temperature=self.temperature, remainder=self.remainder
        )
        terms = [Term("distillation", select(apart * weights, mask).sum(), metrics=_watched(candidates, teacher, mask))]
        if self.demonstration:
            nll = select(nll_loss(scored.log_probs, weights), mask).sum()
            terms.append(Term("nll", nll, self.demonstration))
        return terms


def on_policy_distillation(**settings: Any) -> OnPolicyDistillation:
    """The objective of distillation on the student's own outputs; settings are those of `OnPolicyDistillation`."""
    return OnPolicyDistillation(**settings)


def candidate_distillation(**settings: Any) -> CandidateDistillation:
    """The objective of distillation from a teacher's likeliest decisions; settings are those of the class."""
    return CandidateDistillation(**settings)


def _watched(candidates: Tensor, teacher: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Sums over decisions: what the candidates share of each one's probability, and where both favour the same."""
    with torch.no_grad():
        known = torch.isfinite(teacher)
        student = candidates.masked_fill(~known, -torch.inf)
        same = (student.argmax(-1) == teacher.argmax(-1)).to(candidates)
        return {
            "agreement": select(same, mask).sum(),
            "teacher_share": select(teacher.exp().sum(-1), mask).sum(),
            "student_share": select(student.exp().sum(-1), mask).sum(),
        }
