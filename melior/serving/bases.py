"""base models: what answers before anything was trained here

They are the models that `melior pull` knows and has fetched, and those that the operator names when the server starts.
Clients ask for them by name, and never by a folder.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from melior.errors import ConfigError, ModelError
from melior.policies.weights import KNOWN, home
from melior.registry import Registry
from melior.store import Store
from melior.store.rows import Version


@dataclass
class Bases:
    """The base models of a server. Each is hashed and registered when it is first asked for or listed."""

    store: Store
    named: Mapping[str, Path] = field(default_factory=dict)  # by the operator
    found: dict[str, Version] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def folders(self) -> dict[str, Path]:
        """Every base model that is on this machine, by name."""
        pulled = {name: home() / "models" / name for name in KNOWN}
        return {name: folder for name, folder in pulled.items() if folder.is_dir()} | dict(self.named)

    def of(self, name: str) -> Version | None:
        """The version of a base model; None where nothing is called so.

        Raises:
            ModelError: for a name that `melior pull` knows and that has not been pulled.
        """
        folder = self.folders.get(name)
        if folder is None and name in KNOWN:
            raise ModelError(f"{name} is not on this machine; run: melior pull {name}")
        if folder is None:
            return None
        with self.lock:
            if name not in self.found:
                self.found[name] = Registry(self.store).register_base(name, folder)
            return self.found[name]

    def all(self) -> list[Version]:
        """The versions of all that is on this machine."""
        return [version for name in self.folders if (version := self.of(name)) is not None]


def named_models(asked: Sequence[str]) -> dict[str, Path]:
    """Name → folder of what an operator asks to serve: a folder, NAME=FOLDER, or the name of what was pulled.

    Raises:
        ConfigError: if there is no such model here, or two have one name.
    """
    found: dict[str, Path] = {}
    for one in asked:
        name, told, place = one.rpartition("=")
        pulled = home() / "models" / one
        folder = Path(place).expanduser()
        if place and folder.is_dir():
            name, folder = name or folder.resolve().name, folder.resolve()
        elif not told and one and pulled.is_dir():
            name, folder = one, pulled
        elif one in KNOWN or (not told and one.count("/") == 1 and not one.startswith((".", "/", "~"))):
            raise ConfigError(f"--model {one} is not on this machine; run: melior pull {one}")
        else:
            raise ConfigError(
                f"--model {one}: there is no folder {place!r}; write FOLDER, NAME=FOLDER, or a pulled name"
            )
        if name in found and found[name] != folder:
            raise ConfigError(f"--model names two models {name}; call one of them otherwise: OTHER={folder}")
        found[name] = folder
    return found
