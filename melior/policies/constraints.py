"""outputs that follow a grammar: at every step, which tokens some output of it goes on with

A grammar is Lark, in which `%json {…}` stands for what a JSON Schema allows. Which tokens may come next is computed by
llguidance, from the bytes of every token, so a token may end one part of the grammar and begin the next, and a
character may be split between tokens. Where the grammar can end, the token that ends an answer may come; where it must,
that token alone, whose log-prob is then 0.

Follows: llguidance, https://github.com/guidance-ai/llguidance (MIT).
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from melior.data.calls import Form
from melior.errors import ConfigError
from melior.types import Sampling

# Between the parts of a JSON text: nothing, a space, or a new line and its indentation. Bounded, since a model that
# likes white space would else write nothing more until its tokens are spent.
GAP = r"(\n[ ]{0,16})|[ ]?"
OWN = "x-guidance"  # what llguidance takes for its own settings, lax ones too; ours alone are set
COMPILED = 64  # grammars that are kept: what servers are asked for is asked for again

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of the JSON texts that a schema allows.

    Raises:
        ConfigError: if it has a key that would loosen what the schema says.
    """
    return f"start: {json_rule(schema)}"


def json_rule(schema: Mapping[str, Any]) -> str:
    """A schema as a part of a grammar.

    Raises:
        ConfigError: if it has a key that would loosen what the schema says.
    """
    try:
        if _has_key(schema, OWN):
            raise ConfigError(f"the schema has the key {OWN!r}, which is the library's that follows it; leave it out")
        return "%json " + json.dumps({**schema, OWN: {"whitespace_pattern": GAP}})
    except RecursionError:
        raise ConfigError("the schema is nested too deeply to be followed; use $ref and $defs") from None


def call_rule(form: Form, tools: Sequence[Mapping[str, Any]], tokenizer: Any) -> str:
    """One call of one of the tools, as a part of a grammar; its arguments are what the tool's parameters allow.

    Raises:
        ConfigError: if parameters have a key that would loosen what they say.
    """
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, form.arguments: tool.get("parameters") or ANY_OBJECT},
            "required": ["name", form.arguments],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    options = " | ".join(json_rule(call) for call in calls)
    return f"{_literal(form.before, tokenizer)} ({options}) {_literal(form.after, tokenizer)}".strip()


def _literal(text: str, tokenizer: Any) -> str:
    """A text as a part of a grammar; special tokens are not their spelling, and go by number."""
    special = sorted(set(tokenizer.all_special_tokens), key=len, reverse=True)
    pieces = re.split("(" + "|".join(map(re.escape, special)) + ")", text) if special else [text]
    return " ".join(
        f"<[{tokenizer.convert_tokens_to_ids(piece)}]>" if piece in special else json.dumps(piece, ensure_ascii=False)
        for piece in pieces
        if piece
    )


def _has_key(value: Any, key: str) -> bool:
    if isinstance(value, Mapping):
        return key in value or any(_has_key(inner, key) for inner in value.values())
    return isinstance(value, list) and any(_has_key(inner, key) for inner in value)


class Grammars:
    """Grammars over the tokens of one model, each compiled once; threads may share it."""

    _known: ClassVar[weakref.WeakKeyDictionary[Any, Grammars]] = weakref.WeakKeyDictionary()

    def __init__(self, tokenizer: Any, stop_id: int, size: int) -> None:
        """`size`: how many logits the model has.

        Raises:
            ConfigError: if the library that follows grammars is not installed, or cannot read this tokenizer.
        """
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise ConfigError("constraints need llguidance; install it with pip install 'melior[serve]'") from error
        try:
            self.tokens = from_tokenizer(tokenizer, n_vocab=size, eos_token=stop_id)
        except ValueError as error:
            raise ConfigError(f"outputs of this model cannot be held to a grammar: {error}") from error
        self.size, self.stop_id, self.known = size, stop_id, len(tokenizer)
        self.compiled: OrderedDict[str, Any] = OrderedDict()
        self.lock = threading.Lock()

    @classmethod
    def of(cls, renderer: Any, size: int) -> Grammars:
        """Those of a renderer's tokenizer, read once.

        Raises:
            ConfigError: as the constructor does.
        """
        if renderer not in cls._known:
            cls._known[renderer] = cls(renderer.tokenizer, renderer.stop_id, size)
        return cls._known[renderer]

    def follow(self, grammar: str) -> Follower:
        """A fresh output of a grammar.

        Raises:
            ConfigError: if it is no grammar, or says something that cannot be followed, which is named.
        """
        from llguidance import LLMatcher

        with self.lock:
            if grammar not in self.compiled:
                wrong, told = LLMatcher.validate_grammar_with_warnings(grammar, self.tokens)
                if wrong or told:  # a warning is a keyword that would be passed over
                    raise ConfigError(f"the constraint cannot be followed: {_reason(told)}")
                self.compiled[grammar] = LLMatcher(self.tokens, grammar, log_level=0)
                if len(self.compiled) > COMPILED:
                    self.compiled.popitem(last=False)
            self.compiled.move_to_end(grammar)
            return Follower(self.compiled[grammar].deep_copy(), self)

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for, which may be a part of a character; none where nobody knows it."""
        return bytes(self.tokens.decode_bytes([token])) if token < self.known else b""


class Follower:
    """One output while it is decided."""

    def __init__(self, matcher: Any, grammars: Grammars) -> None:
        self.matcher, self.grammars = matcher, grammars

    def allowed(self) -> Tensor:  # [V] bool
        """The tokens that may come next; none where the output cannot be followed any further."""
        packed = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(packed, count=self.grammars.size, bitorder="little").astype(bool)
        return torch.from_numpy(bits & (not self.matcher.is_error()))

    def take(self, token: int) -> None:
        """Goes on with a token."""
        if token != self.grammars.stop_id:
            self.matcher.consume_token(token)

    @property
    def ended(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self.matcher.is_stopped() and self.matcher.is_accepting())


def check_biases(settings: Sampling, size: int) -> None:
    """Nothing, if every biased token is one of so many.

    Raises:
        ConfigError: naming one that is not.
    """
    for token, _ in settings.logit_bias:
        if not 0 <= token < size:
            raise ConfigError(f"logit_bias names the token {token}, and this model has {size}, from 0 on")


def shaped(
    logits: Tensor,  # [V]
    settings: Sampling,
    decided: list[int],
    allowed: Tensor | None,  # [V] bool
) -> Tensor:  # [V]
    """The logits after biases and penalties, -inf where a token is not allowed.

    Follows: OpenAI API reference, `frequency_penalty`, `presence_penalty` and `logit_bias` of chat completions.
    """
    logits = logits.clone()
    if settings.logit_bias:
        tokens, biases = zip(*settings.logit_bias, strict=True)
        logits.index_add_(0, torch.tensor(tokens, device=logits.device), logits.new_tensor(biases))
    if decided and (settings.frequency_penalty or settings.presence_penalty):
        before, counts = torch.tensor(decided, device=logits.device).unique(return_counts=True)
        penalties = settings.frequency_penalty * counts + settings.presence_penalty
        logits.index_add_(0, before, -penalties.to(logits))
    return logits if allowed is None else logits.masked_fill_(~allowed.to(logits.device), -torch.inf)


def _reason(told: list[str]) -> str:
    """What the library found, without the place in a grammar that nobody wrote by hand."""
    first = "; ".join(told).split("\n   1 |")[0]
    first = re.sub(r"^at \d+\(\d+\): ", "", first).replace("failed to compile JSON schema: ", "")
    return " ".join(first.split())[:400]
