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

import pytest

from melior.data import known_parts
from melior.data.catalogues import read_catalogue
from melior.data.formats import read_examples
from melior.data.formats.rows import Reading
from melior.data.known_parts import Part, fetch, place_of, rows_of
from melior.data.known_sets import SETS, described, known_set
from melior.data.readers import Line
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
        for part in known.parts.values():
            assert part.shipped or part.url.startswith("https://")
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
