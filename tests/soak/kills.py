"""Kills training runs at random instants and checks that each, resumed, ends bitwise where it would have ended.

Run with --kills 200 --seed 3 to choose how many and which; exit status 1 and one line per fault if any run differs.

One warm process imports everything once and forks every run, so that a kill costs a fraction of a second. Half of the
kills strike at a random moment of the run's own work (a forward pass of an accumulation, a sample, an evaluation, each
point of a save), the other half after a random time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads cannot be forked safely
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TQDM_DISABLE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tabular import Reward, Tabular, tasks_for
from tiny import tiny_folder

from melior import durable
from melior.policies.adapters import LoRA
from melior.policies.language import LanguagePolicy
from melior.trainers.checkpoints import newest_checkpoint
from melior.trainers.loop import FitConfig, Run, fit
from melior.trainers.reinforcement import Reinforcement, Rollouts
from melior.trainers.supervised import Examples, HeldoutLoss, Supervised
from melior.types import Demonstration, Record, Sampling, Score, Task

KILLS_PER_RUN = 3
TEXTS = ["the cat sat", "on the mat", "and the hat", "of the man", "what is it", "the answer", "to that", "42"]
TABLE = [Demonstration("a", output) for output in [(1, 2, 3), (4,), (0, 2), (3, 3, 3), (2, 0, 1), (1, 1), (2, 2, 2)]]


def moment(name: str) -> None:
    """Where a run may be killed; `durable` calls the same point."""
    durable.failpoint(name)


class Watched:
    """A policy whose forward passes and samples are moments."""

    def score(self, *args: Any, **settings: Any) -> Any:
        moment("forward pass")
        return super().score(*args, **settings)  # type: ignore[misc]

    def sample(self, *args: Any, **settings: Any) -> Any:
        records = super().sample(*args, **settings)  # type: ignore[misc]
        moment("rollout sampled")
        return records


class WatchedTable(Watched, Tabular):
    """The table."""


class WatchedLanguage(Watched, LanguagePolicy):
    """The tiny language model."""


@dataclass(frozen=True)
class WatchedHeldout:
    """An evaluation that is a moment before and after."""

    inner: HeldoutLoss

    def __call__(self, policy: Any) -> Any:
        moment("evaluation")
        measured = self.inner(policy)
        moment("evaluation done")
        return measured


def grade(record: Record) -> Score:
    moment("graded")
    return Score(value=float(sum(record.decisions or ()) % 3))


# ---------------------------------------------------------------- the runs


def table_supervised(folder: Path, _: Path) -> tuple[Run, Any]:
    """Three epochs with early stopping's evaluations, a checkpoint every second step."""
    policy = WatchedTable()
    config = FitConfig(
        folder=folder,
        learning_rate=0.2,
        weight_decay=0.01,
        micro_batch=4,
        checkpoint_every=2,
        evaluate_every=3,
        best_metric="heldout_loss",
        best_is="min",
    )
    steps = Examples(policy, TABLE, batch_size=2, epochs=3)
    held_out = WatchedHeldout(HeldoutLoss(policy, TABLE[:2]))
    return fit(policy, steps, Supervised(), config, evaluation=held_out), policy


def table_rewards(folder: Path, _: Path) -> tuple[Run, Any]:
    """Resampled groups, two updates per step, KL and entropy."""
    policy = WatchedTable(("a", "b", "c", "d"), stops=True)
    steps = Rollouts(policy, tasks_for(policy), Reward(grade), Sampling(n=4, max_tokens=3), prompts=2, resample=1)
    config = FitConfig(folder=folder, steps=10, learning_rate=0.2, checkpoint_every=3, minibatches=2, micro_batch=6)
    return fit(policy, steps, Reinforcement(beta=0.05, entropy=0.01), config), policy


def language_supervised(folder: Path, model: Path) -> tuple[Run, Any]:
    """A tiny language model with an adapter, several micro-batches per step, three epochs."""
    policy = WatchedLanguage.load(model, adapter=LoRA(r=2), dtype="float32", device="cpu", layout="forest")
    rows = [Demonstration("hi" * (index % 3 + 1), text) for index, text in enumerate(TEXTS)]
    config = FitConfig(folder=folder, learning_rate=1e-2, checkpoint_every=2, evaluate_every=4, micro_batch=40)
    steps = Examples(policy, rows, batch_size=3, epochs=3)
    held_out = WatchedHeldout(HeldoutLoss(policy, rows[:2]))
    return fit(policy, steps, Supervised(), config, evaluation=held_out), policy


