"""fit: the only training loop

A step is collected, prepared whole, cut into micro-batches, scored, and its terms are each divided once by their count
over the whole step: how it was cut changes nothing. Everything random is a function of (seed, step index, policy), so a
checkpoint is weights, optimizer state and an index, and a resumed run repeats the uninterrupted one bitwise.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from melior.errors import ConfigError, NonFiniteError
from melior.policies.base import Batch, Rates, State, Trainable
from melior.reports.write import Reporter
from melior.trainers.alarms import Alarms, Breach, Watch
from melior.trainers.checkpoints import Checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from melior.trainers.folders import append_step, check_identity, open_folder, run_key, tracked_steps
from melior.trainers.interrupts import interruptible
from melior.trainers.optimizers import AdamW, Schedule, rate_factor
from melior.trainers.reports import environment
from melior.trainers.steps import Evaluates, Histogram, Objective, Step, Steps, Term, generator
from melior.trainers.trackers import TrackedRun, Tracker, Tracking

log = logging.getLogger(__name__)

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
    micro_batch: int | None = Field(default=None, ge=1)  # tokens per forward pass; None: the policy's choice
    minibatches: int = Field(default=1, ge=1)  # updates per step, each on a share of its groups
    passes: int = Field(default=1, ge=1)  # over all of a step's groups, each in minibatches drawn anew
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
    breaches: list[Breach] = field(default_factory=list)  # alarms that rang

    def last(self, name: str) -> float:
        """The latest value of a metric, NaN if it was never measured."""
        return next((row[name] for row in reversed(self.metrics) if name in row), math.nan)


def fit(
    trainable: Trainable,
    steps: Steps,
    objective: Objective,
    config: FitConfig | None = None,
    *,
    evaluation: Evaluates | None = None,
    on_step: Callable[[int, int, Metrics], None] = lambda index, total, metrics: None,
    trackers: Sequence[Tracker] = (),
    track_samples: bool = False,
    alarms: Alarms | None = None,
) -> Run:
    """Trains, and returns what happened; with a folder it goes on where the last call with the same settings stopped.

    `alarms` are the defaults where None: some warn, some stop the run. A run that one has stopped goes on where the
    same call says that it stops no more.

    `on_step` sees the steps done, how many there are, and the step's metrics before they are kept: it may add its own.
    `trackers` are told each step's metrics as kept, and its samples where `track_samples` says so; they need a folder.

    Raises:
        ConfigError: if the steps never end and config.steps is None, or best_metric is not what is measured.
        NonFiniteError: if max_skipped steps in a row have a loss or gradient that is not finite.
        CheckpointError: if the folder holds a run with other settings, or only damaged checkpoints.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    tracking = Tracking(trackers, samples=track_samples)
    loop = _Loop(trainable, steps, objective, config or FitConfig(), evaluation, on_step, tracking, alarms or Alarms())
    return loop.run()


