"""what a grader is, and when its failures stop a run

A grader scores one output. A call that fails gives no number: its `Score` has value None and an `error`, so a
broken reward never teaches anything. None without an error means that the grader does not apply to this output.
"""

from __future__ import annotations

import difflib
import json
import math
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, SupportsFloat, runtime_checkable

from melior.data.calls import calls_in, names_of
from melior.errors import GraderError
from melior.rewards.sandbox import Isolation
from melior.types import Record, Score

LONGEST_TRACEBACK = 8_000  # characters kept, from the end: the last frames say most
LONGEST_ERROR = 500  # characters


@runtime_checkable
class Grader(Protocol):
    """Scores one output; runs wherever it was loaded."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> Mapping[str, Any] | None:
        """JSON that rebuilds the grader in a new process; None if it lives in this process only."""
        ...

    def load(self) -> None:
        """Import whatever the grader needs, so that a call measures grading alone."""
        ...

    def grade(self, record: Record) -> Score:
        """The score of one output; may raise, `call_grader` may not."""
        ...


@runtime_checkable
class BatchGrader(Grader, Protocol):
    """A grader that scores many outputs at once in the caller's process: a model, or calls over the network.

    It runs no code of users and keeps its own time limits, so a `GraderPool` starts no worker for it.
    """

    def grade_many(self, records: Sequence[Record]) -> list[Score]:
        """One score per record, in order; an output that cannot be scored fails alone."""
        ...


@runtime_checkable
class Combined(Grader, Protocol):
    """A grader made of others, which may run in different places."""

    @property
    def graders(self) -> Mapping[str, Grader]: ...

    def combine(self, scores: Mapping[str, Score]) -> Score:
        """One score out of the graders' own, by their names."""
        ...


@runtime_checkable
class Isolated(Grader, Protocol):
    """A grader that runs code of others, or evaluates what a model wrote; a `GraderPool` gives it a sandbox."""

    @property
    def isolation(self) -> Isolation: ...

    def inside(self) -> Grader:
        """The grader that runs in the sandbox."""
        ...


def runs_here(grader: Grader) -> bool:
    """Whether a grader, or a part of it, belongs into the caller's process."""
    if isinstance(grader, Combined):
        return any(map(runs_here, grader.graders.values()))
    return isinstance(grader, BatchGrader)


def call_grader(grader: Grader, record: Record) -> Score:
    """The grader's score, or a score without a value that says what went wrong; never raises."""
    start = time.perf_counter()
    try:
        score = grader.grade(record)
    except GraderError as error:
        score = failed(grader.name, str(error), kind=error.kind)
    except BaseException as error:  # SystemExit too: user code must not end the worker
        trace = traceback.format_exc()
        score = failed(grader.name, f"{grader.name} raised {_first_line(error)}", trace, "python_grader_runtime_error")
    return replace(score, name=grader.name, seconds=time.perf_counter() - start)


def call_many(grader: BatchGrader, records: Sequence[Record]) -> list[Score]:
    """One score per record, in order; where the whole batch fails, every score says why."""
    start = time.perf_counter()
    try:
        scores = grader.grade_many(records)
        if len(scores) != len(records):
            raise GraderError(f"{grader.name} gave {len(scores)} scores for {len(records)} outputs")
    except GraderError as error:
        scores = [failed(grader.name, str(error), kind=error.kind)] * len(records)
    except Exception as error:
        trace = traceback.format_exc()
        scores = [failed(grader.name, f"{grader.name} raised {_first_line(error)}", trace)] * len(records)
    each = (time.perf_counter() - start) / max(1, len(records))
    return [replace(score, name=grader.name, seconds=score.seconds or each) for score in scores]


def failed(name: str, error: str, trace: str = "", kind: str = "other_error") -> Score:
    """A score without a value, with the error on one line."""
    line = " ".join(error.split())[:LONGEST_ERROR]
    return Score(value=None, name=name, error=line, traceback=trace[-LONGEST_TRACEBACK:], kind=kind)


def _first_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    told = str(error).splitlines()
    return f"{type(error).__name__}: {told[0]}" if told else type(error).__name__


def checked(name: str, value: Any) -> Score:
    """A score of the given value; anything but a finite number, a boolean or None is a failure.

    Raises:
        GraderError: if the value is not one finite number.
    """
    if value is None:
        return Score(value=None, name=name)
    if not isinstance(value, SupportsFloat) or isinstance(value, str | bytes):
        raise GraderError(f"{name} returned {_shown(value)}; return a number, or None where it does not apply")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # an array or tensor of several numbers, a huge int
        raise GraderError(f"{name} returned {_shown(value)}; return one finite number") from None
    if not math.isfinite(number):
        raise GraderError(f"{name} returned {number}; return a finite number, or None where it does not apply")
    return Score(value=number, name=name)


def _shown(value: Any) -> str:
    return f"{repr(value)[:60]} ({type(value).__name__})"


