"""the rows of a run over an export are known by the export's fingerprint, whatever the run holds out"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from melior.cycles.recipe import recipe_of
from melior.cycles.rows import load_rows
from melior.data.formats import as_json
from melior.store import Store
from melior.store.datasets import export
from melior.store.exports import Wanted
from melior.types import Record, Sampling, SlateRequest

GRADER = {"type": "string_check", "name": "g", "operation": "eq", "input": "{{sample.output_text}}", "reference": "4"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Twenty answers and slates, with all that can be said of them."""
    with Store.open(tmp_path_factory.mktemp("log") / "melior.db") as opened:
        how: dict[str, Any] = {"fingerprint": "f", "files": {}, "base_model": "b", "method": "sft"}
        chat, shop = (opened.add_version(name, "/m", **how).id for name in ("chat", "shop"))
        said = [[{"role": "user", "content": f"{number}+2?"}] for number in range(20)]
        drawn: dict[str, Any] = {
            "sampling": Sampling(top_p=0.9),
            "context": (1, 2),
            "decisions": (3, 4),
            "behavior_log_probs": (-1.0, -0.25),
        }
        answers = [Record(inputs=each, output="5.", policy_version=chat, **drawn) for each in said]
        for number, name in enumerate(opened.add_records(answers)):
            opened.add_feedback("demonstration", f"{number}", decision_id=name, source="ann")
            opened.add_feedback("good", bool(number % 2), decision_id=name, source="ben")
        slates = [
            Record(inputs=as_json(SlateRequest({"age": n}, candidates=("a", "b"))), output=["b", "a"],
                   behavior_log_probs=(-0.5, 0.0), policy_version=shop)
            for n in range(20)
        ]  # fmt: skip
        for name in opened.add_records(slates)[::2]:
            opened.add_feedback("click", {"item": "a"}, decision_id=name)
        yield opened


@pytest.mark.parametrize(
    ("method", "asked", "format", "file"),
    [
        ("sft", {"kind": "demonstrations"}, None, "jsonl"),
        ("sft", {"kind": "demonstrations"}, "prompt-completion", "parquet"),
        ("sft", {"kind": "demonstrations"}, "sharegpt", "json"),
        ("dpo", {"kind": "preferences"}, "openai-dpo", "jsonl"),
        ("dpo", {"kind": "preferences"}, "dpo", "csv"),
        ("kto", {"kind": "ratings", "metric": "good"}, "kto", "csv"),
        ("kto", {"kind": "ratings", "metric": "good"}, None, "tsv"),
        ("rft", {"kind": "tasks", "name": "chat"}, "openai-rft", "jsonl"),
        ("off_policy", {"kind": "decisions", "name": "chat", "metric": "good"}, None, "parquet"),
        ("off_policy", {"kind": "decisions", "name": "shop"}, None, "jsonl"),
        ("off_policy", {"kind": "decisions", "name": "shop", "metric": "click"}, None, "csv"),
    ],
)
def test_a_run_over_an_export_is_known_by_it(
    store: Store, tmp_path: Path, method: str, asked: dict[str, Any], format: str | None, file: str
) -> None:
    done = export(store, Wanted(**asked), tmp_path / f"rows.{file}", format=format)
    assert done.rows == 20 and not done.left_out
    kind = {"kind": "slate"} if asked.get("name") == "shop" else {"path": "tiny"}
    for heldout, seed in ((0.1, 0), (0.3, 1)):
        raw = {"method": method, "model": kind, "data": {"train": str(done.path), "heldout": heldout, "seed": seed}}
        rows = load_rows(recipe_of({**raw, **({"grader": GRADER} if method == "rft" else {})}))
        assert (rows.origin, rows.kind) == (done.dataset.fingerprint, done.dataset.kind)
        assert store.dataset_of(rows.origin, rows.kind) == done.dataset
        assert len(rows.train) + len(rows.heldout) == 20
