"""the OpenAI dialect's hyperparameters as sections of a recipe, and back

n_epochs · batch_size · learning_rate_multiplier ("auto" or a number) · eval_interval · eval_samples · …
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from melior.cycles.recipe import GROUP
from melior.errors import ConfigError

METHODS = {"supervised": "sft", "dpo": "dpo", "reinforcement": "rft"}  # the dialect's types → ours
SUPERVISED = ("n_epochs", "batch_size", "learning_rate_multiplier")
PREFERENCES = (*SUPERVISED, "beta")
REINFORCEMENT = (*SUPERVISED, "eval_interval", "eval_samples", "compute_multiplier", "reasoning_effort")
KNOWN = {"supervised": SUPERVISED, "dpo": PREFERENCES, "reinforcement": REINFORCEMENT}
PLACES = {  # our method → hyperparameter → section and setting, where it is that setting and no other
    "sft": {"n_epochs": ("sft", "epochs"), "batch_size": ("sft", "batch_size")},
    "dpo": {"n_epochs": ("dpo", "epochs"), "batch_size": ("dpo", "batch_size"), "beta": ("dpo", "beta")},
    "rft": {
        "batch_size": ("rft", "prompts"),
        "eval_interval": ("evaluate", "every"),
        "eval_samples": ("evaluate", "n"),
    },
}
LEAST_GROUP, MOST_GROUP = 2, 64  # outputs of a prompt, however much compute is asked for


def sections_of(method: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The recipe's sections that a job's `method` asks for; what it leaves out keeps the recipe's default, "auto".

    `learning_rate_multiplier` multiplies the rate that is chosen automatically; `compute_multiplier` the outputs
    sampled of each prompt; `reasoning_effort` has nothing to steer here. Reinforcement counts steps and sees every task
    once, so its `n_epochs` can be "auto" or 1.

    Raises:
        ConfigError: for a method or a hyperparameter that there is not, or a value that cannot be kept.
    """
    kind = method.get("type")
    if not isinstance(kind, str) or kind not in METHODS:
        raise ConfigError(f"method.type is {kind!r}; supervised, dpo and reinforcement can be trained")
    known = KNOWN[kind]
    told = _object(method, kind, f"method.{kind}")
    every = _object(told, "hyperparameters", f"method.{kind}.hyperparameters")
    asked = {name: value for name, value in every.items() if value is not None}
    if odd := sorted(set(asked) - set(known)):
        raise ConfigError(f"{odd[0]!r} is no hyperparameter of {kind}; there are {', '.join(known)}")
    found: dict[str, dict[str, Any]] = {}
    for name, value in asked.items():
        for section, key, made in _placed(name, value, METHODS[kind]):
            found.setdefault(section, {})[key] = made
    return found


def settled(method: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A job's `method` with what its hyperparameters came to in a recipe whose every value is chosen."""
    kind = str(method["type"])
    fit, sampling = recipe.get("fit") or {}, recipe.get("sampling") or {}
    came: dict[str, Any] = {"learning_rate_multiplier": fit.get("rate_multiplier", 1.0)}
    if kind == "reinforcement":
        came |= {"n_epochs": 1, "compute_multiplier": sampling.get("n", GROUP) / GROUP}
    for name, (section, key) in PLACES[METHODS[kind]].items():
        came[name] = (recipe.get(section) or {}).get(key)
    told = method.get(kind) or {}
    chosen = {name: value for name, value in came.items() if isinstance(value, int | float)}
    return {**method, kind: {**told, "hyperparameters": {**(told.get("hyperparameters") or {}), **chosen}}}


def _placed(name: str, value: Any, method: str) -> list[tuple[str, str, Any]]:
    """Where one hyperparameter goes."""
    automatic = value == "auto"
    if method == "dpo" and automatic and name != "learning_rate_multiplier":
        return []  # the method's own defaults
    if name == "beta":
        return [("dpo", "beta", _number(name, value))]
    if name == "learning_rate_multiplier":
        return [
            ("fit", "learning_rate", "auto"),
            *([] if automatic else [("fit", "rate_multiplier", _number(name, value))]),
        ]
    if name == "n_epochs" and method == "rft" and value not in ("auto", 1):
        raise ConfigError(f'n_epochs is {value!r}, but reinforcement sees every task once; write 1 or "auto"')
    if name == "compute_multiplier" and not automatic:
        return [("sampling", "n", round(min(MOST_GROUP, max(LEAST_GROUP, GROUP * _number(name, value)))))]
    if name not in PLACES[method] or (automatic and method == "rft"):
        return []
    return [(*PLACES[method][name], value)]


def _object(holder: Mapping[str, Any], name: str, path: str) -> Mapping[str, Any]:
    """What stands under a name, empty where nothing does."""
    found = holder.get(name)
    if found is not None and not isinstance(found, Mapping):
        raise ConfigError(f"{path} is {found!r:.60}; write an object, or leave it out")
    return found or {}


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise ConfigError(f'{name} is {value!r:.60}; write a number above 0, or "auto"')
    return float(value)
