"""log-probs under the reference, computed once per row and kept

A row is known by a hash of its content, so it is the same row in every epoch and every run. What is kept of it must not
depend on the rows beside it, or a resumed run would differ from one that was never stopped in the last digit: rows that
are compared (the two sides of a pair) are computed together, and apart from all others.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from melior.data.formats import fingerprint
from melior.durable import write_file
from melior.policies.base import Batch, score_all
from melior.policies.parameters import digest as weights_digest
from melior.trainers.steps import digest

log = logging.getLogger(__name__)

CONTENT = "content"  # column [B] int64: which rows are the same in every batch; one value per group


class References:
    """Log-probs [B, T] of a batch under the reference, each group's computed once.

    The reference is the policy as it was loaded or made, for LoRA the model without its adapter; or a second policy
    that encodes as this one does, which must not change. With a folder they outlive the process, under a name that
    tells references apart. `computed` counts groups that were computed here, `found` those that were known already.
    """

    def __init__(self, policy: Any, *, reference: Any = None, folder: Path | None = None) -> None:
        self.policy, self.reference, self.folder = policy, reference, folder
        self.known: dict[int, Tensor] = {}  # content → log-probs of the group's decisions, row after row
        self.computed = self.found = 0
        self.opened = folder is None

    def __call__(self, batch: Batch) -> Tensor:
        """Log-probs [B, T] in nats, 0 where the mask is False.

        Raises:
            ModelError: if the policy has no reference inside it.
        """
        if CONTENT not in batch.columns:
            return self._scored(batch)
        self._open()
        groups: dict[tuple[int, int], list[int]] = {}
        contents = batch.columns[CONTENT].tolist()
        keys = list(zip(batch.groups.tolist(), contents, strict=True))
        # What is kept of a group is in the order of its examples, whatever the order of a batch's rows.
        for row in sorted(range(len(batch)), key=batch.columns["examples"].tolist().__getitem__):
            groups.setdefault(keys[row], []).append(row)
        fresh: list[int] = []
        result = torch.zeros(batch.mask.shape, dtype=torch.float64)
        for (_, content), rows in groups.items():
            if content not in self.known:
                part = batch.select(rows)
                self.known[content] = self._scored(part)[part.mask].double().cpu()
                fresh.append(content)
            result[rows] = _placed(self.known[content], batch.mask[rows])
        self.computed += len(fresh)
        self.found += len(groups) - len(fresh)
        self._keep(fresh)
        return result

    def fingerprint(self) -> str:
        """Of the reference: what must agree for log-probs that were kept to be its own."""
        if self.reference is None:
            return str(self.policy.reference_fingerprint())
        return fingerprint_of(self.reference)

    @property
    def _scored(self) -> Callable[[Batch], Tensor]:
        if self.reference is None:
            return self.policy.reference_log_probs
        return lambda batch: score_all(self.reference, batch)

    # ------------------------------------------------------------------ on disk

    def _open(self) -> None:
        """Reads what other runs kept; a damaged file is computed again."""
        if self.opened:
            return
        assert self.folder is not None
        self.folder = self.folder / self.fingerprint()
        for file in sorted(self.folder.glob("*.safetensors")):
            content = file.read_bytes()
            if _name(content) != file.name:
                log.warning("%s is damaged and was left out; its log-probs are computed again", file)
                continue
            self.known |= {int(key, 16): values for key, values in safetensors.torch.load(content).items()}
        self.opened = True

    def _keep(self, fresh: Sequence[int]) -> None:
        """Writes what one step added, under the hash of its content: runs may share a folder."""
        if self.folder is None or not fresh:
            return
        content = safetensors.torch.save({f"{key:016x}": self.known[key] for key in fresh})
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(self.folder / _name(content), content)


def contents_of(groups: Sequence[Sequence[Any]], batch: Batch) -> Tensor:  # [B] int64
    """Column "content": a hash of each group's examples and of how many of their decisions the policy takes in.

    `batch.groups` numbers the groups: rows of group g hold the examples groups[g].
    """
    lengths: list[list[int]] = [[] for _ in groups]
    for group, length in zip(batch.groups.tolist(), batch.mask.sum(1).tolist(), strict=True):
        lengths[group].append(length)
    keys = [
        hashlib.sha256(f"{fingerprint(group)}{held}".encode()).digest()[:8]
        for group, held in zip(groups, lengths, strict=True)
    ]
    numbers = torch.tensor([int.from_bytes(key) >> 1 for key in keys], dtype=torch.int64)  # 63 bits: no sign
    return numbers[batch.groups]


def fingerprint_of(policy: Any) -> str:
    """Of a policy's weights as they are now, and of how it reads and decides."""
    origin = getattr(policy, "origin", "")  # of the weights under an adapter
    dtypes = sorted({str(parameter.dtype) for parameter in policy.parameters()})
    return digest(policy.fingerprint(), origin, dtypes, weights_digest(policy.state().items()))


def _placed(values: Tensor, mask: Tensor) -> Tensor:  # [n], [B, T] bool -> [B, T]
    """The values where the mask is True, row after row, 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype).masked_scatter(mask, values)


def _name(content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
