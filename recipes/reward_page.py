"""the page of a reward model's recipe: measures beside floors and rules, by length, calibration, and limits"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from melior.reports.document import Part, listed, paragraph, write_document
from melior.reports.plots import table
from melior.reports.reward_model import reward_section


def write_page(folder: Path, result: Any) -> Path:
    """A page for people, of a recipe's `Outcome`."""
    field = result.field
    measured = sorted(result.measures.items(), key=lambda item: -item[1].estimate)
    rules = [*result.rules.items(), ("known before of the linear model", field.floor)]
    chosen = [
        (method, name, f"{count} folds")
        for method, counts in result.chosen.items()
        for name, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    parts = [
        Part(
            "Against the linear model",
            [
                paragraph(result.sentence),
                table(("method", field.measure), [(name, str(each)) for name, each in measured]),
                table(
                    (f"{field.measure} more than {field.linear_name}", "paired difference"),
                    [(name, str(each)) for name, each in result.gains.items()],
                ),
            ],
        ),
        Part("Without learning", [table(("rule", field.measure), [(name, str(each)) for name, each in rules])]),
        Part(f"How {result.best} agrees with people", [reward_section(result.report.to_json())]),
        Part("What the inner folds chose", [table(("method", "setting", "chosen by"), chosen)]),
        Part("What this cannot show", [listed(result.limits)]),
    ]
    if result.heldout:
        rows = [(name, str(each)) for name, each in result.heldout.items()]
        parts.insert(3, Part("Held-out pairs, and labels by return", [table(("judged by", field.measure), rows)]))
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
