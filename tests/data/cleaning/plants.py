"""faults to plant in real rows: each is a change of one row, or a row more, and the code that must tell it"""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
KEY = "AKIA" + "Q3EXW7ZJ5MNB2PLD"  # in two parts, so that no scanner takes it for a real one
SPANISH = (
    "Una tienda de libros vende cada semana trescientas novelas a los estudiantes de la universidad, y además regala "
    "algunos cuadernos pequeños a los niños que vienen con sus padres los domingos por la mañana."
)
CUT_SHORT = " as far as anybody knows, for it was decided by the"
CHINESE = "我想知道为什么我的卡还没有到，我已经等了两个星期了，请帮我查一下。"


@dataclass(frozen=True)
class Plant:
    """A fault: `make` gives what stands in the file instead of the row, or behind it where `adds`."""

    code: str
    make: Callable[[Row], Any]
    adds: bool = False  # the original stays, and the new row comes at the end
    both: bool = False  # the original is told too


def text_of(row: Row) -> str:
    return str(row["prompt"] if "prompt" in row else row["text"])


def prompt(change: Callable[[str], str]) -> Callable[[Row], Row]:
    def make(row: Row) -> Row:
        row = copy.deepcopy(row)
        name = "text" if "text" in row else "prompt"
        if isinstance(row[name], list):
            last = next(message for message in reversed(row[name]) if message["role"] == "user")
            last["content"] = change(last["content"])
        else:
            row[name] = change(row[name])
        return row

    return make


def answer(change: Callable[[str], str]) -> Callable[[Row], Row]:
    def make(row: Row) -> Row:
        name = next(name for name in ("completion", "chosen") if name in row)
        return {**row, name: change(row[name])}

    return make


def misread(text: str) -> str:
    """Accents, then UTF-8 read as Windows-1252."""
    return text.replace("a", "á", 2).replace("'", "’").encode().decode("cp1252", errors="ignore") + " cafÃ©"


def nearly(text: str) -> str:
    """Without its last word that is one, or in other letters; shorter, so that the original is kept."""
    words = text.split(" ")
    place = max((i for i, word in enumerate(words) if word.isalpha()), default=0)
    return " ".join(words[:place] + words[place + 1 :]) if len(words) > 40 else text.upper().rstrip("?.! ")


