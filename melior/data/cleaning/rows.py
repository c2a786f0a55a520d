"""faults a row shows on its own, without the rest of the file"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from melior.data.cleaning.encoding import CONTROL, encoding_faults, repaired
from melior.data.cleaning.privacy import masked, sightings, suspicious
from melior.data.cleaning.views import LABEL_CHARACTERS, View, mapped, normalised, strings
from melior.data.formats import Reading, typed
from melior.data.formats.messages import ALSO_ASSISTANT, ROLES
from melior.data.pictures import pixels
from melior.errors import DataError
from melior.types import Image

TEMPLATE = re.compile(
    r"<\|(?:im_start|im_end|system|user|assistant|endoftext|eot_id|begin_of_text|start_header_id|end_header_id|end)\|>"
    r"|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|^</?s>|</?s>$|(?:^|\n\n)(?:Human|Assistant|### Response): ?(?=\S)"
)
TEMPLATE_HINTS = ("<|", "INST]", "SYS>>", "_of_turn>", "s>", "Human:", "Assistant:", "### Response:")
BOILERPLATE = re.compile(
    r"\bas an ai(?: language)?(?: model| assistant)?,|\bas a large language model\b"
    r"|\bmy (?:knowledge|training) cutoff\b"
    r"|\bi(?:'m| am) (?:just |only )?an ai language model\b|\bas of my last (?:knowledge )?update\b",
    re.I,
)
BOILERPLATE_HINTS = ("AI", " ai", "language model", "cutoff", "update")
LONG_ANSWER = 40  # characters; what is shorter may end as it likes
OPEN_END = re.compile(r"(?:[,(\[{&=+–—]|\b(?:and|or|the|a|an|of|to|with|for|in|that|which|because|is|are|was))$", re.I)
QUOTED = 40  # characters of an answer that no prompt holds by chance
TAIL = 300  # characters in which a bracket that stays open was probably meant to be closed
SMILEY = re.compile(r"[:;=][-'^]?[()]")


@dataclass(frozen=True, slots=True)
class Hit:
    """One finding in one row."""

    code: str
    detail: str = ""
    text: str = ""  # where it stands
    piece: str = ""  # what of it


def cleaned(
    row: Mapping[str, Any],
    ignore: frozenset[str],
    reading: Reading = Reading(),  # noqa: B008  frozen
) -> tuple[Mapping[str, Any], list[Hit]]:
    """The row with its texts repaired and personal data masked, and what was found in them; cells as JSON values.

    Cleaning what was cleaned changes nothing.
    """
    hits: dict[tuple[str, str], Hit] = {}
    row = typed(row, reading)
    texts = list(strings(row))
    joined = "\n".join(texts)
    if not joined.isascii() or "&" in joined or "<" in joined or CONTROL.search(joined):
        for text in texts:
            for code, piece in encoding_faults(text):
                hits.setdefault((code, ""), Hit(code, "", text, piece))
        if any((code, "") in hits for code in _REPAIRED):
            row = mapped(row, lambda text: repaired(text, ignore))
            texts = list(strings(row))
            joined = "\n".join(texts)
    private = [(text, sighting) for text in texts for sighting in sightings(text)] if suspicious(joined) else []
    for text, sighting in private:
        code = "secret" if sighting.secret else "personal-data"
        hits.setdefault((code, sighting.kind), Hit(code, sighting.kind, text, text[sighting.start : sighting.end]))
    if private:
        secrets, personal = "secret" not in ignore, "personal-data" not in ignore
        row = mapped(row, lambda text: masked(text, secrets=secrets, personal=personal))
    if any(hint in joined for hint in TEMPLATE_HINTS):
        for text in texts:
            if match := TEMPLATE.search(text):
                hits.setdefault(("template-tokens", ""), Hit("template-tokens", "", text, match.group()))
    return typed(row, reading), [hit for hit in hits.values() if hit.code not in ignore]


_REPAIRED = ("mojibake", "control-characters", "invisible-characters", "html-entities", "normal-form")


def refusal(row: Mapping[str, Any], reason: str) -> Hit:
    """Why a row whose columns are known is no example, by the most telling code."""
    for name in ("messages", "prompt", "completion", "chosen", "rejected", "preferred_output", "non_preferred_output"):
        for message in _dictionaries(row.get(name)):
            if "role" in message and message["role"] not in (*ROLES, *ALSO_ASSISTANT):
                return Hit("unknown-role", f"the role {message['role']!r}", reason)
    for first, second in (("chosen", "rejected"), ("preferred_output", "non_preferred_output")):
        if first in row and row.get(first) == row.get(second) and row.get(first):
            return Hit("chosen-is-rejected", "", str(row[first]))
    for name in ("completion", "chosen", "rejected", "output", "response", "preferred_output"):
        if name in row and _is_empty(row[name]):
            return Hit("empty-answer", f"{name} is empty", json.dumps(row, ensure_ascii=False, default=str))
    messages = _dictionaries(row.get("messages"))
    spoken = [message for message in messages if message.get("role") == "assistant"]
    if spoken and spoken[-1] is messages[-1]:
        if all(message.get("weight", 1) == 0 for message in spoken):
            return Hit("nothing-to-learn", "every assistant message has weight 0", reason)
        if all(_is_empty(message.get("content")) and not message.get("tool_calls") for message in spoken):
            return Hit("empty-answer", "the assistant says nothing", reason)
    if messages and not spoken and messages[-1].get("role") != "user":
        return Hit("nothing-to-learn", "no assistant message", reason)
    code = "unreadable-image" if "picture" in reason else "invalid-row"
    return Hit(code, reason, json.dumps(row, ensure_ascii=False, default=str))


def _dictionaries(value: Any) -> list[Mapping[str, Any]]:
    return [inner for inner in value if isinstance(inner, Mapping)] if isinstance(value, list) else []


def _is_empty(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_empty(m.get("content") or m.get("tool_calls")) for m in _dictionaries(value))
    return value is None or (isinstance(value, str) and not value.strip())


def picture_fault(example: Any) -> str:
    """Why the picture of an example cannot be decoded; nothing is an empty text."""
    if isinstance(example.inputs, Image) and example.inputs.path:
        try:
            pixels(example.inputs)
        except DataError as error:
            return str(error)
    return ""


def faults(view: View) -> Iterator[Hit]:
    """The faults of an example as such."""
    if any(not answer.strip() for answer in view.answers):
        yield Hit("empty-answer", "white space only", view.prompt)
    elif view.kind == "preferences" and len({answer.strip() for answer in view.answers}) == 1:
        yield Hit("chosen-is-rejected", "", view.answers[0])
    elif view.kind == "demonstrations" and not view.answers:
        yield Hit("nothing-to-learn", "no assistant message with a weight", view.prompt)
    if view.exact:
        return
    roles = [role for role, _ in view.messages if role not in ("system", "developer")]
    if roles[:1] == ["assistant"]:
        yield Hit("assistant-first", "", view.prompt)
    if order := role_fault([role for role, _ in view.messages]):
        yield Hit("role-order", order, view.prompt)
    learnt = view.answers[:1] if view.kind == "preferences" else view.answers
    for answer in learnt if view.kind != "rated" else ():
        if sign := cut_short(answer):
            yield Hit("truncated-answer", sign, answer, answer[-20:])
        if any(hint in answer for hint in BOILERPLATE_HINTS) and (phrase := BOILERPLATE.search(answer)):
            yield Hit("boilerplate", phrase.group().lower().rstrip(","), answer, phrase.group())
        if len(answer) >= QUOTED and len(view.prompt) > len(answer) and normalised(answer) in normalised(view.prompt):
            yield Hit("answer-in-prompt", "", view.prompt, answer[:QUOTED])
    if view.reference and _told_before(view.prompt, view.reference):
        yield Hit("answer-in-prompt", "the reference answer", view.prompt, view.reference)


def role_fault(roles: Sequence[str]) -> str:
    """What is wrong with an order of roles; nothing is an empty text."""
    if any(role in ("system", "developer") for role in roles[1:] if role != roles[0]):
        return "system is not first"
    spoken = [role for role in roles if role not in ("system", "developer")]
    for first, second in pairwise(spoken):
        if first == second and first in ("user", "assistant"):
            return f"two messages of {first} in a row"
    return ""


def cut_short(answer: str) -> str:
    """The sign that an answer was cut; nothing is an empty text."""
    text = answer.rstrip()
    if text.count("```") % 2:
        return "a code block stays open"
    if len(text) < LONG_ANSWER:
        return ""
    if text[0] in "{[" and text[-1] not in "}]":
        return "JSON stays open" if _opens(text, "{[", "}]") else ""
    if OPEN_END.search(text[-20:]):
        return f"ends with {text.split()[-1][-12:]!r}"
    last = SMILEY.sub("", text.splitlines()[-1][-TAIL:])
    if last.rfind("(") > last.rfind(")") and last[-1:] not in ".!?":
        return "a bracket stays open"
    return ""


def _opens(text: str, opening: str, closing: str) -> bool:
    return sum(map(text.count, opening)) > sum(map(text.count, closing))


def ending(answer: str) -> int:
    """How an answer ends: 0 too short to say, 1 with a sign or digit, 2 with a letter."""
    text = answer.rstrip()
    if len(text) < LONG_ANSWER:
        return 0
    return 2 if text[-1].isalpha() else 1


def _told_before(prompt: str, reference: str) -> bool:
    if not reference.strip() or len(reference) > LABEL_CHARACTERS:
        return False
    pattern = r"\banswer(?: is|:| =)\s*" + re.escape(reference.strip()) + r"(?!\w|[.,]\d)"
    return re.search(pattern, prompt, re.I) is not None
