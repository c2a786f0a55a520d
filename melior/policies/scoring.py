"""log-probs of a language batch's decisions: any token, or one of some choices, in one forward pass"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from melior.policies.base import LOG_PROBS, Want
from melior.policies.choices import Choices, Ids
from melior.policies.forest import common_prefix
from melior.policies.reads import Reads


class Decided(NamedTuple):
    """What a row decided behind its context, at which temperature, and out of which choices."""

    decisions: Ids
    temperature: float
    choices: Choices | None


class Found(NamedTuple):
    """What is known of each row's decisions; lists of what was not wanted are empty."""

    log_probs: list[Tensor]  # [T] nats each
    entropy: list[Tensor]  # [T] nats each
    states: list[Tensor]  # [T + 1, D] each: before every decision, and behind the last


def score_decisions(
    backbone: Any,
    contexts: Sequence[Ids],
    rows: Sequence[Decided],
    columns: Sequence[np.ndarray],
    want: frozenset[Want] = LOG_PROBS,
) -> Found:
    """What is wanted of each row's decisions at the given columns, in one forward pass.

    Rows of one context and one list of choices share the choices' forward pass.
    """
    reads = Reads()
    decides = bool(want & {Want.LOG_PROBS, Want.ENTROPY})
    counts: list[int] = []  # states of each row
    places: dict[Any, slice] = {}
    for row, (context, decided) in enumerate(zip(contexts, rows, strict=True)):
        key = _key(row, context, decided)
        if decides and key not in places:
            places[key] = _ask(reads, context, decided, columns[row])
        if Want.STATES in want:
            known = decides and decided.choices is None  # then it was added just now
            counts.append(_look(reads, context, decided, columns[row], known=known))
    log_probs, bits, states = reads.answer(backbone, entropy=Want.ENTROPY in want)
    seen = [] if states is None else list(states.split(counts))
    if not decides:
        return Found([], [], seen)
    branches: dict[Any, Tensor] = {}
    found: list[Tensor] = []
    spread: list[Tensor] = []
    for row, (context, decided) in enumerate(zip(contexts, rows, strict=True)):
        place, choices = places[_key(row, context, decided)], decided.choices
        if choices is None:
            found.append(log_probs[place])
            spread += [] if bits is None else [bits[place]]
            continue
        key = (context, choices.ids, decided.temperature)
        if key not in branches:
            branches[key] = choices.branches(choices.totals(log_probs[place]) / decided.temperature)
        path = torch.from_numpy(choices.path(decided.decisions)[columns[row]]).to(log_probs.device)
        found.append(branches[key][path].to(log_probs.dtype))
        spread += [] if bits is None else [choices.entropies(branches[key])[path].to(bits.dtype)]
    return Found(found, spread, seen)


def nodes_added(context: Ids, decided: Decided, before: tuple[Ids, Decided] | None) -> int:
    """How many nodes of a forest a row adds behind the row before it."""
    choices = decided.choices
    needed = len(context) + (len(decided.decisions) if choices is None else choices.size)
    if before is None:
        return needed
    if choices is not None:
        if before[1].choices is choices and before[0] == context:
            return 0
        return needed - common_prefix(before[0], context)
    return needed - common_prefix(before[0] + before[1].decisions, context + decided.decisions)


def _key(row: int, context: Ids, decided: Decided) -> Any:
    """What rows share that one reading serves."""
    return row if decided.choices is None else (context, decided.choices.ids)


def _look(reads: Reads, context: Ids, decided: Decided, columns: np.ndarray, *, known: bool) -> int:
    """Asks for what a row reads before each decision and behind its last token; how many states that is."""
    end = len(context) + len(decided.decisions) - 1
    reads.look(np.append(len(context) - 1 + columns, end), None if known else context + decided.decisions)
    return len(columns) + 1


def _ask(reads: Reads, context: Ids, decided: Decided, columns: np.ndarray) -> slice:
    if decided.choices is not None:
        return decided.choices.ask(reads, context)
    targets = np.array(decided.decisions, dtype=np.int64)[columns]
    places = len(context) - 1 + columns
    return reads.add([context + decided.decisions], np.zeros_like(places), places, targets, decided.temperature)
