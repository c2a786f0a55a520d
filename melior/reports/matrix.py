"""confusion matrices: a few labels as cells to read, many as a heat map with the worst confusions beside it"""

from __future__ import annotations

from collections.abc import Sequence

from melior.reports.charts import WIDTH
from melior.reports.plots import figure, svg, table
from melior.reports.text import cut, escaped

READABLE = 12  # labels up to which every cell has its numbers
PAIRS = 20  # confusions that are listed
LEFT, TOP = 92, 76  # room for names of true labels, and of decided ones
FAINT, STRONG = 0.05, 0.85  # how dark the emptiest and the fullest cell are

Matrix = Sequence[Sequence[float]]


def confusion_chart(labels: Sequence[str], matrix: Matrix) -> str:
    """Counts and their share of the row, true labels downwards and decided ones to the right."""
    totals = [sum(row) for row in matrix]
    shares = [[count / total if total else 0.0 for count in row] for row, total in zip(matrix, totals, strict=True)]
    right = sum(matrix[index][index] for index in range(len(labels)))
    told = f"{right:,.4g} of {sum(totals):,.4g} rows on the diagonal"
    small = len(labels) <= READABLE
    picture = _cells(labels, matrix, shares) if small else _heat(labels, matrix, shares)
    height, drawn = picture
    note = "Rows are what is true, columns what was decided; the share is of the row."
    if not small:
        note += " Off the diagonal, darker is a larger share; the pairs are listed beside it."
    worst = confusions(labels, matrix)
    numbers = (("true", "decided", "rows", "of the true label’s"), worst)
    return figure("Confusion matrix", f"{note} {told}.", svg("Confusion matrix", told, drawn, height), numbers)


def confusion_table(labels: Sequence[str], matrix: Matrix) -> str:
    """The most frequent confusions, as a table."""
    rows = confusions(labels, matrix)
    if not rows:
        return '<p class="note">Nothing was confused with anything.</p>'
    return table(("true", "decided", "rows", "of the true label’s"), rows)


def confusions(labels: Sequence[str], matrix: Matrix) -> list[tuple[str, str, str, str]]:
    """(true, decided, rows, share of the true label's rows) of the most frequent confusions."""
    pairs = [
        (count, true, decided)
        for true, row in enumerate(matrix)
        for decided, count in enumerate(row)
        if true != decided and count > 0
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [
        (labels[true], labels[decided], f"{count:,.4g}", f"{count / sum(matrix[true]):.0%}")
        for count, true, decided in pairs[:PAIRS]
    ]


def _cells(labels: Sequence[str], matrix: Matrix, shares: Matrix) -> tuple[float, str]:
    side = (WIDTH - LEFT - 4) / len(labels)
    tall = min(side, 64.0)
    drawn = []
    for index, label in enumerate(labels):
        middle = LEFT + side * (index + 0.5)
        steep = len(labels) > 3
        turn = f' transform="rotate(-60 {middle:.1f} {TOP - 8})"' if steep else ""
        anchor = "start" if steep else "middle"
        drawn.append(
            f'<text x="{middle:.1f}" y="{TOP - 8}" text-anchor="{anchor}"{turn}>{_name(label)}</text>'
            f'<text x="{LEFT - 6}" y="{TOP + tall * (index + 0.5) + 4:.1f}" text-anchor="end">{_name(label)}</text>'
        )
    for row, counts in enumerate(matrix):
        for column, count in enumerate(counts):
            share = shares[row][column]
            x, y = LEFT + side * column, TOP + tall * row
            kind = "right" if row == column else "wrong"
            strength = FAINT + (STRONG - FAINT) * share
            ink = " on" if strength > 0.5 else ""
            drawn.append(
                f'<rect class="cell {kind}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{side - 2:.1f}" '
                f'height="{tall - 2:.1f}" fill-opacity="{strength:.2f}">'
                f"<title>{_told(labels[row], labels[column], count, share)}</title></rect>"
                f"{_inside(x + side / 2, y + tall / 2, count, share, len(labels), ink)}"
            )
    return TOP + tall * len(labels) + 4, "".join(drawn) + _titles()


def _inside(x: float, y: float, count: float, share: float, labels: int, ink: str) -> str:
    if not count:
        return ""
    if labels > 6:  # no room for both
        return f'<text class="inside{ink}" x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{count:,.4g}</text>'
    return (
        f'<text class="inside{ink}" x="{x:.1f}" y="{y - 2:.1f}" text-anchor="middle">{count:,.4g}</text>'
        f'<text class="inside small{ink}" x="{x:.1f}" y="{y + 13:.1f}" text-anchor="middle">{share:.0%}</text>'
    )


def _heat(labels: Sequence[str], matrix: Matrix, shares: Matrix) -> tuple[float, str]:
    """Cells without words; those off the diagonal are darker than their share, or nobody would see them."""
    left, top = 20.0, 20.0
    side = (WIDTH - left - 4) / len(labels)
    drawn = [
        f'<rect class="frame" x="{left}" y="{top}" width="{WIDTH - left - 4:.1f}" height="{WIDTH - left - 4:.1f}"/>'
    ]
    for row, counts in enumerate(matrix):
        for column, count in enumerate(counts):
            share = shares[row][column]
            if not count:
                continue
            kind = "right" if row == column else "wrong"
            strength = share if row == column else min(1.0, 0.25 + 3 * share)
            drawn.append(
                f'<rect class="cell {kind}" x="{left + side * column:.2f}" y="{top + side * row:.2f}" '
                f'width="{side:.2f}" height="{side:.2f}" fill-opacity="{max(FAINT, strength):.2f}">'
                f"<title>{_told(labels[row], labels[column], count, share)}</title></rect>"
            )
    drawn.append(
        f'<text x="{left}" y="13">decided →</text>'
        f'<text x="13" y="{top}" text-anchor="end" transform="rotate(-90 13 {top})">true ←</text>'
    )
    return WIDTH, "".join(drawn)


def _told(true: str, decided: str, count: float, share: float) -> str:
    return escaped(f"{true} called {decided}: {count:,.4g}, {share:.1%}")


def _titles() -> str:
    return '<text x="0" y="12">true ↓ decided →</text>'


def _name(label: str) -> str:
    shown, left = cut(label, 12)
    return escaped(f"{shown}…" if left else shown)
