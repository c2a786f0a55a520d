"""how good decisions and probabilities are: accuracy, precision, recall, F1, areas, calibration, cost, ndcg, pass@k

Rows are N, labels C. Every measure of rows takes weights [..., N], one per row, and gives [...]: one weighting gives
one number, and a thousand weightings (the counts of a bootstrap) give a thousand numbers in one pass.

What is undefined is NaN, never 0 in silence: the precision of a label that was never decided, the recall of one that
never occurs, an area where one class is missing. `macro` and `weighted` average over what is defined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from melior.errors import DataError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

LEAST = 1e-12  # a probability of 0 counts as this much: its logarithm would be infinite
BINS = 10  # of a reliability table, each with as many rows
EQUAL = 1e-12  # deviations below this are rounding


def accuracy(outputs: Sequence[Any], expected: Sequence[Any]) -> float:
    """The share of outputs that equal what was expected.

    Raises:
        DataError: if the two differ in length or are empty.
    """
    if len(outputs) != len(expected) or not outputs:
        raise DataError(f"{len(outputs)} outputs for {len(expected)} expected ones; give one each, at least one")
    return sum(output == want for output, want in zip(outputs, expected, strict=True)) / len(outputs)


# ---------------------------------------------------------------------- decisions


def indicators(outputs: Sequence[Any], labels: Sequence[str]) -> Bools:
    """Which labels each output holds, [N, C]; an output is a label, or a collection of labels.

    Raises:
        DataError: for a label that is none of the labels.
    """
    place = {label: index for index, label in enumerate(labels)}
    held = np.zeros((len(outputs), len(labels)), dtype=bool)
    for row, output in enumerate(outputs):
        for label in (output,) if isinstance(output, str) else output:
            if label not in place:
                raise DataError(f"row {row} has the label {label!r:.60}, which is none of the {len(labels)} labels")
            held[row, place[label]] = True
    return held


def confusion_matrix(truth: Bools, decided: Bools, weights: Floats | None = None) -> Floats:
    """How often (or how heavily) each true label, in rows, met each decided one, in columns: [C, C].

    Both are [N, C] with one label a row.
    """
    heavy = truth.astype(np.float64) * (1.0 if weights is None else weights[:, None])
    return heavy.T @ decided.astype(np.float64)


@dataclass(frozen=True)
class Counts:
    """How often each label was decided rightly, was decided, and was true; each [..., C], weighted."""

    hits: Floats
    decided: Floats
    true: Floats

    @property
    def precision(self) -> Floats:
        """Share of decisions for a label that were right [..., C]; NaN for one never decided."""
        return _share(self.hits, self.decided)

    @property
    def recall(self) -> Floats:
        """Share of a label's rows that were found [..., C]; NaN for one without rows."""
        return _share(self.hits, self.true)

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall [..., C]; 0 for a label that occurs and is never found."""
        return _share(2 * self.hits, self.decided + self.true)

    @property
    def pooled(self) -> Counts:
        """The counts over all labels as if of one [..., 1]: what micro averages are of."""
        return Counts(*(part.sum(-1, keepdims=True) for part in (self.hits, self.decided, self.true)))


def counts(truth: Bools, decided: Bools, weights: Floats | None = None) -> Counts:
    """Counts per label, of rows with one label or with several."""
    heavy = np.ones(len(truth)) if weights is None else weights
    return Counts(*(heavy @ held.astype(np.float64) for held in (truth & decided, decided, truth)))


def macro(values: Floats) -> Floats:
    """The mean over labels [..., C] → [...] of the values that are defined; NaN where none is."""
    known = np.isfinite(values)
    return _share(np.where(known, values, 0.0).sum(-1), known.sum(-1).astype(np.float64))


def weighted(values: Floats, true: Floats) -> Floats:
    """The mean over labels [..., C] → [...] of the values that are defined, each as heavy as its label's rows."""
    heavy = np.where(np.isfinite(values), true, 0.0)
    return _share((np.where(np.isfinite(values), values, 0.0) * heavy).sum(-1), heavy.sum(-1))


def mean(values: Floats, weights: Floats | None = None) -> Floats:
    """The weighted mean of one value per row, [N] → [...]."""
    heavy = np.ones(len(values)) if weights is None else weights
    return _share(heavy @ values, heavy.sum(-1))


