"""Parquet files and folders of the datasets library, read as JSON values"""

from __future__ import annotations

import datetime
import decimal
import sys
from pathlib import Path
from typing import Any

import pytest

from melior.data.readers import Line, Problem, read_rows
from melior.errors import DataError

arrow = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")

CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "hi"}, CALL], "answer": None},
    {"messages": [{"role": "user", "content": "ho"}], "answer": 4.0},
]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow.parquet

    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


def test_what_a_table_fills_in_is_absent_again(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": None, "c": [None, 1.5]}, {"a": None, "b": float("nan"), "c": []}]
    assert list(read_rows(write(tmp_path, rows))) == [Line(1, {"a": 1, "c": [None, 1.5]}), Line(2, {"c": []})]
    first, second = (line.row for line in read_rows(write(tmp_path, CHATS)) if isinstance(line, Line))
    assert first == {"messages": [{"role": "user", "content": "hi"}, {k: v for k, v in CALL.items() if v is not None}]}
    assert second == CHATS[1]


def test_dates_and_decimals_become_json(tmp_path: Path) -> None:
    rows = [{"at": datetime.date(2026, 11, 21), "price": decimal.Decimal("2.50"), "n": decimal.Decimal("3")}]
    assert list(read_rows(write(tmp_path, rows))) == [Line(1, {"at": "2026-11-21", "price": 2.5, "n": 3})]


def test_bytes_and_infinity_are_told(tmp_path: Path) -> None:
    first, second = read_rows(write(tmp_path, [{"x": b"PNG", "y": 1.0}, {"x": None, "y": float("inf")}]))
    assert isinstance(first, Problem) and "3 bytes" in first.reason
    assert isinstance(second, Problem) and second.line == 2 and "inf" in second.reason


def test_a_damaged_file_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, CHATS)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        list(read_rows(path))
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.table({"a": arrow.array([], arrow.int64())}), path)
    with pytest.raises(DataError, match="has no rows"):
        list(read_rows(path))


def test_saved_folders_with_and_without_splits(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"prompt": "q", "completion": "a"}, {"prompt": "r", "completion": None}])
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(str(tmp_path / "two"))
    whole = [Line(1, {"prompt": "q", "completion": "a"}), Line(2, {"prompt": "r"})]
    assert list(read_rows(tmp_path / "one")) == whole
    assert list(read_rows(f"{tmp_path}/two@train")) == whole
    assert list(read_rows(f"{tmp_path}/two@test")) == whole[:1]
    with pytest.raises(DataError, match=r"2 splits \(train, test\); choose one"):
        list(read_rows(tmp_path / "two"))
    with pytest.raises(DataError, match="has no splits"):
        list(read_rows(f"{tmp_path}/one@train"))
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a saved data set"):
        list(read_rows(tmp_path / "one"))


def test_the_loading_code_of_the_hub_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local repository in the hub's layout goes through the very same loader."""
    folder = tmp_path / "someone" / "chats"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    (folder / "data" / "test.jsonl").write_text('{"prompt": "r", "completion": "b"}\n')
    monkeypatch.chdir(tmp_path)
    assert list(read_rows("hub:someone/chats@train")) == [Line(1, {"prompt": "q", "completion": "a"})]
    assert list(read_rows("hub:someone/chats/default@test")) == [Line(1, {"prompt": "r", "completion": "b"})]
    with pytest.raises(DataError, match=r"2 splits \(train, test\)"):
        list(read_rows("hub:someone/chats"))


def test_offline_and_misspelt_hub_ids_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    match = r"hub:no-one/nothing@train cannot be loaded .*; check the name and the connection"
    with pytest.raises(DataError, match=match):
        list(read_rows("hub:no-one/nothing@train"))
    with pytest.raises(DataError, match="is no data set of the hub"):
        list(read_rows("hub:a/b/c/d"))


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, CHATS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'melior\[data\]'"):
        list(read_rows(path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'melior\[data\]'"):
        list(read_rows("hub:someone/chats"))
