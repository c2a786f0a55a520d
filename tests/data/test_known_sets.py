"""known data sets: found, shipped or fetched, and read the same from wherever they come"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from melior.data import known_parts
from melior.data.catalogues import read_catalogue
from melior.data.formats import read_examples
from melior.data.formats.rows import Reading
from melior.data.known_parts import Part, fetch, place_of, rows_of
from melior.data.known_sets import SETS, described, known_set
from melior.data.readers import Line
from melior.data.splits import input_key
from melior.errors import CheckpointError, DataError

CSV = b"1,2\n3,4\n"


@pytest.fixture
def served() -> Iterator[dict[str, bytes]]:
    """Files by path, and under "" the address of a server on this machine that has them."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = files.get(self.path.partition("?")[0])
            self.send_response(200 if found is not None else 404)
            self.send_header("Content-Length", str(len(found or b"")))
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    files[""] = f"http://127.0.0.1:{server.server_port}".encode()
    yield files
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setenv("MELIOR_HOME", str(tmp_path / "home"))
    if "served" in request.fixturenames:
        monkeypatch.setenv("MELIOR_DATA", str(tmp_path / "none"))


def test_a_set_is_fetched_once_and_its_hash_kept(served: dict[str, bytes], tmp_path: Path) -> None:
    served["/rows.csv"] = CSV
    url = f"{served[''].decode()}/rows.csv?download=1"
    part = Part(file="x.csv", url=url, sha256=hashlib.sha256(CSV).hexdigest(), names=("a", "b"))
    path = place_of(part, "rows")
    assert path is not None and path.read_bytes() == CSV and path.name == "rows.csv"
    told = json.loads((path.parent / "source.json").read_text())
    assert told["url"] == url and told["sha256"] == part.sha256 and told["bytes"] == len(CSV)
    served.pop("/rows.csv")
    assert [line.row for line in rows_of(part, "rows") if isinstance(line, Line)] == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
    ]
    path.write_bytes(b"changed")
    with pytest.raises(CheckpointError, match="damaged"):
        place_of(part, "rows")


