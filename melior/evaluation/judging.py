"""rows with their truth, decisions and probabilities, checked; and every measure of them"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from melior.errors import DataError
from melior.evaluation.groups import Shares, row_mean
from melior.metrics import (
    LEAST,
    Bin,
    Bools,
    Floats,
    auc,
    average_precision,
    brier_scores,
    calibration_by_chance,
    cheapest,
    cheapest_threshold,
    confusion_matrix,
    costs_of,
    counts,
    expected_calibration_error,
    fair_threshold,
    indicators,
    log_likelihoods,
    macro,
    one_vs_rest,
    reliability,
    squared_calibration_error,
    threshold_costs,
    weighted,
)
from melior.statistics import Bounds, Interval, percentile_interval, resampled_weights, wilson

Costs = Mapping[str, Mapping[str, float]]  # true label → decided label → cost; what is not named costs 0

RESAMPLES = 1000
UNIT: Bounds = (0.0, 1.0)
HALF = 0.5  # with several labels a row, those at least as probable are decided
CURVE = 120  # points of a threshold curve that are kept
SUM = 1e-3  # by which probabilities of a row may miss one: what half precision costs
CORRECT, LOG_PROB, COST = "correct", "log_prob", "cost"
ORDER = (
    "accuracy", "label_accuracy", "balanced_accuracy", "precision", "recall", "f1", "macro_f1", "weighted_f1",
    "macro_precision", "macro_recall", "micro_f1", "micro_precision", "micro_recall", "auc", "macro_auc",
    "average_precision",
    "log_loss", "brier", "cost", "cost_by_probability",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """One label: how often it was true and decided, and how well it was found; absent where undefined."""

    label: str
    true: float
    decided: float
    precision: Interval | None = None
    recall: Interval | None = None
    f1: Interval | None = None
    auc: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was foretold beside what happened."""

    of: str  # which probability
    bins: tuple[Bin, ...]
    error: float  # mean distance over the bins
    chance: float  # what the error would be on average if the probabilities were right
    chance_high: float  # and what it would exceed in 5 % of cases
    debiased: float | None  # root mean squared distance without the part that is scatter
    independent: bool = True  # whether what happened is: where rows belong together, chance makes more than `chance`

    @property
    def sentence(self) -> str:
        """Whether the probabilities can be taken at their word, as far as so many rows can tell."""
        told = f"Calibration error {self.error:.3f} of {self.of}; right probabilities would show {self.chance:.3f}"
        if not self.independent:
            return f"{told} if nothing belonged together, and more as it is: this cannot say whether they are off."
        if self.error > self.chance_high:
            return f"{told}, and more than {self.chance_high:.3f} in one case of twenty: they are off."
        return f"{told}, and up to {self.chance_high:.3f} by chance: nothing says that they are off."


@dataclass(frozen=True, kw_only=True)
class CostCurve:
    """The mean cost of calling a row positive from each threshold on."""

    thresholds: tuple[float, ...]
    costs: tuple[float, ...]
    best: float | None  # the cheapest on these very rows, so it flatters; None where calling none is cheapest
    fair: float | None  # the cheapest where probabilities are right, from the costs alone
    decided: float  # mean cost of what was decided


def cost_matrix(labels: Sequence[str], costs: Costs) -> Floats:
    """Costs as a matrix [C, C], truth in rows and decisions in columns; what is not named costs 0.

    Raises:
        DataError: for a label that is none of the labels, or a cost that is not finite.
    """
    place = {label: index for index, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)))
    for true, row in costs.items():
        for decided, cost in row.items():
            for label in (true, decided):
                if label not in place:
                    raise DataError(f"the costs name {label!r:.60}, which is none of the {len(labels)} labels")
            if not math.isfinite(cost):
                raise DataError(f"calling {true!r} {decided!r} costs {cost}; give a finite number")
            matrix[place[true], place[decided]] = cost
    return matrix


