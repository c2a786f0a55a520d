"""what a policy learnt of the shop, beside the truth: which item after which history, which items together"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from melior.policies.base import LOG_PROBS, Want
from melior.rollouts.banner.baselines import single_item_points
from melior.rollouts.banner.catalogue import TYPES, Floats, Ints
from melior.rollouts.banner.outcomes import expected_points
from melior.rollouts.banner.world import Banner
from melior.types import Demonstration, SlateRequest

FEWEST = 5  # visits behind a row of a table, or it is left out
ROWS = 4_000  # scored at once


@dataclass(frozen=True)
class Effects:
    """Two tables of one shape: how much more of a column's type belongs beside a row's type than elsewhere."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    learnt: Floats  # [R, C] nats of the policy's log-probs
    true: Floats  # [R, C] relative expected points

    @property
    def correlation(self) -> float:
        """Spearman's rank correlation over all cells."""
        return float(spearmanr(self.learnt.ravel(), self.true.ravel()).statistic)

    def strongest(self, count: int = 8) -> list[tuple[str, str, float, float]]:
        """The cells the policy prefers most: row, column, learnt, true."""
        order = np.argsort(-self.learnt, axis=None)[:count]
        places = [np.unravel_index(place, self.learnt.shape) for place in order]
        return [(self.rows[r], self.columns[c], float(self.learnt[r, c]), float(self.true[r, c])) for r, c in places]

    def to_json(self) -> dict[str, Any]:
        """Plain lists, rounded."""
        tables = {name: np.round(getattr(self, name), 3).tolist() for name in ("learnt", "true")}
        return {"rows": self.rows, "columns": self.columns, "correlation": round(self.correlation, 3), **tables}


def after_history(world: Banner, policy: Any, requests: Sequence[SlateRequest]) -> Effects:
    """What belongs first on the page of a visitor whose last purchase was of a row's type."""
    kinds = world.shop.type
    last = [_last_type(world, request) for request in requests]
    named = [kind for kind in sorted(set(kinds.tolist())) if last.count(kind) >= FEWEST]
    asked = [(kind, request) for kind, request in zip(last, requests) if kind in named]
    visitors = [request for _, request in asked]
    first = _next_log_probs(world, policy, visitors, np.zeros((len(visitors), 0), dtype=np.int64))
    truth = np.log(single_item_points(world, visitors))
    groups = np.array([named.index(kind) for kind, _ in asked])
    names = tuple(TYPES[kind] for kind in named)
    return Effects(names, _columns(world), *(_by_type(world, _centred(table), groups) for table in (first, truth)))


def together(world: Banner, policy: Any, requests: Sequence[SlateRequest]) -> Effects:
    """What belongs second on the page after an item of a row's type, visitors averaged over.

    True is what the second item adds to the page's points, its effect on the first included, over what it adds after
    an average first item.
    """
    items = len(world.catalogue)
    visitors = [request for request in requests for _ in range(items)]
    placed = np.tile(np.arange(items), len(requests))[:, None]
    second = _next_log_probs(world, policy, visitors, placed)
    truth = _added(world, visitors, placed)
    shown = np.arange(items) == placed  # an item is not placed twice
    first = np.tile(np.arange(items), len(requests))
    tables = []
    for table in (second, truth):
        free = _centred(np.where(shown, np.nan, table)).reshape(len(requests), items, items)
        effect = np.where(np.eye(items, dtype=bool), np.nan, np.nan_to_num(free).mean(0))  # [first, second]
        tables.append(_by_type(world, effect - np.nanmean(effect, 0), world.shop.type[first[:items]]))
    return Effects(_columns(world), _columns(world), *tables)


def _added(world: Banner, requests: Sequence[SlateRequest], placed: Ints) -> Floats:  # [N, I]
    """What each item adds after the one placed, over the mean that a second item adds."""
    visits = world.visits(requests)
    alone = expected_points(world.chances(visits, placed), world.points)
    total = np.zeros((len(requests), len(world.catalogue)))
    for item in range(len(world.catalogue)):
        both = np.concatenate([placed, np.full_like(placed, item)], 1)
        total[:, item] = expected_points(world.chances(visits, both), world.points) - alone
    return np.asarray(total / total.mean())


def _next_log_probs(world: Banner, policy: Any, requests: Sequence[SlateRequest], placed: Ints) -> Floats:  # [N, I]
    """Log-probs of every item at the position after those placed; -inf for the placed ones."""
    found = []
    names = [item.id for item in world.catalogue]
    for start in range(0, len(requests), ROWS):
        part = placed[start : start + ROWS]
        # What stands at the position itself has no say in its candidates; any item not yet placed will do.
        spare = [next(i for i in range(len(names)) if i not in row) for row in part.tolist()]
        rows = [
            Demonstration(request, [names[item] for item in [*row, last]])
            for request, row, last in zip(requests[start : start + ROWS], part.tolist(), spare)
        ]
        with torch.no_grad():
            scored = policy.score(policy.encode(rows), LOG_PROBS | {Want.CANDIDATES})
        found.append(scored.candidates[:, -1].double().cpu().numpy())
    return np.concatenate(found)


def _centred(table: Floats) -> Floats:
    """Each row less its mean over what is finite."""
    finite = np.where(np.isfinite(table), table, np.nan)
    return np.asarray(finite - np.nanmean(finite, 1, keepdims=True))


def _by_type(world: Banner, table: Floats, groups: Ints) -> Floats:  # [N, I] -> [groups, types]
    """Means over groups of rows and over the items of a type, less the mean of all groups."""
    kinds = sorted(set(world.shop.type.tolist()))
    means = np.array(
        [
            [np.nanmean(table[groups == group][:, world.shop.type == kind]) for kind in kinds]
            for group in sorted(set(groups.tolist()))
        ]
    )
    return np.asarray(means - means.mean(0))


def _columns(world: Banner) -> tuple[str, ...]:
    return tuple(TYPES[kind] for kind in sorted(set(world.shop.type.tolist())))


def _last_type(world: Banner, request: SlateRequest) -> int:
    bought = [entry.item for entry in request.history if entry.type == "purchase" and entry.item in world.index]
    return int(world.shop.type[world.index[bought[-1]]]) if bought else -1
