"""however many models are asked for at once, one is made at a time, and none is spoiled by another"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from melior.policies.language import LanguagePolicy


def test_models_that_are_asked_for_at_once_are_made_one_after_another(
    folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tie = folder_of("smollm"), PreTrainedModel.tie_weights
    make: Any = vars(PreTrainedModel)["from_pretrained"].__func__
    inside, most, lock = 0, 0, threading.Lock()

    def counted(kind: Any, *given: Any, **more: Any) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.05)  # so that others would come in, if they could
        try:
            return make(kind, *given, **more)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(counted))
    with ThreadPoolExecutor(4) as pool:
        policies = list(pool.map(lambda _: LanguagePolicy.load(folder, device="cpu"), range(4)))
    assert most == 1 and len(policies) == 4
    assert PreTrainedModel.tie_weights is tie and torch.get_default_dtype() == torch.float32
