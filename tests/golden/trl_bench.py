"""what TRL's trainers are run with, and how their losses are differentiated; only record_trl.py uses it"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import trl_given as given
from tiny import tiny_tokenizer
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.trainer.utils import _ChunkedLogProbFunction

Options = dict[str, Any]


class Bench:
    """Models, a tokenizer and folders, in one precision."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder, self.dtype, self.tokenizer = folder, dtype, tiny_tokenizer(None)
        self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(given.PAD)

    def model(self, name: str) -> Any:
        found = given.model(name).to(self.dtype)
        found.generation_config.pad_token_id = given.PAD
        return found

    def saved(self, name: str) -> str:
        """A folder that TRL can load the model from."""
        path = self.folder / name
        if not path.exists():
            given.model(name).save_pretrained(str(path))
            self.tokenizer.save_pretrained(str(path))
        return str(path)

    def arguments(self, **options: Any) -> Options:
        """What else must be said, since defaults move."""
        return {
            "output_dir": str(self.folder / "out"), "use_cpu": True, "bf16": False, "fp16": False, "report_to": "none",
            "gradient_checkpointing": False, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 8,
            "seed": 0, "disable_tqdm": True, **options,
        }  # fmt: skip

    def measured(self, trainer: Any, inputs: Any) -> Options:
        """Loss and gradient of one batch, as the training step has them."""
        return self.differentiated(trainer, lambda: trainer.compute_loss(training(trainer), inputs))

    def differentiated(self, trainer: Any, loss_of: Callable[[], torch.Tensor]) -> Options:
        trainer.model.zero_grad()
        with given.precision(self.dtype), backwards_too(self.dtype):
            loss = loss_of()
            loss.backward()
        found = {"loss": float(loss.detach()), **given.gradient(dict(trainer.model.named_parameters()))}
        return found if self.dtype == torch.float64 else {name: found[name] for name in ("loss", "norm")}


@contextmanager
def backwards_too(dtype: torch.dtype) -> Iterator[None]:
    """Raises what TRL's own kernels do backwards, which torch runs outside the mode."""
    kernels = (_ChunkedLogProbFunction, ChunkedDivergenceFunction) if dtype == torch.float64 else ()
    own = [kernel.backward for kernel in kernels]
    for kernel in kernels:
        kernel.backward = staticmethod(raised(kernel.backward))
    try:
        yield
    finally:
        for kernel, backward in zip(kernels, own, strict=True):
            kernel.backward = staticmethod(backward)


def raised(backward: Callable[..., Any]) -> Callable[..., Any]:
    def within(*given_back: Any) -> Any:
        with given.Doubled():
            return backward(*given_back)

    return within


def training(trainer: Any) -> Any:
    """The model, ready for one step of one micro-batch."""
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer.model


def padded(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> torch.Tensor:
    width = max(map(len, rows))
    blank = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([[*pad, *row] if left else [*row, *pad] for row, pad in zip(rows, blank, strict=True)])


def mask(rows: Sequence[Sequence[int]], *, left: bool = False) -> torch.Tensor:
    return padded([[1] * len(row) for row in rows], 0, left=left)
