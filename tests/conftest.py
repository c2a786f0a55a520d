"""tiny model folders, made once per run, and policies loaded from them"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tiny import tiny_folder

from melior.policies.language import LanguagePolicy

torch.set_num_threads(1)
# A slow machine is no failure. The same examples each time, so that what fails is what was changed; to look for new
# ones: HYPOTHESIS_PROFILE=explore pytest …
settings.register_profile("melior", settings.default, deadline=None, derandomize=True, database=None)
settings.register_profile("explore", settings.default, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "melior"))


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`folder_of(family, template="chatml", **config)`: a saved tiny model; equal arguments give the same folder."""
    made: dict[str, Path] = {}

    def make(family: str = "llama", template: str | None = "chatml", **config: Any) -> Path:
        key = repr((family, template, sorted(config.items())))
        if key not in made:
            made[key] = tiny_folder(tmp_path_factory.mktemp(family), family, template, **config)
        return made[key]

    return make


@pytest.fixture(scope="session")
def shared_policy(folder_of: Callable[..., Path]) -> Callable[..., LanguagePolicy]:
    """`shared_policy(family, dtype="float64", **load)`: loaded once; a test may not change its weights or settings."""
    loaded: dict[str, LanguagePolicy] = {}

    def load(
        family: str = "llama", template: str | None = "chatml", *, dtype: str = "float64", **how: Any
    ) -> LanguagePolicy:
        key = repr((family, template, dtype, sorted(how.items())))
        if key not in loaded:
            loaded[key] = LanguagePolicy.load(folder_of(family, template), dtype=dtype, device="cpu", **how)
        return loaded[key]

    return load
