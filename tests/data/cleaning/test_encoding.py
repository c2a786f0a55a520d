"""what was broken between bytes and characters is told, and put right where that is possible"""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.cleaning.encoding import REPAIRS, encoding_faults, repaired

BROKEN = [
    ("mojibake", "cafÃ© dâ€™AngoulÃªme", "café d’Angoulême"),
    ("mojibake", "ÐŸÑ€Ð¸Ð²ÐµÑ‚", "Привет"),
    ("mojibake", "Ã¢â‚¬â„¢", "’"),
    ("mojibake", "ðŸ˜€ nice", "😀 nice"),
    ("control-characters", "a\x07b\x1bc", "abc"),
    ("invisible-characters", "in\u200bvis\ufeffible\u202e", "invisible"),
    ("html-entities", "Tom &amp; Jerry &quot;run&quot; &#39;now&#39;", "Tom & Jerry \"run\" 'now'"),
    ("normal-form", "cafe\u0301", "café"),
]
FINE = [
    "CAFÉ» et «ÉTÉ», naïve façade, Ãngel",
    "año, São Paulo, Århus, Ünlü, œuvre, 5 °C, £3, “quoted” – yes…",
    "👩\u200d👩\u200d👧 family, می\u200cخواهم",
    "עברית \u200fעם סימן",
    "line one\n\tline two\r\n",
    "write <b> as &lt;b&gt; in HTML",
    "if a < b and b > c: print(a & b)",
]


@pytest.mark.parametrize(("code", "text", "right"), BROKEN)
def test_a_fault_is_told_and_repaired(code: str, text: str, right: str) -> None:
    assert code in [name for name, _ in encoding_faults(text)]
    assert repaired(text) == right
    assert repaired(text, frozenset(REPAIRS)) == text


@pytest.mark.parametrize("text", FINE)
def test_texts_without_faults_are_left_alone(text: str) -> None:
    told = [code for code, _ in encoding_faults(text)]
    assert [code for code in told if code != "html-tags"] == []
    assert repaired(text) == text


@given(st.text())
def test_a_repaired_text_has_nothing_to_repair(text: str) -> None:
    once = repaired(text)
    assert repaired(once) == once
    assert not {code for code, _ in encoding_faults(once)} & set(REPAIRS)


@given(st.text(st.characters(min_codepoint=0xC0, max_codepoint=0x24F), min_size=1, max_size=8))
def test_letters_read_as_windows_1252_come_back(text: str) -> None:
    text = unicodedata.normalize("NFC", text)
    broken = "".join(bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in text.encode())
    if all(character < "Ā" for character in text):  # a lone letter beyond Latin-1 may be two true ones
        assert repaired(broken) == text
