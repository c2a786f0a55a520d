"""pictures become features: decoded, brought to one size, and read by a convolutional network

A small network learns from scratch; EfficientNet-lite0 comes with what it learnt on ImageNet. Neither has statistics of
a batch in it, so a picture's features are its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn
from torch.nn import functional

from melior.data.formats.rows import ColumnKind
from melior.data.pictures import pixels as pixels_of
from melior.errors import ConfigError, DataError
from melior.policies.inputs import uniforms
from melior.policies.lite0 import Lite0, pretrained_lite0
from melior.types import Image

KEPT_BYTES = 1 << 30  # of pixels held in memory; pictures in files beyond that are decoded each time they are read
BATCH_PIXELS = 1 << 19  # of a micro-batch: 512 pictures of 32 × 32, 10 of 224 × 224; near 1 GB of activations
SMALL_SIDE = 64  # the small network reads no finer: its widest view is 40 pixels
STREAM = 1  # of noise; 0 is the head's


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Pictures:
    """How pictures are read, and what plain SFT does to them anew each time (nothing, unless told)."""

    size: int | None = Field(default=None, ge=8, le=1024)  # side in pixels; None: the backbone's choice
    shift: float = Field(default=0.0, ge=0, le=0.5)  # up to this share of its side, in both directions
    rotate: float = Field(default=0.0, ge=0, le=180)  # up to so many degrees, both ways
    flip: bool = False  # left and right change places in half the pictures; not where a side means something
    brightness: float = Field(default=0.0, ge=0, lt=1)  # times 1 - b … 1 + b

    @property
    def augments(self) -> bool:
        """Whether anything is changed."""
        return bool(self.shift or self.rotate or self.flip or self.brightness)


@dataclass(frozen=True)
class Picture:
    """One picture as it is held: its pixels, or the file that has them."""

    image: Image
    pixels: Tensor | None  # [C, H, W] uint8


class ImageInputs(nn.Module):
    """Features of pictures, brought to `size` × `size` and `channels` channels."""

    kind = "image"
    columns: Mapping[str, ColumnKind] = {}

    def __init__(self, config: Pictures, *, backbone: str, size: int, channels: int) -> None:
        super().__init__()
        self.config, self.backbone, self.size = config, backbone, size
        if backbone == "small":
            self.network: Lite0 | Small = Small(channels)
            mean, std = [0.5] * channels, [0.25] * channels  # of pixels in 0 … 1: centred, and about one wide
        elif backbone == "efficientnet-lite0":
            self.network, channels = Lite0(), 3
            mean, std = list(Lite0.mean), list(Lite0.std)
        else:
            raise ConfigError(f"Images have no backbone {backbone!r}; write small or efficientnet-lite0")
        self.channels, self.mean, self.std = channels, mean, std
        self.noticed: Counter[str] = Counter()
        self.held = 0  # bytes of pixels kept

    @classmethod
    def make(cls, images: Sequence[Image], config: Pictures, *, backbone: str = "auto") -> ImageInputs:
        """A network for these training pictures, with ImageNet's weights where the backbone has them.

        Raises:
            ModelError: if the backbone's package is not installed.
        """
        backbone = "small" if backbone == "auto" else backbone
        shapes = [tuple(decode(image).shape) for image in images[:100]]  # enough to tell how large and how coloured
        grey = all(shape[0] == 1 for shape in shapes)
        largest = max(max(shape[1:]) for shape in shapes)
        sides = {"small": max(16, min(SMALL_SIDE, largest)), "efficientnet-lite0": Lite0.side}
        side = config.size or sides.get(backbone, SMALL_SIDE)
        made = cls(config, backbone=backbone, size=side, channels=1 if grey else 3)
        if backbone == "efficientnet-lite0":
            made.network.load_state_dict(pretrained_lite0())
        return made

    @property
    def pretrained(self) -> bool:
        """Whether its weights knew something before training."""
        return self.backbone != "small"

    @property
    def width(self) -> int:
        """Features of one picture."""
        return self.network.width

    @property
    def random(self) -> bool:
        """Whether pictures are augmented in plain SFT."""
        return self.config.augments

    @property
    def budget(self) -> int:
        """Pictures of a micro-batch: all are brought to one size, so a row is a row."""
        return max(1, BATCH_PIXELS // self.size**2)

    def cost(self, row: Picture) -> int:
        """One."""
        return 1

    # ------------------------------------------------------------------ pictures become tensors

    def encode(self, inputs: Sequence[Any]) -> list[Picture]:
        """Pictures, each decoded once and found readable.

        Raises:
            DataError: for what is no picture, or a file that cannot be decoded.
        """
        shapes: Counter[tuple[int, ...]] = Counter()
        rows = []
        for place, given in enumerate(inputs):
            if not isinstance(given, Image):
                raise DataError(f"Input {place} is a {type(given).__name__}; this classifier reads images")
            pixels = self._fitted(decode(given), told=True)
            shapes[tuple(pixels.shape[1:])] += 1
            keep = not given.path or self.held + pixels.numel() <= KEPT_BYTES
            self.held += pixels.numel() if keep else 0
            rows.append(Picture(given, pixels if keep else None))
        if odd := len(rows) - max(shapes.values(), default=0):
            common = "×".join(str(side) for side in shapes.most_common(1)[0][0])
            self.noticed[f"image of another size than {common}, resized"] += odd
        return rows

    def _fitted(self, pixels: Tensor, *, told: bool = False) -> Tensor:
        """The channels that the network reads, no larger than it reads them."""
        channels = pixels.shape[0]
        if channels != self.channels:
            if told and (self.backbone == "small" or channels == 3):  # lite0 repeats grey, by design
                what = "colour image read as grey" if self.channels == 1 else "grey image read as colour"
                self.noticed[what] += 1
            # ITU-R BT.601's weights, as Pillow's conversion has them
            grey = (pixels.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
            pixels = pixels.expand(3, -1, -1) if self.channels == 3 else grey.round().to(torch.uint8)
        if max(pixels.shape[1:]) > self.size:
            pixels = _resized(pixels[None].float(), self.size)[0].round().clamp(0, 255).to(torch.uint8)
        return pixels

    def forward(self, rows: Sequence[Picture], seeds: Tensor | None = None) -> Tensor:  # [B, D]
        """Features of pictures, augmented where there are seeds."""
        device = next(self.parameters()).device
        by_shape: dict[tuple[int, ...], list[int]] = {}
        pixels = [self._fitted(decode(row.image)) if row.pixels is None else row.pixels for row in rows]
        for place, one in enumerate(pixels):
            by_shape.setdefault(tuple(one.shape), []).append(place)
        dtype = next(self.parameters()).dtype
        ready = torch.empty(len(rows), self.channels, self.size, self.size, dtype=dtype, device=device)
        for places in by_shape.values():
            stacked = torch.stack([pixels[place] for place in places]).to(device).to(dtype) / 255
            ready[places] = _resized(stacked, self.size)
        if seeds is not None and self.config.augments:
            ready = augmented(ready, self.config, seeds.to(device))
        mean, std = (
            torch.tensor(values, dtype=dtype, device=device)[:, None, None] for values in (self.mean, self.std)
        )
        return self.network((ready - mean) / std)

    # ------------------------------------------------------------------ keeping

    def to_json(self) -> dict[str, Any]:
        """Sizes and settings."""
        told = {"backbone": self.backbone, "size": self.size, "channels": self.channels}
        return {**told, "mean": self.mean, "std": self.std, "image": asdict(self.config)}

    @classmethod
    def from_json(cls, told: dict[str, Any], folder: Path) -> ImageInputs:
        """The network, its weights still to be loaded."""
        sizes = {name: told[name] for name in ("backbone", "size", "channels")}
        made = cls(Pictures(**told["image"]), **sizes)
        made.mean, made.std = told["mean"], told["std"]
        return made

    def write_files(self, folder: Path) -> None:
        """None."""


class Small(nn.Module):
    """A residual network of 0.3 million weights, for pictures of few pixels and few rows.

    Source: He et al. 2016, arXiv:1603.05027 (pre-activation); Wu and He 2018, arXiv:1803.08494 (group normalisation).
    """

    widths = (32, 64, 128)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = self.widths[-1]
        self.stem = nn.Conv2d(channels, self.widths[0], 3, padding=1, bias=False)
        before = (self.widths[0], *self.widths[:-1])
        strides = (1, 2, 2)
        self.blocks = nn.ModuleList(
            Residual(inner, outer, stride) for inner, outer, stride in zip(before, self.widths, strides, strict=True)
        )
        self.final_norm = nn.GroupNorm(8, self.width)

    def forward(self, pixels: Tensor) -> Tensor:  # [B, C, S, S] → [B, D]
        """The mean over places of the last block's states."""
        states = self.stem(pixels)
        for block in self.blocks:
            states = block(states)
        return functional.relu(self.final_norm(states)).mean((2, 3))


