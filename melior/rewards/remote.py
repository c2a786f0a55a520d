"""judges behind an OpenAI-compatible endpoint, asked through /v1/chat/completions

    {"endpoint": "https://judges.example/v1", "model": "judge-large", "key_env": "JUDGE_KEY"}

Answers are asked for as a JSON schema, as JSON, or in words alone: the most that the endpoint takes, found once. What
comes back is read strictly. One JSON object with one plain result is a verdict; words, numbers in quotes, two results
that differ and answers that were cut are errors, which are counted and never become a score.

Only whoever runs melior names endpoints: a key goes there, and outputs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from melior.errors import ConfigError, GraderError, OutboundError
from melior.outbound import Limits, Outbound
from melior.outbound.addresses import parse_url
from melior.rewards.asking import (
    LABEL_IN_JSON,
    PARSE,
    REFUSAL,
    SERVER,
    Judge,
    Messages,
    Said,
    Scale,
    Written,
    number_of,
)
from melior.rewards.base import nearest

KEYS = ("endpoint", "model", "key_env", "timeout_s", "attempts", "max_bytes", "concurrency", "max_tokens", "remember_s")
PATIENCE_S = 60.0  # for one attempt: a model that reasons takes its time
LONGEST_ANSWER = 512  # tokens of a label with its reasons, where nobody says otherwise
LARGEST = 1 << 20  # bytes of an answer; a thousand times a verdict
CONCURRENCY = 4  # asks at once
KEPT = 4_096  # answers remembered: a run's repeated outputs, at a few hundred bytes each
REMEMBER_S = 600.0  # and for how long: the model behind a name may change, and canaries shall see it
FORMS = ("json_schema", "json_object", "text")  # the most binding first
REJECTED = (400, 422, 501)  # statuses by which servers say that they do not know a setting

STEPS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"description": {"type": "string"}, "conclusion": {"type": "string"}},
        "required": ["description", "conclusion"],
        "additionalProperties": False,
    },
}

Read = Callable[[Any, str, bool], Said]  # of a result as JSON (None: there is none), the text, whether it is whole


@dataclass(frozen=True)
class _Ask:
    """One question, as far as its answer hangs on it."""

    talk: Messages
    result: Mapping[str, Any]  # the schema of what is wanted
    settings: Mapping[str, Any]
    tokens: int

    @property
    def digest(self) -> str:
        told = json.dumps([list(self.talk), self.result, self.settings, self.tokens], sort_keys=True)
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()

    def body(self, model: str, form: int, counted: str) -> bytes:
        """The request: `form` says how the answer's shape is asked for, `counted` how its length is."""
        told = {"model": model, "messages": list(self.talk), counted: self.tokens, **self.settings}
        return json.dumps({**told, **_format(form, self.result)}).encode()


@dataclass(frozen=True, kw_only=True)
class RemoteModel:
    """A model of somebody's server, and what asking it may cost."""

    endpoint: str  # the base_url that an OpenAI client would have
    model: str
    key_env: str = ""  # environment variable that holds the key; empty: none is sent
    timeout_s: float = PATIENCE_S
    attempts: int = Limits.attempts
    max_bytes: int = LARGEST
    concurrency: int = CONCURRENCY
    max_tokens: int = LONGEST_ANSWER  # of a label's answer; scores have sampling_params
    remember_s: float = REMEMBER_S  # 0: equal asks are sent again
    label_ending: str = LABEL_IN_JSON

    @property
    def name(self) -> str:
        """The model as its server calls it."""
        return self.model

    def open(self, grader: str) -> Judge:
        """The judge, with its connections and the answers it remembers.

        Raises:
            GraderError: if its key is not set, or the addresses permitted cannot be read.
        """
        try:
            judge = _opened(self)
            judge.headers()
        except ConfigError as error:
            raise GraderError(f"grader {grader} asks {self.model!r}: {error}", SERVER) from None
        return judge


