"""vectors of texts, read once by MiniLM and kept in a file that recipes of reward models share"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from melior.policies.reward_model import sides
from melior.policies.reward_texts import PairedTexts, TextReader
from melior.policies.texts import Texts

LONGEST = 128  # tokens of a prompt or an answer that are read, the last ones
DROPOUT = 0.3  # share of features left out while training: there are about as many as rows
PORTION = 100  # rows between two times that vectors are kept


def texts(hidden: int = 0) -> PairedTexts:
    """How a prompt and an answer are read: MiniLM's vectors, and a hidden layer where there is one."""
    return PairedTexts(hidden=hidden, dropout=DROPOUT, text=Texts(max_length=LONGEST))


def read_texts(rows: Sequence[Any], path: Path) -> None:
    """Lets MiniLM read every text of pairs or ratings that is not in the file; `reward_models.py` writes such files."""
    reader = TextReader.make(texts())
    if path.is_file():
        with np.load(path, allow_pickle=False) as kept:
            reader.vectors.update(zip(kept["keys"].tolist(), torch.from_numpy(kept["vectors"]), strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(rows), PORTION):
        before = len(reader.vectors)
        reader.read(sides(rows[start : start + PORTION]))
        if len(reader.vectors) > before:
            vectors = torch.stack(list(reader.vectors.values())).numpy()
            np.savez(path, keys=np.array(list(reader.vectors)), vectors=vectors)
            print(f"MiniLM has read {min(start + PORTION, len(rows))} of {len(rows)} rows", flush=True)