class Residual(nn.Module):
    """Two convolutions beside a short cut."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inner), nn.GroupNorm(8, outer)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.short = nn.Conv2d(inner, outer, 1, stride=stride, bias=False) if inner != outer else nn.Identity()

    def forward(self, states: Tensor) -> Tensor:
        """States of the next depth."""
        opened = functional.relu(self.norm1(states))
        inner = self.conv2(functional.relu(self.norm2(self.conv1(opened))))
        return inner + self.short(opened if not isinstance(self.short, nn.Identity) else states)


def augmented(pixels: Tensor, how: Pictures, seeds: Tensor) -> Tensor:
    """Pictures [B, C, S, S], each moved, turned, flipped and lit by its own seed; edges are drawn out."""
    drawn = uniforms(seeds, 5, STREAM).to(pixels.dtype)  # [B, 5]
    signed = drawn * 2 - 1
    angle = signed[:, 0] * math.radians(how.rotate)
    side = torch.where(drawn[:, 1] < 0.5, -1.0, 1.0).to(pixels.dtype) if how.flip else torch.ones_like(angle)
    shift = signed[:, 2:4] * how.shift * 2  # the grid runs from -1 to 1
    turned = torch.stack(
        [angle.cos() * side, -angle.sin(), shift[:, 0], angle.sin() * side, angle.cos(), shift[:, 1]], 1
    )
    grid = functional.affine_grid(turned.view(-1, 2, 3), list(pixels.shape), align_corners=False)
    moved = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    light = 1 + signed[:, 4] * how.brightness
    return (moved * light[:, None, None, None]).clamp(0, 1)


def _resized(pixels: Tensor, size: int) -> Tensor:  # [B, C, H, W] → [B, C, size, size]
    if tuple(pixels.shape[2:]) == (size, size):
        return pixels
    return functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def decode(image: Image) -> Tensor:  # [C, H, W] uint8, one channel or three
    """The pixels of a picture; transparency is dropped.

    Raises:
        DataError: if the file cannot be decoded, or has channels that are neither grey nor colour.
    """
    found = torch.from_numpy(pixels_of(image).copy())
    channels = found.shape[2]
    if channels not in (1, 2, 3, 4):
        raise DataError(f"{image} has {channels} channels; grey has 1, colour 3, and one more with transparency")
    return found[:, :, : 1 if channels < 3 else 3].permute(2, 0, 1).contiguous()