class RemoteJudge:
    """An endpoint's model as a judge; any number of threads may ask it."""

    def __init__(self, model: RemoteModel) -> None:
        limits = Limits(
            timeout_s=model.timeout_s,
            attempts=model.attempts,
            max_bytes=model.max_bytes,
            connections=model.concurrency,
        )
        self.model, self.client = model, Outbound(limits)
        self.url = model.endpoint.rstrip("/") + "/chat/completions"
        self.form = 0  # of FORMS: what the endpoint was found to take
        self.counted = "max_completion_tokens"  # or max_tokens, where the endpoint knows only that
        self._known: OrderedDict[str, tuple[float, Said]] = OrderedDict()  # the oldest first, with when it was said
        self._lock = threading.Lock()

    def score(self, conversations: Sequence[Messages], scale: Scale) -> list[Said]:
        """A number for each conversation."""
        how = scale.sampling
        settings: dict[str, Any] = {"temperature": how.temperature, "top_p": how.top_p, "seed": how.seed}
        settings |= {"reasoning_effort": scale.effort} if scale.effort else {}
        asks = [_Ask(talk, {"type": "number"}, settings, how.max_tokens) for talk in conversations]
        return self._answers(asks, _number)

    def choose(self, conversations: Sequence[Messages], labels: Sequence[str]) -> list[Said]:
        """One of the labels for each conversation."""
        settings = {"temperature": 0.0, "seed": 0}
        result = {"type": "string", "enum": list(labels)}
        asks = [_Ask(talk, result, settings, self.model.max_tokens) for talk in conversations]
        return self._answers(asks, lambda found, text, whole: _label(found, text, whole, labels))

    def headers(self) -> dict[str, str]:
        """The key, as the endpoint wants it.

        Raises:
            ConfigError: if it is not set, or no header can hold it.
        """
        if not self.model.key_env:
            return {}
        key = os.environ.get(self.model.key_env, "")
        if not key or not key.isascii() or not key.isprintable():
            told = "is not printable ASCII" if key else "is not set"
            raise ConfigError(f"its key's environment variable {self.model.key_env} {told}; export it")
        return {"Authorization": f"Bearer {key}"}

    def _answers(self, asks: Sequence[_Ask], read: Read) -> list[Said]:
        """A verdict for each, `concurrency` at once; equal ones are asked once, and paid for once."""
        keys = [ask.digest for ask in asks]
        distinct = dict(zip(keys, asks, strict=True))
        with ThreadPoolExecutor(max(1, min(self.model.concurrency, len(distinct))), "judge") as threads:
            told = list(threads.map(lambda key: self._answer(key, distinct[key], read), distinct))
        found = dict(zip(distinct, told, strict=True))
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        return [found[key] if first[key] == place else replace(found[key], usage={}) for place, key in enumerate(keys)]

    def _answer(self, key: str, ask: _Ask, read: Read) -> Said:
        """The verdict, remembered where it was given before; what failed is asked anew the next time."""
        with self._lock:
            at, known = self._known.get(key, (0.0, None))
            if known is not None and time.monotonic() - at < self.model.remember_s:
                return replace(known, usage={})  # nothing is spent
        try:
            said = self._said(self._sent(ask), read)
        except (OutboundError, ConfigError) as error:
            return Said(error=str(error), kind=SERVER)
        if not said.error:
            with self._lock:
                self._known[key] = time.monotonic(), said
                self._known.move_to_end(key)
                while len(self._known) > KEPT:
                    self._known.popitem(last=False)
        return said

    def _sent(self, ask: _Ask) -> bytes:
        """The answer's bytes; what the endpoint does not know of the dialect is left out from then on.

        Raises:
            OutboundError: if there is no answer.
        """
        form, counted = self.form, self.counted
        while True:
            try:
                answer = self.client.post(self.url, ask.body(self.model.model, form, counted), self.headers())
            except OutboundError as error:
                if error.status not in REJECTED:
                    raise
                if counted in str(error) and counted != "max_tokens":
                    counted = "max_tokens"
                elif re.search(r"response_format|json|schema", str(error), re.IGNORECASE) and form + 1 < len(FORMS):
                    form += 1
                else:
                    raise
                continue
            with self._lock:
                self.form, self.counted = max(form, self.form), counted
            return answer

    def _said(self, answer: bytes, read: Read) -> Said:
        """The verdict in an answer of the dialect."""
        try:
            told = json.loads(answer)
            choice = told["choices"][0]
            message = choice["message"]
            text = message.get("content") or ""
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            kind = type(error).__name__
            return Said(error=f"the endpoint's answer is no chat completion ({kind}: {error!s:.60})", kind=SERVER)
        usage = _usage(told.get("usage"))
        finish = choice.get("finish_reason")
        if message.get("refusal") or finish == "content_filter":
            why = str(message.get("refusal") or "its filter held the answer back")
            return Said(error=f"the judge refused: {why:.200}", kind=REFUSAL, usage=usage)
        if not isinstance(text, str):
            return Said(error=f"the judge's answer is no text but {type(text).__name__}", kind=PARSE, usage=usage)
        try:
            found = result_of(text)
        except GraderError as error:
            return Said(error=str(error), kind=PARSE, usage=usage)
        said = read(found.get("result"), text.strip(), finish != "length")
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        return replace(said, reason=_reason(found) or str(thought), usage=usage)