def sample_of(record: Record) -> dict[str, Any]:
    """The record's output in the shape graders of the OpenAI dialect read.

    `output_json` is there only if the output is JSON; `output_tools` are the tool calls of an output that is an
    assistant message, or a list of messages that ends with one, or that are written in a text where tools were offered.
    """
    message = _with_calls(_assistant_message(record.output), record.inputs)
    text, tools = message["content"] or "", message.get("tool_calls", [])
    finish = "length" if record.finish == "length" else "tool_calls" if tools else "stop"
    sample: dict[str, Any] = {
        "output_text": text,
        "output_tools": tools,
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
    }
    with suppress(ValueError, RecursionError):
        sample["output_json"] = json.loads(text, parse_constant=_refuse)
    return sample


def _with_calls(message: dict[str, Any], inputs: Any) -> dict[str, Any]:
    """The message with the calls that its text writes taken out of it, where tools were offered."""
    names = names_of(inputs.get("tools")) if isinstance(inputs, Mapping) else ()
    text, calls = calls_in(message["content"] or "", names) if names and "tool_calls" not in message else ("", [])
    if not calls:
        return message
    return {**message, "content": text or None, "tool_calls": [_call(*call) for call in enumerate(calls)]}


def _assistant_message(output: Any) -> dict[str, Any]:
    """The output as a message of the chat completions API."""
    last = output[-1] if isinstance(output, list) and output else output
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        return {"role": "assistant", "content": text_of(output)}
    content = last.get("content")
    if isinstance(content, list):  # parts
        content = "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
    calls = last.get("tool_calls") or [{"function": call} for call in [last.get("function_call")] if call]
    message = {"role": "assistant", "content": content if content is None else text_of(content)}
    return {**message, "tool_calls": [_call(*call) for call in enumerate(calls)]} if calls else message


def _call(number: int, call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as JSON text, as the API has them; chat templates take them as objects."""
    function = call.get("function", call)
    told = {"name": function.get("name"), "arguments": text_of(function.get("arguments", {}))}
    return {"id": call.get("id") or f"call_{number}", "type": "function", "function": told}


def text_of(output: Any) -> str:
    """A string as it is, anything else as JSON.

    Raises:
        GraderError: if it cannot be written as JSON.
    """
    try:
        return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        kind = type(output).__name__
        raise GraderError(f"a value of type {kind} cannot be written as text: {error}; use JSON values") from None


def output_messages(output: Any) -> list[dict[str, Any]]:
    """What an output adds to its conversation: its own messages where it has roles, else one of the assistant's."""
    messages = output if isinstance(output, list) and output else [output]
    if all(isinstance(message, Mapping) and "role" in message for message in messages):
        return [dict(message) for message in messages]
    return [{"role": "assistant", "content": text_of(output)}]


def nearest(word: Any, words: Iterable[str]) -> str:
    """A suggestion, or nothing where no word is near."""
    near = difflib.get_close_matches(str(word), list(words), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


@dataclass
class FailureLimit:
    """Counts a grader's calls and failures, and stops the run when too many fail.

    The run stops when failures exceed `share` of the calls by more than `allowance`, or when nothing but failures
    came back from half of `minimum` calls. The allowance is why bad luck does not stop a run: at a true rate of 10 %
    the failures ever exceed 20 % of the calls by 10 with a probability under 1e-6 (Lundberg's bound,
    exp(-1.5 × 10)). It also stops when the first `silent` steps brought not one number.
    """

    name: str
    share: float = 0.2
    minimum: int = 16  # calls before the share is looked at
    allowance: float = 10.0  # failures
    silent: int = 3  # steps
    steps: int = 0
    calls: int = 0
    numbers: int = 0
    failures: int = 0
    first_error: str = ""
    first_traceback: str = ""

    def add(self, scores: Sequence[Score]) -> None:
        """Count the scores of one step.

        Raises:
            GraderError: with the grader's name, both counts and the first traceback, if too many calls failed; or if it
                gave no number at all.
        """
        self.steps += 1
        for score in scores:
            self.calls += 1
            self.numbers += score.value is not None
            if score.error:
                self.failures += 1
                if self.failures == 1:
                    self.first_error, self.first_traceback = score.error, score.traceback
        if self.exceeded:
            trace = f"\n{self.first_traceback.rstrip()}" if self.first_traceback else ""
            raise GraderError(
                f"grader {self.name} failed on {self.failures} of {self.calls} calls (limit {self.share:.0%}), "
                f"put it right and resume; the first failure was: {self.first_error}{trace}"
            )
        if self.steps >= self.silent and not self.numbers:
            raise GraderError(
                f"grader {self.name} gave no number for any of {self.calls} outputs (None: it does not apply); "
                "check what it looks for in the item"
            )

    @property
    def exceeded(self) -> bool:
        """Whether the failures so far are too many."""
        none_succeeded = self.failures == self.calls >= self.minimum / 2
        too_many = self.calls >= self.minimum and self.failures > self.share * self.calls + self.allowance
        return none_succeeded or too_many
