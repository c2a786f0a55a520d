"""drawing slates: one position after the other, each by the inverse of its distribution, from numbers with a key"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from melior.data.formats import canonical
from melior.errors import ConfigError
from melior.policies.slate_network import SlateNetwork
from melior.policies.slate_rows import SlateRows, sheet
from melior.types import Sampling, SlateRequest

DRAWN = 1 << 22  # candidates × samples drawn together, about 100 MB


@dataclass(frozen=True)
class Order:
    """One slate to draw."""

    owner: int  # which request
    number: int  # which sample of the request's content
    length: int  # positions to fill
    cut: bool  # whether max_tokens made it shorter than the request allows


def check(each: Sequence[Sampling]) -> None:
    """Nothing, if every candidate keeps a propensity.

    Raises:
        ConfigError: for top_k or top_p.
    """
    for settings in each:
        if settings.top_k or settings.top_p < 1:
            raise ConfigError(
                "Slates are sampled from all free candidates, so that each keeps a propensity; got "
                f"top_k={settings.top_k}, top_p={settings.top_p}: lower the temperature instead"
            )


def contents(inputs: Sequence[SlateRequest]) -> list[bytes]:
    """A hash of each request's content; equal objects are read once."""
    found: dict[int, bytes] = {}
    for request in inputs:
        if id(request) not in found:
            found[id(request)] = hashlib.sha256(canonical(request).encode()).digest()
    return [found[id(request)] for request in inputs]


def orders(keys: Sequence[bytes], each: Sequence[Sampling], sizes: Sequence[int], positions: int) -> list[Order]:
    """`n` slates per request, in order; requests of equal content go on counting where the last one stopped."""
    seen: Counter[bytes] = Counter()
    found: list[Order] = []
    for owner, (key, settings, size) in enumerate(zip(keys, each, sizes, strict=True)):
        room = min(positions, size)
        length = min(room, settings.max_tokens)
        numbers = range(seen[key], seen[key] + settings.n)
        found += [Order(owner, number, length, length < room) for number in numbers]
        seen[key] += settings.n
    return found


def chunks(wanted: Sequence[Order], sizes: Sequence[int]) -> Iterator[Sequence[Order]]:
    """Orders as they stand, as many at a time as `DRAWN` allows."""
    start, widest = 0, 0
    for place, order in enumerate(wanted):
        widest = max(widest, sizes[order.owner])
        if place > start and widest * (place + 1 - start) > DRAWN:
            yield wanted[start:place]
            start, widest = place, sizes[order.owner]
    if start < len(wanted):
        yield wanted[start:]


def draw(
    network: SlateNetwork,
    rows: SlateRows,
    wanted: Sequence[Order],
    each: Sequence[Sampling],  # settings of each order
    keys: Sequence[bytes],  # content of each request
    step: int,
) -> list[tuple[list[int], list[float]]]:
    """Decisions of each order, and their log-probs."""
    device = network.ids.device
    width = max(order.length for order in wanted)
    pairs = list(zip(wanted, each, strict=True))
    draws = torch.tensor(
        [_uniforms(how.seed, step, keys[order.owner], order.number, width) for order, how in pairs],
        dtype=torch.float64,
        device=device,
    )
    heat = torch.tensor([how.temperature for how in each], dtype=torch.float64, device=device)
    lengths = torch.tensor([order.length for order in wanted], device=device)
    placed, chances = _filled(network, rows, torch.tensor([order.owner for order in wanted]), lengths, heat, draws)
    found = zip(wanted, placed.tolist(), chances.tolist(), strict=True)
    return [(decisions[: order.length], told[: order.length]) for order, decisions, told in found]


def _filled(
    network: SlateNetwork,
    rows: SlateRows,
    owners: Tensor,  # [B]
    lengths: Tensor,  # [B]
    heat: Tensor,  # [B], 0 is greedy
    draws: Tensor,  # [B, T] in [0, 1)
) -> tuple[Tensor, Tensor]:  # [B, T], [B, T]
    """Decisions and their log-probs; what stands behind a row's length means nothing."""
    device = network.ids.device
    read = sheet(rows, owners).to(device)
    staged = network.first(read)
    greedy = heat == 0
    temperatures = torch.where(greedy, 1.0, heat)
    placed = torch.zeros(len(owners), 0, dtype=torch.long, device=device)
    chances = torch.zeros(len(owners), 0, dtype=torch.float64, device=device)
    taken = torch.zeros(len(owners), staged.scores.shape[1], dtype=torch.bool, device=device)
    for position in range(draws.shape[1]):
        states = network.states(staged, read.asked, placed)
        last = None if states is None else states[:, -1:]
        every = network.all_log_probs(staged, read.asked, last, taken[:, None], temperatures)[:, 0]
        heaps = every.double().exp().cumsum(1)
        drawn = torch.searchsorted(heaps, draws[:, position, None] * heaps[:, -1:], right=True)
        chosen = torch.where(greedy[:, None], every.argmax(1, keepdim=True), drawn)
        placed = torch.cat([placed, chosen], dim=1)
        chances = torch.cat([chances, every.gather(1, chosen).double()], dim=1)
        # A slate that is full takes nothing more: its candidates may be used up.
        taken = taken.scatter(1, chosen, taken.gather(1, chosen) | (lengths > position + 1)[:, None])
    return placed, chances


def _uniforms(seed: int, step: int, key: bytes, number: int, count: int) -> list[float]:
    """Numbers in [0, 1) that are a function of their key."""
    stream = hashlib.shake_128(f"{seed} {step} {number} ".encode() + key).digest(8 * count)
    return [(int.from_bytes(stream[8 * i : 8 * i + 8], "little") >> 11) * 2.0**-53 for i in range(count)]
