"""learning from ratings: better outputs are imitated more (advantage-weighted regression)"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from melior.data.formats import canonical
from melior.errors import ConfigError, DataError
from melior.types import Demonstration, Rated


@dataclass(frozen=True, kw_only=True)
class AdvantageWeighted:
    """How ratings become weights: exp(advantage / beta), at most `cap`, with advantages in standard deviations."""

    beta: float = 1.0  # standard deviations of advantage for a factor of e; smaller imitates only the best
    cap: float = 20.0  # the largest weight, Peng et al. 2019, appendix
    prior: float = 1.0  # ratings of everything that an input's own mean is mixed with: one rating says little

    def __post_init__(self) -> None:
        if not (self.beta > 0 and self.cap > 0 and self.prior >= 0):
            raise ConfigError(
                f"weights need beta > 0, cap > 0 and prior ≥ 0, got beta={self.beta}, cap={self.cap}, "
                f"prior={self.prior}"
            )


def advantage_weighted(rows: Sequence[Rated], config: AdvantageWeighted | None = None) -> list[Demonstration]:
    """Each rated output as a demonstration with a weight, for `Examples` and `Supervised`.

    An output's advantage is its rating less what its input's outputs are rated on average. Equal ratings weigh 1 each,
    which is plain imitation. No propensities are needed; what nobody ever did is never learned.

    Raises:
        DataError: if there are no rows, or a rating is not finite.

    Source: Peng et al. 2019, arXiv:1910.00177, algorithm 1, with mean ratings as the value function.
    """
    config = config or AdvantageWeighted()
    if not rows:
        raise DataError("There are 0 ratings to learn from; add rows")
    bad = sum(not math.isfinite(row.rating) for row in rows)
    if bad:
        raise DataError(f"{bad} of {len(rows)} ratings are not finite; leave these rows out")
    overall = math.fsum(row.rating for row in rows) / len(rows)
    inputs = [_input(row) for row in rows]
    ratings: dict[Hashable, list[float]] = {}
    for key, row in zip(inputs, rows, strict=True):
        ratings.setdefault(key, []).append(row.rating)
    values = {
        key: (math.fsum(given) + config.prior * overall) / (len(given) + config.prior) for key, given in ratings.items()
    }
    advantages = [row.rating - values[key] for key, row in zip(inputs, rows, strict=True)]
    spread = math.sqrt(math.fsum(advantage**2 for advantage in advantages) / len(rows))
    return [
        Demonstration(
            inputs=row.inputs,
            output=row.output,
            weight=_weight(advantage, spread, config),
            id=row.id,
            group=row.group,
            item=row.item,
        )
        for row, advantage in zip(rows, advantages, strict=True)
    ]


def _weight(advantage: float, spread: float, config: AdvantageWeighted) -> float:
    if spread <= 1e-12:  # all ratings agree but for rounding
        return 1.0
    return math.exp(min(advantage / (spread * config.beta), math.log(config.cap)))


def _input(row: Rated) -> Hashable:
    """The same for rows that were given the same input."""
    return canonical(row.inputs)
