"""what annotators answered about one record becomes one example

Numbers are averaged, labels and texts decided by majority, and of two outputs the share of votes becomes the
probability of the preferred one, a tie voted for counting as half. Where votes are even there is nothing to learn, and
the row says so. Every answer stays in the item, under "annotations": who gave it, to which question, and when.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from melior.data.formats.messages import messages_of
from melior.data.formats.rows import Kind, Reading, RowError

Answer = dict[str, Any]  # annotator, question, value, and what else the export tells: type, at, status, seconds

PROMPTS = ("prompt", "instruction", "question", "query", "input", "messages", "conversation", "context", "text")
OUTPUT = re.compile(
    r"(?:(?:model|assistant)[ _-]?)?"
    r"(?:response|answer|completion|output|generation|reply|candidate|option|text|summary|chosen|rejected)"
    r"[ _-]?(?:\d|[ab]|left|right)?",
    re.IGNORECASE,
)
FIRST = ("left", "a", "1", "first", "response 1", "response a", "answer 1")
SECOND = ("right", "b", "2", "second", "response 2", "response b", "answer 2")
EVEN = ("tie", "both", "neither", "equal", "same", "none", "both bad", "both good")
NOT_COUNTED = ("discarded", "draft", "cancelled")
LABELS = ("choices", "taxonomy")  # types of answers that were picked, not written
Side = Literal["first", "second", "even"]


@dataclass(frozen=True)
class Labelled:
    """One record of a label export."""

    fields: Mapping[str, Any]  # what the annotator saw: text, or messages
    answers: Sequence[Answer]
    item: Mapping[str, Any]  # what else the record holds

    def kind(self, reading: Reading) -> Kind:
        """What the answers make of the record.

        Raises:
            RowError: if nobody answered, or several questions are answered and none is chosen.
        """
        value = self._counted(reading)[0]["value"]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return "rated"
        _, outputs = self._fields(reading)
        return "preferences" if len(outputs) == 2 and _side(value, outputs) else "demonstrations"

    def read(self, kind: Kind, reading: Reading) -> dict[str, Any]:
        """The fields of the example.

        Raises:
            RowError: if the answers do not agree, or do not fit.
        """
        prompt, outputs = self._fields(reading)
        made: dict[str, Any]
        values = [answer["value"] for answer in self._counted(reading)]
        inputs = None if prompt is None else _inputs(self.fields[prompt], prompt)
        if kind == "rated":
            name = _only_output(outputs, "a rating")
            made = {"inputs": inputs, "output": _text(self.fields[name], name), "rating": _mean(values)}
            shown = {prompt, name}
        elif kind == "preferences":
            made, sides = self._preference(values, outputs)
            made["inputs"], shown = inputs, {prompt, *outputs}
            made["item"] = {"sides": sides}
        else:
            if outputs and not reading.prompt_field and self._counted(reading)[0].get("type") in LABELS:
                raise RowError(f"the label judges {outputs[0]}; name what is labelled: prompt_field={outputs[0]}")
            if prompt is None:
                raise RowError(f"no field is the prompt (found {', '.join(self.fields)}); name it with prompt_field")
            made, shown = {"inputs": inputs, "output": _majority(values)}, {prompt}
        rest = {key: value for key, value in self.fields.items() if key not in shown}
        told = {} if _says_nothing_more(self.answers) else {"annotations": list(self.answers)}
        return {**made, "item": {**rest, **self.item, **told, **made.get("item", {})}}

    def _counted(self, reading: Reading) -> list[Answer]:
        """The answers to the one question that count."""
        given = [answer for answer in self.answers if answer["value"] is not None]  # None: a question passed over
        counted = [answer for answer in given if answer.get("status") not in NOT_COUNTED]
        if reading.question:
            counted = [answer for answer in counted if answer["question"] == reading.question]
        questions = list(dict.fromkeys(answer["question"] for answer in counted))
        if not questions:
            whom = f" {reading.question!r}" if reading.question else ""
            raise RowError(f"nobody has answered{whom} (of {len(self.answers)} answers none was submitted)")
        if len(questions) > 1:
            raise RowError(f"{len(questions)} questions are answered ({', '.join(questions)}); choose one: question=…")
        return counted

    def _fields(self, reading: Reading) -> tuple[str | None, list[str]]:
        """The prompt's field, and those of outputs."""
        names = list(self.fields)
        if reading.prompt_field and reading.prompt_field not in names:
            raise RowError(f"there is no field {reading.prompt_field!r}; it has {', '.join(names)}")
        known = [name for wanted in PROMPTS for name in names if name.lower() == wanted]
        prompt = reading.prompt_field or (known[0] if known else names[0] if len(names) == 1 else None)
        return prompt, [name for name in names if name != prompt and OUTPUT.fullmatch(name)]

    def _preference(self, values: Sequence[Any], outputs: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
        votes = Counter(_side(value, outputs) for value in values)
        if votes[None]:
            odd = next(value for value in values if _side(value, outputs) is None)
            raise RowError(f"the answer {odd!r} names neither {outputs[0]} nor {outputs[1]} nor a tie")
        share = (votes["first"] + votes["even"] / 2) / len(values)
        if share == 0.5:
            raise RowError(f"the {len(values)} votes are even, so neither output is preferred; ask one more annotator")
        chosen, rejected = outputs if share > 0.5 else reversed(outputs)
        texts = {"chosen": _text(self.fields[chosen], chosen), "rejected": _text(self.fields[rejected], rejected)}
        if texts["chosen"] == texts["rejected"]:
            raise RowError("both outputs are the same: nothing to learn")
        roles = {name: "chosen" if name == chosen else "rejected" for name in outputs}
        return {**texts, "probability": max(share, 1 - share)}, roles


def _inputs(value: Any, name: str) -> Any:
    """A field as inputs: text, or the messages of a chat field."""
    return value if isinstance(value, str) else messages_of(value, name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise RowError(f"the field {name} is empty or no text: nothing to learn")
    return value


def _only_output(outputs: Sequence[str], what: str) -> str:
    if len(outputs) != 1:
        raise RowError(f"{what} needs one field with an output, named like completion; found {len(outputs)}")
    return outputs[0]


def _mean(values: Sequence[Any]) -> float:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise RowError(f"some answers are numbers and some are not: {values!r:.80}")
    return float(sum(values) / len(values))


def _majority(values: Sequence[Any]) -> str:
    texts = [_written(value) for value in values]
    (best, count), *others = Counter(texts).most_common()
    if others and others[0][1] == count:
        raise RowError(
            f"{len(values)} annotators disagree evenly ({best!r:.40} and {others[0][0]!r:.40}); ask one more"
        )
    if not best.strip():
        raise RowError("the answer is empty: nothing to learn")
    return best


def _written(value: Any) -> str:
    """An answer as text; several labels are joined by commas, the steps of a taxonomy by slashes."""
    if isinstance(value, list):
        return ", ".join("/".join(map(str, one)) if isinstance(one, list) else str(one) for one in value)
    return str(value)


def _side(value: Any, outputs: Sequence[str]) -> Side | None:
    """Which of two outputs an answer prefers; None where it names neither."""
    if isinstance(value, list) and value and all(isinstance(one, Mapping) and "value" in one for one in value):
        ranks = {_plain(one["value"]): one.get("rank", place) for place, one in enumerate(value)}  # a ranking
        first, second = (ranks.get(_plain(name)) for name in outputs)
        if first is None or second is None:
            return None
        return "even" if first == second else "first" if first < second else "second"
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    said = _plain(value)
    if said in (_plain(outputs[0]), *FIRST):
        return "first"
    if said in (_plain(outputs[1]), *SECOND):
        return "second"
    return "even" if said in EVEN else None


def _plain(value: Any) -> str:
    return re.sub(r"[ _-]+", " ", str(value)).strip().lower()


def _says_nothing_more(answers: Sequence[Answer]) -> bool:
    """Whether the example says all there is: one answer, from nobody in particular."""
    return len(answers) == 1 and not answers[0].get("annotator") and not answers[0].get("at")
