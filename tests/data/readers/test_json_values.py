"""a JSON list of any size is read object by object, and what is broken is told once"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.readers import Line, Problem, json_values
from melior.data.readers.json_values import read_json
from melior.errors import DataError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
rows = st.lists(st.dictionaries(st.text(), values), min_size=1, max_size=5)


@given(rows, st.sampled_from([None, 0, 2]), st.integers(1, 9), st.booleans(), st.booleans())
def test_what_is_written_is_read_whatever_the_chunks(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, object]],
    indent: int | None,
    chunk: int,
    listed: bool,
    ascii: bool,
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    texts = [json.dumps(row, indent=indent, ensure_ascii=ascii) for row in rows]
    path.write_text("[" + ", ".join(texts) + "]\n" if listed else "\n".join(texts), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "CHUNK", chunk)
        assert list(read_json(path)) == [Line(number, row) for number, row in enumerate(rows, start=1)]


@pytest.mark.parametrize(
    ("content", "good", "reason"),
    [
        (b'[{"a": 1}, {"a": 2', 1, "cut short"),
        (b'[{"a": 1}, {"a": "x', 1, "cut short"),
        (b'[{"a": 1},', 1, "the file is cut short, so rows are missing"),
        (b'[{"a": 1}', 1, "the list has no end"),
        (b'[{"a": 1} {"a": 2}]', 1, "a comma or ]"),
        (b'[{"a": 1}]\n[{"a": 2}]', 1, "'[' stands behind the last row; put all rows into one list"),
        (b'{"a": 1}\n]', 1, "']' stands behind the last row"),
        (b'[{"a": 1}, {"a" 2}]', 1, "nothing behind it was read"),
        (b'[{"a": 1}, {"a": NaN}]', 1, "NaN is not a JSON value"),
        (b'[{"a": 1}, 7, {"a": 2}]', 2, "this is a number"),
        (b'[{"a": 1}, {"a": "\xe9"}, {"a": 2}]', 2, "0xe9"),
        (b'[{"a": 1}, {"a": "\\ud800"}, {"a": 2}]', 2, "surrogate"),
    ],
)
def test_what_is_broken_is_told(tmp_path: Path, content: bytes, good: int, reason: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    found = list(read_json(path))
    problems = [one for one in found if isinstance(one, Problem)]
    assert len(found) - len(problems) == good
    assert len(problems) == 1 and reason in problems[0].reason and problems[0].line == 2


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for content in ("", "[]", " [ ] "):
        path.write_text(content)
        with pytest.raises(DataError, match="is empty"):
            list(read_json(path))


def test_a_long_list_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    with path.open("w") as file:
        file.write("[")
        for _ in range(40):
            file.write(json.dumps({"a": "x" * 500_000}) + ",")
        file.write("{}]")
    tracemalloc.start()
    assert sum(1 for _ in read_json(path)) == 41
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2
