"""policies that decide: classifiers and slates, loaded when they are first asked; one pass decides what came at once"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from melior.cycles.kinds import kind_named
from melior.data.formats.decisions import inputs_of
from melior.data.formats.rows import Reading, RowError
from melior.errors import CheckpointError, MeliorError, ModelError
from melior.policies.kinds import kind_of, load_policy
from melior.serving.batches import Batches
from melior.serving.problems import Problem
from melior.store.rows import Version
from melior.types import Record, Sampling, Task

log = logging.getLogger(__name__)

LOADED = 16  # policies that are held at once: they are small
TOGETHER = 32  # requests that one pass decides


@dataclass(frozen=True)
class Wanted:
    """One request for decisions."""

    given: Any  # what the client sent
    candidates: list[Any] | None
    how: Sampling
    seeded: bool  # the client chose the seed: its draws are not to depend on who else asks


class Decider:
    """A policy that decides."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.batches: Batches[Wanted, list[Record]] = Batches(self.decide, TOGETHER)

    def decide(self, batch: Sequence[Wanted]) -> list[list[Record] | Exception]:
        """`n` records for each request, or why there are none; nobody's mistake is another's."""
        found: list[Any] = [None] * len(batch)
        together: dict[int, Any] = {}  # by place
        for place, wanted in enumerate(batch):
            try:
                inputs = self._read(wanted)
                if wanted.seeded:
                    found[place] = self.policy.sample([inputs], wanted.how)
                else:
                    together[place] = inputs
            except Exception as error:
                found[place] = error
        for place, records in self._sampled(batch, together).items():
            found[place] = records
        return found

    def _sampled(self, batch: Sequence[Wanted], together: Mapping[int, Any]) -> dict[int, list[Record] | Exception]:
        """Records by place. What cannot be decided together is decided one by one, and fails alone.

        Groups are those of a call alone: what the log says of a decision does not depend on who else asked.
        """
        if not together:
            return {}
        try:
            drawn = iter(self.policy.sample(list(together.values()), [batch[place].how for place in together]))
            found = {place: [next(drawn) for _ in range(batch[place].how.n)] for place in together}
        except Exception as error:
            if len(together) == 1:
                return dict.fromkeys(together, error)
            alone = [self._sampled(batch, {place: inputs}) for place, inputs in together.items()]
            return {place: result for one in alone for place, result in one.items()}
        return {place: [_alone(record) for record in records] for place, records in found.items()}

    def _read(self, wanted: Wanted) -> Any:
        """What a client sent, as the policy's inputs.

        Raises:
            Problem: if it cannot be read as such.
        """
        given, candidates = wanted.given, wanted.candidates
        row: dict[str, Any] = {"inputs": given}
        if self.policy.kind == "slate":
            if not isinstance(given, Mapping):
                raise Problem(400, "a slate's input has context, viewed or history", param="input")
            row = {"request": {**given, **({"candidates": candidates} if candidates is not None else {})}}
        elif candidates is not None:
            raise Problem(400, f"a {self.policy.kind} has no candidates; leave them out", param="candidates")
        try:
            inputs = inputs_of(row, Reading())
            kind_named(self.policy.kind).check(self.policy, [Task(inputs)], Sampling())
        except (MeliorError, RowError) as error:
            raise Problem(400, str(error), param="input") from error
        return inputs


@dataclass
class Deciders:
    """The policies that are loaded."""

    loaded: OrderedDict[str, Decider] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)  # of `loaded`; nothing slow is done under it
    loading: threading.Lock = field(default_factory=threading.Lock)

    def held(self, version: Version) -> Decider | None:
        """The policy of a version where it is loaded."""
        with self.lock:
            decider = self.loaded.get(version.id)
            if decider is not None:
                self.loaded.move_to_end(version.id)
            return decider

    def decider(self, version: Version) -> Decider:
        """The same as `of`, for a client: what is wrong with our files is told to our log.

        Raises:
            Problem: if it is a language model, or cannot be loaded.
        """
        try:
            return self.of(version)
        except (ModelError, CheckpointError) as error:
            log.error("%s cannot be loaded: %s", version.id, error)
            told = f"{version.id} cannot be loaded; this server's log says why"
            raise Problem(500, told, code="model_not_loadable", retry=False) from error

    def of(self, version: Version) -> Decider:
        """The policy of a version, loaded where it is not yet.

        Raises:
            Problem: if it is a language model, which chats.
            ModelError, CheckpointError: if it cannot be loaded.
        """
        with self.loading:
            decider = self.held(version)
            if decider is None:
                if (
                    Path(version.folder).is_dir() and kind_of(version.folder) == "language"
                ):  # seen before its weights are read
                    raise Problem(400, f"{version.name} is a language model; ask /v1/chat/completions", param="model")
                decider = Decider(load_policy(version.folder))
                with self.lock:
                    self.loaded[version.id] = decider
                    while len(self.loaded) > LOADED:
                        self.loaded.popitem(last=False)
            return decider

    def free(self, version: Version) -> None:
        """Holds a version's policy no longer."""
        with self.lock:
            self.loaded.pop(version.id, None)


def _alone(record: Record) -> Record:
    """The record as a call alone has it: groups end with the place of the input in its call."""
    return replace(record, group=f"{record.group.rpartition(':')[0]}:0")
