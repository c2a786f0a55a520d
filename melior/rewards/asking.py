"""what a judge model is asked, and what it says: the seam between graders and the models behind them

A judge is a model on this machine (`local.py`) or behind an OpenAI-compatible endpoint (`remote.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from melior.types import Sampling

Messages = Sequence[Mapping[str, str]]

REASONING = 128  # tokens of a judge's reasons, where nothing else is asked for: two or three sentences
NUMBER = 16  # tokens of the result: a sign and more digits than a score needs
PARSE, SERVER = "model_grader_parse_error", "model_grader_server_error"
REFUSAL = "model_grader_refusal_error"

SCORE = (
    'Answer with JSON alone: {{"steps": [{{"description": "what you looked at", "conclusion": "what follows"}}], '
    '"result": your score, a plain number from {low:g} to {high:g}}}'
)
LABEL = "Answer with exactly one of these labels, and nothing else: {labels}"
LABEL_IN_JSON = (
    'Answer with JSON alone: {{"steps": [{{"description": "what you looked at", "conclusion": "what follows"}}], '
    '"result": exactly one of these labels, as a string: {labels}}}'
)

_NUMBER = re.compile(r"\s*(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?P<rest>.*)", re.DOTALL)
_GOES_ON = re.compile(r'[\]}].*|,\s*(".*)?', re.DOTALL)  # what JSON allows after a number; not the ,5 of 0,5


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a model wrote; `error` says why it could not."""

    text: str = ""
    complete: bool = True  # False where the tokens ran out
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Said:
    """A judge's verdict on one output; `error` says why there is none."""

    value: float | None = None  # of a score, before it is held within its range
    label: str = ""  # of those allowed
    share: float | None = None  # the label's probability among them, where the judge can tell
    reason: str = ""
    error: str = ""
    kind: str = ""  # the dialect's flag of the error
    usage: Mapping[str, int] = field(default_factory=dict)  # tokens; none where the answer was known already


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What numbers are asked for, and how the judge writes."""

    low: float = 0.0
    high: float = 1.0
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=REASONING + NUMBER, temperature=0.0))
    effort: str = ""  # how long an endpoint's model should reason; local models have no such dial


class Judge(Protocol):
    """A model that is asked many things at once, and answers each or says why not."""

    def score(self, conversations: Sequence[Messages], scale: Scale) -> list[Said]:
        """A number for each conversation."""
        ...

    def choose(self, conversations: Sequence[Messages], labels: Sequence[str]) -> list[Said]:
        """One of the labels for each conversation."""
        ...


class Model(Protocol):
    """Which model a grader asks."""

    @property
    def name(self) -> str:
        """What token counts are kept under."""
        ...

    @property
    def label_ending(self) -> str:
        """How a label is asked for, with {labels} in it."""
        ...

    def open(self, grader: str) -> Judge:
        """The judge, ready to be asked; GraderError, with the grader's name, where there is none."""
        ...


def number_of(result: Written) -> float | None:
    """The number in a judge's last blank, or None: words, fractions, 0,5 and two numbers are not one."""
    found = _NUMBER.fullmatch(result.text)
    if found is None or (found["rest"] and not _GOES_ON.fullmatch(found["rest"])):
        return None
    if not result.complete and not found["rest"] and not re.fullmatch(r"[-+]?\d*\.\d+", found["number"]):
        return None  # digits may be missing, so it may be of another size
    value = float(found["number"])
    return value if math.isfinite(value) else None
