"""the nouns every floor shares; read this first

A `Demonstration`, `Preference`, `Rated` or `Task` is what a team brings. A `Record` is what a policy decided,
with the exact decision ids and log-probs when the policy itself produced it. A `Score` is what one grader said.

`inputs` is whatever the policy reads: for language a string (one user message, or plain text where the policy has
no chat template), a list of messages `{"role": ..., "content": ...}`, or `{"messages": [...], "tools": [...]}` where
tools may be called; None is no prompt at all, so that the output is a text from its first word. `output` is what it
decided: for language a string, the assistant's answer, or the assistant's message where it calls tools.

| policy     | inputs                                                       | output                        |
| ---------- | ------------------------------------------------------------ | ----------------------------- |
| language   | text, messages, messages and tools, None                      | text, or a message            |
| classifier | a table's row (column → number, text, None), an `Image`, text | a label, or a tuple of labels |
| slate      | a `SlateRequest`                                              | item ids, first place first   |
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from melior.errors import ConfigError, DataError

COLDEST, HOTTEST = 1e-6, 1e6  # temperatures other than 0: what they divide stays a number

Finish = Literal["stop", "length", "cancelled", "given"]


@dataclass(frozen=True)
class Demonstration:
    """An input with an output worth imitating.

    For language, `inputs` may end before the assistant's turn (then `output` is that turn, or a list of messages that
    begins with it), or `output` may be None and `inputs` a whole conversation whose assistant messages are all
    decisions (those with `"weight": 0` are not).
    """

    inputs: Any
    output: Any = None
    weight: float = 1.0
    id: str = ""  # where the row came from, e.g. "train.jsonl:17"
    group: str = ""  # rows of one conversation or one user share it; splits never cut a group
    item: Mapping[str, Any] = field(default_factory=dict)  # every other column of the row


@dataclass(frozen=True)
class Preference:
    """Two outputs of one input, and how probable it is that people prefer the first."""

    inputs: Any
    chosen: Any
    rejected: Any
    probability: float = 1.0  # p(chosen > rejected); a tie is 0.5
    margin: float = 0.0  # by which the chosen reward should exceed the rejected one
    weight: float = 1.0
    id: str = ""
    group: str = ""
    item: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rated:
    """An output with a rating: a number, or a boolean as 0.0 or 1.0."""

    inputs: Any
    output: Any
    rating: float
    weight: float = 1.0
    id: str = ""
    group: str = ""
    item: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """An input without an output, and what a grader needs to judge one."""

    inputs: Any
    item: Mapping[str, Any] = field(default_factory=dict)  # reference answers and every other column, for the grader
    id: str = ""
    group: str = ""


@dataclass(frozen=True)
class Image:
    """A picture: a file, decoded when it is needed, or pixels [height, width, channels] as uint8, row by row."""

    path: str = ""
    pixels: bytes = b""
    shape: tuple[int, int, int] = (0, 0, 0)  # height, width, channels, where there are pixels
    sha256: str = ""  # of the file's bytes, or of the pixels

    def __post_init__(self) -> None:
        height, width, channels = self.shape
        if bool(self.path) == bool(self.pixels) or len(self.pixels) != height * width * channels:
            raise DataError(
                f"an image is a path, or {height * width * channels} bytes of pixels for its shape {self.shape}; got "
                f"path {self.path!r} and {len(self.pixels)} bytes"
            )
        if not self.sha256 and self.pixels:
            object.__setattr__(self, "sha256", hashlib.sha256(self.pixels).hexdigest())

    def __repr__(self) -> str:
        """Short, and different for different pictures."""
        size = "×".join(map(str, self.shape)) if self.pixels else self.path
        return f"Image({size}, sha256 {self.sha256[:16] or 'unknown'})"


@dataclass(frozen=True)
class Segment:
    """A stretch of an episode: what was observed and done at each of t steps, [t, D] as float32, step by step."""

    steps: bytes
    shape: tuple[int, int]  # t, D

    def __post_init__(self) -> None:
        t, width = self.shape
        if t < 1 or width < 1 or len(self.steps) != 4 * t * width:
            raise DataError(f"a segment of shape {self.shape} has {4 * t * width} bytes, got {len(self.steps)}")

    @property
    def sha256(self) -> str:
        """Of the steps."""
        return hashlib.sha256(self.steps).hexdigest()

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        """Short, and different for different segments."""
        return f"Segment({self.shape[0]}×{self.shape[1]}, sha256 {self.sha256[:16]})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:  # [t, D]
        import numpy as np

        return np.frombuffer(self.steps, dtype=np.float32).reshape(self.shape).astype(dtype or np.float32)


@dataclass(frozen=True)
class Item:
    """What a slate can show. Features are numbers, texts (categories) or None where unknown."""

    id: str
    features: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Interaction:
    """What a user did before: one entry of a history, the oldest first."""

    item: str  # id; it need not be in any catalogue any more
    type: str = "purchase"  # click, cart, purchase …
    age_s: float | None = None  # seconds before the request


@dataclass(frozen=True)
class SlateRequest:
    """What a slate is chosen for. Every part but the candidates may be missing."""

    context: Mapping[str, Any] = field(default_factory=dict)  # features of the user and the moment
    viewed: str = ""  # id of the item being looked at
    history: tuple[Interaction, ...] = ()
    candidates: tuple[str | Item, ...] | None = None  # ids of the catalogue, or items it lacks; None: the whole of it


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How outputs are sampled. `temperature=0` is greedy; `top_k=0` and `top_p=1` switch truncation off.

    Where there are `choices`, an output is one of them, with the probability that the model gives to the whole of it
    among them all; temperature and truncation then act on choices instead of tokens. Where there is a `constraint`,
    each token is drawn from those that some output of the grammar goes on with, renormalised. Biases and penalties are
    added to the logits before anything else: `logit_bias` of a token, minus `frequency_penalty` for every time it was
    decided before, minus `presence_penalty` if it was.
    """

    n: int = 1
    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    choices: tuple[str, ...] = ()  # empty: any text
    constraint: str = ""  # a grammar that outputs follow, as melior.policies.constraints writes it; empty: any text
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, and what is added to its logit
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name in ("stop", "choices"):
            self._listed(name)
        if self.n < 1 or self.max_tokens < 1:
            raise ConfigError(f"sampling needs n ≥ 1 and max_tokens ≥ 1, got n={self.n}, max_tokens={self.max_tokens}")
        if not (self.temperature == 0 or COLDEST <= self.temperature <= HOTTEST):  # beyond them logits overflow
            raise ConfigError(
                f"sampling needs a temperature of 0, or from {COLDEST:g} to {HOTTEST:g}, got {self.temperature}"
            )
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling needs top_k ≥ 0 and 0 < top_p ≤ 1, got {self.top_k} and {self.top_p}")
        if len(set(self.choices)) < len(self.choices):
            twice = next(choice for choice in self.choices if self.choices.count(choice) > 1)
            raise ConfigError(f"sampling.choices holds {twice!r} {self.choices.count(twice)} times; name each once")
        if self.choices and self.stop:
            raise ConfigError("sampling has choices, which end where they end, and stop strings; leave one of them out")
        object.__setattr__(self, "logit_bias", tuple((int(token), float(bias)) for token, bias in self.logit_bias))
        if self.choices and (self.constraint or self.biased):
            raise ConfigError(
                "sampling has choices, whose whole probability is drawn from, and a constraint, bias or penalty on "
                "tokens; leave the choices or the others out"
            )

    def _listed(self, name: str) -> None:
        """Makes a tuple of a list, as JSON and YAML have it."""
        given = getattr(self, name)
        if isinstance(given, str) or not all(isinstance(text, str) for text in given):
            raise ConfigError(f"sampling.{name} is a list of texts, got {given!r:.80}")
        object.__setattr__(self, name, tuple(given))

    @property
    def biased(self) -> bool:
        """Whether something is added to the logits."""
        return bool(self.logit_bias or self.frequency_penalty or self.presence_penalty)

    @property
    def truncated(self) -> bool:
        """Whether what is sampled differs from softmax(logits / temperature)."""
        cut = self.temperature == 0 or self.top_k > 0 or self.top_p < 1
        return cut or self.biased or bool(self.constraint)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One output of a policy. The ids and log-probs are those really sampled; nothing is ever re-tokenised."""

    inputs: Any
    output: Any
    item: Mapping[str, Any] = field(default_factory=dict)  # the task's item, for the grader
    group: str = ""  # which input: outputs of one input share it
    context: tuple[int, ...] | None = None  # ids the policy read before its first decision
    decisions: tuple[int, ...] | None = None  # ids it decided, the stop token included
    behavior_log_probs: tuple[float, ...] | None = None  # nats, one per decision, as sampled
    sampling: Sampling | None = None
    policy_version: str | None = None
    fingerprint: str | None = None  # of tokenizer and template
    finish: Finish = "given"  # "length": cut by max_tokens, so truncated


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a grader said of one output; `value` is None where it failed, and then `error` says why."""

    value: float | None
    name: str = ""
    reason: str = ""
    error: str = ""  # one line; empty when the call went well
    traceback: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)  # sub-scores of a combined grader
    decisions: tuple[float, ...] = ()  # what each decision earned, where that can be told apart; it adds up to `value`
    seconds: float = 0.0
    kind: str = ""  # what was amiss, by the flag of the OpenAI dialect's result, e.g. "python_grader_runtime_error"
    usage: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # judge model → prompt and completion tokens
