"""which parameters train, in words: presets become learning-rate factors by name

    train: head        the output head and the norm before it
    train: last-4      the last four blocks, and the head's norm
    train: no-embeddings   everything but what stands below the first block: embeddings, the stem of an image net
    train: all         everything that can train (the default)

The head of a classifier was made for its labels, so every preset trains it.

A preset is only a way to write factors: `{pattern: 0}` freezes, and what a person wrote comes before the preset.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from melior.errors import ConfigError

STACK = r"(?:^|\.)(?:layers|layer|h|blocks|block)"  # as transformers' families, and melior, name their blocks
BLOCK = re.compile(rf"{STACK}\.(\d+)\.")
EMBEDDING = (
    r"(?:embed_tokens|embed_positions|embed_in|wte|wpe|word_embeddings|embeddings|stem)\."
    r"|^encoder\.features\.(?:numeric|missing|categories|project)\b"  # of a table's cells
)
OWN = r"^head\."  # of a classifier
HEAD = rf"(?:^|\.)(?:lm_head|embed_out)\.|{OWN}"
TOP = r"\.top\."  # an image net's last convolution, behind its blocks
LAST_NORM = r"(?:^|\.)(?:model\.norm|norm_f|ln_f|final_layer_?norm|final_norm)\."
PRESETS = "all, head, no-embeddings or last-N (such as last-4)"


@dataclass(frozen=True)
class Share:
    """How much of a model trains."""

    trainable: int
    total: int

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters train ({self.trainable / max(1, self.total):.2%})"


def check_preset(train: str) -> None:
    """Nothing, if the word is a preset.

    Raises:
        ConfigError: naming the presets.
    """
    if train not in ("all", "head", "no-embeddings") and not re.fullmatch(r"last-[1-9]\d*", train):
        raise ConfigError(f"{train!r} is no choice of what trains; write {PRESETS}")


def factors_of(
    names: Sequence[str],
    *,
    train: str = "all",
    layer_decay: float = 1.0,
    rates: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Learning-rate factors by pattern, the first match counting: what a person wrote, then preset, then decay.

    `layer_decay` d gives block l of L (from 0) the factor d^(L-1-l), the embeddings d^L, the head 1.

    Raises:
        ConfigError: for an unknown preset, a model without blocks to count, or a preset that would leave nothing.

    Source: Howard and Ruder 2018, arXiv:1801.06146, §3.1 (discriminative rates); Clark et al. 2020, arXiv:2003.10555.
    """
    check_preset(train)
    found = dict(rates or {})
    depth = 1 + max((int(match[1]) for name in names if (match := BLOCK.search(name))), default=-1)
    if depth == 0 and (train.startswith("last-") or layer_decay != 1.0):
        raise ConfigError(f"0 of {len(names)} parameters stand in numbered blocks; write fit.rates by name instead")
    presets = _preset(names, train, depth)
    decayed = _decayed(names, layer_decay, depth) if layer_decay != 1.0 else {}
    for pattern, factor in (*presets.items(), *decayed.items()):
        found.setdefault(pattern, factor)
    if names and not any(factor_for(name, found) for name in names):
        raise ConfigError(f"train: {train} leaves 0 of {len(names)} trainable tensors; {_remedy(names)}")
    return found


def factor_for(name: str, factors: Mapping[str, float]) -> float:
    """The factor of one parameter: the first pattern found in its name, 1 where none is.

    Raises:
        ConfigError: for a pattern that is no regular expression.
    """
    return next((factor for pattern, factor in factors.items() if matches(pattern, name)), 1.0)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern is found in a name.

    Raises:
        ConfigError: for a pattern that is no regular expression.
    """
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise ConfigError(f"Learning-rate pattern {pattern!r} is no regular expression: {error}") from error


def _preset(names: Sequence[str], train: str, depth: int) -> dict[str, float]:
    if train == "all":
        return {}
    tied = not any(re.search(HEAD, name) for name in names)
    if train == "no-embeddings":
        # A head that shares the embeddings' matrix is frozen with it; an adapter has none to freeze.
        return {EMBEDDING: 0.0} if any(re.search(EMBEDDING, name) for name in names) else {}
    if train == "head":
        head = f"{HEAD}|{EMBEDDING}" if tied else HEAD  # tied: the head is the embeddings' matrix
        return {f"^(?!.*(?:{head}|{LAST_NORM}))": 0.0}
    wanted = int(train.removeprefix("last-"))
    if wanted > depth:
        raise ConfigError(f"train: {train} asks for {wanted} blocks, and the model has {depth}; write last-{depth}")
    kept = "|".join(str(layer) for layer in range(depth - wanted, depth))
    return {rf"^(?!{_blocks(kept)}|.*(?:{LAST_NORM}|{TOP})|{OWN})": 0.0}


def _decayed(names: Sequence[str], decay: float, depth: int) -> dict[str, float]:
    if not 0 < decay <= 1:
        raise ConfigError(f"layer_decay={decay} would not lower the rates of lower layers; write 0 < layer_decay ≤ 1")
    found = {f"^{_blocks(str(layer))}": decay ** (depth - 1 - layer) for layer in range(depth - 1)}
    if any(re.search(EMBEDDING, name) for name in names):
        found[EMBEDDING] = decay**depth
    return {pattern: factor for pattern, factor in found.items() if any(re.search(pattern, name) for name in names)}


def _blocks(numbers: str) -> str:
    """A pattern, from a name's start, of what stands in blocks of these numbers; a list inside a block is no block."""
    return rf"(?:(?!{STACK}\.\d+\.).)*{STACK}\.(?:{numbers})\."


def _remedy(names: Sequence[str]) -> str:
    adapter = any("lora_" in name for name in names)
    return "an adapter has neither head nor embeddings, so write model.lora: null" if adapter else "train something"