class Judged:
    """What is to be judged, checked and as arrays."""

    def __init__(
        self,
        labels: Sequence[str],
        truth: Sequence[Any],
        probabilities: Any,
        outputs: Sequence[Any] | None,
        several: bool,
        positive: str | None,
        weights: Sequence[float] | None,
        costs: Costs | None,
        clusters: Sequence[Hashable] | None,
    ) -> None:
        self.labels, self.several, self.clusters = tuple(labels), several, clusters
        if len(set(self.labels)) < len(self.labels) or len(self.labels) < 2 - several:
            raise DataError(
                f"{len(set(self.labels))} different labels of {len(self.labels)}; give two or more, no twins"
            )
        if not len(truth):
            raise DataError("0 rows to judge; give at least one")
        self.truth = indicators(truth, self.labels)
        self.probabilities = None if probabilities is None else self._checked(np.asarray(probabilities, np.float64))
        self.weights = None if weights is None else self._weighted(np.asarray(weights, dtype=np.float64))
        self.decided = self._decided(outputs)
        if several and costs:
            raise DataError("costs are of one label called another, and these rows have several; leave the costs out")
        self.costs = None if costs is None else cost_matrix(self.labels, costs)
        two = len(self.labels) == 2 and not several
        if positive is not None and (not two or positive not in self.labels):
            raise DataError(f"{positive!r} cannot be looked for among the labels {', '.join(self.labels):.200}")
        self.positive = (positive or self.labels[1]) if two else ""
        self.sought = self.labels.index(self.positive) if two else -1  # its column

    def _checked(self, probabilities: Floats) -> Floats:
        shape = (len(self.truth), len(self.labels))
        if probabilities.shape != shape:
            raise DataError(f"probabilities of shape {list(probabilities.shape)} for {list(shape)} rows and labels")
        bad = ~np.isfinite(probabilities) | (probabilities < -SUM) | (probabilities > 1 + SUM)
        if bad.any():
            raise DataError(f"{int(bad.any(1).sum())} of {shape[0]} rows have probabilities outside 0 to 1, or NaN")
        off = int((np.abs(probabilities.sum(1) - 1) > SUM).sum())
        if off and not self.several:
            raise DataError(f"the probabilities of {off} of {shape[0]} rows do not add up to 1; give probabilities")
        return np.clip(probabilities, 0.0, 1.0)

    def _weighted(self, weights: Floats) -> Floats:
        if weights.shape != (len(self.truth),) or not np.isfinite(weights).all() or weights.min() < 0:
            raise DataError(f"weights of shape {list(weights.shape)} for {len(self.truth)} rows; give one each, ≥ 0")
        return weights

    def _decided(self, outputs: Sequence[Any] | None) -> Bools:
        if outputs is not None:
            if len(outputs) != len(self.truth):
                raise DataError(f"{len(outputs)} outputs for {len(self.truth)} rows; give one each")
            decided = indicators(outputs, self.labels)
        elif self.probabilities is None:
            raise DataError("there are neither probabilities nor outputs to judge; give one of them")
        elif self.several:
            decided = self.probabilities >= HALF
        else:
            decided = np.eye(len(self.labels), dtype=bool)[self.probabilities.argmax(1)]
        one = (self.truth.sum(1) == 1) & (decided.sum(1) == 1)
        if not self.several and not one.all():
            raise DataError(f"{int((~one).sum())} of {len(one)} rows have no label or several; say several=True")
        return decided

    # ------------------------------------------------------------------ measures

    def columns(self) -> dict[str, Floats]:
        """One value per row: what comparisons of two classifiers are made of."""
        found = {CORRECT: (self.truth == self.decided).all(1).astype(np.float64)}
        if self.probabilities is not None:
            found[LOG_PROB] = log_likelihoods(self.probabilities, self.truth, several=self.several)
        if self.costs is not None:
            found[COST] = costs_of(self.truth, self.decided, self.costs)
        return found

    def measured(self, seed: int) -> tuple[dict[str, Interval], tuple[LabelRow, ...]]:
        """Measures of all labels together, and of each; what the rows leave undefined is absent."""
        found = {
            name: row_mean(values, self.weights, self.clusters, bounds, seed=seed)
            for name, (values, bounds) in self._row_values().items()
        }
        whole, each = self._bootstrapped(seed)
        by_label = self._by_label(each)
        if self.positive:
            row = by_label[self.sought]
            whole |= {"precision": row.precision, "recall": row.recall, "f1": row.f1}
        found |= {name: interval for name, interval in whole.items() if interval is not None}
        return {name: found[name] for name in ORDER if name in found}, by_label

    def _by_label(self, each: Mapping[str, Sequence[Interval | None]]) -> tuple[LabelRow, ...]:
        tally = counts(self.truth, self.decided, self.weights)
        rows = []
        for index, label in enumerate(self.labels):
            true, decided = self.truth[:, index], self.decided[:, index]
            measures = {name: found[index] for name, found in each.items()}
            measures["precision"] = self._share(true, decided) or measures["precision"]
            measures["recall"] = self._share(decided, true) or measures["recall"]
            rows.append(
                LabelRow(label=label, true=float(tally.true[index]), decided=float(tally.decided[index]), **measures)
            )
        return tuple(rows)

    def _bootstrapped(self, seed: int) -> tuple[dict[str, Interval | None], dict[str, list[Interval | None]]]:
        """Measures that are no means over rows: of all labels, and of each label."""
        base = np.ones(len(self.truth)) if self.weights is None else self.weights
        drawn = [
            self._weighted_measures(part * base)
            for part in resampled_weights(len(base), clusters=self.clusters, resamples=RESAMPLES, seed=seed)
        ]
        units = len(base) if self.clusters is None else len(set(self.clusters))

        def interval(estimate: Any, draws: Floats) -> Interval | None:
            if not math.isfinite(estimate):
                return None
            return percentile_interval(float(estimate), draws[np.isfinite(draws)], units, RESAMPLES, bounds=UNIT)

        whole, each = {}, {}
        for name, estimate in self._weighted_measures(base).items():
            draws = np.concatenate([part[name] for part in drawn])
            if draws.ndim == 1:
                whole[name] = interval(estimate, draws)
            else:
                each[name] = [interval(one, draws[:, index]) for index, one in enumerate(estimate)]
        return whole, each

    def _row_values(self) -> dict[str, tuple[Floats, Bounds | None]]:
        """Measures that are means over rows, with the bounds of a row's value."""
        columns = self.columns()
        found: dict[str, tuple[Floats, Bounds | None]] = {"accuracy": (columns[CORRECT], UNIT)}
        if self.several:
            found["label_accuracy"] = ((self.truth == self.decided).mean(1), UNIT)
        if self.probabilities is not None:
            found["log_loss"] = (np.maximum(-columns[LOG_PROB], 0.0), (0.0, math.inf))
            top = float(len(self.labels)) if self.several else 1.0 + (len(self.labels) > 2)
            found["brier"] = (brier_scores(self.probabilities, self.truth, several=self.several), (0.0, top))
        if self.costs is not None:
            span = (float(self.costs.min()), float(self.costs.max()))
            found["cost"] = (columns[COST], span)
            if self.probabilities is not None:
                least = np.eye(len(self.labels), dtype=bool)[cheapest(self.probabilities, self.costs)]
                found["cost_by_probability"] = (costs_of(self.truth, least, self.costs), span)
        return found

    def _weighted_measures(self, weights: Floats) -> dict[str, Floats]:
        """Measures that are no means over rows, of weights [..., N]: [...], or [..., C] for those of each label."""
        tally = counts(self.truth, self.decided, weights)
        found = {
            "balanced_accuracy": macro(tally.recall),
            "macro_precision": macro(tally.precision),
            "macro_recall": macro(tally.recall),
            "macro_f1": macro(tally.f1),
            "weighted_f1": weighted(tally.f1, tally.true),
            "precision": tally.precision,
            "recall": tally.recall,
            "f1": tally.f1,
        }
        if self.several:
            pooled = tally.pooled
            del found["balanced_accuracy"]
            found |= {
                "micro_precision": pooled.precision[..., 0],
                "micro_recall": pooled.recall[..., 0],
                "micro_f1": pooled.f1[..., 0],
            }
        if self.probabilities is None:
            return found
        if self.positive:
            scores, truth = self.probabilities[:, self.sought], self.truth[:, self.sought]
            return found | {
                "auc": auc(scores, truth, weights),
                "average_precision": average_precision(scores, truth, weights),
            }
        each = one_vs_rest(auc, self.probabilities, self.truth, weights)
        return found | {"macro_auc": macro(each), "auc": each}

    def _share(self, right: Bools, among: Bools) -> Interval | None:
        """Wilson's interval where rows are independent and equally heavy; None elsewhere."""
        if self.weights is not None or self.clusters is not None or not among.any():
            return None
        return wilson(int((right & among).sum()), int(among.sum()))

    # ------------------------------------------------------------------ the rest

    def confusion(self) -> list[list[float]] | None:
        """Rows by truth, columns by decision; None where rows have several labels."""
        if self.several:
            return None
        found: list[list[float]] = confusion_matrix(self.truth, self.decided, self.weights).tolist()
        return found

    def baselines(self) -> dict[str, float]:
        """What deciding one label for every row would give at best."""
        share = label_shares(self.truth, self.weights)
        found = {} if self.several else {"accuracy of the most frequent label": float(share.max())}
        if self.costs is not None:
            found["cost of the cheapest label for all"] = float((share @ self.costs).min())
        return found

    def calibration(self, seed: int) -> Calibration | None:
        """What was foretold beside what happened: of the label looked for, else of the most probable one."""
        if self.probabilities is None or self.weights is not None:
            return None
        if self.several:
            foretold, happened, of = self.probabilities.ravel(), self.truth.ravel(), "each label's probability"
        elif self.positive:
            foretold, happened = self.probabilities[:, self.sought], self.truth[:, self.sought]
            of = f"the probability of {self.positive}"
        else:
            best = self.probabilities.argmax(1)
            foretold, happened = self.probabilities.max(1), self.truth[np.arange(len(best)), best]
            of = "the most probable label's probability"
        chance, high = calibration_by_chance(foretold, seed=seed)
        squared = squared_calibration_error(foretold, happened)
        return Calibration(
            of=of,
            bins=tuple(reliability(foretold, happened)),
            error=float(expected_calibration_error(foretold, happened)),
            chance=chance,
            chance_high=high,
            debiased=math.sqrt(max(0.0, squared)) if math.isfinite(squared) else None,
            independent=not self.several and (self.clusters is None or len(set(self.clusters)) == len(self.clusters)),
        )

    def curve(self) -> CostCurve | None:
        """Cost against threshold, of two labels with costs."""
        if not self.positive or self.costs is None or self.probabilities is None or self.weights is not None:
            return None
        order = [1 - self.sought, self.sought]
        costs, scores = self.costs[np.ix_(order, order)], self.probabilities[:, self.sought]
        positive = self.truth[:, self.sought]
        thresholds, found = threshold_costs(scores, positive, costs)
        kept = np.unique(np.linspace(0, len(found) - 2, CURVE).round().astype(int)) if len(found) > 2 else [0]
        best = cheapest_threshold(scores, positive, costs)
        try:
            fair: float | None = fair_threshold(costs)
        except DataError:
            fair = None
        return CostCurve(
            thresholds=tuple(float(thresholds[index]) for index in kept),
            costs=tuple(float(found[index]) for index in kept),
            best=best if math.isfinite(best) else None,
            fair=fair,
            decided=float(costs_of(self.truth, self.decided, self.costs).mean()),
        )

    def shares(self) -> Shares:
        """What groups are compared by."""
        columns = self.columns()
        rates = {"accuracy": (columns[CORRECT] > 0, np.ones(len(self.truth), dtype=bool))}
        means: dict[str, tuple[Floats, Bounds]] = {}
        if self.costs is not None:
            means[COST] = columns[COST], (float(self.costs.min()), float(self.costs.max()))
        if self.positive:
            truth, called = self.truth[:, self.sought], self.decided[:, self.sought]
            rates |= {
                f"share of {self.positive} found": (called, truth),
                f"share called {self.positive} in error": (called, ~truth),
                f"share called {self.positive}": (called, np.ones(len(truth), dtype=bool)),
            }
            if self.probabilities is not None:
                above = self.probabilities[:, self.sought] - truth
                means[f"probability of {self.positive} above its share"] = above, (-1.0, 1.0)
        return Shares(rates=rates, means=means, weights=self.weights, clusters=self.clusters)

    def notes(self) -> list[str]:
        """What a reader of the measures should know."""
        tally, told = counts(self.truth, self.decided), []
        absent, never = np.flatnonzero(tally.true == 0), np.flatnonzero((tally.decided == 0) & (tally.true > 0))
        if len(absent):
            told.append(f"{self._named(absent)} have no row here, so no recall; averages are over the other labels.")
        if len(never):
            told.append(f"{self._named(never)} were never decided, so they have no precision and an F1 of 0.")
        if self.probabilities is not None:
            found = np.where(self.truth, self.probabilities, 1 - self.probabilities if self.several else 1.0)
            none = int((found < LEAST).any(1).sum())
            if none:
                told.append(f"{none} rows had a probability of 0 for what is true; it counts as {LEAST:g}.")
        return told

    def _named(self, which: Any) -> str:
        names = ", ".join(self.labels[index] for index in which[:5])
        return f"{len(which)} of {len(self.labels)} labels ({names}{' …' if len(which) > 5 else ''})"


def label_shares(truth: Bools, weights: Floats | None) -> Floats:
    """The share of rows that have each label, [C]."""
    heavy = np.ones(len(truth)) if weights is None else weights
    return np.asarray(heavy @ truth / heavy.sum())
