"""AWS Lambda reward functions, as they are: a Python file, a module, a URL or a deployed function

    {"type": "lambda", "lambda": {"function": "reward.py"}}
    {"type": "lambda", "function": "rewards.maths:lambda_handler"}
    {"type": "lambda", "function": "https://abc.lambda-url.eu-west-1.on.aws/"}
    {"type": "lambda", "function": "arn:aws:lambda:eu-west-1:123456789012:function:reward"}

A file or module is imported in a grader's worker process and called with an event of one, under the worker's time
limit. A URL is asked as any reward server is. A deployed function is invoked through boto3, with the credentials that
boto3 finds, in batches.
"""

from __future__ import annotations

import inspect
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from melior.errors import GraderError
from melior.rewards.base import Grader, failed
from melior.rewards.endpoints import BATCH, CONCURRENCY, HTTP_KEYS, http_grader, in_batches, positive
from melior.rewards.exchange import FORM, UNANSWERED, Form, parse_answer, read_form, scores_of
from melior.rewards.functions import find_function, load_file
from melior.types import Record, Score

HANDLER = "lambda_handler"  # AWS's usual name
# Source: docs.aws.amazon.com/lambda/latest/api, FunctionName: a full or a partial ARN, with or without a qualifier.
ARN = re.compile(r"arn:aws[a-z-]*:lambda:(?P<region>[a-z0-9-]+):\d{12}:function:[\w-]+(:(\$LATEST|[\w-]+))?")
MEMORY_MB = 128  # what Lambda gives where nothing is set
TIMEOUT_S = 10.0  # what a worker gives a call where nothing is set
INVOKE_S = 60.0  # AWS's advice for reward functions that call others; Lambda itself allows 900


@dataclass(frozen=True)
class Context:
    """What Lambda passes to a handler beside the event."""

    function_name: str
    timeout_s: float = TIMEOUT_S
    function_version: str = "$LATEST"
    memory_limit_in_mb: int = MEMORY_MB
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    identity: None = None
    client_context: None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def invoked_function_arn(self) -> str:
        """An ARN of no account, for handlers that log it."""
        return f"arn:aws:lambda:local:000000000000:function:{self.function_name}"

    @property
    def log_group_name(self) -> str:
        """Where Lambda would log."""
        return f"/aws/lambda/{self.function_name}"

    @property
    def log_stream_name(self) -> str:
        """One stream per call."""
        return f"[{self.function_version}]{self.aws_request_id}"

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the call is given up."""
        return max(0, int(1000 * (self.started + self.timeout_s - time.monotonic())))


@dataclass(frozen=True)
class Handler:
    """A handler out of a Python file or module; runs in a worker process."""

    name: str
    spec: Mapping[str, Any]
    reference: str
    form: Form
    timeout_s: float
    _loaded: list[Callable[[Any, Any], Any]] = field(default_factory=list, repr=False, compare=False)

    def load(self) -> None:
        """Import the handler.

        Raises:
            GraderError: if there is none, or it cannot be told which.
        """
        if not self._loaded:
            self._loaded.append(find_handler(self.reference))

    def grade(self, record: Record) -> Score:
        """The score in the handler's answer to an event of one."""
        self.load()
        events = self.form.events([record])
        context = Context(self.name, self.timeout_s)
        # through JSON, as in Lambda: a handler that changes its event, or answers with objects, meets the same rules
        answer = self._loaded[0](json.loads(json.dumps(events)), context)
        try:
            answer = json.loads(json.dumps(answer))
        except (TypeError, ValueError, RecursionError) as error:
            raise GraderError(f"{self.name} answered what is not JSON ({error!s:.80})") from None
        return scores_of(self.name, events, answer)[0]


@dataclass(frozen=True)
class Deployed:
    """A function in AWS Lambda, invoked in batches from the caller's process."""

    name: str
    spec: Mapping[str, Any]
    arn: str
    form: Form
    timeout_s: float = INVOKE_S
    batch_size: int = BATCH
    concurrency: int = CONCURRENCY

    @cached_property
    def client(self) -> Any:
        """boto3's client of the function's region; it retries and backs off by itself."""
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError:
            raise GraderError("a function in AWS needs boto3; pip install 'melior[aws]'") from None
        region = ARN.fullmatch(self.arn)
        assert region is not None  # lambda_grader looked
        config = Config(
            connect_timeout=5,
            read_timeout=self.timeout_s,
            max_pool_connections=self.concurrency,
            retries={"total_max_attempts": 4, "mode": "standard"},
        )
        try:
            return boto3.client("lambda", region_name=region["region"], config=config)
        except BotoCoreError as error:  # a profile that is not there
            raise GraderError(f"grader {self.name} cannot ask AWS: {error}") from None

    def load(self) -> None:
        """Make the client; nothing is sent.

        Raises:
            GraderError: if boto3 is not installed, or cannot be set up.
        """
        self.client  # noqa: B018  (made by one thread, before several use it)

    def grade(self, record: Record) -> Score:
        """The score of one output."""
        return self.grade_many([record])[0]

    def grade_many(self, records: Sequence[Record]) -> list[Score]:
        """One score per record, in order; an invocation that fails costs its batch."""
        self.load()
        return in_batches(self.name, self.form, records, self.batch_size, self.concurrency, self._invoke)

    def _invoke(self, records: Sequence[Record]) -> list[Score]:
        from botocore.exceptions import BotoCoreError, ClientError

        events = self.form.events(records)
        try:
            answer = self.client.invoke(
                FunctionName=self.arn, InvocationType="RequestResponse", Payload=json.dumps(events).encode()
            )
            payload = parse_answer(self.name, answer["Payload"].read())
            if answer.get("FunctionError") and not (isinstance(payload, Mapping) and "errorMessage" in payload):
                raise GraderError(f"{self.name} failed in AWS ({answer['FunctionError']})", UNANSWERED)
            return scores_of(self.name, events, payload)
        except GraderError as error:
            told, kind = str(error), error.kind
        except (BotoCoreError, ClientError) as error:
            told, kind = f"{self.name} cannot be invoked: {error!s:.300}", UNANSWERED
        return [failed(self.name, told, kind=kind)] * len(records)


