"""/v1/embeddings: sentences as unit vectors, by the encoder that graders of similarity use"""

from __future__ import annotations

import base64
from typing import Any, Literal

from fastapi import APIRouter, Depends
from pydantic import ConfigDict

from melior.errors import NotFound
from melior.serving.asking import Name, Texts, unserved
from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.threads import EMBEDDING

router = APIRouter(prefix="/v1/embeddings", tags=["embeddings"])
MODEL = "all-minilm-l6-v2"
MOST = 256  # texts of one request


class Asked(Texts):
    """What a client sends."""

    model_config = ConfigDict(extra="ignore")

    model: Name
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    @property
    def texts(self) -> list[str]:
        """The texts to embed.

        Raises:
            Problem: if they are tokens, empty, or too many.
        """
        given = [self.input] if isinstance(self.input, str) else self.input
        texts = [text for text in given if isinstance(text, str)]
        if len(texts) < len(given):
            raise unserved("input as token ids is not served; send texts", "input")
        if not 1 <= len(texts) <= MOST or not all(texts):
            raise Problem(400, f"input is 1 to {MOST} texts, none of them empty; got {len(texts)}", param="input")
        return texts


@router.post("", dependencies=[Depends(needs("infer"))])
async def create(asked: Asked) -> dict[str, Any]:
    """A vector for each text, in order."""
    return await EMBEDDING.run(_embedded, asked)


def _embedded(asked: Asked) -> dict[str, Any]:
    if asked.model != MODEL:
        raise NotFound(f"there is no model {asked.model!r} that embeds here; there is {MODEL!r}")
    texts = asked.texts
    encoder = _encoder()
    lengths = [encoder.length(text) for text in texts]
    for place, length in enumerate(lengths):
        if length > encoder.longest:
            told = f"input[{place}] has {length} tokens and {MODEL} reads {encoder.longest}; send shorter texts"
            raise Problem(400, told, param="input", code="context_length_exceeded")
    vectors = encoder.embed(texts).float().numpy()
    if asked.dimensions not in (None, vectors.shape[1]):
        raise unserved(f"dimensions is {vectors.shape[1]} for this model; leave it out", "dimensions")
    data = [
        {"object": "embedding", "index": place, "embedding": _written(vector, asked.encoding_format)}
        for place, vector in enumerate(vectors)
    ]
    read = sum(lengths)
    return {"object": "list", "data": data, "model": MODEL, "usage": {"prompt_tokens": read, "total_tokens": read}}


def _written(vector: Any, form: str) -> Any:  # [D] float32
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector.tolist()


def _encoder() -> Any:
    from melior.rewards.local import encoder

    return encoder()
