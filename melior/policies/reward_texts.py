"""a prompt and an answer become features: a sentence encoder reads both, and a small network compares them"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from melior.policies import parameters
from melior.policies.inputs import drop
from melior.policies.texts import TextInputs, Texts

STREAM = 1 << 17  # of noise: the hidden layer's dropout
MOST_VECTORS = 200_000  # kept of frozen encoders, 300 MB of MiniLM; then all are forgotten
ROWS = 4096  # of a micro-batch of frozen features: beyond it nothing gets faster
WORDS_NORM = 8.0  # of the features of words: what 64 different words have, at 1 each


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PairedTexts:
    """How a prompt and an answer are read. Of texts too long, the end is read: the newest words say most."""

    backbone: str = "auto"  # minilm, a folder or a hub id
    frozen: bool = True  # the encoder stays as it is, and reads each text once
    hidden: int = Field(default=0, ge=0)  # units of the hidden layer; 0: the heads read the features themselves
    dropout: float = Field(default=0.1, ge=0, lt=1)  # share of features left out while training
    words: int = Field(default=0, ge=0)  # columns that words and pairs of them are hashed to; 0: the encoder alone
    messages: int | None = Field(default=None, ge=1)  # of a conversation before the answer, the last; None: all
    text: Texts = Field(default_factory=Texts)


class TextReader(nn.Module):
    """Features of (prompt, answer): both vectors, their product, and what a hidden layer makes of them.

    Where the very words matter, as in calls of an interface, they may stand beside the vectors, which blur them.

    Source: Conneau et al. 2017, arXiv:1705.02364, §3.1 (two vectors and their product); Weinberger et al. 2009,
    arXiv:0902.2206 (hashed words).
    """

    kind = "text"

    def __init__(self, texts: TextInputs, config: PairedTexts) -> None:
        super().__init__()
        self.texts, self.config = texts, config
        texts.tokenizer.truncation_side = "left"
        texts.requires_grad_(not config.frozen)
        self.noticed: Counter[str] = texts.noticed
        self.hidden = nn.Linear(self.read_width, config.hidden) if config.hidden else None

    @classmethod
    def make(cls, config: PairedTexts) -> TextReader:
        """A reader on a pretrained encoder.

        Raises:
            ModelError: if the encoder is not there.
        """
        return cls(TextInputs.make(config.text, backbone=config.backbone), config)

    @property
    def width(self) -> int:
        return self.config.hidden or self.read_width

    @property
    def read_width(self) -> int:
        """Of what the hidden layer reads, or the heads where there is none."""
        return 3 * self.texts.width + self.config.words

    @property
    def random(self) -> bool:
        return self.config.dropout > 0

    @property
    def budget(self) -> int:
        return ROWS if self.config.frozen else self.texts.budget

    def cost(self, row: Any) -> int:
        """A row of frozen vectors counts 1, another its tokens."""
        return 1 if self.config.frozen else sum(map(len, row[:2]))

    def read(self, examples: Sequence[Any]) -> list[Any]:
        """Two vectors [D] of a frozen encoder or two texts' token ids, and their words' columns.

        Raises:
            DataError: for a text without a token.
        """
        last = self.config.messages
        texts = [text for each in examples for text in (text_of(each.inputs, last), text_of(each.output))]
        found = self._frozen(texts) if self.config.frozen else self.texts.encode(texts)
        words = [hashed(texts[place : place + 2], self.config.words) for place in range(0, len(texts), 2)]
        return list(zip(found[0::2], found[1::2], words, strict=True))

    @cached_property
    def vectors(self) -> dict[str, Tensor]:
        """By a text's sha256, of a frozen encoder; models on equal encoders share them."""
        return _vectors(parameters.digest(self.texts.state_dict().items()), self.texts.longest)

    @torch.no_grad()
    def _frozen(self, texts: Sequence[str]) -> list[Tensor]:
        """Each text's vector, computed once."""
        if len(self.vectors) + len(texts) > MOST_VECTORS:
            self.vectors.clear()
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self.vectors}
        if new:
            rows = self.texts.encode(list(new.values()))
            order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
            names, spent = list(new), 0
            part: list[int] = []
            for place in [*order, -1]:
                if part and (place < 0 or spent + len(rows[place]) > self.texts.budget):
                    found = self.texts([rows[at] for at in part])
                    self.vectors.update({names[at]: vector.cpu() for at, vector in zip(part, found, strict=True)})
                    part, spent = [], 0
                if place >= 0:
                    part, spent = [*part, place], spent + len(rows[place])
        return [self.vectors[key] for key in keys]

    def forward(self, rows: Sequence[Any], seeds: Tensor | None = None) -> Tensor:  # [B, D]
        prompts, answers, words = (list(side) for side in zip(*rows, strict=True))
        if self.config.frozen:
            device = next(self.parameters()).device
            first, second = torch.stack(prompts).to(device), torch.stack(answers).to(device)
        else:
            places: dict[tuple[int, ...], int] = {}
            owners = torch.tensor([places.setdefault(ids, len(places)) for ids in [*prompts, *answers]])
            both = self.texts(list(places))  # a prompt that two answers share is read once
            first, second = both[owners.to(both.device)].chunk(2)
        first, second = (nn.functional.layer_norm(side, side.shape[-1:]) for side in (first, second))
        features = torch.cat([first, second, first * second, torch.stack(words).to(first)], -1)
        features = drop(features, self.config.dropout, seeds, STREAM)
        return features if self.hidden is None else torch.relu(self.hidden(features))

    def learning(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All but a frozen encoder."""
        return (pair for pair in self.named_parameters() if not (self.config.frozen and pair[0].startswith("texts.")))

    def to_json(self) -> dict[str, Any]:
        """Settings; the encoder's architecture stands beside them."""
        config = self.config
        told = {"frozen": config.frozen, "hidden": config.hidden, "dropout": config.dropout}
        return {**told, "words": config.words, "messages": config.messages, "encoder": self.texts.to_json()}

    def write_files(self, folder: Path) -> None:
        self.texts.write_files(folder)

    @classmethod
    def from_json(cls, told: Mapping[str, Any], folder: Path) -> TextReader:
        """The same reader, its weights still to be loaded."""
        texts = TextInputs.from_json(told["encoder"], folder)
        settings = {name: told[name] for name in ("frozen", "hidden", "dropout")}
        later = {name: told[name] for name in ("words", "messages") if name in told}
        return cls(texts, PairedTexts(**settings, **later, text=texts.config))


@cache
def _vectors(encoder: str, longest: int) -> dict[str, Tensor]:
    """The vectors that an encoder has made so far."""
    return {}


def hashed(texts: Sequence[str], columns: int) -> Tensor:  # [columns]
    """Words and pairs of neighbouring ones, each text its own, in columns with a sign that their hashes choose."""
    found = torch.zeros(columns)
    if not columns:
        return found
    for side, text in enumerate(texts):
        said = re.findall(r"\w+", text.lower())
        for word in {*said, *map(" ".join, pairwise(said))}:
            number = zlib.crc32(f"{side} {word}".encode())
            found[(number >> 1) % columns] += 1 - 2 * (number & 1)
    return WORDS_NORM * nn.functional.normalize(found, dim=0)


def text_of(given: Any, last: int | None = None) -> str:
    """What was said, as one text: messages as lines of role and content, of a conversation the last few or all."""
    if isinstance(given, str):
        return given
    if given is None:
        return " "
    messages = given.get("messages", [given]) if isinstance(given, Mapping) else given
    try:
        return "\n".join(_line(message) for message in (messages[-last:] if last else messages))
    except (TypeError, AttributeError, KeyError):
        return json.dumps(given, ensure_ascii=False, default=str)


def _line(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    calls = message.get("tool_calls") or ""
    said = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return f"{message['role']}: {said}{json.dumps(calls) if calls else ''}"
