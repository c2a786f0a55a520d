"""LoRA adapters in PEFT's format

PEFT takes longer to import than everything else together, and what serves or trains without an adapter needs it not: it
is imported where one is made or loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from melior.errors import ConfigError, ModelError
from melior.policies.fused import fuse
from melior.policies.loading import ONE_AT_A_TIME
from melior.policies.weights import resolve

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation of a model's matrices, all others frozen.

    Source: Hu et al. 2021, arXiv:2106.09685.
    """

    r: int = 16
    alpha: float | None = None  # scale of the update is alpha / r; None means 2 r
    targets: str | tuple[str, ...] = "all-linear"  # every matrix but the head; or names of modules
    seed: int = 0  # of the random half of each pair; the other half starts at zero

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ConfigError(f"LoRA needs a rank r ≥ 1, got {self.r}")


def add_adapter(model: Any, lora: LoRA) -> PeftModel:
    """The model with a fresh adapter, which changes nothing until trained.

    Raises:
        ConfigError: if the model has none of the targets.
    """
    import melior.policies.lean  # noqa: F401  (first: it makes the next import lighter)

    # isort: split
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha if lora.alpha is not None else 2 * lora.r,  # type: ignore[arg-type]
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lora.seed)
        try:
            with ONE_AT_A_TIME:
                return fuse(get_peft_model(model, config))
        except ValueError as error:
            wanted = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
            raise ConfigError(f'LoRA finds no matrix to adapt with targets {wanted}; try "all-linear"') from error


def load_adapter(model: Any, folder: Path) -> PeftModel:
    """The model with a trained adapter, still trainable; dropout that it was trained with elsewhere is switched off."""
    import melior.policies.lean  # noqa: F401  (first: it makes the next import lighter)

    # isort: split
    from peft import PeftModel

    with ONE_AT_A_TIME:
        loaded = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    for name, module in loaded.named_modules():
        if "lora_dropout" in name and isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return fuse(loaded)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (folder / "adapter_config.json").is_file()


def base_of(folder: Path) -> Path | str | None:
    """The model that a folder's adapter stands on, as `resolve` finds it; None for a whole model.

    Raises:
        ModelError: if it is not to be found, or the adapter does not say which it is.
    """
    if not is_adapter(folder):
        return None
    try:
        told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return resolve(str(told["base_model_name_or_path"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}/adapter_config.json does not name the adapter's model; save it anew") from error


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """Inside, the model computes bitwise what its base computes.

    Nothing but a flag of each adapted matrix is turned. PEFT's own switch also stops and starts the training of every
    tensor of the adapter, those that a run has frozen too, and takes a tenth of a short forward pass.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was
