"""what a teacher policy says of what a student learns from: of outputs it samples, or of examples, asked once"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from melior.durable import write_file
from melior.errors import ConfigError, DataError
from melior.policies.base import CANDIDATE_IDS, Batch, score_all
from melior.rewards.base import FailureLimit
from melior.rollouts.collect import Grades, Rollout
from melior.trainers.references import fingerprint_of
from melior.trainers.rollouts import Rollouts
from melior.trainers.steps import Step, digest
from melior.trainers.supervised import Examples
from melior.types import Demonstration, Record, Sampling, Score, Task

log = logging.getLogger(__name__)

TEACHER_LOG_PROBS = "teacher_log_probs"  # column [B, T] nats, of the decisions
TEACHER_CANDIDATES = "teacher_candidates"  # column [B, T, K] nats, of the ids in "candidate_ids"
PLACE = "taught"  # column [B]: which of all rows this is


class TeacherRollouts(Rollouts):
    """Steps of fresh outputs of a student, each decision with the log-prob that a teacher gives it.

    With `k` the teacher's k likeliest decisions at each place are told too, which `candidate_distillation` reads. A
    grader is needed only where rewards are learnt from as well. The teacher is never trained and may be any policy
    whose decision ids mean the same.
    """

    def __init__(
        self,
        policy: Any,
        teacher: Any,
        tasks: Sequence[Task],
        sampling: Sampling,
        *,
        grader: Grades | None = None,
        k: int = 0,
        prompts: int = 16,
        seed: int = 0,
        failures: FailureLimit | None = None,
    ) -> None:
        """Raises DataError if there are no tasks, or teacher and student decide different things."""
        check_teacher(policy, teacher)
        super().__init__(
            policy, tasks, grader or Ungraded(), sampling, prompts=prompts, seed=seed, failures=failures, alone=True
        )
        self.teacher, self.k, self.graded = teacher, k, grader is not None

    def fingerprint(self) -> str:
        return digest("taught", super().fingerprint(), fingerprint_of(self.teacher), self.k)

    def _step(self, rollouts: list[Rollout], drawn: list[Rollout], rounds: int) -> Step:
        step = super()._step(rollouts, drawn, rounds)
        asked = encoded_by(self.teacher, [rollout.record for rollout in rollouts], step.batch)
        columns = {TEACHER_LOG_PROBS: score_all(self.teacher, asked)}
        if self.k:
            ids, log_probs = candidates_of(self.teacher, asked, self.k)
            columns |= {CANDIDATE_IDS: ids, TEACHER_CANDIDATES: log_probs}
        step = step.with_columns(**columns)
        if self.graded:
            return step
        kept = {name: value for name, value in step.metrics.items() if not name.startswith("reward")}
        return Step(step.batch, kept, step.samples, step.histograms)


class TeacherExamples:
    """Steps over demonstrations, each place with the log-probs of a teacher's `k` likeliest decisions.

    The teacher is asked once, before the first step; with a folder never again, for the same weights, rows and k: the
    file's name is a hash of them. What is kept is [decisions, k] of 32-bit ids and log-probs. A policy that lists all
    it can decide (labels, slates) teaches all of it with a `k` as large as the list.
    """

    def __init__(
        self,
        policy: Any,
        teacher: Any,
        rows: Sequence[Demonstration],
        *,
        k: int = 32,  # 256 bytes per decision; the metric "teacher_share" tells how much of the probability they hold
        batch_size: int = 16,
        epochs: int = 1,
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        """Raises DataError if no row has anything to learn, or teacher and student decide different things."""
        if k < 1:
            raise ConfigError(f"A teacher tells its k likeliest decisions, and k is at least 1, got {k}")
        check_teacher(policy, teacher)
        self.examples = Examples(policy, rows, batch_size=batch_size, epochs=epochs, seed=seed)
        self.dropped, batch = self.examples.dropped, self.examples.batch
        self.key = digest("teacher", fingerprint_of(teacher), self.examples.content, k, batch.mask.sum(1).tolist())
        self.asked = False  # whether the teacher was asked now, or had been before
        self.ids, self.log_probs = self._told(teacher, rows, k, folder)
        lengths = batch.mask.sum(1)
        self.starts = lengths.cumsum(0) - lengths
        self.examples.batch = batch.with_columns(**{PLACE: torch.arange(len(batch))})

    @property
    def total(self) -> int:
        return self.examples.total

    @property
    def per_epoch(self) -> int:
        """Steps that show every row once; the last one of an epoch may be smaller."""
        return self.examples.per_epoch

    def fingerprint(self) -> str:
        return digest(self.key, self.examples.fingerprint())

    def __call__(self, index: int) -> Step:
        step = self.examples(index)
        mask = step.batch.mask
        steps = torch.arange(mask.shape[1]).expand(mask.shape)
        places = (self.starts[step.batch.columns[PLACE]][:, None] + steps)[mask]
        shape = (*mask.shape, self.ids.shape[1])
        ids = torch.full(shape, -1).masked_scatter(mask[:, :, None], self.ids[places].long())
        kept = self.log_probs[places]
        told = torch.full(shape, -torch.inf, dtype=kept.dtype).masked_scatter(mask[:, :, None], kept)
        return step.with_columns(**{CANDIDATE_IDS: ids, TEACHER_CANDIDATES: told})

    def _told(
        self, teacher: Any, rows: Sequence[Demonstration], k: int, folder: Path | None
    ) -> tuple[Tensor, Tensor]:  # [N, K] int32, [N, K] fp32
        """What the teacher says of every decision, row after row: read, or asked and kept."""
        file = None if folder is None else folder / f"teacher-{self.key}.safetensors"
        if file is not None and (found := _read(file, int(self.examples.batch.mask.sum()), k)) is not None:
            return found
        self.asked = True
        batch = self.examples.batch
        taught = encoded_by(teacher, rows, batch)
        ids, log_probs = candidates_of(teacher, taught, k)
        flat = ids[batch.mask].int().contiguous(), log_probs[batch.mask].float().contiguous()
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, safetensors.torch.save({"ids": flat[0], "log_probs": flat[1]}))
        return flat


class Ungraded:
    """Gives every output the same score, where none is needed."""

    name = "none"

    def grade(self, records: Sequence[Record]) -> list[Score]:
        """One score of 0 per record."""
        return [Score(value=0.0, name=self.name) for _ in records]


def check_teacher(policy: Any, teacher: Any) -> None:
    """Nothing, if the decisions of both mean the same.

    Raises:
        DataError: if not.
    """
    if policy.vocabulary != teacher.vocabulary:
        raise DataError(
            f"Decision ids of the teacher ({teacher.vocabulary}) do not mean what the student's ({policy.vocabulary}) "
            "do; give a teacher with the same tokenizer and template, labels or catalogue"
        )


def encoded_by(teacher: Any, examples: Sequence[Any], batch: Batch) -> Batch:
    """The examples as the teacher reads them, row for row beside the student's batch.

    Raises:
        DataError: if the teacher's context holds fewer or more of their decisions.
    """
    encoded: Batch = teacher.encode(examples)
    decided = (encoded.mask & (encoded.weights != 0)).any(1)
    if len(encoded) != len(batch):  # the student's rows without a decision to learn were left out
        encoded = encoded.select(decided.nonzero()[:, 0].tolist())
    if encoded.mask.shape != batch.mask.shape or not torch.equal(encoded.mask, batch.mask):
        found, wanted = int(encoded.mask.sum()), int(batch.mask.sum())
        raise DataError(
            f"The teacher reads {found} decisions of these rows and the student {wanted}; give both the same max_length"
        )
    return encoded


@torch.no_grad()
def candidates_of(teacher: Any, batch: Batch, k: int) -> tuple[Tensor, Tensor]:  # [B, T, K] ids, [B, T, K] nats
    """The k likeliest decisions at every place and their log-probs, in micro-batches."""
    shape = (*batch.mask.shape, k)
    ids, log_probs = torch.full(shape, -1), torch.full(shape, -torch.inf, dtype=torch.float64)
    for rows in teacher.cut(batch):
        part = batch.select(rows)
        found = teacher.likeliest(part, k)
        width = part.mask.shape[1]
        ids[rows, :width], log_probs[rows, :width] = found[0].cpu(), found[1].double().cpu()
    return ids, log_probs


def _read(file: Path, decisions: int, k: int) -> tuple[Tensor, Tensor] | None:
    """What was kept; nothing where there is no file, or a damaged one."""
    if not file.is_file():
        return None
    try:
        found: Mapping[str, Tensor] = safetensors.torch.load(file.read_bytes())
        ids, log_probs = found["ids"], found["log_probs"]
    except (safetensors.SafetensorError, KeyError) as error:
        log.warning("%s is damaged (%s) and was left out; the teacher is asked again", file, error)
        return None
    if ids.shape != (decisions, k) or log_probs.shape != (decisions, k):
        log.warning("%s holds %s log-probs, not %s; the teacher is asked again", file, ids.shape, (decisions, k))
        return None
    return ids, log_probs
