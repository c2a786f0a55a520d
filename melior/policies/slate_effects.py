"""what a slate policy learnt, as tables a person can read: which item first, which beside which, which after which

print(pair_effects(policy, requests))
after tent    stove  +1.32
after stove   tent   +0.97
…
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from melior.errors import DataError
from melior.policies.base import Want
from melior.policies.slate import SlatePolicy
from melior.types import Demonstration, Interaction, SlateRequest

SHOWN = 24  # items of a table where nobody names them: those most likely to stand first
ROWS = 4096  # slates scored at once


@dataclass(frozen=True)
class Effects:
    """How much more a column's item is chosen beside a row's item than beside others, in nats of its log-odds.

    Rows and columns add up to 0: what an item is chosen for anyway is no effect of another. NaN where row and column
    are the same item, which no slate shows twice.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Tensor  # [R, C]

    def strongest(self, count: int = 12) -> list[tuple[str, str, float]]:
        """Row, column and effect where it is most positive, in falling order."""
        return self._ends(count, descending=True)

    def weakest(self, count: int = 12) -> list[tuple[str, str, float]]:
        """Row, column and effect where it is most negative, in rising order."""
        return self._ends(count, descending=False)

    def _ends(self, count: int, descending: bool) -> list[tuple[str, str, float]]:
        known = (~torch.isnan(self.values)).nonzero()
        values = self.values[known[:, 0], known[:, 1]]
        order = values.argsort(descending=descending, stable=True)[:count].tolist()
        places = known.tolist()
        return [(self.rows[places[n][0]], self.columns[places[n][1]], float(values[n])) for n in order]

    def __str__(self) -> str:
        """The strongest and the weakest, one a line."""
        half = min(12, int((~torch.isnan(self.values)).sum()) // 2)
        told = [*self.strongest(half), *reversed(self.weakest(half))]
        left, right = max((len(a) for a, _, _ in told), default=0), max((len(b) for _, b, _ in told), default=0)
        return "\n".join(f"after {a:<{left}}  {b:<{right}}  {value:+.2f}" for a, b, value in told)


def first_log_probs(policy: SlatePolicy, requests: Sequence[SlateRequest]) -> Tensor:  # [B, N]
    """Log-probs of each request's candidates at the first position, -inf behind the last of them."""
    return _next_log_probs(policy, [(request, ()) for request in requests])


def pair_effects(policy: SlatePolicy, requests: Sequence[SlateRequest], items: Sequence[str] | None = None) -> Effects:
    """How much an item in the first place asks for another in the second, averaged over requests.

    Complements are positive, substitutes negative; all are 0 where the policy knows no combinations. `items` are
    compared with one another; where nobody names them, the items of the catalogue most likely to stand first.

    Raises:
        DataError: without requests, or with fewer than three items to compare.
    """
    names = _compared(policy, requests, items)
    asked = [replace(request, candidates=names) for request in requests]
    total = torch.zeros(len(names), len(names), dtype=torch.float64)
    if policy.config.combinations and policy.config.positions > 1:
        found = _next_log_probs(policy, [(request, (first,)) for request in asked for first in names])
        total = _centred(found.unflatten(0, (len(asked), len(names)))).nanmean(0)
    total.fill_diagonal_(torch.nan)
    return Effects(names, names, _centred(total.T).T)


def history_effects(
    policy: SlatePolicy,
    requests: Sequence[SlateRequest],
    items: Sequence[str] | None = None,
    *,
    type: str = "purchase",
    age_s: float | None = None,
) -> Effects:
    """How much one interaction with a row's item asks for a column's in the first place, averaged over requests.

    The requests' own histories are left out: each is asked with that one interaction instead.

    Raises:
        DataError: without requests, or with fewer than three items to compare.
    """
    names = _compared(policy, requests, items)
    asked = [
        replace(request, candidates=names, history=(Interaction(name, type, age_s),))
        for request in requests
        for name in names
    ]
    found = _next_log_probs(policy, [(request, ()) for request in asked]).unflatten(0, (len(requests), len(names)))
    return Effects(names, names, _centred(_centred(found).mean(0).T).T)


def _compared(policy: SlatePolicy, requests: Sequence[SlateRequest], items: Sequence[str] | None) -> tuple[str, ...]:
    if not requests:
        raise DataError("There are 0 requests to look at; effects are averaged over some")
    if items is None:
        mean = first_log_probs(policy, [replace(request, candidates=None) for request in requests]).exp().mean(0)
        order = mean.argsort(descending=True, stable=True)[:SHOWN].tolist()
        items = [policy.catalogue[place].id for place in sorted(order)]
    if len(items) < 3:
        raise DataError(f"{len(items)} items cannot be compared beside one another; name at least 3")
    return tuple(items)


@torch.no_grad()
def _next_log_probs(
    policy: SlatePolicy, asked: Sequence[tuple[SlateRequest, tuple[str, ...]]]
) -> Tensor:  # [B, N] float64
    """Log-probs of every candidate at the position behind what was placed, -inf where it is not free."""
    noticed = policy.noticed.copy()
    parts = list(_scored(policy, asked))
    policy.noticed.clear()  # made-up requests are nobody's rows
    policy.noticed.update(noticed)
    width = max((part.shape[1] for part in parts), default=0)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=-torch.inf) for part in parts])


def _scored(policy: SlatePolicy, asked: Sequence[tuple[SlateRequest, tuple[str, ...]]]) -> Iterator[Tensor]:
    for start in range(0, len(asked), ROWS):
        rows = [
            # What stands at a position has no say in its candidates' chances: any item that is free will do.
            Demonstration(request, [*placed, next(id for id in _ids(policy, request) if id not in placed)])
            for request, placed in asked[start : start + ROWS]
        ]
        scored = policy.score(policy.encode(rows), frozenset({Want.CANDIDATES}))
        assert scored.candidates is not None
        yield scored.candidates[:, -1].double().cpu()


def _ids(policy: SlatePolicy, request: SlateRequest) -> Iterator[str]:
    listed = policy.catalogue if request.candidates is None else request.candidates
    return (each if isinstance(each, str) else each.id for each in listed)


def _centred(table: Tensor) -> Tensor:  # [.., R, C]
    """Each row less its mean over what is known; NaN elsewhere."""
    known = torch.where(torch.isfinite(table), table, torch.nan)
    return known - known.nanmean(-1, keepdim=True)
