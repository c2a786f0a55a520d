"""what a model decided, as the dialect says it: messages, tool calls, log-probs of tokens, and events of a stream"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from melior.data.calls import calls_in, opening
from melior.policies.constraints import Grammars
from melior.policies.engine import Sample, Thought


def message(text: str, names: Collection[str], key: str) -> dict[str, Any]:
    """An assistant's message: what it says, and its calls of the tools that were offered; `key` makes their ids."""
    said, calls = calls_in(text, names)
    told = {"role": "assistant", "content": said if said or not calls else None, "refusal": None}
    named = [{"id": _call_id(key, place), **call} for place, call in enumerate(calls)]
    return {**told, "tool_calls": named} if calls else told


def _call_id(key: str, place: int) -> str:
    """The same whether it is told whole, in pieces, or read back."""
    return f"call_{hashlib.sha256(f'{key}:{place}'.encode()).hexdigest()[:24]}"


def finish_reason(sample: Sample, calls: Any) -> str:
    """Why an answer ended."""
    return "tool_calls" if calls and sample.finish == "stop" else sample.finish


def spoken(decisions: Sequence[int], length: int, renderer: Any) -> int:
    """How many tokens end within so many characters of their text: not the one that ends the answer."""
    count = len(decisions)
    count -= count > 0 and decisions[-1] in renderer.stop_ids
    while count and len(renderer.text(decisions[:count])) > length:
        count -= 1
    return count


def token(number: int, log_prob: float, grammars: Grammars) -> dict[str, Any]:
    """A token with its log-prob; bytes that are no whole characters are spelt `\\xf0`."""
    raw = grammars.bytes_of(number)
    return {"token": raw.decode("utf-8", "backslashreplace"), "bytes": list(raw), "logprob": log_prob}


def logprobs(thoughts: Sequence[Thought], grammars: Grammars) -> dict[str, Any]:
    """What the policy itself thought of each token, and the likeliest ones in its place."""
    content = [
        {
            **token(thought.token, thought.log_prob, grammars),
            "top_logprobs": [token(other, log_prob, grammars) for other, log_prob in thought.likeliest],
        }
        for thought in thoughts
    ]
    return {"content": content, "refusal": None}


def sent(body: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(body)}\n\n".encode()


@dataclass
class Teller:
    """One choice of a stream: what of its text can be told, since no tool call may begin there."""

    names: Collection[str]
    key: str
    text: str = ""
    told: int = 0  # characters

    def more(self, text: str) -> str:
        """What can be told now that more has come."""
        self.text += text
        safe = opening(self.text, 0, self.names)
        if self.names and not self.text[:safe].strip():
            safe = 0  # white space before a call belongs to nobody
        new = self.text[self.told : max(self.told, safe)]
        self.told += len(new)
        return new

    def last(self) -> tuple[str, list[dict[str, Any]]]:
        """What is left to tell of the text, and the calls."""
        whole = message(self.text, self.names, self.key)
        return str(whole["content"] or "")[self.told :], whole.get("tool_calls", [])