def test_a_file_of_an_archive_is_fetched(served: dict[str, bytes], tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("inner.data", "A11 6 1\nA12 48 2\n")
    served["/all.zip"] = packed.getvalue()
    part = Part(url=f"{served[''].decode()}/all.zip", member="inner.data", names=("a", "b", "c"), delimiter=" ")
    assert [line.row["b"] for line in rows_of(part, "packed") if isinstance(line, Line)] == ["6", "48"]
    missing = Part(url=part.url, member="other.data")
    with pytest.raises(DataError, match=r"no readable other.data"):
        fetch(missing, tmp_path / "other")


@pytest.mark.parametrize("fault", ["absent", "another", "large", "unfolds"])
def test_what_is_not_the_published_file_leaves_nothing(served: dict[str, bytes], tmp_path: Path, fault: str) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", b"0" * 10_000)
    served["/rows"] = packed.getvalue() if fault == "unfolds" else CSV * 100
    url = f"{served[''].decode()}/{'nothing' if fault == 'absent' else 'rows'}"
    part = Part(url=url, sha256="0" * 64 if fault == "another" else "", member="inner" if fault == "unfolds" else "")
    told = {"absent": "404", "another": "expected 000000000000", "large": "more than|at most", "unfolds": "more than"}
    with pytest.raises(DataError, match=told[fault]):
        fetch(part, tmp_path / "kept", most_bytes=100 if fault == "large" else 5_000)
    assert not (tmp_path / "kept").exists()


def test_every_set_says_what_may_be_done_with_it() -> None:
    assert len({known.name for known in SETS}) == len(SETS)
    for known in SETS:
        assert known.about and known.licence and known.cite and known.parts
        homes = [(part.shipped, part.url) for one in known.parts.values() for part in (one, *one.more)]
        assert any(shipped or url for shipped, url in homes)
        assert all(url.startswith("https://") for _, url in homes if url)
    assert described("known:digits")["name"] == "known:digits"


def test_unknown_names_are_told() -> None:
    with pytest.raises(DataError, match="did you mean known:german-credit"):
        read_examples("known:german-credits")
    with pytest.raises(DataError, match="choose one: known:open-bandit@random"):
        read_examples("known:open-bandit")


def test_sets_that_scikit_learn_ships() -> None:
    pytest.importorskip("sklearn")
    cancer = read_examples("known:breast-cancer")
    assert Counter(row.output for row in cancer.rows) == {"benign": 357, "malignant": 212}
    assert len(cancer.rows[0].inputs) == 30 and cancer.rows[0].inputs["mean radius"] == 17.99
    digits = read_examples("known:digits").rows
    assert len(digits) == 1797 and digits[0].inputs.shape == (8, 8, 1) and max(digits[0].inputs.pixels) <= 255


REAL = {  # rows, and how often the commonest output stands there
    "german-credit": (1000, "good", 700),
    "online-shoppers": (12330, "leaves", 10422),
    "pneumonia-mnist@validation": (524, "pneumonia", 389),
    "banking77": (10003, "card_payment_fee_charged", 187),
}


@pytest.mark.parametrize("name", REAL)
def test_real_sets_are_whole(name: str) -> None:
    known = known_set(f"known:{name}")
    if not (known_parts.data_folder() / next(iter(known.parts.values())).file).is_file():
        pytest.skip("needs the data of MELIOR_DATA")
    rows, label, count = REAL[name]
    found = read_examples(f"known:{name}")
    assert len(found) == rows and not found.problems
    assert Counter(row.output for row in found.rows)[label] == count


def test_preferences_and_ratings_of_people_are_whole() -> None:
    if not (known_parts.data_folder() / "hh_rlhf_harmless").is_dir():
        pytest.skip("needs the data of MELIOR_DATA")
    answers = read_examples("known:hh-rlhf-harmless@sample", "preferences")
    assert len(answers) == 1154 and not answers.problems  # 1,156, of which two have an empty answer
    turns = read_examples("known:taskmaster-reward", "rated")
    assert len(turns) == 3228 and sum(row.rating for row in turns.rows) == 2775
    assert turns.rows[-1].id == "known:taskmaster-reward:3228"
    contexts: dict[str, set[str]] = {}
    for row in turns.rows:
        contexts.setdefault(input_key(row), set()).add(row.group)
    assert len(contexts) == 2254 and all(len(groups) == 1 for groups in contexts.values())


@pytest.mark.parametrize(("name", "speed"), [("hopper", 5), ("walker2d", 8)])
def test_scripted_labels_prefer_the_faster_segment(name: str, speed: int) -> None:
    """Returns of these robots are mostly their speed, so labels that are read the wrong way round would be seen."""
    if not (known_parts.data_folder() / "pref_mujoco_human").is_dir():
        pytest.skip("needs the data of MELIOR_DATA")
    rows = read_examples(f"known:{name}-preferences@script-train", "preferences").rows
    faster = [np.asarray(row.chosen)[:, speed].sum() > np.asarray(row.rejected)[:, speed].sum() for row in rows]
    assert len(rows) == 100 and sum(faster) >= 99
    people = read_examples(f"known:{name}-preferences@human-train", "preferences").rows
    same = {frozenset((row.chosen, row.rejected)) for row in rows}
    assert same == {frozenset((row.chosen, row.rejected)) for row in people}
    assert {row.probability for row in people} == {1.0, 0.5}


def test_files_of_one_part_are_read_one_after_the_other(served: dict[str, bytes]) -> None:
    home = served[""].decode()
    served["/a.json"], served["/b.jsonl"] = b'[{"n": 1}, {"n": 2}]', b'{"n": 3}'
    part = Part(url=f"{home}/a.json", more=(Part(url=f"{home}/b.jsonl"),))
    assert [(line.number, line.row["n"]) for line in rows_of(part, "two") if isinstance(line, Line)] == [
        (1, 1),
        (2, 2),
        (3, 3),
    ]
    with pytest.raises(DataError, match="on no public server"):
        place_of(Part(file="rows.csv"), "rows")


def test_impressions_of_the_open_bandit_are_logged_slates() -> None:
    if not (known_parts.data_folder() / "obd_small").is_dir():
        pytest.skip("needs the data of MELIOR_DATA")
    found = read_examples("known:open-bandit@random", "logged")
    clicks = sum(len(row.item["events"]) for row in found.rows)
    assert len(found) == 10_000 and clicks == 38
    items = {item.id for item in read_catalogue("known:open-bandit-items")}
    assert len(items) == 80 and {row.output[0] for row in found.rows} <= items


def test_a_reading_of_ones_own_wins_over_the_known_one() -> None:
    if not (known_parts.data_folder() / "german_credit").is_dir():
        pytest.skip("needs the data of MELIOR_DATA")
    plain = read_examples("known:german-credit").rows[0]
    own = read_examples("known:german-credit", reading=Reading(drop=("foreign_worker",), audit=())).rows[0]
    assert plain.output == own.output == "good" and "foreign_worker" in plain.inputs
    assert "foreign_worker" not in own.inputs


def test_two_homes_of_a_set_give_the_same_rows() -> None:
    published = known_set("known:uci-default")
    assert published.adapt is not None
    names = ["ID", *(f"X{place}" for place in range(1, 24)), "Y"]
    values = [str(place) for place in range(25)]
    adapted = published.adapt(dict(zip(names, values, strict=True)))
    assert adapted["LIMIT_BAL"] == "1" and adapted["PAY_2"] == "7" and adapted["default.payment.next.month"] == "24"
    assert published.adapt(adapted) is adapted
