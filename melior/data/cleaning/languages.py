"""which script and which language a text is in"""

from __future__ import annotations

import heapq
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

ENOUGH_LETTERS = 60  # to tell a language; names and formulas alone tell none
LOOKED_AT = 400  # characters of a text; more does not change the answer
SAMPLE = 2_000  # texts of a file whose language is asked; each takes about a millisecond
SURE = 0.99  # probability at which another language is believed
CJK = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO")


def script_of(text: str) -> str:
    """The script most letters are of, as Unicode names them; Chinese and Japanese count as one."""
    if len(text.encode("ascii", "ignore")) * 2 > len(text):
        return "LATIN"
    seen: Counter[str] = Counter()
    for character in text[: 4 * LOOKED_AT]:
        if character.isalpha():
            name = "LATIN" if character.isascii() else unicodedata.name(character, "UNKNOWN").split()[0]
            seen["CJK" if name in CJK else name.removesuffix("-IDEOGRAPH")] += 1
    return seen.most_common(1)[0][0] if seen else "LATIN"


class Sample:
    """A bounded choice of texts by the hash of their content: the same whatever the order of rows."""

    def __init__(self, size: int = SAMPLE) -> None:
        self.size = size
        self._heap: list[tuple[int, int, str]] = []  # minus the hash, so the greatest hash is on top
        self.offered = 0

    @property
    def below(self) -> int:
        """Only a smaller hash can still enter."""
        return 1 << 64 if len(self._heap) < self.size else -self._heap[0][0]

    def offer(self, key: int, index: int, text: str) -> None:
        """Keeps the text while its hash is among the least."""
        self.offered += 1
        entry = (-key, -index, text)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def __iter__(self) -> Any:
        return iter(sorted((-index, text) for _, index, text in self._heap))


def letters_of(text: str) -> str:
    """The beginning of a text that tells its language, or nothing."""
    start = text[:LOOKED_AT]
    return start if sum(map(str.isalpha, start)) >= ENOUGH_LETTERS else ""


def identified(texts: Iterable[tuple[int, str]]) -> list[tuple[int, str, float]] | None:
    """Index, language (ISO 639-1) and its probability for each text; None if py3langid is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return [(index, *identifier.classify(text)) for index, text in texts]
