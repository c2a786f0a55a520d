"""tokens to be scored, gathered first and answered by one forward pass"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from melior.policies.head import decision_log_probs


class Reads:
    """Which token is read behind which place of which sequence, at which temperature."""

    def __init__(self) -> None:
        self.sequences: list[Sequence[int]] = []
        self.count = 0
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, float]] = []

    def add(
        self,
        sequences: Sequence[Sequence[int]],
        rows: np.ndarray,  # [J] which of the sequences
        places: np.ndarray,  # [J] place of the last token seen
        targets: np.ndarray,  # [J] token that follows
        temperature: float = 1.0,
    ) -> slice:
        """Asks for J tokens; the slice says where the answers will stand."""
        self._parts.append((rows + len(self.sequences), places, targets, temperature))
        self.sequences += sequences
        self.count += len(rows)
        return slice(self.count - len(rows), self.count)

    def answer(self, backbone: Any, *, entropy: bool = False) -> tuple[Tensor, Tensor | None]:  # [J], [J] or None
        """The log-prob in nats of each token, and the entropy of each distribution it was drawn from."""
        states, paths = backbone.states(self.sequences)
        nodes = np.array(
            [
                paths[row][place]
                for rows, places, _, _ in self._parts
                for row, place in zip(rows.tolist(), places.tolist(), strict=True)
            ],
            dtype=np.int64,
        )
        temperatures = np.concatenate([np.full(len(rows), t, dtype=np.float64) for rows, _, _, t in self._parts])
        targets = torch.from_numpy(np.concatenate([targets for _, _, targets, _ in self._parts])).to(states.device)
        # One state serves every token that is read from the same node at the same temperature.
        keys = np.stack([nodes.astype(np.float64), temperatures])
        distinct, inverse = np.unique(keys, axis=1, return_inverse=True)
        state_of = torch.from_numpy(inverse.reshape(-1)).to(states.device)
        order = torch.argsort(state_of, stable=True)
        chosen, bits = decision_log_probs(
            backbone.head,
            states.index_select(0, torch.from_numpy(distinct[0].astype(np.int64)).to(states.device)),
            state_of[order],
            targets[order],
            torch.from_numpy(1.0 / distinct[1]).to(states.device, backbone.head_dtype),
            entropy=entropy,
        )
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return chosen[back], bits[state_of] if bits is not None else None
