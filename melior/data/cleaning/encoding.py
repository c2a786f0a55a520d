"""what went wrong between bytes and characters, and the repair

Each repair is safe on its own: text that shows no such fault is returned as it is.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable

# Bytes 0x80 to 0x9f as Windows-1252 shows them, the five it leaves open as Latin-1 does.
_SHOWN = {byte: bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in range(0x80, 0x100)}
_BYTE = {character: byte for byte, character in _SHOWN.items()} | {chr(byte): byte for byte in range(0x80, 0x100)}
_CONTINUATION = "[" + "".join({re.escape(c) for c, byte in _BYTE.items() if byte < 0xC0}) + "]"
# Two-byte sequences other than of Latin-1 letters count only in a row: a lone "É»" is French, "Ð¿Ñ€" is Cyrillic.
MOJIBAKE = re.compile(
    f"[ÂÃ]{_CONTINUATION}|[à-ï]{_CONTINUATION}{{2}}|[ð-ô]{_CONTINUATION}{{3}}|(?:[Ä-ß]{_CONTINUATION}){{2,}}"
)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
ZERO_WIDTH = re.compile("[\u200b\u2060\ufeff\u00ad]")  # joiners (U+200C, U+200D) belong to emoji and to many scripts
DIRECTION = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]")
ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|[lr][sd]quo|[mn]dash|hellip|eacute|#\d{2,5}|#x[0-9a-fA-F]{2,5});")
TAG = re.compile(r"</?(?:p|br|div|span|b|i|u|em|strong|a|li|ul|ol|h[1-6]|td|tr|table|img|font)(?:\s[^<>]*)?/?>", re.I)
ABOUT_HTML = re.compile(r"<[a-zA-Z!/][^<>]*>|```|\bhtml\b|\bxml\b", re.I)  # there an entity is meant
LOST = "\N{REPLACEMENT CHARACTER}"


def encoding_faults(text: str) -> list[tuple[str, str]]:
    """Codes of the faults in a text, each with the piece that shows it."""
    found = []
    if "<" in text and (tag := TAG.search(text)) and "```" not in text:
        found.append(("html-tags", tag.group()))
    if "&" in text and unescaped(text) != text:
        found.append(("html-entities", ENTITY.search(text).group()))  # type: ignore[union-attr]
    if text.isascii():
        if control := CONTROL.search(text):
            found.append(("control-characters", control.group()))
        return found
    if decoded(text) != text:
        found.append(("mojibake", MOJIBAKE.search(text).group()))  # type: ignore[union-attr]
        text = decoded(text)
    if LOST in text:
        found.append(("lost-characters", LOST))
    if control := CONTROL.search(text):
        found.append(("control-characters", control.group()))
    if (bare := visible(text)) != text:
        hidden = ZERO_WIDTH.search(text) or DIRECTION.search(text)
        found.append(("invisible-characters", hidden.group() if hidden else ""))
    if not unicodedata.is_normalized("NFC", bare):
        found.append(("normal-form", next((c for c in bare if unicodedata.combining(c)), "")))
    return found


def decoded(text: str) -> str:
    """The text with every sequence of UTF-8 that was read as Windows-1252 or Latin-1 decoded again."""
    return MOJIBAKE.sub(_decode, text)


def _decode(match: re.Match[str]) -> str:
    try:
        return bytes(_BYTE[character] for character in match.group()).decode()
    except UnicodeDecodeError:
        return match.group()


def visible(text: str) -> str:
    """The text without zero-width characters, and without direction marks where nothing runs right to left."""
    text = ZERO_WIDTH.sub("", text)
    return text if RIGHT_TO_LEFT.search(text) else DIRECTION.sub("", text)


def unescaped(text: str) -> str:
    """The text with HTML's escapes undone, unless it is about HTML."""
    if ABOUT_HTML.search(text):
        return text
    return ENTITY.sub(lambda match: html.unescape(match.group()).replace("\xa0", " "), text)


REPAIRS: dict[str, Callable[[str], str]] = {
    "mojibake": decoded,
    "control-characters": lambda text: CONTROL.sub("", text),
    "invisible-characters": visible,
    "html-entities": unescaped,
    "normal-form": lambda text: unicodedata.normalize("NFC", text),
}


def repaired(text: str, ignore: frozenset[str] = frozenset()) -> str:
    """The text after every repair that is not ignored, repeated until none changes it."""
    before = None
    while before != text:
        before = text
        for code, repair in REPAIRS.items():
            if code not in ignore:
                text = repair(text)
    return text
