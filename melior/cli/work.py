"""melior work: do the jobs that servers take, on this machine"""

from __future__ import annotations

import signal
import threading

import typer

from melior.cli.output import DATABASE, say, told


@told
def work(
    database: str = typer.Option(
        None,
        "--database",
        envvar=DATABASE,
        help="The servers' own: a file or a URL. Default: the store's.",
    ),
    once: bool = typer.Option(False, "--once", help="End when no job waits."),
) -> None:
    """Take jobs from the queue, one at a time, until it is interrupted.

    Beside `melior serve --no-work`, or to add machines: each needs the servers' database, and their data folder under
    the same path. A job half done goes back to the queue, and on from its checkpoint with whoever takes it.

    \b
    melior work --database postgresql://melior:…@db.example/melior
    """
    from melior.jobs.worker import Worker
    from melior.store import Store
    from melior.store.database import default_database

    where = database or f"sqlite:///{default_database()}"
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Store.open(where) as store:
        worker = Worker(store, where)
        say(f"worker    {worker.owner}")
        say(f"database  {store.database.engine.url.render_as_string()}")
        done = worker.work(stop, once=once)
    say(f"{done} {'job was' if done == 1 else 'jobs were'} taken")
