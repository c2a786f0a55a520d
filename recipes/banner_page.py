"""the page of the banner of five, from its summary and outcomes"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from melior.reports.document import Part, listed, write_document
from melior.reports.plots import table
from melior.reports.schema import Line, Named, Point
from melior.reports.slates import CurveShown, Grid, Pair, RequestShown, Slates, SlateShown, slates_section

NAMES = {"logit": "Shop “logit”", "cascade": "Shop “cascade”, where no setting of learning was chosen"}


def write_page(path: Path, outcomes: Mapping[str, Sequence[Any]], found: Mapping[str, Any]) -> Path:
    """The report; every number of it stands in the summary too."""
    failed = found["failed"]
    verdict = (
        ("reject", f"{len(failed)} claims failed: {'; '.join(failed)}")
        if failed
        else ("promote", "Every claim held in every run: 95 % intervals of the gain over each rival exclude 0.")
    )
    parts = []
    for family in outcomes:
        parts += _family(family, outcomes[family], found["families"][family])
    lead = (
        "Five of forty products on a page; expected points per page, exact, on visits nobody trained on. Points: one "
        "click 1, several 2; each cart 3; one purchase 10, several 15."
    )
    return write_document(path, "Banner of five", parts, lead=lead, verdict=verdict)


def _family(family: str, runs: Sequence[Any], found: Mapping[str, Any]) -> list[Part]:
    first = found["means"][0]
    agreed = found["learnt"]["together"]["correlation"]
    shown = Slates(
        what="expected points per page, first seed",
        baseline="logging policy",
        policies=tuple(Named(name=name, **_limits(each)) for name, each in sorted(first.items(), key=_estimate)),
        curves=(_curve(found),),
        pairs_what=(
            "How much more an item belongs second where the first one stands first: learnt as nats, in truth as "
            f"points over the mean a second item adds; rank correlation {agreed:.2f}"
        ),
        pairs=_pairs(found["learnt"]["together"]),
        after=_grid(found["learnt"]["after"]),
        examples=tuple(
            RequestShown(
                request=request,
                slates=tuple(SlateShown(name=name, items=tuple(s), value=v) for name, (s, v) in slates.items()),
            )
            for request, slates in runs[0].examples
        ),
    )
    claims = [
        (name, *(_told(gain) for gain in claim["gains"]), "yes" if claim["held"] else "NO")
        for name, claim in found["claims"].items()
    ]
    head = ("gain in points per page", *(f"seed {seed}" for seed in range(len(runs))), "held")
    combined = "; ".join(_told(gain) for gain in found["plain"])
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in found["seconds"][0].items())
    notes = listed([f"Knowing what was placed before is worth {combined} points over plain Plackett–Luce.", seconds])
    return [Part(NAMES.get(family, family), [table(head, claims), notes, slates_section(shown)])]


def _curve(found: Mapping[str, Any]) -> CurveShown:
    points = tuple(Point(x=count, **_limits(gain)) for count, gain in found["curve"])
    first = found["better_from"]
    note = (
        f"Better than the logging policy with 95 % confidence from {first:,} impressions on."
        if first
        else "At none of these lengths was the policy better than the logging policy with 95 % confidence."
    )
    return CurveShown(
        title="How many impressions it took",
        across="impressions in the log",
        logarithmic=True,
        lines=(Line(name="gain over the logging policy", points=points),),
        levels=(("logging policy", 0.0),),
        note=note,
    )


def _pairs(effects: Mapping[str, Any]) -> tuple[Pair, ...]:
    return tuple(
        Pair(first=row, second=column, learned=effects["learnt"][r][c], true=effects["true"][r][c])
        for r, row in enumerate(effects["rows"])
        for c, column in enumerate(effects["columns"])
    )


def _grid(effects: Mapping[str, Any]) -> Grid:
    what = (
        "which type belongs first after a last purchase, in nats over its mean; rank correlation with the truth "
        f"{effects['correlation']:.2f}"
    )
    return Grid(
        what=what,
        rows=tuple(f"after {name}" for name in effects["rows"]),
        columns=tuple(effects["columns"]),
        values=tuple(map(tuple, effects["learnt"])),
        true=tuple(map(tuple, effects["true"])),
    )


def _limits(found: Mapping[str, float | None]) -> dict[str, Any]:
    return {name: found[name] for name in ("estimate", "low", "high")}


def _told(found: Mapping[str, float]) -> str:
    return f"{found['estimate']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def _estimate(named: tuple[str, Mapping[str, float]]) -> float:
    return -named[1]["estimate"]
