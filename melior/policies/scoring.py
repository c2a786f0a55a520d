"""log-probs of a language batch's decisions: any token, or one of some choices, in one forward pass"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from melior.errors import ConfigError
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
    candidates: list[Tensor]  # [T, K] nats each, -inf where no candidate was asked for


def score_decisions(
    backbone: Any,
    contexts: Sequence[Ids],
    rows: Sequence[Decided],
    columns: Sequence[np.ndarray],
    want: frozenset[Want] = LOG_PROBS,
    asked: Sequence[np.ndarray] | None = None,
) -> Found:
    """What is wanted of each row's decisions at the given columns, in one forward pass.

    `asked` are ids [T, K] per row, negative where there is none, whose log-probs are wanted too. Rows of one context
    and one list of choices share the choices' forward pass.

    Raises:
        ConfigError: if candidates are asked for where a row is one of some choices.
    """
    reads = Reads()
    decides = bool(want & {Want.LOG_PROBS, Want.ENTROPY})
    counts: list[int] = []  # states of each row
    places: dict[Any, slice] = {}
    given: list[slice] = []  # candidates of each row
    for row, (context, decided) in enumerate(zip(contexts, rows, strict=True)):
        key = _key(row, context, decided)
        if decides and key not in places:
            places[key] = _ask(reads, context, decided, columns[row])
        if Want.STATES in want:
            known = decides and decided.choices is None  # then it was added just now
            counts.append(_look(reads, context, decided, columns[row], known=known))
        if asked is not None:
            known = decides or Want.STATES in want
            given.append(_ask_candidates(reads, context, decided, columns[row], asked[row], known=known))
    log_probs, bits, states = reads.answer(backbone, entropy=Want.ENTROPY in want)
    seen = [] if states is None else list(states.split(counts))
    listed = [_listed(log_probs[place], ids) for place, ids in zip(given, asked or (), strict=True)]
    if not decides:
        return Found([], [], seen, listed)
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
    return Found(found, spread, seen, listed)


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


def _ask_candidates(
    reads: Reads, context: Ids, decided: Decided, columns: np.ndarray, ids: np.ndarray, *, known: bool
) -> slice:
    """Asks for the tokens in `ids` [T, K] that are some; `known` says that the row's sequence was added last."""
    if decided.choices is not None:
        raise ConfigError(
            f"An output out of {len(decided.choices)} choices has no candidates token by token; sample without choices"
        )
    there, _ = (ids >= 0).nonzero()
    places = (len(context) - 1 + columns)[there]
    sequences = [] if known else [context + decided.decisions]
    rows = np.full_like(places, -1 if known else 0)
    return reads.add(sequences, rows, places, ids[ids >= 0].astype(np.int64), decided.temperature)


def _listed(log_probs: Tensor, ids: np.ndarray) -> Tensor:  # [J] -> [T, K]
    """Log-probs at the places of the ids that were asked for, -inf elsewhere."""
    wanted = torch.from_numpy(ids >= 0).to(log_probs.device)
    empty = log_probs.new_full(wanted.shape, -torch.inf)
    return empty.masked_scatter(wanted, log_probs)