class _Loop:
    """The state of one call of `fit`."""

    def __init__(
        self,
        trainable: Trainable,
        steps: Steps,
        objective: Objective,
        config: FitConfig,
        evaluation: Evaluates | None,
        on_step: Callable[[int, int, Metrics], None],
        tracking: Tracking,
        alarms: Alarms,
    ) -> None:
        total = config.steps if config.steps is not None else steps.total
        if total is None:
            raise ConfigError("These steps never end; say how many in FitConfig(steps=…)")
        if config.best_metric is None and config.patience is not None:
            raise ConfigError(f"patience={config.patience} needs best_metric=…, the evaluation's metric to watch")
        if evaluation is None and config.best_metric is not None:
            raise ConfigError(
                f"best_metric={config.best_metric!r} needs an evaluation that measures it; pass evaluation=…"
            )
        if tracking.trackers and config.folder is None:
            raise ConfigError(f"{len(tracking.trackers)} trackers need a run they can find again; give a folder")
        if alarms.enabled and alarms.heldout and (evaluation is None or config.evaluate_every is None):
            raise ConfigError(
                f"alarms.heldout={alarms.heldout!r} is read while training; pass evaluation=… and evaluate_every=…"
            )
        self.trainable: Any = trainable
        self.steps, self.objective, self.config = steps, objective, config
        self.evaluation, self.on_step, self.total = evaluation, on_step, total
        rates = Rates(config.learning_rate, config.weight_decay, config.rates)
        self.optimizer = AdamW(trainable.parameter_groups(rates), betas=config.betas, epsilon=config.epsilon)
        self.identity = self._identity()
        self.result = Run(config.folder)
        self.streak = 0  # non-finite steps in a row
        self.stale = 0  # evaluations without improvement
        self.saved = -1  # steps done at the newest checkpoint
        self.best_state: State | None = None  # where no folder keeps it
        self.histograms: dict[str, Histogram] = {}  # of the step at hand
        self.memory: dict[str, float] = {}  # what the objective carries from step to step
        self.reporter, self.tracking = Reporter(config.folder), tracking
        self.kind = str(getattr(trainable, "kind", ""))
        self.watch = Watch(alarms, updates=config.minibatches * config.passes, kind=self.kind)

    def run(self) -> Run:
        self._resume()
        self._tell("running")
        try:
            result = self._trained()
        except BaseException as error:
            self._tell("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", str(error))
            raise
        self._tell("trained")
        return result

    def _tell(self, state: str, error: str = "") -> None:
        """How the run stands, to its report and to the trackers."""
        result = self.result
        best = {"best_step": result.best_step, "best_value": result.best_value, "stopped": result.stopped}
        self.reporter.update(force=True, state=state, error=error, **best)
        if state != "running":
            self.tracking.close(state)

    def _trained(self) -> Run:
        with interruptible() as interrupted:
            while self.result.steps < self.total and not self.result.stopped:
                self._step(self.result.steps)
                if interrupted() or self.result.steps % self.config.checkpoint_every == 0:
                    self._save()
                if interrupted():
                    kept = (
                        "the same call goes on from there"
                        if self.config.folder
                        else "nothing was kept without a folder"
                    )
                    raise KeyboardInterrupt(f"stopped after step {self.result.steps}; {kept}")
        self._save()
        self._restore_best()
        return self.result

    # ------------------------------------------------------------------ one step

    def _step(self, index: int) -> None:
        started = time.perf_counter()
        step = self._collect(index)
        collected = time.perf_counter()
        self.histograms = dict(step.histograms)
        step = self.objective.prepare(replace(step, memory=self.memory), self.trainable)
        self.memory = dict(step.memory)
        factor = rate_factor(index, self.total, schedule=self.config.schedule, warmup=self.config.warmup)
        updates = [
            self._update(part, factor)
            for number in range(self.config.passes)
            for part in _minibatches(step.batch, self.config.minibatches, (index, number))
        ]
        metrics = {"step": index, "learning_rate": self.config.learning_rate * factor, **step.metrics, **_mean(updates)}
        self._count_skips(index, metrics)
        self.result.steps = index + 1
        if evaluated := self._due():
            self._evaluate(metrics)
        metrics["seconds_collect"] = collected - started
        metrics["seconds"] = time.perf_counter() - started
        self.on_step(index + 1, self.total, metrics)
        self.result.metrics.append(metrics)
        rang = self._listen(metrics)
        if self.config.folder is not None:
            append_step(self.config.folder, metrics, step.samples, self.histograms, [each.to_json() for each in rang])
            self.tracking.log(metrics, step.samples)
            if evaluated or rang:
                self.reporter.update(force=bool(rang), state="running")

    def _listen(self, metrics: Metrics) -> list[Breach]:
        """What the alarms make of a step; one that stops the run is why it stopped."""
        rang = self.watch.see(metrics)
        for breach in rang:
            log.warning("alarm %s after step %d: %s", breach.alarm, breach.step + 1, breach.sentence)
            if breach.stops and not self.result.stopped:
                self.result.stopped = breach.why
        self.result.breaches += rang
        return rang

    def _collect(self, index: int) -> Step:
        try:
            return self.steps(index)
        except Exception:
            self._save()  # a grader or an endpoint gave up: what was learned until here is not lost
            raise

    def _update(self, batch: Batch, factor: float) -> Metrics:
        """One optimizer update; the gradient does not depend on how the batch is cut."""
        rows = self.objective.active(batch)
        self.optimizer.zero()
        metrics = {"loss": 0.0, **(self._accumulate(batch, rows) if rows else {})}
        metrics["grad_norm"] = self.optimizer.clip(self.config.max_grad_norm)
        finite = math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
        metrics["skipped"] = 0.0 if finite else 1.0
        metrics["rows"] = float(len(rows))
        if finite:  # a step without rows has no gradient, and then even decay leaves the weights alone
            self.optimizer.step(factor)
        self.optimizer.zero()
        return metrics

    def _accumulate(self, batch: Batch, rows: list[int]) -> Metrics:
        """Adds up the gradient of the active rows, each term over its count in the whole batch."""
        counts = self.objective.counts(batch)
        active = batch.select(rows)
        sums: Metrics = {"loss": 0.0}
        for cut in self.trainable.cut(active, self.config.micro_batch):
            part = active.select(cut)
            terms = self.objective.loss(self.trainable.score(part, self.objective.want), part)
            loss = torch.stack([term.total * (term.weight / counts[term.name]) for term in terms]).sum()
            loss.backward()
            sums["loss"] += float(loss.detach())
            for name, value in _measured(terms):
                count = counts.get(name) or counts[name.partition("/")[0]]
                sums[name] = sums.get(name, 0.0) + value / count
            self._add_histograms(terms)
        return sums

    def _add_histograms(self, terms: list[Term]) -> None:
        for term in terms:
            for name, found in term.histograms.items():
                self.histograms[name] = self.histograms[name] + found if name in self.histograms else found

    def _count_skips(self, index: int, metrics: Metrics) -> None:
        if not metrics["skipped"]:
            self.streak = 0
            return
        self.result.skipped += 1
        self.streak += 1
        told = f"loss {metrics['loss']}, gradient norm {metrics['grad_norm']}"
        log.warning("step %d skipped, the weights stay as they were: %s", index, told)
        if self.streak >= self.config.max_skipped:
            last = f"the last good checkpoint is step {self.saved}" if self.saved >= 0 else "there is no checkpoint yet"
            raise NonFiniteError(
                f"{self.streak} steps in a row, the last of them {index}, had a loss or gradient that is not finite "
                f"({told}); {last}; lower the learning rate"
            )

    # ------------------------------------------------------------------ evaluation

    def _due(self) -> bool:
        """Whether to evaluate after the step just done."""
        done, every = self.result.steps, self.config.evaluate_every
        return self.evaluation is not None and (done == self.total or (every is not None and done % every == 0))

    def _evaluate(self, metrics: Metrics) -> None:
        assert self.evaluation is not None
        measured = self.evaluation(self.trainable)
        metrics.update(measured)
        self.watch.check(measured)
        name = self.config.best_metric
        if name is None:
            return
        if name not in measured:
            raise ConfigError(
                f"best_metric {name!r} is not among what the evaluation measures: {', '.join(sorted(measured))}"
            )
        if self._improves(measured[name]):
            self.result.best_value, self.result.best_step, self.stale = measured[name], self.result.steps, 0
            self._keep_best()
        else:
            self.stale += 1
        if self.config.patience is not None and self.stale >= self.config.patience:
            self.result.stopped = f"{name} has not improved for {self.stale} evaluations"

    def _improves(self, value: float) -> bool:
        best = self.result.best_value
        if math.isnan(value) or best is None:
            return not math.isnan(value)
        return value > best if self.config.best_is == "max" else value < best

    def _keep_best(self) -> None:
        if self.config.folder is None:
            self.best_state = {name: tensor.clone() for name, tensor in self.trainable.state().items()}
        else:
            save_checkpoint(self.config.folder / "best", self._checkpoint(), keep=1)

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
        objective: Any = self.objective
        chosen = asdict(objective) if is_dataclass(objective) and not isinstance(objective, type) else {}
        chosen.pop("want", None)  # follows from the objective
        return {
            "config": settings,
            "objective": {"name": type(objective).__name__, **chosen},
            "policy": self.trainable.fingerprint(),
            "starting_weights": getattr(self.trainable, "origin", ""),
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
            "breaches": [breach.to_json() for breach in result.breaches],
            "identity": self.identity,
            "memory": self.memory,
        }
        return Checkpoint(result.steps, self.trainable.state(), self.optimizer.state(), progress)

    def _save(self) -> None:
        if self.config.folder is not None and self.saved != self.result.steps:
            save_checkpoint(self.config.folder / "checkpoints", self._checkpoint(), keep=self.config.keep_checkpoints)
            self.saved = self.result.steps

    def _resume(self) -> None:
        folder = self.config.folder
        if folder is None:
            return
        found = newest_checkpoint(folder / "checkpoints")
        if found is not None:
            check_identity(found.progress["identity"], self.identity, folder)
            self.trainable.load_state(found.tensors)
            self.optimizer.load_state(found.optimizer)
            kept = found.progress
            best_step, best_value = kept["best"]
            self.result = Run(
                folder, kept["metrics"], found.step, kept["skipped"], best_step, best_value, kept["stopped"]
            )
            self.result.breaches = [Breach.from_json(fields) for fields in kept.get("breaches", ())]
            if any(each.why == self.result.stopped and not self.watch.stops(each) for each in self.result.breaches):
                self.result.stopped = ""
            for row in self.result.metrics:
                self.watch.see(row)
            self.streak, self.stale, self.saved = kept["streak"], kept["stale"], found.step
            self.memory = dict(kept["memory"])
        known = tracked_steps(folder)  # before the lines of steps that will be repeated are removed
        about = {**self.identity, "kind": self.kind}
        open_folder(folder, about, self.result.metrics, self.result.steps)
        if self.tracking.trackers:
            settings = {name: self.identity[name] for name in ("config", "objective", "total")}
            told = {**settings, "environment": environment()}
            run = TrackedRun(id=run_key(folder), name=folder.name, folder=folder, settings=told, resumed=known > 0)
            self.tracking.open(run, self.result.metrics, known)


