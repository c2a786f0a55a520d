"""the JSON that reward functions elsewhere get, and the JSON they give back

What is sent is AWS's event for reward functions, a bare list:

    [{"id": "…", "messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}],
      "metadata": {"reference_answer": …, …the row's other columns}, "reference_answer": …}]

What comes back names each id once, in any order; `metrics_list` and every other key may be left out:

    [{"id": "…", "aggregate_reward_score": 0.5, "metrics_list": [{"name": "format", "value": 1, "type": "Reward"}]}]

The reference answer stands in two places because AWS's pages and samples differ on where it belongs.

Source: docs.aws.amazon.com, "Creating reward functions" of Nova Forge and of Bedrock reinforcement fine-tuning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from melior.data.conversations import conversation
from melior.errors import GraderError, MeliorError
from melior.rewards.base import checked, failed, output_messages, text_of
from melior.types import Record, Score

REFERENCE = "reference_answer"
UNANSWERED = "unresponsive_reward_error"  # the OpenAI dialect's flag for a reward that does not come


@dataclass(frozen=True, kw_only=True)
class Form:
    """How rows are written into events; functions made for Amazon Nova want its role, and content in parts."""

    assistant_role: str = "assistant"  # Nova: "nova_assistant"
    content_parts: bool = False  # True writes [{"type": "text", "text": "…"}]
    reference_column: str = REFERENCE  # the column that is sent as reference_answer

    def events(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """One event per record; the ids are a function of position and content.

        Raises:
            GraderError: if an item lacks the reference column that was asked for.
        """
        return [self._event(index, record) for index, record in enumerate(records)]

    def fault(self, record: Record) -> str:
        """Why no event can be sent of a record; empty if one can."""
        try:
            json.dumps(self._event(0, record), allow_nan=False)
        except MeliorError as error:
            return str(error)
        except (TypeError, ValueError, RecursionError) as error:
            return f"{error}; use JSON values in inputs and item"
        return ""

    def _event(self, index: int, record: Record) -> dict[str, Any]:
        messages, metadata = self._messages(record), dict(record.item)
        if self.reference_column in metadata:
            metadata[REFERENCE] = metadata[self.reference_column]
        elif self.reference_column != REFERENCE:
            told = ", ".join(sorted(metadata)) or "none"
            raise GraderError(f"the item has no column {self.reference_column!r} to send as {REFERENCE}; it has {told}")
        content = json.dumps([messages, metadata], sort_keys=True, default=str)
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        event: dict[str, Any] = {"id": f"{digest[:12]}-{index}", "messages": messages, "metadata": metadata}
        if REFERENCE in metadata:
            event[REFERENCE] = metadata[REFERENCE]
        return event

    def _messages(self, record: Record) -> list[dict[str, Any]]:
        messages = (*conversation(record.inputs).messages, *output_messages(record.output))
        return [self._message(message) for message in messages]

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        told = {key: value for key, value in message.items() if key != "weight"}
        if told.get("role") == "assistant":
            told["role"] = self.assistant_role
        if self.content_parts and isinstance(told.get("content"), str):
            told["content"] = [{"type": "text", "text": told["content"]}]
        return told


def read_form(spec: Mapping[str, Any], kind: str) -> Form:
    """The form that a grader's setting asks for.

    Raises:
        GraderError: if a value is of the wrong type.
    """
    given: dict[str, Any] = {}
    for key, wanted in FORM.items():
        if key in spec:
            if not isinstance(spec[key], wanted):
                raise GraderError(f"grader {kind} needs {'true or false' if wanted is bool else 'a string'} as {key!r}")
            given[key] = spec[key]
    return Form(**given)


FORM: Mapping[str, type] = {"assistant_role": str, "content_parts": bool, "reference_column": str}


def scores_of(name: str, events: Sequence[Mapping[str, Any]], answer: Any) -> list[Score]:
    """One score per event, matched by id; an event without one usable answer fails alone.

    Raises:
        GraderError: if the answer as a whole is an error, or no list of answers.
    """
    rows = _rows(name, answer)
    by_id: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        if isinstance(row, Mapping) and isinstance(row.get("id"), str):
            by_id.setdefault(row["id"], []).append(row)
    strangers = len(by_id.keys() - {event["id"] for event in events})
    return [_score(name, by_id.get(event["id"], []), len(rows), strangers) for event in events]


def _rows(name: str, answer: Any) -> Sequence[Any]:
    """The list of answers, out of the wrappings that functions use."""
    if isinstance(answer, Mapping) and "errorMessage" in answer:
        told = f"{answer.get('errorType') or 'error'}: {answer['errorMessage']}"
        raise GraderError(f"{name} failed with {told:.300}", UNANSWERED)
    if isinstance(answer, Mapping) and "statusCode" in answer:  # a function that answers as for a web page
        body, status = answer.get("body"), answer["statusCode"]
        if status != 200:
            raise GraderError(f"{name} answered status {status!r:.20}: {text_of(body):.200}", UNANSWERED)
        return _rows(name, parse_answer(name, body) if isinstance(body, str) else body)
    if isinstance(answer, Mapping) and "aggregate_reward_score" in answer:
        return [answer]
    if not isinstance(answer, list):
        raise GraderError(f"{name} answered no list but {type(answer).__name__}; answer an object per id", UNANSWERED)
    return answer


def parse_answer(name: str, text: str | bytes) -> Any:
    """The JSON in an answer.

    Raises:
        GraderError: if it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GraderError(f"{name} answered what is not JSON ({error!s:.80})", UNANSWERED) from None


def _score(name: str, answers: Sequence[Mapping[str, Any]], count: int, strangers: int) -> Score:
    if not answers:
        others = f", {strangers} of them to ids nobody sent" if strangers else ""
        return failed(name, f"{name} gave {count} answers, none to this id{others}; answer each id", kind=UNANSWERED)
    if len(answers) > 1:
        return failed(name, f"{name} gave {len(answers)} answers to one id; answer each id once")
    answer = answers[0]
    if "errorMessage" in answer:
        return failed(name, f"{name} failed with {answer.get('errorType') or 'error'}: {answer['errorMessage']!s:.200}")
    value = answer.get("aggregate_reward_score")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return failed(name, f"{name} gave {value!r:.60} as aggregate_reward_score; give a number")
    try:
        return replace(checked(name, value), parts=_parts(answer.get("metrics_list")))
    except GraderError as error:
        return failed(name, str(error))


def _parts(metrics: Any) -> dict[str, float]:
    """The metrics that are a name and a finite number; they are looked at, and teach nothing."""
    parts: dict[str, float] = {}
    for metric in metrics if isinstance(metrics, list) else []:
        if not isinstance(metric, Mapping) or not isinstance(metric.get("name"), str):
            continue
        value = metric.get("value")
        if isinstance(value, int | float) and abs(value) < 1e300:
            parts[metric["name"]] = float(value)
    return parts
