"""writers for TensorBoard, W&B, MLflow and Trackio: the numbers of a run, where a team already looks at them

Only settings, numbers and package versions are written: no paths, no user or host names, and texts of outputs only
where `samples=True` asks for them. Nothing leaves the machine unless the tracker's own environment variables say so.
A tracker that fails is told once and left alone for the rest of the call; training never stops because of it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from melior.errors import ConfigError

log = logging.getLogger(__name__)

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]

# What TRL calls the same quantity, so that saved searches and dashboards go on working; all other names stay.
NAMES = {
    "sampled_entropy": "entropy",
    "policy/kl_reference": "kl",
    "policy/clip_low": "clip_ratio/low_mean",
    "policy/clip_high": "clip_ratio/high_mean",
    "policy/sampler_gap": "sampling/sampling_logp_difference/mean",
    "preference/accuracy": "rewards/accuracies",
    "preference/margin": "rewards/margins",
    "preference/chosen": "rewards/chosen",
    "preference/rejected": "rewards/rejected",
    "heldout_loss": "eval_loss",
    "heldout_reward": "eval_reward",
    "heldout_greedy": "eval_greedy",
    # What is minimised, weighted and counted as the objective asks; apart from the quantities above.
    "entropy": "loss/entropy",
    "kl": "loss/kl",
    "policy": "loss/policy",
    "nll": "loss/nll",
}
SHOWN = ("inputs", "output", "reward", "error")  # columns of a table of samples
LONGEST_VALUE = 500  # characters of a setting: MLflow refuses more
BATCH = 100  # parameters per request, MLflow's limit


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told of a run when it is opened."""

    id: str  # the same whenever the run is resumed
    name: str
    folder: Path
    settings: Mapping[str, Any]  # JSON: the objective's and the loop's
    resumed: bool


class Tracker(Protocol):
    """Where numbers go. `log` is called once per step, in order, never twice for a step."""

    name: str

    def open(self, run: TrackedRun) -> None: ...
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None: ...
    def close(self, state: str) -> None: ...


