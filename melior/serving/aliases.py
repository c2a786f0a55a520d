"""what each alias means on this server: a new version answers once it is loaded, and the one before it until then

Whoever promotes changes a row of the database. Every server sees that within a second, loads the new version beside the
old one, and only then lets the alias's requests go there. A version that cannot be loaded never takes over. Between two
looks at the database a server answers with what it knows: a decision that takes a millisecond need not pay for two.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

from melior.errors import DatabaseAway, MeliorError
from melior.policies.kinds import kind_of
from melior.registry import Registry
from melior.registry.registry import PROD
from melior.serving.deciders import Deciders
from melior.serving.loaded import Voices
from melior.serving.problems import Problem
from melior.store import Store
from melior.store.rows import Version

log = logging.getLogger(__name__)

LOOK_S = 0.5  # between two looks at where aliases point; what was seen holds for so long
AGAIN_S = 60.0  # after which a version that could not be loaded is tried again


@dataclass
class Aliases:
    """The aliases that were asked for here."""

    store: Store
    voices: Voices
    deciders: Deciders
    meant: dict[str, Version] = field(default_factory=dict)  # reference → what answers to it here
    seen: dict[str, float] = field(default_factory=dict)  # reference → when the database was asked about it
    left: list[Version] = field(default_factory=list)  # what answered before and is not freed yet
    broken: dict[str, float] = field(default_factory=dict)  # versions that could not be loaded → when to try again
    lock: threading.Lock = field(default_factory=threading.Lock)  # nothing slow is done under it
    ended: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def of(self, reference: str) -> Version:
        """The version that answers to `name@alias`, or to a name alone.

        Raises:
            StoreError: if there is none.
        """
        if held := self.held(reference):
            return held
        reference = _whole(reference)
        with self.lock:
            before = self.meant.get(reference)
        now = Registry(self.store).get(reference)
        with self.lock:
            self.seen[reference] = time.monotonic()
        if before is None or before.id == now.id:
            return self._means(reference, before, now)
        if self._broken(now):
            return before
        try:
            if not self._ready(now):
                if self._ready(before):
                    return before
                self._load(now)  # neither is held, so nobody is kept from an answer
        except MeliorError as error:
            self._refuse(reference, now, error)
            return before
        return self._means(reference, before, now)

    def held(self, reference: str) -> Version | None:
        """The same where it was asked for a moment ago: nothing is read, and nobody waits."""
        reference = _whole(reference)
        with self.lock:
            fresh = time.monotonic() - self.seen.get(reference, -LOOK_S) < LOOK_S
            return self.meant.get(reference) if fresh else None

    def forget(self, version: Version) -> None:
        """Lets nothing answer with a version any more."""
        with self.lock:
            self.meant = {reference: meant for reference, meant in self.meant.items() if meant.id != version.id}
            self.left.append(version)

    def start(self) -> None:
        """Begins to look where aliases point."""
        self.thread = threading.Thread(target=self._look_on, name="aliases", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Ends that."""
        self.ended.set()
        if self.thread is not None:
            self.thread.join()

    def look(self) -> None:
        """Loads what aliases in use point to by now, lets it answer, and frees what answers to nothing any more."""
        with self.lock:
            meant = dict(self.meant)
        for reference, before in meant.items():
            try:
                self._follow(reference, before)
            except DatabaseAway:
                raise
            except Exception:  # of this alias; the others go on
                log.exception("%s could not be looked at; it is tried again", reference)
        with self.lock:
            kept = {version.id for version in self.meant.values()}
            leaving, self.left = [old for old in self.left if old.id not in kept], []
        staying = [old for old in leaving if not self._free(old)]
        with self.lock:
            self.left += staying

    def _follow(self, reference: str, before: Version) -> None:
        """Lets an alias mean what it points to by now."""
        now = Registry(self.store).get(reference)
        with self.lock:
            self.seen[reference] = time.monotonic()
        if now.id == before.id or self._broken(now):
            return
        try:
            if not self._ready(before):  # nobody asks; who does will have it loaded
                with self.lock:
                    del self.seen[reference]
                return
            self._load(now)
        except Problem:  # no room yet
            return
        except Exception as error:  # of its files, or of what reads them
            self._refuse(reference, now, error)
            return
        self._means(reference, before, now)

    # ------------------------------------------------------------------ inside

    def _look_on(self) -> None:
        while not self.ended.wait(LOOK_S):
            try:
                self.look()
            except MeliorError as error:  # a database that is busy or away comes back
                log.warning("aliases could not be read: %s", error)
            except Exception:
                log.exception("looking where aliases point failed; it is tried again")

    def _means(self, reference: str, before: Version | None, version: Version) -> Version:
        """What answers now: the version, unless another has come to meanwhile."""
        with self.lock:
            meant = self.meant.get(reference)
            if meant is not None and (before is None or meant.id != before.id):
                return meant
            self.meant[reference] = version
            if meant is not None and meant.id != version.id:
                log.info("%s is %s now, before it %s", reference, version.id, meant.id)
                self.left.append(meant)
        return version

    def _broken(self, version: Version) -> bool:
        return time.monotonic() < self.broken.get(version.id, 0)

    def _refuse(self, reference: str, version: Version, error: Exception) -> None:
        self.broken[version.id] = time.monotonic() + AGAIN_S
        log.error("%s cannot be loaded, and %s goes on as before: %s", version.id, reference, error)

    def _ready(self, version: Version) -> bool:
        if kind_of(version.folder) == "language":
            return self.voices.ready(version)
        return self.deciders.held(version) is not None

    def _free(self, version: Version) -> bool:
        if kind_of(version.folder) == "language":
            return self.voices.retire(version)
        self.deciders.free(version)
        return True

    def _load(self, version: Version) -> None:
        if kind_of(version.folder) == "language":
            self.voices.of(version)
        else:
            self.deciders.of(version)


def _whole(reference: str) -> str:
    return reference if "@" in reference else f"{reference}@{PROD}"
