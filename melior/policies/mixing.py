"""one model under many adapters: its weights are held once, and each row of a pass is computed with its own adapter

A `Mixture` stands in for the forward of every matrix that one of its adapters changes. The matrix itself is computed
once for all rows; what an adapter adds is computed for its rows alone. Where all rows have the same adapter, these are
the operations of the model that has only that one, on the same shapes: the numbers are bitwise the same.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear

from melior.durable import MANIFEST, verify_folder
from melior.errors import ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as PEFT writes them
PREFIX = "base_model.model."
# settings of PEFT under which an adapter is more than a pair of small matrices per large one
BEYOND = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias", "use_qalora")


class Pair(NamedTuple):
    """What an adapter adds to one matrix: scaling * up @ down."""

    down: Tensor  # [r, in]
    up: Tensor  # [out, r]
    scaling: float


Adapter = Mapping[str, Pair]  # by the name of the matrix's module


def mixes(folder: Path) -> bool:
    """Whether the adapter in a folder can be one of several: plain LoRA, as melior trains it."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    plain = config.get("peft_type") == "LORA" and config.get("bias", "none") == "none"
    return plain and not any(config.get(name) for name in BEYOND) and (folder / WEIGHTS).is_file()


def read_adapter(folder: Path, device: torch.device) -> Adapter:
    """The pairs of a folder for which `mixes`.

    Raises:
        ModelError: if they cannot be read; CheckpointError if the folder is damaged.
    """
    if (folder / MANIFEST).is_file():
        verify_folder(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(str(folder / WEIGHTS), device=str(device))
        downs = {name: tensor for name, tensor in tensors.items() if name.endswith(".lora_A.weight")}
        rank = int(config["r"])
        scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        pairs = {
            name.removeprefix(PREFIX).removesuffix(".lora_A.weight"): Pair(
                down, tensors[name.replace(".lora_A.", ".lora_B.")], scaling
            )
            for name, down in downs.items()
        }
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"The adapter in {folder} cannot be read ({error}); save it anew") from error
    if 2 * len(pairs) != len(tensors):
        raise ModelError(f"{len(tensors) - 2 * len(pairs)} tensors of the adapter in {folder} are no part of a LoRA")
    return pairs


class Mixture:
    """A model without an adapter of its own, and the adapters that its rows may have."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.adapters: dict[str, Adapter] = {}
        self.here = threading.local()  # .parts: what this thread's passes add, and to which rows

    def add(self, name: str, adapter: Adapter) -> None:
        """Makes an adapter known; rows may have it from now on.

        Raises:
            ModelError: if it does not fit the model.
        """
        for module, pair in adapter.items():
            self._wrap(module, pair)
        self.adapters[name] = adapter

    def drop(self, name: str) -> None:
        """Forgets an adapter that no row has any more."""
        self.adapters.pop(name, None)

    @contextmanager
    def rows(self, names: Sequence[str]) -> Iterator[None]:
        """Inside, row i of this thread's passes has the adapter names[i]; one name is for all rows, "" is none."""
        self.here.parts = self._parts(names)
        try:
            yield
        finally:
            self.here.parts = ()

    def _parts(self, names: Sequence[str]) -> Sequence[tuple[Adapter, Tensor | None]]:
        distinct = dict.fromkeys(names)
        if len(distinct) == 1:
            return [(self.adapters[name], None) for name in distinct if name]
        device = next(self.model.parameters()).device
        rows: dict[str, list[int]] = {name: [] for name in distinct if name}
        for row, name in enumerate(names):
            if name:
                rows[name].append(row)
        return [(self.adapters[name], torch.tensor(which, device=device)) for name, which in rows.items()]

    def _wrap(self, name: str, pair: Pair) -> None:
        try:
            module = self.model.get_submodule(name)
        except AttributeError as error:
            raise ModelError(f"The adapter changes {name}, which the model does not have") from error
        if type(module) is not torch.nn.Linear or module is self.model.get_output_embeddings():
            raise ModelError(f"The adapter changes {name}, a {type(module).__name__} that has to be adapted alone")
        if (pair.up.shape[0], pair.down.shape[1]) != tuple(module.weight.shape):
            shape = [pair.up.shape[0], pair.down.shape[1]]
            raise ModelError(f"The adapter changes {name} as if it were {shape}; it is {list(module.weight.shape)}")
        if not isinstance(module.forward, _Mixed):
            module.forward = _Mixed(self, name, module)  # type: ignore[method-assign, assignment]


class _Mixed:
    """Stands in for the forward of one matrix."""

    def __init__(self, mixture: Mixture, name: str, module: torch.nn.Linear) -> None:
        self.mixture, self.name, self.module = mixture, name, module
        self.plain = module.forward

    def __call__(self, inputs: Tensor) -> Tensor:
        parts = getattr(self.mixture.here, "parts", ())
        if not parts:
            return self.plain(inputs)
        rows = inputs.reshape(-1, inputs.shape[-1])
        output = linear(rows, self.module.weight, self.module.bias)
        for adapter, which in parts:
            pair = adapter.get(self.name)
            if pair is None:
                continue
            read = (rows if which is None else rows.index_select(0, which)).to(pair.down.dtype)
            low = read @ pair.down.t()
            if which is None and low.dtype == output.dtype:
                output.addmm_(low, pair.up.t(), alpha=pair.scaling)
            else:
                added = (low @ pair.up.t()).to(output.dtype)
                everywhere = torch.arange(len(rows), device=rows.device) if which is None else which
                output.index_add_(0, everywhere, added, alpha=pair.scaling)
        return output.view(*inputs.shape[:-1], -1)