def language_rewards(folder: Path, model: Path) -> tuple[Run, Any]:
    """A tiny language model that samples its own training data."""
    policy = WatchedLanguage.load(model, adapter=LoRA(r=2), dtype="float32", device="cpu", layout="forest")
    tasks = [Task("the cat"), Task("hi"), Task("what is the answer")]
    steps = Rollouts(policy, tasks, Reward(grade), Sampling(n=4, max_tokens=5), prompts=2)
    config = FitConfig(folder=folder, steps=6, learning_rate=1e-2, checkpoint_every=2, minibatches=2, micro_batch=40)
    return fit(policy, steps, Reinforcement(beta=0.05), config), policy


RUNS: list[Callable[[Path, Path], tuple[Run, Any]]] = [
    table_supervised, table_rewards, language_supervised, language_rewards,
]  # fmt: skip


# ---------------------------------------------------------------- a run in a process of its own


@dataclass(frozen=True)
class Death:
    """How a forked run ended: the moment it was killed at, or its outcome."""

    where: str
    outcome: dict[str, Any] | None
    seconds: float


def forked(run: Callable[..., Any], folder: Path, model: Path, *, at: int = 0, after_s: float = 0.0) -> Death:
    """Runs in a child that is killed at its `at`-th moment, or after some seconds, or not at all (0)."""
    report = folder.parent / f"{folder.name}.json"
    report.unlink(missing_ok=True)
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        _live(run, folder, model, report, at)
    if after_s:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - started
    told = json.loads(report.read_text()) if report.is_file() else {}
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return Death(told.get("where", "at a random time") if killed else "", None if killed else told, seconds)


def _live(run: Callable[..., Any], folder: Path, model: Path, report: Path, at: int) -> None:
    """The child: never returns."""
    code = 1
    try:
        moments: list[str] = []

        def failpoint(name: str) -> None:
            moments.append(name)
            if len(moments) == at:
                report.write_text(json.dumps({"where": name}))
                os.kill(os.getpid(), signal.SIGKILL)

        durable.failpoint = failpoint
        result, policy = run(folder, model)
        outcome = {**outcome_of(result, policy, folder), "moments": len(moments)}
        # Under another name first: a kill may strike in the middle of this line too.
        report.with_suffix(".draft").write_text(json.dumps(outcome))
        os.replace(report.with_suffix(".draft"), report)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def outcome_of(run: Run, policy: Any, folder: Path) -> dict[str, Any]:
    """Everything that must be equal, tensors as digests of their bytes."""
    newest = newest_checkpoint(folder / "checkpoints")
    assert newest is not None
    metrics = [{k: repr(v) for k, v in row.items() if not k.startswith("seconds")} for row in run.metrics]
    logged = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "metrics": metrics,
        "logged": logged,
        "ended": [run.steps, run.skipped, run.best_step, repr(run.best_value), run.stopped],
        "weights": bytes_of(policy.state()),
        "last": bytes_of(newest.tensors),
        "optimizer": bytes_of(newest.optimizer),
    }


def bytes_of(tensors: Any) -> str:
    told = hashlib.sha256()
    for name in sorted(tensors):
        told.update(name.encode() + tensors[name].detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


# ---------------------------------------------------------------- the campaign


def campaign(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kills and resumes until `kills` runs have been killed; what was done, and every fault."""
    chance = random.Random(seed)
    model = tiny_folder(folder / "model", "llama", "chatml")
    references = [forked(run, folder / f"reference-{run.__name__}", model) for run in RUNS]
    where: Counter[str] = Counter()
    faults: list[str] = []
    trial = 0
    while sum(where.values()) < kills and len(faults) < 5:
        which = trial % len(RUNS)
        name, reference = RUNS[which].__name__, references[which]
        if not reference.outcome:
            return {"kills": 0, "where": {}, "faults": [f"{name}: does not even run undisturbed"]}
        target = folder / f"{trial}-{name}"
        for _ in range(chance.randint(1, KILLS_PER_RUN)):
            timed = chance.random() < 0.5
            at = 0 if timed else chance.randint(1, reference.outcome["moments"])
            death = forked(
                RUNS[which], target, model, at=at, after_s=chance.random() * reference.seconds if timed else 0.0
            )
            if death.outcome is not None:
                break  # it had reached its end before
            where[death.where] += 1
        faults += differences(reference.outcome, forked(RUNS[which], target, model).outcome, f"trial {trial}, {name}")
        trial += 1
    return {"kills": sum(where.values()), "runs": trial, "where": dict(where.most_common()), "faults": faults}


def differences(expected: dict[str, Any], found: dict[str, Any] | None, title: str) -> list[str]:
    if not found:
        return [f"{title}: could not be resumed"]
    return [f"{title}: {key} differ" for key in expected if key != "moments" and found[key] != expected[key]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        told = campaign(chosen.kills, chosen.seed, Path(folder))
    print(json.dumps({**told, "seconds": round(time.perf_counter() - started, 1)}, indent=1))
    return 1 if told["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
