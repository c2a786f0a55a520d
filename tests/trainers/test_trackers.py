"""laws of trackers, each read back with its own library: every step once, resumed or not, and no harm to training"""

from __future__ import annotations

import json
import logging
import math
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tabular import Tabular

from melior.errors import ConfigError
from melior.trainers.loop import FitConfig, Run, fit
from melior.trainers.supervised import Examples, Supervised
from melior.trainers.trackers import MLflow, TensorBoard, TrackedRun, Tracker, Trackio, WandB, trackers_of
from melior.types import Demonstration

ROWS = [Demonstration("a", (0, 1, 2)), Demonstration("a", (2, 1, 0))] * 3
STEPS = 6


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tracker may reach another machine, and none finds an account."""
    reach = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a tracker reached out to {address}")
        reach(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)


def train(folder: Path, *trackers: Tracker, stop: int | None = None, samples: bool = False) -> Run:
    policy = Tabular()

    def on_step(done: int, total: int, metrics: dict[str, float]) -> None:
        metrics["sampled_entropy"] = 0.5
        metrics["num_tokens"] = 10.0
        metrics["gap"] = math.nan
        if done == stop:
            raise RuntimeError("the machine went away")

    return fit(
        policy,
        Examples(policy, ROWS, batch_size=1),
        Supervised(),
        FitConfig(folder=folder, checkpoint_every=2),
        on_step=on_step,
        trackers=trackers,
        track_samples=samples,
    )


def interrupted(folder: Path, make: type[Any]) -> Run:
    """Stopped twice, two steps or one behind a checkpoint, so that tracked steps are repeated; then to the end."""
    for stop in (4, 6):
        with pytest.raises(RuntimeError, match="went away"):
            train(folder, make(), stop=stop)
    return train(folder, make())


def expected(run: Run, name: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), row[name]) for row in run.metrics]


def names_no_person(text: str) -> None:
    import getpass

    host = socket.gethostname()
    assert host not in text and (getpass.getuser() == "root" or getpass.getuser() not in text)


def test_tensorboard_reads_back_every_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = interrupted(tmp_path / "run", TensorBoard)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    told = [(event.step, event.value) for event in found.Scalars("loss")]
    assert told == [(step, pytest.approx(value)) for step, value in expected(run, "loss")]
    assert [event.value for event in found.Scalars("num_tokens")] == [10.0 * (step + 1) for step in range(STEPS)]
    assert "entropy" in found.Tags()["scalars"] and "gap" not in found.Tags()["scalars"]
    assert "settings/text_summary" in found.Tags()["tensors"]


def test_mlflow_reads_back_every_step_once_in_one_run(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    run = interrupted(tmp_path / "run", MLflow)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("melior")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == expected(run, "loss")
    assert found.info.status == "FINISHED" and found.data.params["config.learning_rate"] == "0.0002"
    names_no_person(json.dumps([found.data.tags, found.data.params]))
    assert str(tmp_path) not in json.dumps([found.data.tags, found.data.params])


def test_wandb_reads_back_every_step_once_under_one_id(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = interrupted(tmp_path / "run", WandB)
    rows, ids = [], set()
    for file in sorted((tmp_path / "run").rglob("*.wandb")):
        for record in wandb_records(file):
            if record.HasField("history"):
                rows.append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item})
            if record.HasField("run"):
                ids.add(record.run.run_id)
                names_no_person(str(record.run))
    assert [(row["_step"], row["loss"]) for row in rows] == expected(run, "loss")
    assert len(ids) == 1 and all("entropy" in row and "gap" not in row for row in rows)


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run: blocks of 32 KiB, records with a header of 7 bytes, as in LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, held = file.read_bytes(), 7, b""  # after the file's own header
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        held += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(held)
            held = b""
            yield record


def test_trackio_reads_back_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    try:
        import trackio  # noqa: F401
        from trackio.sqlite_storage import SQLiteStorage
    except ImportError as error:
        pytest.skip(f"trackio cannot be imported here: {error}")
    run = interrupted(tmp_path / "run", Trackio)
    (name,) = SQLiteStorage.get_runs("melior")
    logs = SQLiteStorage.get_logs("melior", name)
    assert [(row["step"], row["loss"]) for row in logs] == expected(run, "loss")


class Broken:
    """A tracker whose network is gone from some moment on."""

    name = "broken"

    def __init__(self, at: str) -> None:
        self.at = at
        self.calls: list[str] = []

    def _act(self, what: str) -> None:
        self.calls.append(what)
        if what == self.at:
            raise ConnectionError("no route to host\nsecond line")

    def open(self, run: TrackedRun) -> None:
        self._act("open")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._act("log")

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._act("samples")

    def close(self, state: str) -> None:
        self._act("close")


@pytest.mark.parametrize(("at", "calls"), [("open", 1), ("log", 2), ("close", STEPS + 2)])
def test_a_tracker_that_fails_is_told_once_and_stops_nothing(
    tmp_path: Path, at: str, calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken(at)
    with caplog.at_level(logging.WARNING):
        run = train(tmp_path / "run", broken)
    assert run.steps == STEPS and len(broken.calls) == calls
    told = [record.getMessage() for record in caplog.records if "broken" in record.getMessage()]
    assert len(told) == 1 and "no route to host" in told[0] and "\n" not in told[0]


def test_trackers_need_a_folder() -> None:
    policy = Tabular()
    with pytest.raises(ConfigError, match="give a folder"):
        fit(policy, Examples(policy, ROWS), Supervised(), FitConfig(), trackers=[TensorBoard()])


def test_a_missing_package_is_one_sentence_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.entities", None)
    with pytest.raises(ConfigError, match=r"pip install 'melior\[mlflow\]'"):
        train(tmp_path / "run", MLflow())


def test_numbers_do_not_depend_on_who_is_told(tmp_path: Path) -> None:
    def untimed(run: Run) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if k not in ("gap",) and "seconds" not in k} for row in run.metrics]

    assert untimed(train(tmp_path / "a", Broken("never"))) == untimed(train(tmp_path / "b"))


def test_names_make_trackers_once() -> None:
    assert [type(tracker) for tracker in trackers_of(("wandb", "tensorboard", "wandb"))] == [WandB, TensorBoard]
