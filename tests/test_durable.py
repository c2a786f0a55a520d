"""whatever fails and wherever, a folder or file is the old one or the new one; no damage loads silently"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from melior import durable
from melior.durable import MANIFEST, durable_folder, remove_drafts, verify_folder, write_file
from melior.errors import CheckpointError

OLD = {"weights.bin": b"old weights" * 50, "nested/config.json": b'{"version": 1}'}
NEW = {"weights.bin": b"NEW weights" * 70, "nested/config.json": b'{"version": 2}', "more.txt": b"added"}


@pytest.fixture(autouse=True)
def no_failpoint() -> Iterator[None]:
    before = durable.failpoint
    yield
    durable.failpoint = before


def write(folder: Path, files: dict[str, bytes]) -> None:
    with durable_folder(folder) as draft:
        for name, content in files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes(content)


def content(folder: Path) -> dict[str, bytes]:
    """What a verified folder holds."""
    verify_folder(folder)
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def moments(action: Callable[[], None]) -> list[str]:
    """The failpoints that an action passes."""
    seen: list[str] = []
    durable.failpoint = seen.append
    action()
    durable.failpoint = lambda moment: None
    return seen


def fail_at(number: int, fail: Callable[[], None]) -> None:
    passed = [0]

    def point(moment: str) -> None:
        passed[0] += 1
        if passed[0] == number:
            fail()

    durable.failpoint = point


def refuse(code: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    return fail


def in_a_killed_child(action: Callable[[], None]) -> int:
    """Runs an action in a forked process that a failpoint may end at once; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many failpoints the replacement of a folder passes."""
    folder = tmp_path_factory.mktemp("count") / "model"
    write(folder, OLD)
    seen = moments(lambda: write(folder, NEW))
    assert len(seen) >= 10 and {"old one aside", "renamed"} <= set(seen)
    return len(seen)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "model", OLD)
    assert content(tmp_path / "model") == OLD
    write(tmp_path / "model", NEW)
    assert content(tmp_path / "model") == NEW
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("replacing", [True, False])
def test_a_refused_write_leaves_the_old_folder(code: int, replacing: bool, points: int, tmp_path: Path) -> None:
    failures = 0
    for number in range(1, points + 1):
        folder = tmp_path / str(number) / "model"
        if replacing:
            write(folder, OLD)
        fail_at(number, refuse(code))
        try:
            write(folder, NEW)
        except CheckpointError as error:
            failures += 1
            assert os.strerror(code) in str(error)
            assert (content(folder) == OLD) if replacing else not folder.exists()
        durable.failpoint = lambda moment: None
        assert [entry.name for entry in folder.parent.iterdir()] in ([], ["model"]), "nothing is left lying about"
        write(folder, NEW)
        assert content(folder) == NEW, "and the next try succeeds"
    assert failures == (points if replacing else points - 1), "a first write has no old folder to put aside"


def test_a_killed_writer_leaves_the_old_or_the_new_folder(points: int, tmp_path: Path) -> None:
    outcomes = []
    for number in range(1, points + 2):
        folder = tmp_path / str(number) / "model"
        write(folder, OLD)
        fail_at(number, lambda: os._exit(7))
        status = in_a_killed_child(lambda folder=folder: write(folder, NEW))  # type: ignore[misc]
        durable.failpoint = lambda moment: None
        assert status == (7 if number <= points else 0)
        remove_drafts(folder.parent)
        found = content(folder)
        assert found in (OLD, NEW)
        outcomes.append(found == NEW)
        assert [entry.name for entry in folder.parent.iterdir()] == ["model"]
    assert outcomes == sorted(outcomes), "once it is the new one it stays the new one"
    assert outcomes[0] is False and outcomes[-1] is True


def test_a_process_with_the_number_of_a_killed_one_recovers(tmp_path: Path) -> None:
    """In containers every process may have the same number."""
    folder, aside = tmp_path / "model", tmp_path / f".model.old-{os.getpid()}"
    write(folder, OLD)
    os.rename(folder, aside)  # killed between the two renames
    with pytest.raises(ZeroDivisionError), durable_folder(folder):
        raise ZeroDivisionError
    assert content(folder) == OLD
    write(folder, NEW)
    assert content(folder) == NEW and not aside.exists()


def test_an_error_of_the_writer_itself_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "model", OLD)
    with pytest.raises(ZeroDivisionError), durable_folder(tmp_path / "model") as draft:
        (draft / "half").write_text("half")
        raise ZeroDivisionError
    assert content(tmp_path / "model") == OLD
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    write_file(file, "old")
    seen = moments(lambda: write_file(file, "old"))
    for number in range(1, len(seen) + 1):
        for code in (errno.ENOSPC, errno.EIO):
            fail_at(number, refuse(code))
            with pytest.raises(CheckpointError, match="Cannot write"):
                write_file(file, "new")
            durable.failpoint = lambda moment: None
            assert file.read_text() in ("old", "new")
            assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
            write_file(file, "old")
        fail_at(number, lambda: os._exit(7))
        assert in_a_killed_child(lambda: write_file(file, "new")) == 7
        durable.failpoint = lambda moment: None
        remove_drafts(tmp_path)
        assert file.read_text() in ("old", "new")
        assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
        write_file(file, "old")


def test_threads_that_write_one_file_leave_one_of_theirs_whole(tmp_path: Path) -> None:
    path, contents = tmp_path / "state.json", [bytes([65 + number]) * (20_000 + number) for number in range(8)]

    def writing(content: bytes) -> None:
        for _ in range(25):
            write_file(path, content)
            assert path.read_bytes() in contents

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(writing, contents))
    assert path.read_bytes() in contents and os.listdir(tmp_path) == [path.name]


def test_a_hundred_bit_flips_never_load_silently(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write(folder, NEW)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    chance = random.Random(0)
    for _ in range(100):
        file = chance.choices(files, [file.stat().st_size for file in files])[0]
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(bytes(damaged))
        with pytest.raises(CheckpointError):
            verify_folder(folder)
        file.write_bytes(whole)
    assert content(folder) == NEW


def test_missing_cut_and_unexpected_files_are_named(tmp_path: Path) -> None:
    for number, (damage, name) in enumerate(
        [
            (lambda f: (f / "more.txt").unlink(), "more.txt"),
            (lambda f: (f / "weights.bin").write_bytes(b"NEW"), "weights.bin"),
            (lambda f: (f / "nested" / "extra.json").write_text("{}"), "extra.json"),
            (lambda f: (f / MANIFEST).unlink(), MANIFEST),
            (lambda f: (f / MANIFEST).write_text("[1, 2]"), MANIFEST),
        ]
    ):
        folder = tmp_path / str(number)
        write(folder, NEW)
        damage(folder)  # type: ignore[no-untyped-call]
        with pytest.raises(CheckpointError, match=name):
            verify_folder(folder)
