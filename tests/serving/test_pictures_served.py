"""pictures: what was decided on is kept once, found by the log, and can be learnt from"""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import Live

from melior import durable
from melior.data.pictures import pixels
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.registry import Registry
from melior.serving.pictures import MOST_PIXELS, keep, received
from melior.serving.problems import Problem
from melior.store.exports import LeftOut, Wanted, rows_of
from melior.types import Demonstration, Image

PIL = pytest.importorskip("PIL.Image")


def drawn(seed: int, side: int = 16) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)


def url_of(array: np.ndarray[Any, Any], kind: str = "PNG") -> str:
    file = io.BytesIO()
    PIL.fromarray(array).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.fixture
def server(live: Callable[..., Live], tmp_path: Path) -> Live:
    made = live()
    rows = [Demonstration(Image(pixels=drawn(i).tobytes(), shape=(16, 16, 3)), ("no", "yes")[i % 2]) for i in range(8)]
    ClassifierPolicy.make(Classifier(labels=("no", "yes")), rows).save(tmp_path / "look")
    registry = Registry(made.service.store)
    version = registry.register("look", tmp_path / "look", method="sft", base_model="none")
    registry.promote(version.id, force=True, reason="first")
    return made


def decide(server: Live, image: Any) -> Any:
    with server.http() as client:
        return client.post("/v1/decisions", json={"model": "look@prod", "input": {"image": image}, "seed": 3})


def test_a_picture_is_kept_once_and_its_rows_have_its_pixels(server: Live, tmp_path: Path) -> None:
    from melior.policies.kinds import load_policy

    array = drawn(99)
    told = [decide(server, url_of(array)).json() for _ in range(2)]
    told.append(decide(server, url_of(drawn(98), "WEBP")).json())
    assert all(each["output"] in ("no", "yes") for each in told), told
    kept = sorted(server.service.pictures.iterdir())
    assert len(kept) == 2 and {file.suffix for file in kept} == {".png", ".webp"}
    with server.http() as client:
        said = {"metric_name": "demonstration", "value": "yes", "decision_id": told[0]["decision_id"]}
        assert client.post("/v1/feedback", json=said).status_code == 200
    with server.service.store.database.read() as connection:
        (row,) = rows_of(connection, Wanted(kind="demonstrations"), LeftOut())
        logged = [made.example for made in rows_of(connection, Wanted(kind="decisions"), LeftOut())]
    assert np.array_equal(pixels(row.example.inputs), array) and row.example.output == "yes"
    policy: Any = load_policy(tmp_path / "look")
    again = policy.log_probs(logged[:1])[0].sum().detach()
    assert float(again) == pytest.approx(told[0]["log_prob"], abs=1e-5), "as it was decided, so it is read back"


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("/etc/passwd", "a path would be read with this server's rights"),
        ("file:///etc/passwd", "a path would be read"),
        ({"pixels": "", "shape": [0, 0, 0]}, "a picture comes as data:image/png"),
        ("data:image/png;base64,####", "no base64"),
        ("data:image/png,abc", "ends its head with ;base64"),
        ("data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\nbroken").decode(), "cannot be decoded"),
        ("data:image/png;base64," + base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0").decode(), "one of PNG, JPEG"),
        ("data:image/png;base64," + "A" * (14 << 20), "10,485,760 bytes"),
    ],
)
def test_what_is_no_picture_is_told_and_nothing_is_kept(server: Live, image: Any, told: str) -> None:
    answer = decide(server, image)
    assert answer.status_code == 400 and told in answer.json()["error"]["message"]
    assert not server.service.pictures.exists() and server.service.store.decisions() == []


def test_a_small_file_that_unfolds_to_many_pixels_is_refused() -> None:
    side = int(MOST_PIXELS**0.5) + 1
    file = io.BytesIO()
    PIL.new("1", (side, side)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    with pytest.raises(Problem, match=f"{side} × {side} pixels"):
        received("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())


def test_a_picture_cut_short_is_told(server: Live) -> None:
    whole = base64.b64decode(url_of(drawn(1)).partition(",")[2])
    cut = "data:image/png;base64," + base64.b64encode(whole[: len(whole) // 2]).decode()
    assert decide(server, cut).status_code == 400


def test_a_full_disk_decides_nothing(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(moment: str) -> None:
        if moment == "file written":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "failpoint", full)
    answer = decide(server, url_of(drawn(2)))
    assert answer.status_code == 507 and "nothing was decided" in answer.json()["error"]["message"]
    assert server.service.store.decisions() == [] and not list(server.service.pictures.glob("*"))


def test_the_same_picture_at_the_same_moment_is_written_once(tmp_path: Path) -> None:
    sent = received(url_of(drawn(5)))
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(keep(tmp_path / "kept", sent))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 8 and set(paths) == set((tmp_path / "kept").iterdir())
    assert paths[0].read_bytes() == sent.content
