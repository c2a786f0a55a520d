"""preference pairs that both sides train: people's, where the data is at hand, else made up in the same lengths"""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path("hh_rlhf_harmless") / "pairs.jsonl.gz"  # anthropics/hh-rlhf, MIT; under MELIOR_DATA
ROLES = {"Human": "user", "Assistant": "assistant"}
# Words of prompt, chosen and rejected: deciles of the people's pairs, to be drawn together where there are none.
LENGTHS = (
    *((11, 10, 11), (15, 13, 15), (31, 17, 19), (50, 20, 24), (73, 25, 31), (93, 30, 40)),
    *((116, 38, 48), (143, 52, 62), (210, 69, 89)),
)


def preferences(seed: int) -> tuple[str, list[dict[str, Any]]]:
    """Where the pairs come from, and all of them: {"inputs": messages, "chosen": text, "rejected": text}."""
    folder = Path(os.environ.get("MELIOR_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if (folder / FILE).is_file():
        with gzip.open(folder / FILE, "rt", encoding="utf-8") as file:
            found = [pair for pair in map(split, map(json.loads, file)) if pair]
        random.Random(seed).shuffle(found)
        return "hh-rlhf harmless", found
    return "made-up words in the lengths of hh-rlhf harmless", list(made_up(seed))


def split(row: dict[str, str]) -> dict[str, Any] | None:
    """The conversation both sides answer, and the two answers; None where they do not answer the same one."""
    asked, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
    other, _, rejected = row["rejected"].rpartition("\n\nAssistant:")
    messages = list(turns(asked))
    if asked != other or not chosen.strip() or not rejected.strip() or chosen.strip() == rejected.strip():
        return None
    if [turn["role"] for turn in messages] != [("user", "assistant")[place % 2] for place in range(len(messages))]:
        return None
    return {"inputs": messages, "chosen": chosen.strip(), "rejected": rejected.strip()}


def turns(text: str) -> Iterator[dict[str, str]]:
    """The messages of a transcript whose turns begin with a blank line and a name."""
    for part in text.replace("\n\nAssistant:", "\n\nHuman:\0").split("\n\nHuman:"):
        if part.strip("\0 \n"):
            yield {"role": ROLES["Assistant" if part.startswith("\0") else "Human"], "content": part.strip("\0 \n")}


def made_up(seed: int, count: int = 256) -> Iterator[dict[str, Any]]:
    """Pairs of words without sense."""
    draw = random.Random(seed)
    words = ("time", "way", "day", "thing", "life", "hand", "part", "place", "work", "week", "case", "point", "fact")
    for _ in range(count):
        sizes = draw.choice(LENGTHS)
        asked, chosen, rejected = (" ".join(draw.choices(words, k=size)) for size in sizes)
        yield {"inputs": [{"role": "user", "content": asked}], "chosen": chosen, "rejected": rejected}
