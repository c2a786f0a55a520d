"""policies that decide: classifiers and slates, loaded when they are first asked"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from melior.cycles.kinds import kind_named
from melior.data.formats.decisions import inputs_of
from melior.data.formats.rows import Reading, RowError
from melior.errors import MeliorError
from melior.policies.kinds import load_policy
from melior.serving.problems import Problem
from melior.store.rows import Version
from melior.types import Sampling, Task

LOADED = 16  # policies that are held at once: they are small


@dataclass
class Decider:
    """A policy that decides, one request at a time."""

    policy: Any
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, given: Any, candidates: list[Any] | None) -> Any:
        """What a client sent, as the policy's inputs.

        Raises:
            Problem: if it cannot be read as such.
        """
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
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, version: Version) -> Decider:
        """The policy of a version, loaded where it is not yet.

        Raises:
            Problem: if it is a language model, which chats.
        """
        with self.lock:
            if version.id not in self.loaded:
                policy = load_policy(version.folder)
                if policy.kind == "language":
                    raise Problem(400, f"{version.name} is a language model; ask /v1/chat/completions", param="model")
                self.loaded[version.id] = Decider(policy)
                while len(self.loaded) > LOADED:
                    self.loaded.popitem(last=False)
            self.loaded.move_to_end(version.id)
            return self.loaded[version.id]