def _minibatches(batch: Batch, parts: int, key: tuple[int, int]) -> list[Batch]:
    """The batch in `parts` shares of whole groups, as even as groups allow; later passes deal groups out anew."""
    names = torch.unique(batch.groups)
    if key[1]:
        names = names[torch.randperm(len(names), generator=generator(*key))]
    shares = [share for share in names.tensor_split(parts) if len(share)]
    if len(shares) < 2:
        return [batch]
    return [batch.select(torch.isin(batch.groups, share).nonzero()[:, 0].tolist()) for share in shares]


def _measured(terms: list[Term]) -> list[tuple[str, float]]:
    """What a micro-batch adds to each term and to what rides along with it."""
    named = [(term.name, term.total) for term in terms]
    named += [(f"{term.name}/{name}", value) for term in terms for name, value in term.metrics.items()]
    return [(name, float(value.detach())) for name, value in named]


def _mean(updates: list[Metrics]) -> Metrics:
    """Each metric's mean over the updates of one step.

    A term that an update lacks was 0 there: its rows are counted, and none had a gradient. What rides along with a term
    is a mean over decisions that were computed, so an update that computed none has no say in it.
    """
    told: Metrics = {}
    for name in dict.fromkeys(name for update in updates for name in update):
        found = [update[name] for update in updates if name in update]
        told[name] = sum(found) / (len(found) if "/" in name else len(updates))
    return told
