"""melior work: a worker beside a server that only serves"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from melior.cli.main import app
from melior.store import Store


def recipe(folder: Path, model: Path, steps: int) -> dict[str, object]:
    """A job of a tiny model."""
    rows = folder / "rows.jsonl"
    said = [{"prompt": f"{number} and one", "completion": str(number + 1)} for number in range(60)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in said))
    return {
        "method": "sft",
        "model": {"path": str(model)},
        "data": {"train": str(rows), "heldout": 0.2},
        "fit": {"steps": steps},
        "sft": {"epochs": 10_000},  # and not until a file of its own says that it is enough
        "sampling": {"max_tokens": 4},
        "gate": {"minimum_items": 5},
    }


def test_it_does_what_waits_and_ends(tmp_path: Path, folder_of: Callable[..., Path]) -> None:
    database = tmp_path / "melior.db"
    with Store.open(database) as store:
        job = store.add_job("sft", recipe(tmp_path, folder_of("llama", "chatml"), 2), str(tmp_path / "run"))
    told = CliRunner().invoke(app, ["work", "--database", str(database), "--once"])
    assert told.exit_code == 0 and "1 job was taken" in told.output, told.output
    with Store.open(database) as store:
        assert store.job(job.id).status == "succeeded", store.job(job.id).error


def test_a_job_half_done_goes_back_when_the_worker_is_told_to_stop(
    tmp_path: Path, folder_of: Callable[..., Path]
) -> None:
    database = tmp_path / "melior.db"
    with Store.open(database) as store:
        job = store.add_job("sft", recipe(tmp_path, folder_of("llama", "chatml"), 10_000), str(tmp_path / "run"))
        command = [sys.executable, "-m", "melior.cli.main", "work", "--database", str(database)]
        worker = subprocess.Popen(command, env={**os.environ, "MELIOR_HOME": str(tmp_path)}, stdout=subprocess.PIPE)
        try:
            until = time.monotonic() + 120
            while not any(event.type == "metrics" for event in store.job_events(job.id)):
                assert worker.poll() is None and time.monotonic() < until, "no step was done"
                time.sleep(0.2)
            worker.send_signal(signal.SIGTERM)
            said, _ = worker.communicate(timeout=120)
        finally:
            worker.kill()
            worker.wait()
        left, events = store.job(job.id), [event.message for event in store.job_events(job.id)]
    assert worker.returncode == 0 and b"1 job was taken" in said
    log = (tmp_path / "run" / "trainer.log").read_text()
    assert (left.status, left.attempts, left.lease) == ("queued", 0, None), f"{events[-1]}\n{log}"