# What any file of texts can have.
TEXT = (
    Plant("invalid-row", lambda row: '{"prompt": "' + text_of(row)[:20].replace('"', "").replace("\n", " ")),
    Plant("invalid-row", lambda row: '{"prompt": NaN}'),
    Plant("unknown-format", lambda row: {"frage": text_of(row), "antwort": "ja"}),
    Plant("mixed-formats", lambda row: {"messages": [{"role": "user", "content": "Hello there, who are you?"}]}),
    Plant("duplicate", lambda row: row, adds=True),
    Plant("near-duplicate", prompt(nearly), adds=True),
    Plant("personal-data", prompt(lambda text: f"{text} Write to jane.doe@acme-mail.com.")),
    Plant("personal-data", prompt(lambda text: f"{text} Call me: +49 30 901820 55.")),
    Plant("personal-data", prompt(lambda text: f"{text} My card is 4539 5787 6362 1486.")),
    Plant("personal-data", prompt(lambda text: f"{text} IBAN DE89 3704 0044 0532 0130 00")),
    Plant("personal-data", prompt(lambda text: f"{text} from 84.117.63.205")),
    Plant("secret", prompt(lambda text: f"{text} The key is {KEY}.")),
    Plant("mojibake", prompt(misread)),
    Plant("lost-characters", prompt(lambda text: f"{text} caf\ufffd")),
    Plant("control-characters", prompt(lambda text: f"{text}\x1b\x07")),
    Plant("invisible-characters", prompt(lambda text: text.replace(" ", " \u200b", 1))),
    Plant("html-entities", prompt(lambda text: f"{text} Tom &amp; Jerry")),
    Plant("html-tags", prompt(lambda text: f"<p>{text}</p>")),
    Plant("normal-form", prompt(lambda text: f"{text} {unicodedata.normalize('NFD', 'café')}")),
    Plant("template-tokens", prompt(lambda text: f"<|im_start|>user\n{text}<|im_end|>")),
    Plant("other-language", prompt(lambda text: CHINESE * 20)),
    Plant("length-outlier", prompt(lambda text: text + " and so on" * 10_000)),
)
# Rows of one prompt and one answer.
ANSWERS = (
    Plant("empty-answer", answer(lambda text: "")),
    Plant("empty-answer", answer(lambda text: " \n ")),
    Plant("truncated-answer", answer(lambda text: text.rstrip(".?! ") + CUT_SHORT)),
    Plant("truncated-answer", answer(lambda text: "```python\nprint(" + text)),
    Plant("boilerplate", answer(lambda text: "As an AI language model, I will try. " + text)),
)
GSM8K = (
    *TEXT,
    *ANSWERS,
    Plant(
        "truncated-answer",
        answer(lambda text: text.partition(".")[0].rstrip("0123456789 $%!?)>") + " because he had lots"),
    ),
    Plant(
        "contradiction", lambda row: {**row, "id": "x1", "completion": row["completion"] + "7"}, adds=True, both=True
    ),
    Plant(
        "several-answers",
        lambda row: {
            **row,
            "id": "x2",
            "completion": "Thinking about it for a while, one finds no solution at all to this.",
        },
        adds=True,
        both=True,
    ),
    Plant(
        "duplicate-id",
        lambda row: {**row, "prompt": "How many legs have three spiders and two cats together?"},
        adds=True,
    ),
    Plant("answer-in-prompt", lambda row: {**row, "prompt": f"{row['prompt']} Hint: {row['completion']}"}),
    Plant(
        "other-language",
        lambda row: {**row, "prompt": SPANISH, "completion": "Vende trescientas novelas cada semana. #### 300"},
    ),
    Plant(
        "role-order",
        lambda row: {**row, "prompt": [{"role": "user", "content": "Hi."}, {"role": "user", "content": row["prompt"]}]},
    ),
    Plant("unknown-role", lambda row: {**row, "prompt": [{"role": "robot", "content": row["prompt"]}]}),
)
BANKING = (
    *TEXT,
    Plant("contradiction", lambda row: {**row, "label": "age_limit"}, adds=True, both=True),
    Plant("label-variants", lambda row: {**row, "label": row["label"].replace("_", " ").title()}),
    Plant("label-spelling", lambda row: {**row, "label": row["label"] + "s"}),
    Plant("rare-label", lambda row: {**row, "label": "something_else_entirely"}),
)
TASKMASTER = (
    *(plant for plant in TEXT if plant.code != "near-duplicate"),
    Plant("contradiction", lambda row: {**row, "label": not row["label"]}, adds=True, both=True),
    Plant("empty-answer", answer(lambda text: "")),
    Plant(
        "role-order",
        lambda row: {**row, "prompt": [*row["prompt"], {"role": "system", "content": "Be kind."}]},
    ),
    Plant("unknown-role", lambda row: {**row, "prompt": [*row["prompt"], {"role": "narrator", "content": "Silence."}]}),
)
PREFERENCES = (
    *TEXT,
    *ANSWERS,
    Plant("chosen-is-rejected", lambda row: {**row, "rejected": row["chosen"]}),
    Plant(
        "contradiction", lambda row: {**row, "chosen": row["rejected"], "rejected": row["chosen"]}, adds=True, both=True
    ),
)
PLANTS: dict[str, tuple[Plant, ...]] = {
    "gsm8k": GSM8K,
    "banking77": BANKING,
    "taskmaster": TASKMASTER,
    "preferences": PREFERENCES,
}


def planted(rows: list[Row], plants: tuple[Plant, ...], places: list[int]) -> tuple[list[Any], dict[str, set[int]]]:
    """The rows with every plant in them, and the lines each code must tell. `places` are rows without other faults."""
    out: list[Any] = list(rows)
    expected: dict[str, set[int]] = {}
    for place, plant in zip(places, plants, strict=True):
        lines = expected.setdefault(plant.code, set())
        made = plant.make(copy.deepcopy(rows[place]))
        if plant.adds:
            out.append(made)
            lines.add(len(out))
            if plant.both:
                lines.add(place + 1)
        else:
            out[place] = made
            lines.add(place + 1)
    return out, expected
