"""the page of a reward model's recipe: measures beside floors and rules, by length, calibration, and limits"""

from __future__ import annotations

from pathlib import Path

from reward_outcome import Outcome

from melior.reports.document import Part, listed, paragraph, write_document
from melior.reports.plots import table
from melior.reports.reward_model import reward_section


def write_page(folder: Path, result: Outcome) -> Path:
    """The figures as a page for people."""
    field = result.field
    measured = sorted(result.measures.items(), key=lambda item: -item[1].estimate)
    rules = [*result.rules.items(), ("floor: the linear model, as known before", field.floor)]
    chosen = [
        (method, name, f"{count} folds")
        for method, counts in result.chosen.items()
        for name, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    parts = [
        Part(
            "Against the linear model",
            [
                table(("method", field.measure), [(name, str(each)) for name, each in measured]),
                paragraph(f"Paired by row, {field.measure} more than {field.linear_name} has:"),
                table(("method", "difference"), [(name, str(each)) for name, each in result.gains.items()]),
            ],
        ),
        Part("Without learning", [table(("rule", field.measure), [(name, str(each)) for name, each in rules])]),
        Part("Agreement with people", [paragraph(f"Of {result.best}."), reward_section(result.report.to_json())]),
        Part("Settings", [paragraph("Chosen by inner folds."), table(("method", "setting", "chosen by"), chosen)]),
        Part("Limits", [listed(result.limits)]),
    ]
    if result.heldout:
        rows = [(name, str(each)) for name, each in result.heldout.items()]
        parts.insert(3, Part("Other labels", [table(("judged by", field.measure), rows)]))
    if result.picks:
        rows = [(name, str(each)) for name, each in result.picks.items()]
        parts.insert(3, Part("Best of what was logged", [table(("how one is chosen", "good"), rows)]))
    return write_document(
        folder / "report.html",
        field.title,
        parts,
        lead=f"{result.rows:,} rows; every reward is by models that did not learn from the row.",
        verdict=("promote" if result.met else "reject", result.sentence),
    )