# ---------------------------------------------------------------------- rankings


def auc(scores: Floats, positive: Bools, weights: Floats | None = None) -> Floats:
    """The probability that a positive row scores above a negative one, ties half; NaN where one of the two is missing.

    Source: Hanley and McNeil 1982 (the area under the ROC curve as a probability).
    """
    good, bad = _by_score(scores, positive, weights)
    below = np.cumsum(bad, -1) - bad
    return _share((good * (below + bad / 2)).sum(-1), good.sum(-1) * bad.sum(-1))


def average_precision(scores: Floats, positive: Bools, weights: Floats | None = None) -> Floats:
    """Precision averaged over the positives as the threshold falls, no interpolation; NaN without positives.

    A ranking by chance has the share of positives.
    """
    good, bad = (part[..., ::-1] for part in _by_score(scores, positive, weights))
    found, called = np.cumsum(good, -1), np.cumsum(good + bad, -1)
    precision = np.where(called > 0, found / np.where(called > 0, called, 1.0), 0.0)
    return _share((good * precision).sum(-1), good.sum(-1))


def one_vs_rest(measure: Any, probabilities: Floats, truth: Bools, weights: Floats | None = None) -> Floats:
    """`auc` or `average_precision` of each label against all others, [..., C]."""
    columns = range(truth.shape[1])
    return np.stack([measure(probabilities[:, c], truth[:, c], weights) for c in columns], axis=-1)


def ndcg(gains: ArrayLike, k: int | None = None, *, ideal: ArrayLike | None = None) -> Floats:
    """Discounted gain of the first k places over that of the best order, [..., T] → [...]; NaN where nothing has gain.

    Args:
        gains: of what was shown, first place first; give 2^relevance − 1 for the exponential form.
        ideal: gains of everything that could have been shown; what was shown itself by default.

    Source: Järvelin and Kekäläinen 2002, ACM TOIS 20.
    """
    shown = np.asarray(gains, dtype=np.float64)
    best = -np.sort(-np.asarray(shown if ideal is None else ideal, dtype=np.float64), axis=-1)
    return _share(_discounted(shown, k), _discounted(best, k or shown.shape[-1]))


def pass_at_k(samples: int, successes: int, k: int) -> float:
    """The probability that at least one of `k` outputs drawn from the samples without putting back is a success.

    Its expectation over samples is exactly 1 − (1 − p)^k.

    >>> pass_at_k(4, 1, 2)
    0.5

    Raises:
        DataError: unless 0 ≤ successes ≤ samples and 1 ≤ k ≤ samples.

    Source: Chen et al. 2021, arXiv:2107.03374, eq. 1.
    """
    if not (0 <= successes <= samples and 1 <= k <= samples):
        raise DataError(f"pass@{k} of {successes} successes in {samples} samples; needs 1 ≤ k ≤ samples")
    return 1.0 - math.comb(samples - successes, k) / math.comb(samples, k)


def repeated_share(decisions: Sequence[Any], *, n: int = 4) -> float:
    """The share of an output's n-grams that stood in it before; NaN where it has none.

    >>> repeated_share([1, 2, 3, 4, 1, 2, 3, 4])
    0.2

    Source: Welleck et al. 2019, arXiv:1908.04319, §5 (seq-rep-n).
    """
    grams = len(decisions) - n + 1
    if grams < 1:
        return math.nan
    return 1.0 - len({tuple(decisions[start : start + n]) for start in range(grams)}) / grams


