"""fit: the only training loop

A step is collected, prepared whole, cut into micro-batches, scored, and its terms are each divided once by their count
over the whole step: how it was cut changes nothing. Everything random is a function of (seed, step index, policy), so a
checkpoint is weights, optimizer state and an index, and a resumed run repeats the uninterrupted one bitwise.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from melior.durable import write_file
from melior.errors import CheckpointError, NonFiniteError, TrainingError
from melior.policies.base import Batch, Rates, State, Trainable
from melior.trainers.checkpoints import Checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from melior.trainers.optimizers import AdamW, Schedule, rate_factor
from melior.trainers.reports import environment
from melior.trainers.steps import Evaluates, Objective, Step, Steps, Term

Metrics = dict[str, float]


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FitConfig:
    """How `fit` steps. Rates: LoRA learns at 1e-4 … 1e-3, a whole model at 1e-5 … 5e-5."""

    folder: Path | None = None  # of the run: checkpoints, metrics, configuration; None keeps nothing
    steps: int | None = Field(default=None, ge=1)  # None: as many as there are
    learning_rate: float = Field(default=2e-4, gt=0)
    schedule: Schedule = "cosine"
    warmup: int = Field(default=0, ge=0)  # steps
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    rates: dict[str, float] = Field(default_factory=dict)  # pattern in parameter names → factor; 0 freezes
    micro_batch: int | None = Field(default=None, ge=1)  # tokens of one forward pass after sharing; None: the policy's choice
    minibatches: int = Field(default=1, ge=1)  # updates per step, each on a share of its groups
    checkpoint_every: int = Field(default=25, ge=1)  # steps
    keep_checkpoints: int = Field(default=2, ge=1)
    evaluate_every: int | None = Field(default=None, ge=1)  # steps; also after the last one
    best_metric: str | None = None  # of the evaluation; its best checkpoint is kept and restored at the end
    best_is: Literal["max", "min"] = "max"
    patience: int | None = Field(default=None, ge=1)  # evaluations without improvement before stopping
    max_skipped: int = Field(default=3, ge=1)  # non-finite steps in a row before the run stops


@dataclass
class Run:
    """What a run did. `metrics` holds one mapping per step, evaluations under their own names."""

    folder: Path | None
    metrics: list[Metrics] = field(default_factory=list)
    steps: int = 0
    skipped: int = 0  # steps whose loss or gradient was not finite
    best_step: int | None = None
    best_value: float | None = None
    stopped: str = ""  # why it ended early, empty otherwise

    def last(self, name: str) -> float:
        """The latest value of a metric, NaN if it was never measured."""
        return next((row[name] for row in reversed(self.metrics) if name in row), math.nan)


def fit(
    trainable: Any,
    steps: Steps,
    objective: Objective,
    config: FitConfig | None = None,
    *,
    evaluation: Evaluates | None = None,
    on_step: Callable[[int, int, Metrics], None] = lambda index, total, metrics: None,
) -> Run:
    """Trains, and returns what happened; with a folder it goes on where the last call with the same settings stopped.

    `on_step` sees the steps done, how many there are, and the step's metrics before they are kept: it may add its own.

    Raises:
        TrainingError: if there is nothing to learn from, or, as NonFiniteError, if too many steps in a row fail.
        CheckpointError: if the folder holds a run with other settings, or only damaged checkpoints.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    return _Loop(trainable, steps, objective, config or FitConfig(), evaluation, on_step).run()


