"""python -m melior.jobs.trainer --job ID: does one job, in a process that its worker can lose

It dies with its worker, stops at the next step when it is interrupted, and goes on from the last checkpoint when it is
started again in the same folder. How it ended stands in its exit status; what went wrong, in `job-error.json`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from melior.durable import write_file
from melior.errors import DatabaseAway, DataError, DiskFull, FencedError, MeliorError

if TYPE_CHECKING:
    from melior.store import Store
    from melior.store.rows import Job

DATABASE = "MELIOR_DATABASE"  # in the environment, since a URL may hold a password and commands are read by everybody
WORKER = "MELIOR_WORKER"  # in the environment: the worker's process, which may be gone before the trainer can look
DONE, FAILED, INTERRUPTED = 0, 3, 130  # exit statuses; any other is a process that was lost
PASSING = (DatabaseAway, FencedError)  # the fault of no job: its process is lost, and another goes on
ERROR = "job-error.json"
WATCH_S = 0.5  # between two looks at whether the worker lives
# evaluates? → code of an error in the rows, of any other
CODES = {False: ("invalid_training_file", "training_failed"), True: ("invalid_rows", "evaluation_failed")}
PATIENCE_S = 60.0  # for a process that was lost to let go of the folder


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="melior.jobs.trainer")
    parser.add_argument("--job", required=True)
    asked = parser.parse_args(arguments)
    _die_with(int(os.environ.get(WORKER) or os.getppid()))
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    from melior.store import Store

    with Store.open(os.environ[DATABASE]) as store:
        job = store.job(asked.job)
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR).unlink(missing_ok=True)
        try:
            _wait_for(folder)
            _do(job, folder, store)
        except KeyboardInterrupt:
            return INTERRUPTED
        except MeliorError as error:
            if isinstance(error, PASSING) and not isinstance(error, DiskFull):
                raise
            codes = CODES[job.eval_id is not None]
            code = codes[not isinstance(error, DataError)]
            write_file(folder / ERROR, json.dumps({"code": code, "message": str(error), "param": None}))
            print(error, file=sys.stderr)
            return FAILED
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):  # it has ended; asked too late, it still says how
                signal.signal(number, signal.SIG_IGN)
    return DONE


def _do(job: Job, folder: Path, store: Store) -> None:
    """What a job can be; each brings what it needs when it is asked for."""
    if job.eval_id is not None:
        from melior.jobs.evaluation import run_evaluation

        run_evaluation(job, folder, store)
    else:
        from melior.cycles.recipe import recipe_of
        from melior.cycles.train import run_recipe

        run_recipe(recipe_of(job.recipe), folder, store=store)


def _die_with(parent: int) -> None:
    """Kills this process when this is not its parent: whoever takes the job next must find the folder free."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _wait_for(folder: Path) -> None:
    """Waits until no process is at work in the folder.

    Raises:
        TimeoutError: if that takes too long.
    """
    until = time.monotonic() + PATIENCE_S
    while True:
        with (folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"another process has been at work in {folder} for {PATIENCE_S:.0f} s") from None
        time.sleep(WATCH_S)


if __name__ == "__main__":
    sys.exit(main())