def find_handler(reference: str) -> Callable[[Any, Any], Any]:
    """The handler that `file.py`, `file.py:name` or `module:name` names.

    A file alone means its `lambda_handler`, or else its only function of two parameters.

    Raises:
        GraderError: if there is no such function, or more than one may be meant.
    """
    if not reference.endswith(".py"):
        return find_function(reference)
    module = load_file(Path(reference))
    if callable(found := getattr(module, HANDLER, None)):
        return found
    candidates = [function for function in _functions(module) if _takes_two(function)]
    if len(candidates) != 1:
        named = ", ".join(function.__name__ for function in candidates) or "none"
        raise GraderError(
            f"{reference} has no {HANDLER}, and of its functions of (event, context) there are {len(candidates)} "
            f"({named}); write {Path(reference).name}:name"
        )
    return candidates[0]


def _functions(module: ModuleType) -> list[Callable[..., Any]]:
    """The public functions that a module defines itself."""
    own = [value for name, value in vars(module).items() if not name.startswith("_") and inspect.isfunction(value)]
    return [function for function in own if function.__module__ == module.__name__]


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether a function can be a handler: two parameters, the first named event or the second context."""
    names = list(inspect.signature(function).parameters)
    return len(names) == 2 and (names[0].lstrip("_") == "event" or names[1].lstrip("_") == "context")


def lambda_grader(spec: Mapping[str, Any], name: str | None) -> Grader:
    """The grader that a `lambda` setting describes.

    Raises:
        GraderError: if the function is missing or spelled in no known way, or a value cannot be used.
    """
    function = _function_of(spec)
    rest = {key: value for key, value in spec.items() if key not in ("type", "name", "lambda", "function")}
    if "://" in function:
        return http_grader({**rest, "type": "http", "url": function}, name or "lambda")
    if function.startswith("arn:"):
        return _deployed(function, rest, name)
    return _handler(function, rest, name)


def _deployed(function: str, rest: Mapping[str, Any], name: str | None) -> Deployed:
    if not ARN.fullmatch(function):
        raise GraderError(f"{function!r} is no function's ARN; write arn:aws:lambda:REGION:ACCOUNT:function:NAME")
    _refuse_others(rest, ("timeout_s", "batch_size", "concurrency", *FORM), "a function in AWS")
    named = name or function.partition(":function:")[2].partition(":")[0]
    return Deployed(
        named,
        {"type": "lambda", "name": named, "lambda": {"function": function}, **rest},
        function,
        read_form(rest, "lambda"),
        positive(rest, "timeout_s", INVOKE_S, whole=False),
        positive(rest, "batch_size", BATCH, whole=True),
        positive(rest, "concurrency", CONCURRENCY, whole=True),
    )


def _handler(function: str, rest: Mapping[str, Any], name: str | None) -> Handler:
    _refuse_others(rest, ("timeout_s", *FORM), "a Python file or module")
    where, _, attribute = function.rpartition(":")
    if function.endswith(".py"):
        reference, named = str(Path(function).absolute()), Path(function).stem
    elif attribute.isidentifier() and where.endswith(".py"):
        reference, named = f"{Path(where).absolute()}:{attribute}", attribute
    elif where and all(part.isidentifier() for part in [*where.split("."), attribute]):
        reference, named = function, attribute
    else:
        raise GraderError(f"lambda function {function!r} is no .py file, file.py:name, module:name, URL or ARN")
    told = {"type": "lambda", "name": name or named, "lambda": {"function": reference}, **rest}
    timeout_s = positive(rest, "timeout_s", TIMEOUT_S, whole=False)
    return Handler(name or named, told, reference, read_form(rest, "lambda"), timeout_s)


def _refuse_others(rest: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for key in rest:
        if key not in known:
            raise GraderError(f"grader lambda has no use for {key!r} with {what}; leave it out")


def _function_of(spec: Mapping[str, Any]) -> str:
    """The function named under lambda.function, as Bedrock writes it, or under function."""
    inner = spec.get("lambda", {})
    if not isinstance(inner, Mapping) or set(inner) - {"function"} or ("function" in inner) == ("function" in spec):
        raise GraderError(
            'grader lambda names one function, as {"type": "lambda", "lambda": {"function": "reward.py"}}'
        )
    function = inner.get("function", spec.get("function"))
    if not isinstance(function, str) or not function:
        raise GraderError(f"the function of grader lambda is a string, got {function!r:.60}")
    return function


KEYS = ("lambda", "function", *HTTP_KEYS)  # of the setting; which of them make sense hangs on the function
