"""numbers as people write them, and texts that cannot do anything to the page they stand on"""

from __future__ import annotations

import html
import math
import unicodedata
from typing import Any

LONGEST = 1200  # characters of one output that a page shows
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # categories with no glyph, or that steer how others are laid out
KEPT = {"\n", "\t", "\u200d", "\ufe0f"}  # line ends, and the joiners inside emoji


def escaped(text: Any) -> str:
    """A text for HTML, in elements and in quoted attributes; characters nobody sees are named."""
    return html.escape(visible(str(text)), quote=True)


def visible(text: str) -> str:
    """The text with control and direction characters replaced by their code points, such as [U+202E]."""
    return "".join(_seen(character) for character in text.replace("\r\n", "\n"))


def _seen(character: str) -> str:
    if character in KEPT or unicodedata.category(character) not in UNSEEN:
        return character
    return f"[U+{ord(character):04X}]"


def cut(text: Any, longest: int = LONGEST) -> tuple[str, int]:
    """The beginning of a text, and how many characters are left out."""
    whole = str(text)
    return (whole, 0) if len(whole) <= longest else (whole[:longest], len(whole) - longest)


def short(value: float | None) -> str:
    """A number in about four significant digits: 0.4123, 12.35, 1,234, 1.2e-06.

    >>> [short(x) for x in (0.41234, 12.3456, 1234.5, 0.0000012, 0, 3, None)]
    ['0.4123', '12.35', '1,234', '1.2e-06', '0', '3', '—']
    """
    if value is None or math.isnan(value):
        return "—"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-3:
        told = f"{value:.1e}" if size < 1e-3 else f"{value:.3g}"
    elif size >= 1000:
        told = f"{value:,.0f}"
    elif float(value).is_integer():
        told = f"{value:.0f}"
    else:
        told = f"{value:.{3 - max(0, math.floor(math.log10(size)))}f}" if size >= 1 else f"{value:.4f}"
    return told.replace("-", "−", 1) if told.startswith("-") else told


def compact(value: float) -> str:
    """A number for an axis: 0.25, 1.5k, 20k, 1e-04."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
    if size >= 1e4:
        return f"{value / 1e3:.4g}k".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def interval(fields: Any, *, sign: bool = False) -> str:
    """An estimate with its interval: `0.412 [0.350, 0.474]`."""
    if not fields or fields.get("estimate") is None:
        return "—"
    estimate = f"{fields['estimate']:{'+' if sign else ''}.3f}".replace("-", "−")
    low, high = (("−∞", "∞")[i] if v is None else f"{v:.3f}" for i, v in enumerate((fields["low"], fields["high"])))
    return f"{estimate} [{low}, {high}]".replace("-", "−")


def counted(number: float, noun: str) -> str:
    """A number with its noun, which has an s where there is not one of it.

    >>> [counted(n, "step") for n in (1, 0, 1200)]
    ['1 step', '0 steps', '1,200 steps']
    """
    return f"{number:,.0f} {noun}{'' if round(number) == 1 else 's'}"


def capital(sentence: str) -> str:
    """The sentence with its first letter large."""
    return sentence[:1].upper() + sentence[1:]


def duration(seconds: float) -> str:
    """A duration as people say it: 42 s, 3 min 20 s, 1 h 5 min."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
