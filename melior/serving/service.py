"""what a server holds: the store, the folder of its files, the models it has loaded, and what it counts"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from melior.jobs.worker import Worker
from melior.serving.aliases import Aliases
from melior.serving.bases import Bases
from melior.serving.courier import Courier
from melior.serving.deciders import Deciders
from melior.serving.loaded import LOADED, Voices
from melior.serving.metrics import Metrics
from melior.serving.security import Limits
from melior.serving.writer import Writer
from melior.store import Store

FILES, JOBS, PICTURES = "files", "jobs", "pictures"  # folders within the data folder


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server runs."""

    data: Path  # files, jobs and models
    database: str  # a URL or a path
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    rewards: Mapping[str, str] = field(default_factory=dict)  # what clients call a reward function → the function
    judges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what clients call a judge → its endpoint
    models: Mapping[str, Path] = field(default_factory=dict)  # base models that the operator names → their folders
    loaded: int = LOADED  # whole models that are held in memory at once
    work: bool = True  # whether jobs are done here too; other workers may share the database


@dataclass
class Service:
    """One server's state. Endpoints get it from `request.app.state.service`."""

    settings: Settings
    store: Store
    metrics: Metrics = field(init=False)
    draining: threading.Event = field(default_factory=threading.Event)  # set: answer what is asked, take nothing new
    writer: Writer = field(init=False)  # of feedback
    keeping: set[asyncio.Task[None]] = field(default_factory=set)  # answers on their way to the log
    worker: threading.Thread | None = None
    courier: Courier = field(init=False)  # of messages to webhooks
    deciders: Deciders = field(default_factory=Deciders)  # all other policies that do
    voices: Voices = field(default_factory=Voices)  # language models that answer
    bases: Bases = field(init=False)  # models that nobody here trained
    aliases: Aliases = field(init=False)  # which version each means here

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.store)
        self.courier = Courier(self.store)
        self.writer = Writer(self.store)
        self.voices.most = self.settings.loaded
        self.bases = Bases(self.store, self.settings.models)
        self.aliases = Aliases(self.store, self.voices, self.deciders)

    def start(self) -> None:
        """Begins what works beside the requests."""
        self.writer.start()
        self.aliases.start()
        self.courier.start()
        if self.settings.work:
            worker = Worker(self.store, self.settings.database)
            self.worker = threading.Thread(target=worker.work, args=(self.draining,), name="worker")
            self.worker.start()

    def stop(self) -> None:
        """Ends it; what was acknowledged is written, and a job half done is given back."""
        self.draining.set()
        self.aliases.stop()
        self.voices.stop()
        self.writer.stop()
        self.courier.stop()
        if self.worker is not None:
            self.worker.join()

    @property
    def files(self) -> Path:
        """Where the bytes of files are, each under its id."""
        return self.settings.data / FILES

    @property
    def jobs(self) -> Path:
        """Where jobs have their folders, each under its id."""
        return self.settings.data / JOBS

    @property
    def pictures(self) -> Path:
        """Where pictures that were decided on are kept, each under the sha256 of its bytes."""
        return self.settings.data / PICTURES
