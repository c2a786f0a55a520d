"""what a classifier got right, for people who look at a terminal"""

from __future__ import annotations

from typing import TYPE_CHECKING

from melior.cli.output import first_line, interval, say, say_table

if TYPE_CHECKING:
    from melior.evaluation.classification import Classification
    from melior.evaluation.groups import GroupGaps
    from melior.evaluation.learning_curve import LearningCurve

CELLS = 8  # labels up to which the whole confusion matrix is shown
CONFUSIONS = 8  # pairs that are listed where there are more
LABELS = 12  # of the table by label: the worst where there are more
NAME = 24


def show_classification(found: Classification) -> None:
    """All measures, the labels, the confusions, calibration, cost and groups, in that order."""
    from melior.reports.classification import WORDS

    of = f", looking for {found.positive}" if found.positive else ""
    say(f"{found.rows:,} rows, {len(found.labels)} labels{first_line(of)}; intervals of 95 %")
    say()
    rows = [(WORDS.get(name, name), interval(one.to_json())) for name, one in found.measures.items()]
    say_table(["measure", "value"], rows + [(name, f"{value:.3f}") for name, value in found.baselines.items()])
    say()
    _labels(found)
    if found.confusion is not None:
        say()
        _confusion(found)
    say()
    if found.calibration is not None:
        say(found.calibration.sentence)
    if found.curve is not None and found.curve.fair is not None:
        best = "calling none" if found.curve.best is None else f"{found.curve.best:.3f}, chosen on these very rows"
        say(
            f"Threshold: {found.curve.fair:.3f} by the costs alone where probabilities are right; cheapest here {best}."
        )
    for group in found.groups:
        say()
        _groups(group)
    for note in found.notes:
        say(f"note: {first_line(note, 400)}")


def show_learning_curve(found: LearningCurve) -> None:
    """What each contestant reached with how many labels, and the comparisons in words."""
    names = list(found.points)
    sizes = sorted({size for by_size in found.points.values() for size in by_size})
    say(f"{found.metric} on {found.heldout:,} held-out items, {len(found.seeds)} seeds; intervals of 95 %")
    say()
    rows = [
        (f"{size:,}", *(interval(found.points[name][size].to_json()) for name in names if size in found.points[name]))
        for size in sizes
    ]
    say_table(["labels", *(first_line(name, NAME) for name in names)], rows)
    say()
    for one in found.comparisons:
        say(one.sentence)


def _labels(found: Classification) -> None:
    ranked = sorted(found.by_label, key=lambda row: row.f1.estimate if row.f1 else 2.0)
    shown = found.by_label if len(ranked) <= LABELS else ranked[:LABELS]
    rows = []
    for row in shown:
        shares = [None if one is None else interval(one.to_json()) for one in (row.precision, row.recall, row.f1)]
        told = (share or "—" for share in shares)
        rows.append((first_line(row.label, NAME), f"{row.true:,.4g}", f"{row.decided:,.4g}", *told))
    say_table(["label", "true", "decided", "precision", "recall", "F1"], rows)
    if len(ranked) > len(shown):
        say(f"… the {LABELS} labels of lowest F1; {len(ranked) - LABELS} more with --json")


def _confusion(found: Classification) -> None:
    from melior.reports.matrix import confusions

    assert found.confusion is not None
    if len(found.labels) <= CELLS:
        head = ["true ↓ decided →", *(first_line(label, NAME) for label in found.labels)]
        cells = [
            (first_line(label, NAME), *(f"{count:,.4g}" for count in row))
            for label, row in zip(found.labels, found.confusion, strict=True)
        ]
        say_table(head, cells)
        return
    pairs = [
        (first_line(true, NAME), first_line(decided, NAME), rows, share)
        for true, decided, rows, share in confusions(found.labels, found.confusion)[:CONFUSIONS]
    ]
    say_table(["true", "taken for", "rows", "of the true label's"], pairs)


def _groups(group: GroupGaps) -> None:
    names = list(dict.fromkeys(name for one in group.groups for name in one.measures))
    rows = [
        (
            first_line(one.name, NAME),
            f"{one.rows:,}",
            *(interval(one.measures[name].to_json()) if name in one.measures else "—" for name in names),
        )
        for one in group.groups
    ]
    say_table([first_line(group.attribute, NAME), "rows", *names], rows)
    say(first_line(group.sentence, 400))
    for warning in group.warnings:
        say(f"note: {first_line(warning, 400)}")