def result_of(text: str) -> Mapping[str, Any]:
    """The one JSON object with a result in an answer, or an empty one where there is none.

    An answer may think aloud before it, and fence it in: what counts is that there is one result to be read.

    Raises:
        GraderError: if there are several that differ, or a key stands in one of them twice.
    """
    text = re.sub(r"^\s*<think>.*?</think>", "", text, flags=re.DOTALL)
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_not_json)
    found: list[Mapping[str, Any]] = []
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except RecursionError:
            raise GraderError("the judge's answer is nested too deeply to be read") from None
        except ValueError:
            at = text.find("{", at + 1)
            continue
        if "result" in value:
            found.append(value)
        at = text.find("{", end)
    if any(each["result"] != found[0]["result"] for each in found):
        raise GraderError(f"the judge's answer has {len(found)} results that differ; one was asked for")
    return found[-1] if found else {}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise GraderError("the judge's answer has a key twice, so nobody can say which is meant")
    return made


def _not_json(constant: str) -> Any:
    raise GraderError(f"the judge's answer holds {constant}, which is no number")


def _number(result: Any, text: str, whole: bool) -> Said:
    """A score: JSON's own number, or a text that is a number and nothing else."""
    if isinstance(result, int | float) and not isinstance(result, bool) and abs(result) < float("inf"):
        return Said(value=float(result))
    if result is None and "{" not in text and (value := number_of(Written(text=text, complete=whole))) is not None:
        return Said(value=value)
    return Said(error=f"the judge's result is not a number but {_shown(result, text, whole)}", kind=PARSE)


def _label(result: Any, text: str, whole: bool, labels: Sequence[str]) -> Said:
    """A label: as the result, or as all of the text, whatever its case where that is unambiguous."""
    given = text.strip("\"'`*. \n") if result is None else result
    near = [label for label in labels if isinstance(given, str) and label.casefold() == given.strip().casefold()]
    exact = [label for label in near if label == given]
    if len(exact or near) == 1:
        return Said(label=(exact or near)[0])
    told = f"the judge's result is none of {', '.join(labels)} but {_shown(result, text, whole)}"
    return Said(error=told, kind=PARSE)


def _shown(result: Any, text: str, whole: bool) -> str:
    told = repr(text if result is None else result)[:60]
    return told if whole else f"{told}, cut by its limit of tokens; raise max_completions_tokens, or max_tokens"


def _reason(found: Mapping[str, Any]) -> str:
    """The steps of an answer, in a line."""
    steps = found.get("steps")
    rows = [step for step in steps if isinstance(step, Mapping)] if isinstance(steps, list) else []
    return " ".join(str(row[key]) for row in rows for key in ("description", "conclusion") if row.get(key))


def _usage(told: Any) -> dict[str, int]:
    """Token counts, where the endpoint tells them."""
    counts = told if isinstance(told, Mapping) else {}
    return {
        name: counts[name]
        for name in ("prompt_tokens", "completion_tokens")
        if isinstance(counts.get(name), int) and counts[name] >= 0
    }


def _format(form: int, result: Any) -> dict[str, Any]:
    if FORMS[form] == "text":
        return {}
    if FORMS[form] == "json_object":
        return {"response_format": {"type": "json_object"}}
    properties = {"steps": STEPS, "result": result}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}
    }


@lru_cache(maxsize=16)
def _opened(model: RemoteModel) -> RemoteJudge:
    return RemoteJudge(model)


def remote_model(spec: Mapping[str, Any], kind: str) -> RemoteModel:
    """The model that a setting describes.

    Raises:
        GraderError: if a key is unknown, naming the nearest; or a value cannot be used.
    """
    for key in spec:
        if key not in KEYS:
            near = nearest(key, KEYS) or f"; its keys are {', '.join(KEYS)}"
            raise GraderError(f"the model of {kind} has no key {key!r}{near}")
    for key in ("endpoint", "model"):
        if not isinstance(spec.get(key), str) or not spec[key]:
            raise GraderError(f"{kind} asks an endpoint's model by two texts, endpoint and model; {key} is missing")
    variable = spec.get("key_env") or ""
    if not isinstance(variable, str) or (variable and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable)):
        raise GraderError(f"key_env of {kind} is the name of an environment variable, never the key itself")
    try:
        if "?" in spec["endpoint"] or parse_url(spec["endpoint"]).path == "/chat/completions":
            raise GraderError(f"endpoint of {kind} is the base_url of its server, such as https://host/v1")
    except ConfigError as error:
        raise GraderError(f"endpoint of {kind}: {error}") from None
    numbers: dict[str, Any] = {}
    for key in ("timeout_s", "attempts", "max_bytes", "concurrency", "max_tokens", "remember_s"):
        value = spec.get(key, getattr(RemoteModel, key))
        whole, least = not key.endswith("_s"), 0 if key == "remember_s" else 1e-3
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not least <= value < 1e12:
            raise GraderError(f"{key} of {kind} is a positive {'whole ' * whole}number, got {value!r:.40}")
        numbers[key] = value
    return RemoteModel(endpoint=spec["endpoint"], model=spec["model"], key_env=variable, **numbers)