def correlation_within(first: ArrayLike, second: ArrayLike, groups: Sequence[Any]) -> float:  # [N], [N], [N]
    """Pearson's correlation of what both deviate from their group's means; NaN where one does not deviate.

    Groups of unlike level, such as hard inputs with long outputs, do not make it.
    """
    left, right = (np.array(values, dtype=np.float64) for values in (first, second))
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(index)
    for values in (left, right):
        values -= (np.bincount(index, weights=values) / sizes)[index]
    spread = math.sqrt(float((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / spread if spread > EQUAL * len(left) else math.nan


# ---------------------------------------------------------------------- probabilities


def log_likelihoods(probabilities: Floats, truth: Bools, *, several: bool = False) -> Floats:
    """The log-probability of each row's truth [N], in nats; a probability of 0 counts as 1e-12.

    With several labels a row, the sum over labels of having it or not.
    """
    right = np.where(truth, probabilities, 1 - probabilities if several else 1.0)
    return np.log(np.maximum(right, LEAST)).sum(-1)


def brier_scores(probabilities: Floats, truth: Bools, *, several: bool = False) -> Floats:
    """Squared distance of each row's probabilities from the truth [N]; where a row has one of two, of the second alone.

    Source: Brier 1950, Monthly Weather Review 78; halved for two labels, as is usual.
    """
    squares = (probabilities - truth) ** 2
    return squares.sum(-1) / (2 if truth.shape[1] == 2 and not several else 1)


@dataclass(frozen=True)
class Bin:
    """Rows of like probability: what was foretold, and what happened."""

    low: float  # the smallest probability in it
    high: float
    rows: int
    foretold: float  # mean probability
    happened: float  # share of rows where it came true


def reliability(
    probabilities: Floats, happened: Bools, *, bins: int = BINS, weights: Floats | None = None
) -> list[Bin]:
    """What was foretold beside what happened, in bins of as many rows each; equal probabilities share a bin."""
    found = []
    heavy = np.ones(len(probabilities)) if weights is None else weights
    place = _bins(probabilities, bins)
    for number in np.unique(place):
        inside = place == number
        mass = heavy[inside] / heavy[inside].sum()
        low, high = float(probabilities[inside].min()), float(probabilities[inside].max())
        foretold, came = float(mass @ probabilities[inside]), float(mass @ happened[inside])
        found.append(Bin(low, high, int(inside.sum()), foretold, came))
    return found


def expected_calibration_error(
    probabilities: Floats, happened: Bools, *, bins: int = BINS, weights: Floats | None = None
) -> Floats:
    """The mean distance between what was foretold and what happened, over bins of as many rows each.

    It is above 0 for perfect probabilities too, as shares of few rows scatter: see `calibration_by_chance`.

    Source: Naeini et al. 2015, AAAI; bins of equal mass as in Nixon et al. 2019, arXiv:1904.01685.
    """
    mass, foretold, came = _binned(probabilities, happened, bins, weights)
    return _share(np.abs(foretold - came).sum(-1), mass.sum(-1))


def squared_calibration_error(probabilities: Floats, happened: Bools, *, bins: int = BINS) -> float:
    """The mean squared distance between what was foretold and what happened, without the part that is scatter.

    Unbiased for these bins, so it may fall below 0 where probabilities are right; NaN where no bin has two rows.

    Source: Kumar, Liang and Ma 2019, arXiv:1909.10155, definition 5.1 (the debiased estimator).
    """
    mass, foretold, came = _binned(probabilities, happened, bins, None)
    known = mass > 1
    if not known.any():
        return math.nan
    rows, p, y = mass[known], foretold[known] / mass[known], came[known] / mass[known]
    return float((rows * ((p - y) ** 2 - y * (1 - y) / (rows - 1))).sum() / rows.sum())


def calibration_by_chance(
    probabilities: Floats, *, bins: int = BINS, resamples: int = 500, seed: int = 0
) -> tuple[float, float]:
    """What `expected_calibration_error` would be if these probabilities were right: its mean, and its 95 % quantile.

    Source: Bröcker and Smith 2007, Weather and Forecasting 22 (consistency resampling).
    """
    chance, place = np.random.default_rng(seed), _bins(probabilities, bins)
    foretold = np.bincount(place, probabilities, minlength=bins)
    errors = []
    for _ in range(resamples):
        came = np.bincount(place[chance.random(len(place)) < probabilities], minlength=bins)
        errors.append(float(np.abs(foretold - came).sum()) / len(place))
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


# ---------------------------------------------------------------------- costs


def costs_of(truth: Bools, decided: Bools, costs: Floats) -> Floats:
    """What each row's decision cost [N]; the matrix [C, C] has the truth in rows and decisions in columns."""
    return np.asarray(costs[truth.argmax(-1), decided.argmax(-1)], dtype=np.float64)


def cheapest(probabilities: Floats, costs: Floats) -> NDArray[np.int64]:
    """The label of least expected cost for each row [N], by the probabilities as they are."""
    return np.asarray((probabilities @ costs).argmin(-1), dtype=np.int64)


def threshold_costs(probabilities: Floats, positive: Bools, costs: Floats) -> tuple[Floats, Floats]:
    """Every threshold that decides these rows differently, rising, and its mean cost; a row is called from it on.

    The matrix [2, 2] has the negative label first. The last threshold is infinite: nothing is called.
    """
    order = np.argsort(probabilities, kind="stable")
    sorted_scores, truth = probabilities[order], positive[order].astype(np.int64)
    called, passed = costs[truth, 1], costs[truth, 0]  # what each row costs if called, and if not
    totals = np.concatenate([[0.0], np.cumsum(passed)]) + np.concatenate([np.cumsum(called[::-1])[::-1], [0.0]])
    starts = np.concatenate([[0], np.flatnonzero(np.diff(sorted_scores)) + 1, [len(order)]])
    thresholds = np.concatenate([sorted_scores[starts[:-1]], [math.inf]])
    return thresholds, totals[starts] / len(order)


def cheapest_threshold(probabilities: Floats, positive: Bools, costs: Floats) -> float:
    """The threshold of least mean cost on these rows, half-way between two of their probabilities.

    It is 0 where all should be called and infinite where none should. It fits these very rows, so what it saves must be
    measured on others.
    """
    thresholds, found = threshold_costs(probabilities, positive, costs)
    best = int(np.argmin(found))
    if best == 0 or not math.isfinite(thresholds[best]):
        return 0.0 if best == 0 else math.inf
    return float(thresholds[best - 1] + thresholds[best]) / 2


def fair_threshold(costs: Floats) -> float:
    """The threshold of least expected cost where probabilities are right: what the costs [2, 2] alone say.

    Source: Elkan 2001, IJCAI, eq. 2.

    Raises:
        DataError: if a right decision costs as much as a wrong one.
    """
    needless, missed = costs[0, 1] - costs[0, 0], costs[1, 0] - costs[1, 1]
    if needless <= 0 or missed <= 0:
        raise DataError(f"costs {costs.tolist()} do not make wrong decisions dearer than right ones; correct them")
    return float(needless / (needless + missed))


# ---------------------------------------------------------------------- inside


def _share(part: ArrayLike, whole: ArrayLike) -> Floats:
    """part / whole, NaN where the whole is 0."""
    above, below = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    found = np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)
    return found if found.ndim else found[()]


def _by_score(scores: Floats, positive: Bools, weights: Floats | None) -> tuple[Floats, Floats]:
    """The mass of positives and of negatives at each distinct score, rising: [..., S] each."""
    heavy = np.ones(len(scores)) if weights is None else weights
    positive = np.asarray(positive, dtype=bool)  # of 0 and 1, ~ would make −1 and −2
    order = np.argsort(scores, kind="stable")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(scores[order])) + 1])
    good = (heavy * positive)[..., order]
    bad = (heavy * ~positive)[..., order]
    if len(starts) == len(order):  # no ties: nothing to add up
        return good, bad
    return np.add.reduceat(good, starts, axis=-1), np.add.reduceat(bad, starts, axis=-1)


def _discounted(gains: Floats, k: int | None) -> Floats:
    first = gains[..., :k]
    return np.asarray(first @ (1 / np.log2(np.arange(2, first.shape[-1] + 2))))


def _bins(probabilities: Floats, bins: int) -> NDArray[np.int64]:
    """The bin of each row [N], by its place in order; ties share theirs."""
    _, which, found = np.unique(probabilities, return_inverse=True, return_counts=True)
    middle = (np.cumsum(found) - found / 2)[which] / len(probabilities)
    return np.minimum((middle * bins).astype(np.int64), bins - 1)


def _binned(probabilities: Floats, happened: Bools, bins: int, weights: Floats | None) -> tuple[Floats, Floats, Floats]:
    """Mass, mass × probability and mass × happened of each bin, [..., K] each."""
    inside = _bins(probabilities, bins)[:, None] == np.arange(bins)  # [N, K]
    heavy = np.ones(len(probabilities)) if weights is None else weights
    return tuple(
        (heavy * value) @ inside.astype(np.float64) for value in (1.0, probabilities, happened.astype(np.float64))
    )
