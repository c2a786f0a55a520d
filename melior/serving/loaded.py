"""the language models that are held in memory, and the adapters over each

A model is loaded once, and every adapter that was trained over it answers from the same weights and in the same decode
batch; so does the model itself. What is held is bounded: room for another model is made by one that answers nobody.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from melior.errors import CheckpointError, DataError, ModelError
from melior.policies.adapters import base_of
from melior.policies.kinds import kind_of, load_policy
from melior.policies.mixing import mixes
from melior.serving.pauses import spare_imports
from melior.serving.problems import Problem
from melior.serving.voices import Gone, Ticket, Voice
from melior.store.rows import Version
from melior.types import Sampling

log = logging.getLogger(__name__)

LOADED = 2  # models with all their weights that are held at once
ADAPTERS = 32  # over each of them; one of rank 16 is about a thirtieth of its model
ROOM_S = 20.0  # for which a request waits until a model that answers nobody can make room
AGAIN_S = 5  # when to come again
LOOK_S = 0.05  # between two looks whether there is room


@dataclass(frozen=True)
class Standing:
    """What a version is made of: the folder of a whole model, and of the adapter over it, if any."""

    model: str
    adapter: str = ""


def standing_of(version: Version) -> Standing:
    """The same model for all versions that can share it.

    Raises:
        DataError: if it is no language model.
    """
    kind = kind_of(version.folder)
    if kind != "language":
        raise DataError(f"{version.name} is a {kind} policy and does not chat; ask /v1/decisions")
    folder = Path(version.folder)
    base = base_of(folder)
    if base is None or not mixes(folder):
        return Standing(str(folder))
    return Standing(str(base.resolve() if isinstance(base, Path) else base), str(folder))


@dataclass
class Speaker:
    """One version, loaded; it is loaded again if it has to be asked after it had to make room."""

    voices: Voices
    version: Version
    voice: Voice
    adapter: str

    @property
    def policy(self) -> Any:
        """The policy that renders and reads for it; its weights are shared."""
        return self.voice.policy

    def ask(
        self,
        context: tuple[int, ...],
        settings: Sampling,
        *,
        streams: bool,
        loop: asyncio.AbstractEventLoop,
        likeliest: int | None = None,
        echoes: bool = False,
    ) -> Ticket:
        """A request that is being answered; see `Voice.ask`."""
        while True:
            try:
                return self.voice.ask(
                    context,
                    settings,
                    streams=streams,
                    loop=loop,
                    likeliest=likeliest,
                    echoes=echoes,
                    adapter=self.adapter,
                )
            except Gone:
                again = self.voices.of(self.version)
                self.voice, self.adapter = again.voice, again.adapter


@dataclass
class Voices:
    """The models that are loaded."""

    loaded: OrderedDict[str, Voice] = field(default_factory=OrderedDict)  # by folder; the one asked least lately first
    most: int = LOADED
    adapters: int = ADAPTERS
    room_s: float = ROOM_S
    coming: set[str] = field(default_factory=set)  # folders of models that are being loaded
    standings: dict[str, Standing] = field(default_factory=dict)  # by version
    changed: threading.Condition = field(default_factory=threading.Condition)
    ended: bool = False

    def speaker(self, version: Version) -> Speaker:
        """The same as `of`, for a client: what is wrong with our files is told to our log.

        Raises:
            DataError: if it is no language model.
            Problem: if it cannot be loaded, or there is no room for it.
        """
        try:
            return self.of(version)
        except (ModelError, CheckpointError) as error:
            log.error("%s cannot be loaded: %s", version.id, error)
            told = f"{version.id} cannot be loaded; this server's log says why"
            raise Problem(500, told, code="model_not_loadable", retry=False) from error

    def of(self, version: Version) -> Speaker:
        """Who speaks for a version, loaded where it is not yet; others go on answering meanwhile.

        Raises:
            DataError: if it is no language model.
            ModelError, CheckpointError: if it cannot be loaded.
            Problem: if there is no room for it.
        """
        while True:
            standing = self.standing(version)
            voice = self._model(standing.model)
            if not standing.adapter:
                return Speaker(self, version, voice, "")
            try:
                if voice.policy.layout != "forest":
                    raise ModelError("padded rows are not told apart")
                voice.hold(version.id, Path(standing.adapter), most=self.adapters)
                return Speaker(self, version, voice, version.id)
            except ModelError:  # it needs a model of its own
                self.standings[version.id] = Standing(standing.adapter)
            except Gone:
                continue

    def standing(self, version: Version) -> Standing:
        """What a version is made of, read once."""
        if version.id not in self.standings:
            self.standings[version.id] = standing_of(version)
        return self.standings[version.id]

    def ready(self, version: Version) -> bool:
        """Whether a version would answer without being loaded first."""
        standing = self.standing(version)
        with self.changed:
            voice = self.loaded.get(standing.model)
            return voice is not None and (not standing.adapter or version.id in voice.adapters)

    def retire(self, version: Version) -> bool:
        """Frees what only this version needs, unless it answers somebody; whether it is gone."""
        standing = self.standing(version)
        with self.changed:
            voice = self.loaded.get(standing.model)
            if voice is None:
                return True
            if standing.adapter:
                return voice.let_go(version.id)
            if voice.adapters or not voice.stop_if_idle():
                return False
            del self.loaded[standing.model]
            return True

    def give_up(self, problem: Problem) -> None:
        """Tells all that is being answered that it will not be."""
        with self.changed:
            for voice in self.loaded.values():
                voice.give_up(problem)

    def stop(self) -> None:
        """Ends all, when they have answered what they were asked."""
        with self.changed:
            self.ended = True
            ending = list(self.loaded.values())
            self.loaded.clear()
        for voice in ending:
            voice.stop()

    # ------------------------------------------------------------------ models

    def _model(self, folder: str) -> Voice:
        """The voice of a whole model; loaded by whoever asks first, while the others wait."""
        until = time.monotonic() + self.room_s
        with self.changed:
            while True:
                if self.ended:
                    raise Problem(503, "this server is stopping; ask another", retry=True)
                if folder in self.loaded:
                    self.loaded.move_to_end(folder)
                    return self.loaded[folder]
                if folder not in self.coming and self._room():
                    break
                if folder not in self.coming and time.monotonic() > until:
                    told = f"all {self.most} models that there is room for are answering; ask again in {AGAIN_S} s"
                    raise Problem(503, told, code="overloaded", retry=True, headers={"retry-after": str(AGAIN_S)})
                self.changed.wait(LOOK_S)
            self.coming.add(folder)
        try:
            spare_imports("melior.policies.language")  # before there are weights, which do become garbage
            voice = Voice(load_policy(folder))
            with self.changed:
                self.loaded[folder] = voice
            return voice
        finally:
            with self.changed:
                self.coming.discard(folder)
                self.changed.notify_all()

    def _room(self) -> bool:
        """Whether there is room for another model, made by those that answer nobody; one that does is never dropped."""
        while len(self.loaded) + len(self.coming) >= self.most:
            idle = next((folder for folder, voice in self.loaded.items() if voice.stop_if_idle()), None)
            if idle is None:
                return False
            del self.loaded[idle]
        return True
