"""a saved policy of any kind, loaded as what it is"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from melior.errors import ModelError
from melior.policies.base import Policy

FILE = "policy.json"
REWARDS = ("reward_model", "reward_ensemble")  # kinds of folders that hold no policy


def kind_of(path: str | Path) -> str:
    """The kind of a saved policy: what its policy.json says, and language where it has none.

    Raises:
        ModelError: if policy.json cannot be read.
    """
    file = Path(path) / FILE
    if not file.is_file():
        return "language"
    try:
        told: Any = json.loads(file.read_text(encoding="utf-8"))
        return str(told["kind"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{file} does not say what kind of policy this is; save the policy again") from error


def load_policy(path: str | Path, *, device: str = "auto") -> Policy:
    """The policy of a folder, a name that `melior pull` knows or a hub id.

    Raises:
        ModelError: for a kind that this release does not know, or a folder that cannot be used.
    """
    kind = kind_of(path)
    if kind == "classifier":
        from melior.policies.classifier import ClassifierPolicy

        return ClassifierPolicy.load(path, device=device)
    if kind == "slate":
        from melior.policies.slate import SlatePolicy

        return SlatePolicy.load(path, device=device)
    if kind == "language":
        from melior.policies.language import LanguagePolicy

        return LanguagePolicy.load(path, device=device)
    if kind in REWARDS:
        told = f'a grader: {{"type": "learned", "model": "{path}"}}'
        raise ModelError(f"{path} holds a {kind.replace('_', ' ')}, which decides nothing; use it as {told}")
    raise ModelError(f"{path} holds a policy of kind {kind!r}; this release loads language, classifier and slate")