class _Loop:
    """The state of one call of `fit`."""

    def __init__(
        self,
        trainable: Any,
        steps: Steps,
        objective: Objective,
        config: FitConfig,
        evaluation: Evaluates | None,
        on_step: Callable[[int, int, Metrics], None],
    ) -> None:
        total = config.steps if config.steps is not None else steps.total
        if total is None:
            raise TrainingError("These steps never end; say how many in FitConfig(steps=…)")
        self.trainable, self.steps, self.objective, self.config = trainable, steps, objective, config
        self.evaluation, self.on_step, self.total = evaluation, on_step, total
        rates = Rates(config.learning_rate, config.weight_decay, config.rates)
        self.optimizer = AdamW(trainable.parameter_groups(rates), betas=config.betas, epsilon=config.epsilon)
        self.result = Run(config.folder)
        self.streak = 0  # non-finite steps in a row
        self.stale = 0  # evaluations without improvement
        self.saved = -1
        self.best_state: State | None = None  # where no folder keeps it

    def run(self) -> Run:
        self._resume()
        with _interruptible() as interrupted:
            while self.result.steps < self.total and not self.result.stopped:
                self._step(self.result.steps)
                if interrupted() or self.result.steps % self.config.checkpoint_every == 0:
                    self._save()
                if interrupted():
                    raise KeyboardInterrupt(f"stopped after step {self.result.steps}; the same call goes on from there")
        self._save()
        self._restore_best()
        return self.result

    # ------------------------------------------------------------------ one step

    def _step(self, index: int) -> None:
        started = time.perf_counter()
        step = self.steps(index)
        collected = time.perf_counter()
        step = self.objective.prepare(step, self.trainable)
        factor = rate_factor(index, self.total, schedule=self.config.schedule, warmup=self.config.warmup)
        metrics: Metrics = {"step": index, "learning_rate": self.config.learning_rate * factor, **step.metrics}
        parts = _minibatches(step.batch, self.config.minibatches)
        updates = [self._update(part, factor) for part in parts]
        for name in {name for update in updates for name in update}:
            metrics[name] = math.fsum(update.get(name, 0.0) for update in updates) / len(updates)
        if any(update["skipped"] for update in updates):
            self._count_skip(index, metrics)
        else:
            self.streak = 0
        metrics["seconds_collect"] = collected - started
        metrics["seconds"] = time.perf_counter() - started
        self.result.steps = index + 1
        if self._due(index):
            self._evaluate(metrics)
        self.on_step(index + 1, self.total, metrics)
        self.result.metrics.append(metrics)
        self._log(metrics, step)

    def _update(self, batch: Batch, factor: float) -> Metrics:
        """One optimizer update; the gradient does not depend on how the batch is cut."""
        counts = {name: float(count) for name, count in self.objective.counts(batch).items()}
        rows = self.objective.active(batch)
        sums: dict[str, float] = {}
        total = 0.0
        self.optimizer.zero()
        active = batch.select(rows)
        for cut in self.trainable.cut(active, self.config.micro_batch) if rows else ():
            part = active.select(cut)
            terms = self.objective.loss(self.trainable.score(part, self.objective.want), part)
            loss = torch.stack([term.total * (term.weight / counts[term.name]) for term in terms]).sum()
            loss.backward()
            total += float(loss.detach())
            _add(sums, terms)
        metrics = {name: value / counts[name.partition("/")[0]] for name, value in sums.items()}
        metrics["loss"] = total
        metrics["grad_norm"] = self.optimizer.clip(self.config.max_grad_norm)
        finite = math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
        metrics["skipped"] = 0.0 if finite else 1.0
        metrics["rows"] = float(len(rows))
        # Without a row to learn from there is no update at all: momentum and weight decay would move the weights.
        if finite and rows:
            self.optimizer.step(factor)
        self.optimizer.zero()
        return metrics

    def _count_skip(self, index: int, metrics: Metrics) -> None:
        self.result.skipped += 1
        self.streak += 1
        if self.streak >= self.config.max_skipped:
            last = f"the last good checkpoint is step {self.saved}" if self.saved >= 0 else "there is no checkpoint yet"
            raise NonFiniteError(
                f"{self.streak} steps in a row, the last of them {index}, had a loss or gradient that is not finite "
                f"(loss {metrics['loss']}, gradient norm {metrics['grad_norm']}); {last}; lower the learning rate"
            )

    # ------------------------------------------------------------------ evaluation

    def _due(self, index: int) -> bool:
        every = self.config.evaluate_every
        return self.evaluation is not None and (index + 1 == self.total or (every is not None and (index + 1) % every == 0))

    def _evaluate(self, metrics: Metrics) -> None:
        assert self.evaluation is not None
        metrics.update(self.evaluation(self.trainable))
        name = self.config.best_metric
        if name is None:
            return
        if name not in metrics:
            known = ", ".join(sorted(metrics))
            raise TrainingError(f"best_metric {name!r} is not among the metrics measured: {known}")
        value, best = metrics[name], self.result.best_value
        sign = 1 if self.config.best_is == "max" else -1
        if best is None or sign * value > sign * best:
            self.result.best_value, self.result.best_step, self.stale = value, self.result.steps, 0
            if self.config.folder is None:
                self.best_state = {name: tensor.clone() for name, tensor in self.trainable.state().items()}
            else:
                save_checkpoint(self.config.folder / "best", self._checkpoint(), keep=1)
        else:
            self.stale += 1
            if self.config.patience is not None and self.stale >= self.config.patience:
                self.result.stopped = f"{name} has not improved for {self.stale} evaluations"

    def _restore_best(self) -> None:
        if self.result.best_step in (None, self.result.steps):
            return
        if self.config.folder is not None:
            checkpoint = load_checkpoint(self.config.folder / "best" / f"step-{self.result.best_step:06d}")
            self.trainable.load_state(checkpoint.tensors)
        elif self.best_state is not None:
            self.trainable.load_state(self.best_state)

    # ------------------------------------------------------------------ keeping and resuming

    def _identity(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be this run's. Where it is kept and how often does not matter."""
        settings = TypeAdapter(FitConfig).dump_python(self.config, mode="json")
        for free in ("folder", "checkpoint_every", "keep_checkpoints"):
            settings.pop(free)
        objective = asdict(self.objective) if hasattr(self.objective, "__dataclass_fields__") else str(self.objective)
        return {
            "config": settings,
            "objective": {"name": type(self.objective).__name__, **(objective if isinstance(objective, dict) else {})},
            "policy": self.trainable.fingerprint(),
            "steps": self.steps.fingerprint(),
            "total": self.total,
        }

    def _checkpoint(self) -> Checkpoint:
        result = self.result
        progress = {
            "metrics": result.metrics,
            "skipped": result.skipped,
            "streak": self.streak,
            "stale": self.stale,
            "best": [result.best_step, result.best_value],
            "stopped": result.stopped,
            "identity": self._identity(),
        }
        return Checkpoint(result.steps, self.trainable.state(), self.optimizer.state(), progress)

    def _save(self) -> None:
        if self.config.folder is not None and self.saved != self.result.steps:
            save_checkpoint(self.config.folder / "checkpoints", self._checkpoint(), keep=self.config.keep_checkpoints)
            self.saved = self.result.steps

    def _resume(self) -> None:
        if self.config.folder is None:
            return
        found = newest_checkpoint(self.config.folder / "checkpoints")
        if found is not None:
            _check_identity(found.progress["identity"], self._identity(), self.config.folder)
            self.trainable.load_state(found.tensors)
            self.optimizer.load_state(found.optimizer)
            progress = found.progress
            best_step, best_value = progress["best"]
            self.result = Run(
                self.config.folder, list(progress["metrics"]), found.step, progress["skipped"], best_step, best_value
            )
            self.result.stopped = progress["stopped"]
            self.streak, self.stale, self.saved = progress["streak"], progress["stale"], found.step
        folder = self.config.folder
        write_file(folder / "run.json", json.dumps({**self._identity(), "environment": environment()}, indent=1))
        write_file(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.result.metrics))
        samples = folder / "samples.jsonl"
        kept = [line for line in _lines(samples) if json.loads(line)["step"] < self.result.steps]
        write_file(samples, "".join(line + "\n" for line in kept))

    def _log(self, metrics: Metrics, step: Step) -> None:
        if self.config.folder is None:
            return
        with (self.config.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        if step.samples:
            with (self.config.folder / "samples.jsonl").open("a") as file:
                for sample in step.samples:
                    file.write(json.dumps({"step": int(metrics["step"]), **sample}, ensure_ascii=False) + "\n")


def _minibatches(batch: Batch, parts: int) -> list[Batch]:
    """The batch in `parts` shares of whole groups."""
    if parts == 1:
        return [batch]
    names = torch.unique(batch.groups)
    shares = [share for share in names.tensor_split(parts) if len(share)]
    return [batch.select(torch.isin(batch.groups, share).nonzero()[:, 0].tolist()) for share in shares]


def _add(sums: dict[str, float], terms: list[Term]) -> None:
    for term in terms:
        named = {term.name: term.total, **{f"{term.name}/{name}": value for name, value in term.metrics.items()}}
        for name, value in named.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())


def _check_identity(theirs: Mapping[str, Any], mine: Mapping[str, Any], folder: Path) -> None:
    mine = json.loads(json.dumps(mine))
    for part in mine:
        if theirs.get(part) != mine[part]:
            was, now = theirs.get(part), mine[part]
            if isinstance(now, dict) and isinstance(was, dict):
                key = next(key for key in sorted(now | was) if now.get(key) != was.get(key))
                part, was, now = f"{part}.{key}", was.get(key), now.get(key)
            raise CheckpointError(
                f"{folder} holds a run with another {part} ({was} there, {now} here); choose another folder, or remove it"
            )


def _lines(path: Path) -> list[str]:
    """Whole lines of a file; one cut off by a kill is left out."""
    if not path.is_file():
        return []
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C or SIGTERM is noted, and the next one acts as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def digest(*parts: Any) -> str:
    """A short fingerprint of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
