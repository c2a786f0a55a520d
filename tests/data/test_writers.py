"""a file is written whole, and what it cannot hold is counted"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior import durable
from melior.data.conversion import convert
from melior.data.formats import Reading, read_examples
from melior.data.writers import write_examples
from melior.errors import CheckpointError, ConfigError, DataError
from melior.types import Demonstration, Preference, Rated, Task

PAIRS = [Preference("q", "a", "b", margin=2.0, id="rows:1"), Preference("r", "c", "d", 0.75, id="rows:2")]


def test_what_a_format_cannot_hold_is_counted_in_rows(tmp_path: Path) -> None:
    written = write_examples(tmp_path / "rows.jsonl", PAIRS, "openai-dpo")
    assert (written.rows, written.format) == (2, "openai-preference")
    assert dict(written.lost) == {"margin": 1, "probability": 1} and written.problems == []
    weighted = write_examples(tmp_path / "rows.jsonl", [Demonstration("q", "a", weight=0.5)])
    assert dict(weighted.lost) == {"weight of the row": 1}
    bare = write_examples(tmp_path / "rows.jsonl", [Task("q", {"answer": 4})], "prompt", columns=False)
    assert dict(bare.lost) == {"column answer": 1}
    assert (tmp_path / "rows.jsonl").read_text() == '{"prompt": "q"}\n'


def test_an_example_that_cannot_be_written_is_listed_or_stops(tmp_path: Path) -> None:
    rows = [Demonstration("q", "a"), Demonstration(None, "text", id="rows:2")]
    written = write_examples(tmp_path / "rows.jsonl", rows, "prompt-completion")
    assert written.rows == 1 and [problem.line for problem in written.problems] == [2]
    assert "rows:2: it is a whole text" in str(written.problems[0])
    with pytest.raises(DataError, match="rows:2 cannot be written as prompt-completion"):
        write_examples(tmp_path / "other.jsonl", rows, "prompt-completion", strict=True)
    with pytest.raises(DataError, match=r"0 of 1 examples can be written, first: .*it is a whole text"):
        write_examples(tmp_path / "other.jsonl", rows[1:], "prompt-completion")
    assert not (tmp_path / "other.jsonl").exists()


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz"])
def test_half_a_character_keeps_its_own_row_out_and_no_other(tmp_path: Path, suffix: str) -> None:
    rows = [Demonstration("q", "a"), Demonstration("half \ud83d", "b"), Demonstration("q", "c", item={"\ud83d": 1})]
    written = write_examples(tmp_path / f"rows{suffix}", rows)
    assert written.rows == 1 and [problem.line for problem in written.problems] == [2, 3]
    assert "half a character" in str(written.problems[0])
    assert len(read_examples(tmp_path / f"rows{suffix}").rows) == 1


def test_columns_that_would_change_the_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="would make it read as prompt-completion"):
        write_examples(tmp_path / "rows.jsonl", [Task("q", {"completion": "a"})], "prompt", strict=True)
    with pytest.raises(DataError, match="item has the column prompt, which rated uses itself"):
        write_examples(tmp_path / "rows.jsonl", [Rated("q", "a", 1.0, item={"prompt": 1})], "rated", strict=True)


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    rows = [Demonstration("q", "a")]
    for name, match in [("a.txt", "suffix"), ("a.parquet.gz", "compressed twice"), ("a.jsonl.xz", "only .gz")]:
        with pytest.raises(ConfigError, match=match):
            write_examples(tmp_path / name, rows)
    with pytest.raises(ConfigError, match="did you mean 'sharegpt'"):
        write_examples(tmp_path / "a.jsonl", rows, "sharegpd")
    with pytest.raises(
        DataError, match="prompt-preference holds preferences, these are demonstrations; write messages"
    ):
        write_examples(tmp_path / "a.jsonl", rows, "dpo")
    with pytest.raises(ConfigError, match="only CSV and TSV"):
        write_examples(tmp_path / "a.jsonl", rows, spreadsheet=True)
    assert list(tmp_path.iterdir()) == []


def test_formulas_are_counted_and_made_safe_where_asked(tmp_path: Path) -> None:
    rows = [Demonstration("=1+1", "@a", item={"note": "fine"}), Demonstration("-2", "b", item={"note": "ok"})]
    exact = write_examples(tmp_path / "exact.csv", rows, "prompt-completion")
    assert next(count for what, count in exact.lost.items() if "formulas" in what) == 3
    assert read_examples(tmp_path / "exact.csv").rows[0].inputs == "=1+1"
    write_examples(tmp_path / "safe.csv", rows, "prompt-completion", spreadsheet=True)
    raw = (tmp_path / "safe.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf") and b"\n'=1+1,'@a,fine" in raw and b"\n'-2,b,ok" in raw


@given(st.lists(st.text(alphabet="'=+-@\t\rab,\"\n", min_size=1, max_size=6), min_size=1, max_size=5))
def test_what_was_made_safe_for_a_spreadsheet_reads_back_as_it_was(texts: list[str]) -> None:
    rows = [Demonstration(text, "a", item={"=note": text}) for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "safe.csv")
        write_examples(path, rows, "prompt-completion", spreadsheet=True)
        with path.open(encoding="utf-8-sig", newline="") as file:
            assert not [
                cell
                for cells in csv.reader(file)
                for cell in cells
                if cell.startswith(("=", "+", "-", "@", "\t", "\r"))
            ]
        found = read_examples(path).rows
    assert [(row.inputs, row.item) for row in found] == [(text, {"=note": text}) for text in texts]


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    write_examples(path, PAIRS)
    before = path.read_bytes()

    def refuse(moment: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "failpoint", refuse)
    with pytest.raises(CheckpointError, match="No space left"):
        write_examples(path, PAIRS[:1])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_columns_of_no_one_type_survive_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [Task("q", {"answer": 4}), Task("r", {"answer": {"x": []}}), Task("s", {"answer": "4"}), Task("t", {"n": 1})]
    write_examples(tmp_path / "rows.parquet", rows, "prompt")
    assert [row.item for row in read_examples(tmp_path / "rows.parquet").rows] == [row.item for row in rows]


def test_converting_keeps_the_format_unless_told_and_never_overwrites_its_source(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"question": "q", "answer": "a"}\n{"question": "r"}\n')
    reading = Reading(rename={"question": "prompt", "answer": "completion"})
    with pytest.raises(DataError, match=r"line 2: has no column answer to rename; .*--skip"):
        convert(source, tmp_path / "out.csv", reading=reading)
    assert not (tmp_path / "out.csv").exists()
    done = convert(source, tmp_path / "out.csv", reading=reading, skip=True)
    assert done.source_format == done.written.format == "prompt-completion"
    assert done.to_json()["unreadable"] == ["line 2: has no column answer to rename; it has question"]
    assert (tmp_path / "out.csv").read_bytes() == b"prompt,completion\r\nq,a\r\n"
    with pytest.raises(ConfigError, match="is the source itself"):
        convert(source, source, reading=reading)
    with pytest.raises(DataError, match="0 of 2 rows"):
        convert(source, tmp_path / "out.csv", skip=True)
    assert json.loads(source.read_text().splitlines()[0]) == {"question": "q", "answer": "a"}


def test_a_folder_is_not_written_into_while_it_is_the_source(tmp_path: Path) -> None:
    source = tmp_path / "rows" / "train.jsonl"
    source.parent.mkdir()
    source.write_text('{"prompt": "q"}\n')
    for asked in (source.parent, f"{source.parent}@train"):
        with pytest.raises(ConfigError, match="or stands in its folder"):
            convert(asked, source)
        assert convert(asked, tmp_path / "out.jsonl").read == 1
    assert source.read_text() == '{"prompt": "q"}\n'


def test_a_table_without_rows_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion\n")
    with pytest.raises(DataError, match=r"rows\.csv has a header and no rows"):
        convert(tmp_path / "rows.csv", tmp_path / "out.jsonl")


def test_names_of_columns_are_made_safe_too(tmp_path: Path) -> None:
    rows = [Task("q", {"=1+1": "x"})]
    write_examples(tmp_path / "rows.csv", rows, "prompt", spreadsheet=True)
    assert (tmp_path / "rows.csv").read_bytes().endswith(b"prompt,'=1+1\r\nq,x\r\n")
