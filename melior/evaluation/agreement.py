"""how far scores agree with labels that people gave: area under the curve, rank correlations, accuracy, kappa

Ties count half in the area under the curve. Accuracy and kappa are those of the threshold that fits these very rows
best, so they flatter a little; a threshold that is used should be chosen on other rows.

Source: Hanley and McNeil 1982 (the area as a probability); Kendall 1945 (tau-b); Cohen 1960 (kappa).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from melior.errors import DataError
from melior.metrics import auc as area
from melior.statistics import Bounds, Interval, bootstrap

Floats = NDArray[np.float64]
RESAMPLES, SLOW_RESAMPLES = 1000, 200  # the second for Kendall's tau, which costs more

WORDS = {  # of labels that say yes or no
    **dict.fromkeys(("true", "yes", "good", "pass", "correct", "positive"), 1.0),
    **dict.fromkeys(("false", "no", "bad", "fail", "incorrect", "wrong", "negative"), 0.0),
}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What scores and labels have in common; measures that do not fit the labels are absent."""

    rows: int
    boolean: bool
    auc: Interval | None = None  # P(a good one scores above a bad one), ties half
    accuracy: Interval | None = None  # at the best threshold
    threshold: float | None = None  # from which score on an output is called good
    kappa: Interval | None = None  # at the same threshold
    spearman: Interval | None = None
    kendall: Interval | None = None  # tau-b

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; None where a measure does not apply."""
        told = vars(self)
        return {key: value.to_json() if isinstance(value, Interval) else value for key, value in told.items()}


def label_value(label: Any) -> float | None:
    """A label as a number, yes and no as 1 and 0; None where there is none (nothing, or NaN).

    Raises:
        DataError: for words that are neither.
    """
    if label is None or label == "":
        return None
    if isinstance(label, bool | int | float):
        return float(label) if math.isfinite(label) else None
    if isinstance(label, str) and label.strip().lower() in WORDS:
        return WORDS[label.strip().lower()]
    try:
        number = float(label)
    except (TypeError, ValueError):
        raise DataError(
            f"a label is {str(label)!r:.40}, which is no number, boolean or one of {', '.join(WORDS)}; map it to one"
        ) from None
    return number if math.isfinite(number) else None  # "NaN" is how tables write that there is none


def agreement(
    scores: Sequence[float], labels: Sequence[float], *, clusters: Sequence[Hashable] | None = None
) -> Agreement:
    """How far scores agree with labels, with 95 % intervals over rows, or over clusters of rows.

    Raises:
        DataError: if there are fewer than two rows, or all labels are equal.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if len(x) != len(y) or len(x) < 2:
        raise DataError(f"{len(x)} scores and {len(y)} labels cannot agree; give two or more of each")
    if np.ptp(y) == 0:
        raise DataError(f"all {len(y)} labels are {y[0]:g}, so nothing can agree with them; label some the other way")
    values = sorted(set(y.tolist()))

    def interval(measure: Any, bounds: Bounds = (-1.0, 1.0), resamples: int = RESAMPLES) -> Interval:
        return bootstrap(
            lambda rows: measure(x[rows], y[rows]), len(x), clusters=clusters, bounds=bounds, resamples=resamples
        )

    rank, tau = interval(spearman), interval(_kendall, resamples=SLOW_RESAMPLES)
    if values != [0.0, 1.0]:
        return Agreement(rows=len(x), boolean=False, spearman=rank, kendall=tau)
    threshold = best_threshold(x, y)
    return Agreement(
        rows=len(x),
        boolean=True,
        auc=interval(auc, (0.0, 1.0)),
        accuracy=interval(lambda a, b: float(((a >= threshold) == (b > 0)).mean()), (0.0, 1.0)),
        threshold=threshold,
        kappa=interval(lambda a, b: cohen_kappa(a >= threshold, b > 0)),
        spearman=rank,
        kendall=tau,
    )


def auc(scores: Floats, labels: Floats) -> float:
    """The probability that a row of label 1 scores above one of label 0; NaN where one of the two is missing."""
    return float(area(scores, labels > 0))


def best_threshold(scores: Floats, labels: Floats) -> float:
    """The score from which on calling a row good is right most often; infinite where calling none good is."""
    candidates = [*np.unique(scores).tolist(), math.inf]
    rights = [float(((scores >= candidate) == (labels > 0)).mean()) for candidate in candidates]
    return float(candidates[int(np.argmax(rights))])


def cohen_kappa(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Agreement of two yes-or-no judgements beyond chance; NaN where chance alone agrees always."""
    observed = float((first == second).mean())
    p, q = float(first.mean()), float(second.mean())
    chance = p * q + (1 - p) * (1 - q)
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def ranks(values: Floats) -> Floats:
    """The place of each value from 1 on, ties sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def spearman(x: Floats, y: Floats) -> float:
    """Spearman's rank correlation; NaN where one side is constant."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))


def _kendall(x: Floats, y: Floats) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    # The asymptotic p-value, which nobody asks for, divides by the number of rows less two.
    return float(kendalltau(x, y, method="asymptotic" if len(x) > 2 else "exact").statistic)
