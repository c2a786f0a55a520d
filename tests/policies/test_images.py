"""pictures: what can be read, what is told, and that augmentation is a function of its seeds"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from melior.errors import ConfigError, DataError
from melior.policies.images import ImageInputs, Pictures, augmented, decode
from melior.types import Image

files = pytest.importorskip("PIL.Image", reason="Pillow is the extra vision")


def pixels(height: int = 12, width: int = 12, channels: int = 1, seed: int = 0) -> Image:
    drawn = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image(pixels=drawn.tobytes(), shape=drawn.shape)  # type: ignore[arg-type]


def test_a_file_and_its_pixels_are_the_same_picture(tmp_path: Path) -> None:
    for channels, mode in ((1, "L"), (3, "RGB")):
        given = pixels(9, 11, channels)
        array = np.frombuffer(given.pixels, np.uint8).reshape(given.shape)
        files.fromarray(array.squeeze(), mode).save(tmp_path / f"{mode}.png")
        assert torch.equal(decode(Image(str(tmp_path / f"{mode}.png"))), decode(given))
        assert decode(given).shape == (channels, 9, 11)


def test_transparency_is_dropped_and_other_channels_are_refused() -> None:
    assert decode(pixels(4, 4, 4)).shape == (3, 4, 4)
    assert decode(pixels(4, 4, 2)).shape == (1, 4, 4)
    with pytest.raises(DataError, match="5 channels"):
        decode(pixels(4, 4, 5))


def test_what_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    files.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)).save(broken)
    broken.write_bytes(broken.read_bytes()[:600])
    (tmp_path / "text.png").write_text("no picture")
    for path in (broken, tmp_path / "text.png", tmp_path / "missing.png"):
        with pytest.raises(DataError, match=path.name):
            decode(Image(str(path)))


def test_other_sizes_and_channels_are_read_and_counted() -> None:
    inputs = ImageInputs.make([pixels(), pixels(seed=1)], Pictures(size=16))
    assert (inputs.channels, inputs.backbone) == (1, "small")
    rows = inputs.encode([pixels(), pixels(seed=1), pixels(20, 30), pixels(channels=3)])
    assert torch.isfinite(inputs(rows)).all()
    assert inputs.noticed["colour image read as grey"] == 1
    assert sum(count for told, count in inputs.noticed.items() if "another size" in told) == 1
    with pytest.raises(DataError, match="Input 0 is a str"):
        inputs.encode(["a text"])
    with pytest.raises(ConfigError, match="no backbone 'resnet'"):
        ImageInputs.make([pixels()], Pictures(), backbone="resnet")


def test_pictures_in_files_beyond_what_is_held_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.fromarray(np.random.default_rng(3).integers(0, 256, (12, 12), dtype=np.uint8)).save(tmp_path / "one.png")
    inputs = ImageInputs.make([Image(str(tmp_path / "one.png"))], Pictures(size=16))
    held = inputs(inputs.encode([Image(str(tmp_path / "one.png"))]))
    monkeypatch.setattr("melior.policies.images.KEPT_BYTES", 0)
    (row,) = inputs.encode([Image(str(tmp_path / "one.png"))])
    assert row.pixels is None and torch.equal(inputs([row]), held)


def test_augmentation_moves_what_it_was_told_to_and_nothing_else() -> None:
    shown = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    seeds = torch.arange(64)
    torch.testing.assert_close(augmented(shown, Pictures(), seeds), shown, rtol=0, atol=1e-5)
    flipped = augmented(shown, Pictures(flip=True), seeds)
    mirrored = [torch.allclose(f, s.flip(-1), atol=1e-5) for f, s in zip(flipped, shown, strict=True)]
    same = [torch.allclose(f, s, atol=1e-5) for f, s in zip(flipped, shown, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True)) and 16 < sum(mirrored) < 48
    dim = 0.2 + shown * 0.3
    factors = (augmented(dim, Pictures(brightness=0.4), seeds) / dim).flatten(1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), rtol=1e-4, atol=1e-4)
    assert 0.6 <= factors.min() < 0.75 and 1.25 < factors.max() <= 1.4 + 1e-4


def test_a_shift_is_no_longer_than_it_may_be() -> None:
    dot = torch.zeros(200, 1, 33, 33)
    dot[:, :, 16, 16] = 1.0
    moved = augmented(dot, Pictures(shift=0.25), torch.arange(200))[:, 0]
    places = torch.arange(33.0)
    for axis in (1, 2):
        centre = (moved.sum(3 - axis) * places).sum(1) / moved.sum((1, 2))
        reach = (centre - 16).abs().max()
        assert 6.5 < reach <= 0.25 * 33 + 0.1


def test_a_picture_stands_as_the_camera_was_held(tmp_path: Path) -> None:
    wide = np.zeros((10, 20, 3), np.uint8)
    turned = files.fromarray(wide).getexif()
    turned[0x0112] = 6  # a quarter turn to the right
    files.fromarray(wide).save(tmp_path / "turned.jpg", exif=turned)
    assert decode(Image(str(tmp_path / "turned.jpg"))).shape == (3, 20, 10)