class TensorBoard:
    """Event files in `tensorboard` inside the run's folder; `tensorboard --logdir` finds those of a folder of runs."""

    name = "tensorboard"

    def open(self, run: TrackedRun) -> None:
        with _needs("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self.writer = SummaryWriter(log_dir=str(run.folder / "tensorboard"))
        if not run.resumed:
            told = json.dumps(run.settings, indent=1)
            self.writer.add_text("settings", "".join(f"    {line}\n" for line in told.splitlines()))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a killed run leaves what it measured

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        told = json.dumps([{name: row.get(name) for name in SHOWN} for row in rows], indent=1, ensure_ascii=False)
        # Indented, so that the page shows it as it is and not as Markdown.
        self.writer.add_text("samples", "".join(f"    {line}\n" for line in told.splitlines()), step)

    def close(self, state: str) -> None:
        self.writer.close()


class WandB:
    """A Weights & Biases run: offline in the run's folder, for `wandb sync`; WANDB_MODE=online sends it at once."""

    name = "wandb"

    def __init__(self, project: str = "melior") -> None:
        self.project = project

    def open(self, run: TrackedRun) -> None:
        with _needs("wandb"):
            import wandb
        self.table = wandb.Table
        quiet = wandb.Settings(
            mode=os.environ.get("WANDB_MODE", "offline"),
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            save_code=False,
            host="",  # names of machine and user are nobody's business
            username="",
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        while list(run.folder.glob(f"wandb/*run-{time.strftime('%Y%m%d_%H%M%S')}-*")):
            time.sleep(0.1)  # it names its folders by the second, and would write over one of the same second
        self.run = wandb.init(
            project=self.project,
            name=run.name,
            config=dict(run.settings),
            id=run.id,
            resume="allow",
            dir=str(run.folder),
            settings=quiet,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step, commit=True)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        data = [[_text(row.get(name)) for name in SHOWN] for row in rows]
        self.run.log({"samples": self.table(columns=list(SHOWN), data=data)}, step=step)

    def close(self, state: str) -> None:
        self.run.finish(exit_code=1 if state == "failed" else 0)


class MLflow:
    """A run in MLflow: at MLFLOW_TRACKING_URI, else in `mlflow.db` beside the run's folder."""

    name = "mlflow"

    def __init__(self, project: str = "melior") -> None:
        self.project = project

    def open(self, run: TrackedRun) -> None:
        with _needs("mlflow"):
            from mlflow.entities import Metric, Param
            from mlflow.tracking import MlflowClient
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # each migration of a new database is news to nobody
        self.metric = Metric
        place = run.folder.absolute().parent
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self.client = MlflowClient(tracking_uri=given or f"sqlite:///{place / 'mlflow.db'}")
        found = self.client.get_experiment_by_name(self.project)
        files = None if given else (place / "mlflow-artifacts").as_uri()
        experiment = found.experiment_id if found else self.client.create_experiment(self.project, files)
        known = self.client.search_runs([experiment], f"tags.`melior.run` = '{run.id}'", max_results=1)
        if known:
            self.id = known[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            return
        # The client, unlike mlflow.start_run, adds no tags with the user's name and the program's path.
        self.id = self.client.create_run(experiment, run_name=run.name, tags={"melior.run": run.id}).info.run_id
        params = [Param(name, _text(value)[:LONGEST_VALUE]) for name, value in _flat(run.settings)]
        for start in range(0, len(params), BATCH):
            self.client.log_batch(self.id, params=params[start : start + BATCH])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, [self.metric(name, value, now, step) for name, value in metrics.items()])

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        told = [{name: row.get(name) for name in SHOWN} for row in rows]
        self.client.log_dict(self.id, {"step": step, "samples": told}, f"samples/step-{step:06d}.json")

    def close(self, state: str) -> None:
        ended = {"failed": "FAILED", "interrupted": "KILLED"}.get(state, "FINISHED")
        self.client.set_terminated(self.id, status=ended)


class Trackio:
    """A run in Trackio: in its own folder (TRACKIO_DIR), or in the Space that TRACKIO_SPACE_ID names."""

    name = "trackio"

    def __init__(self, project: str = "melior") -> None:
        self.project = project

    def open(self, run: TrackedRun) -> None:
        with _needs("trackio"):
            import trackio
        self.table = trackio.Table
        self.run = trackio.init(
            project=self.project,
            name=f"{run.name}-{run.id}",  # a run is found again by its name
            config=dict(run.settings),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        data = [[_text(row.get(name)) for name in SHOWN] for row in rows]
        self.run.log({"samples": self.table(columns=list(SHOWN), data=data)}, step=step)

    def close(self, state: str) -> None:
        self.run.finish()


def trackers_of(names: Sequence[TrackerName], project: str = "melior") -> list[Tracker]:
    """The trackers by these names, not yet opened."""
    made: dict[str, Callable[[], Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": lambda: WandB(project),
        "mlflow": lambda: MLflow(project),
        "trackio": lambda: Trackio(project),
    }
    return [made[name]() for name in dict.fromkeys(names)]


class Tracking:
    """Every tracker of one call of `fit`, none of which can hurt it."""

    def __init__(self, trackers: Sequence[Tracker], *, samples: bool = False) -> None:
        self.open_ones: list[Tracker] = []
        self.trackers, self.with_samples = trackers, samples
        self.first = 0  # the first step that was not told yet
        self.tokens = 0.0  # over all steps so far, as TRL counts

    def open(self, run: TrackedRun, told: Sequence[Mapping[str, Any]], since: int) -> None:
        """Opens all of them. `told`: the metrics of steps already done; steps before `since` were tracked before.

        Raises:
            ConfigError: if a tracker's package is missing: better before training than after.
        """
        self.first = since
        self.tokens = math.fsum(row.get("num_tokens", 0.0) for row in told)
        for tracker in self.trackers:
            if self._safely(tracker, "opened", partial(tracker.open, run)):
                self.open_ones.append(tracker)

    def log(self, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]]) -> None:
        """One step to all of them; a step that is repeated after a resumption is left out."""
        step = int(metrics["step"])
        self.tokens += metrics.get("num_tokens", 0.0)
        if step < self.first:
            return
        told = dict(_renamed(metrics))
        if "num_tokens" in metrics:
            told["num_tokens"] = self.tokens
        shown = samples if self.with_samples else ()
        for tracker in list(self.open_ones):
            acts = [partial(tracker.samples, step, shown)] if shown else []
            if not all(self._safely(tracker, "told", act) for act in [*acts, partial(tracker.log, step, told)]):
                self.open_ones.remove(tracker)

    def close(self, state: str) -> None:
        """Ends the runs of all of them."""
        for tracker in self.open_ones:
            self._safely(tracker, "closed", partial(tracker.close, state))
        self.open_ones = []

    def _safely(self, tracker: Tracker, what: str, act: Callable[[], None]) -> bool:
        try:
            with redirect_stdout(sys.stderr):  # what a package has to say is no part of a command's answer
                act()
        except ConfigError:
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or ["no message"])[0]
            log.warning(
                "%s could not be %s (%s: %s); training goes on without it",
                tracker.name,
                what,
                type(error).__name__,
                first,
            )
            return False
        return True


class _needs:
    """Inside, a package that is missing, or does not fit the others, is one sentence that names the extra."""

    def __init__(self, extra: str) -> None:
        self.extra = extra

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ImportError):
            raise ConfigError(
                f"{self.extra} cannot be imported ({error}); pip install 'melior[{self.extra}]', or leave it out"
            ) from error


def _renamed(metrics: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if name != "step" and isinstance(value, int | float) and math.isfinite(value):
            yield NAMES.get(name, name), float(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
