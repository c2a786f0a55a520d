"""what a run says about itself: where it ran, with which packages"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from melior.rewards.isolation import sandbox_in_use

PACKAGES = ("melior", "torch", "transformers", "peft", "safetensors", "tokenizers", "numpy")


def environment() -> dict[str, Any]:
    """Machine, threads and package versions; nothing that names a person or a host."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "sandbox": sandbox_in_use(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
