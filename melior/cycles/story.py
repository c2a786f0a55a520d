"""what a cycle adds to a run's folder so that its report can tell the whole story

data.json       rows, where they came from, how long they are
heldout.jsonl   outputs for the same few held-out items at every evaluation while training
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from melior.cycles.kinds import Kind
from melior.cycles.rows import Rows
from melior.durable import append_file, write_file
from melior.evaluation.evaluate import Evaluation

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


def tell_data(folder: Path, rows: Rows, steps: Any, policy: Any, kind: Kind) -> None:
    """Writes what is trained on; lengths are in tokens."""
    told = {
        "source": Path(rows.source).name,
        "kind": rows.kind,
        "training_rows": len(rows.train),
        "held_out_rows": len(rows.heldout),
        "dropped_rows": getattr(steps, "dropped", 0),
        "fingerprint": rows.fingerprint[:16],
        "lengths": {name: _quantiles(found) for name, found in kind.lengths(policy, rows, steps).items()},
    }
    write_file(folder / "data.json", json.dumps(told, indent=1))


def tell_heldout(folder: Path, step: int, evaluation: Evaluation) -> None:
    """Adds the evaluation's examples, made after `step` steps."""
    lines = [json.dumps({"step": step, **asdict(example)}, default=str) for example in evaluation.examples]
    append_file(folder / "heldout.jsonl", "".join(f"{line}\n" for line in lines))


def _quantiles(lengths: Sequence[float]) -> list[float]:
    return [float(value) for value in np.quantile(np.asarray(lengths, dtype=float), QUANTILES)]
