"""rewards over HTTP: outputs are posted in batches to a server that answers with numbers

    {"type": "http", "url": "http://127.0.0.1:8000/score", "headers_env": {"Authorization": "REWARD_AUTHORIZATION"}}

The event and the answer are those of `exchange.py`. What a server does wrong costs the outputs it did it to: they are
left out and counted, never scored 0.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

from melior.errors import ConfigError, GraderError, OutboundError
from melior.outbound import Limits, Outbound, Rules, operator_rules
from melior.outbound.addresses import parse_url
from melior.rewards.base import failed
from melior.rewards.exchange import FORM, UNANSWERED, Form, parse_answer, read_form, scores_of
from melior.types import Record, Score

BATCH = 16  # outputs of one request: two groups of eight, a few kilobytes
CONCURRENCY = 4  # requests at once
RESERVED = ("host", "content-type", "content-length", "transfer-encoding", "accept-encoding", "connection")


@dataclass(frozen=True)
class Endpoint:
    """What a server says of outputs, asked for in batches from the caller's process."""

    name: str
    spec: Mapping[str, Any]
    url: str
    form: Form = field(default_factory=Form)
    headers_env: Mapping[str, str] = field(default_factory=dict)  # header → environment variable with its value
    limits: Limits = field(default_factory=Limits)
    batch_size: int = BATCH
    concurrency: int = CONCURRENCY
    rules: Rules | None = None  # None: the operator's, who wrote the URL

    @cached_property
    def client(self) -> Outbound:
        """The connections, kept from step to step."""
        return Outbound(replace(self.limits, connections=self.concurrency), rules=self.rules or operator_rules())

    def load(self) -> None:
        """Look up the headers' values and the addresses permitted; nothing is sent.

        Raises:
            GraderError: if a variable is not set, or cannot be used.
        """
        self._headers()
        try:
            self.client  # noqa: B018  (made by one thread, before several use it)
        except ConfigError as error:
            raise GraderError(str(error)) from None

    def grade(self, record: Record) -> Score:
        """The score of one output."""
        return self.grade_many([record])[0]

    def grade_many(self, records: Sequence[Record]) -> list[Score]:
        """One score per record, in order; a batch that is not answered fails whole, a record without answer alone."""
        self.load()
        headers = self._headers()
        sizes = self.batch_size, self.concurrency
        return in_batches(self.name, self.form, records, *sizes, lambda part: self._ask(part, headers))

    def _ask(self, records: Sequence[Record], headers: Mapping[str, str]) -> list[Score]:
        try:
            events = self.form.events(records)
            answer = self.client.post(self.url, json.dumps(events, allow_nan=False).encode(), headers)
            return scores_of(self.name, events, parse_answer(self.name, answer))
        except (OutboundError, ConfigError) as error:
            return [failed(self.name, str(error), kind=UNANSWERED)] * len(records)
        except GraderError as error:
            return [failed(self.name, str(error), kind=error.kind)] * len(records)

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for header, variable in self.headers_env.items():
            value = os.environ.get(variable, "")
            if not value.isprintable() or not value.isascii() or not value:
                raise GraderError(
                    f"grader {self.name} sends {header} from the environment variable {variable}, which is "
                    f"{'not printable ASCII' if value else 'not set'}; export it"
                )
            headers[header] = value
        return headers


def in_batches(
    name: str,
    form: Form,
    records: Sequence[Record],
    size: int,
    concurrency: int,
    ask: Callable[[Sequence[Record]], list[Score]],
) -> list[Score]:
    """The scores of all records, asked for in batches of `size`, `concurrency` at once, in order.

    A record that cannot be written into an event fails alone, and is not asked for.
    """
    faults = {index: fault for index, record in enumerate(records) if (fault := form.fault(record))}
    sent = [record for index, record in enumerate(records) if index not in faults]
    parts = [sent[start : start + size] for start in range(0, len(sent), size)]
    with ThreadPoolExecutor(max(1, min(concurrency, len(parts))), thread_name_prefix="reward") as threads:
        scores = chain.from_iterable(threads.map(ask, parts))
        return [
            failed(name, f"{name} cannot be sent this record: {faults[index]}") if index in faults else next(scores)
            for index in range(len(records))
        ]


def http_grader(spec: Mapping[str, Any], name: str | None, *, rules: Rules | None = None) -> Endpoint:
    """The grader that an `http` setting describes; `rules` where somebody else than the operator wrote it.

    Raises:
        GraderError: if a value cannot be used.
    """
    url = spec["url"]
    if rules is not None and spec.get("headers_env"):
        raise GraderError("headers_env reads this machine's environment, so only its operator's graders may have it")
    if not isinstance(url, str):
        raise GraderError(f"grader http needs a string as 'url', got {url!r}")
    try:
        parse_url(url)
    except ConfigError as error:
        raise GraderError(f"grader http: {error}") from None
    limits, defaults = {}, Limits()
    for key in LIMITS:
        limits[key] = positive(spec, key, getattr(defaults, key), whole=key != "timeout_s")
    named = name or "http"
    return Endpoint(
        named,
        {**spec, "name": named},
        url,
        read_form(spec, "http"),
        _headers_env(spec),
        Limits(**limits),
        int(positive(spec, "batch_size", BATCH, whole=True)),
        int(positive(spec, "concurrency", CONCURRENCY, whole=True)),
        rules,
    )


LIMITS = ("timeout_s", "attempts", "max_bytes")
HTTP_KEYS = ("headers_env", "batch_size", "concurrency", *LIMITS, *FORM)  # keys of the setting, beside the URL


def positive(spec: Mapping[str, Any], key: str, default: float, *, whole: bool) -> Any:
    """The positive number under a key.

    Raises:
        GraderError: if there is something else.
    """
    value = spec.get(key, default)
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise GraderError(f"grader needs a positive {'whole ' * whole}number as {key!r}, got {value!r:.60}")
    return value


def _headers_env(spec: Mapping[str, Any]) -> Mapping[str, str]:
    given = spec.get("headers_env", {})
    if not isinstance(given, Mapping):
        raise GraderError("grader http needs a mapping of header to environment variable as 'headers_env'")
    for header, variable in given.items():
        if not isinstance(header, str) or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", header):  # RFC 9110 §5.6.2
            raise GraderError(f"grader http cannot send a header {header!r:.40}; use letters, digits and dashes")
        if header.lower() in RESERVED:
            raise GraderError(f"grader http writes the header {header} itself; leave it out of headers_env")
        if not isinstance(variable, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
            raise GraderError(f"header {header} of grader http needs an environment variable's name, not its value")
    return dict(given)
