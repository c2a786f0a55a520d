"""what a slate policy learnt of items together and after one another, for its run's page"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from melior.policies.slate import SlatePolicy
from melior.policies.slate_effects import Effects, history_effects, pair_effects
from melior.reports.slates import Grid, Pair, Slates, write_slates
from melior.types import SlateRequest

REQUESTS = 40  # that effects are averaged over: their spread is small beside what is shown
FEWEST = 3  # items that can be compared with one another
PAIRS = 12  # of the strongest, and of the weakest


def tell_learnt(policy: SlatePolicy, requests: Sequence[SlateRequest], folder: Path) -> None:
    """Writes `slates.json`: pairs that ask for one another, and items after an interaction; nothing of two items."""
    some = list(requests[:REQUESTS])
    if not some or len(policy.catalogue) < FEWEST:
        return
    pairs: tuple[Pair, ...] = ()
    if policy.config.combinations and policy.config.positions > 1:
        found = pair_effects(policy, some)
        ends = found.strongest(PAIRS) + found.weakest(PAIRS)[::-1]
        pairs = tuple(Pair(first=a, second=b, learned=value) for a, b, value in dict.fromkeys(ends))
    types = Counter(entry.type for request in requests for entry in request.history)
    after = None
    if types and policy.config.history:
        kind = types.most_common(1)[0][0]
        what = f"nats by which one {kind} of the row's item raises the column's in the first place"
        after = _grid(what, history_effects(policy, some, type=kind))
    write_slates(
        folder,
        Slates(
            notes=(f"Averages over {len(some)} held-out requests; effects on chances, not on rewards.",),
            pairs=pairs,
            pairs_what="nats by which the first item raises the second's log-odds beside it",
            after=after,
        ),
    )


def _grid(what: str, found: Effects) -> Grid:
    values = tuple(tuple(round(float(value), 3) for value in row) for row in found.values)
    return Grid(what=what, rows=found.rows, columns=found.columns, values=values)
