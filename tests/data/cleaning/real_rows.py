"""rows of real data sets, as people would write them for training"""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("MELIOR_DATA", Path(__file__).parents[4] / "shared" / "data"))

Rows = list[dict[str, Any]]


def banking() -> Rows:
    with gzip.open(DATA / "banking77" / "train.csv.gz", "rt", encoding="utf-8") as file:
        return [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)]


def gsm8k() -> Rows:
    with gzip.open(DATA / "gsm8k" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{"id": f"q{i}", "prompt": row["question"], "completion": row["answer"]} for i, row in enumerate(rows)]


def taskmaster() -> Rows:
    rows = []
    for path in sorted((DATA / "taskmaster_reward").glob("*.json*")):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            rows += [_rated(row) for row in json.load(file)]
    return [row for row in rows if row["prompt"]]


def _rated(row: dict[str, Any]) -> dict[str, Any]:
    roles = {"agent": "assistant", "user": "user", "api": "tool"}
    said = [(turn["role"], turn.get("text") or json.dumps(turn)) for turn in json.loads(row["context"])]
    output = json.loads(row["generation"])
    return {
        "prompt": [{"role": roles[role], "content": text} for role, text in said],
        "completion": output.get("text") or json.dumps(output),
        "label": row["reward"] > 0.5,
        "group": row["conversation_id"],
    }


def preferences() -> Rows:
    with gzip.open(DATA / "hh_rlhf_harmless" / "pairs.jsonl.gz", "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    return [_pair(pair) for pair in pairs]


def _pair(pair: dict[str, str]) -> dict[str, Any]:
    asked = pair["chosen"].rpartition("\n\nAssistant:")[0].strip()
    sides = {side: pair[side].rpartition("\n\nAssistant:")[2].strip() for side in ("chosen", "rejected")}
    return {"prompt": asked.removeprefix("Human:").strip(), **sides}


SETS: dict[str, Callable[[], Rows]] = {
    "banking77": banking,
    "gsm8k": gsm8k,
    "taskmaster": taskmaster,
    "preferences": preferences,
}


def write(path: Path, rows: list[Any]) -> Path:
    """Rows as JSONL; a text is a line as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path
