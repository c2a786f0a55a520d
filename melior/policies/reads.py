"""tokens to be scored, gathered first and answered by one forward pass"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from melior.policies.head import decision_log_probs


class Answers(NamedTuple):
    """What one forward pass said; what was not asked for is absent."""

    log_probs: Tensor  # [J] nats
    entropy: Tensor | None  # [J] nats
    states: Tensor | None  # [S, D]


class Reads:
    """Which token is read behind which place of which sequence, at which temperature, and which states are wanted."""

    def __init__(self) -> None:
        self.sequences: list[Sequence[int]] = []
        self.count = 0
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, float]] = []
        self._looks: list[tuple[int, np.ndarray]] = []

    def look(self, places: np.ndarray, sequence: Sequence[int] | None = None) -> None:
        """Asks for the states [len(places), D] of a sequence, or of the one added last; they are answered in order."""
        self.sequences += [] if sequence is None else [sequence]
        self._looks.append((len(self.sequences) - 1, places))

    def add(
        self,
        sequences: Sequence[Sequence[int]],
        rows: np.ndarray,  # [J] which of the sequences
        places: np.ndarray,  # [J] place of the last token seen
        targets: np.ndarray,  # [J] token that follows
        temperature: float = 1.0,
    ) -> slice:
        """Asks for J tokens; the slice says where the answers will stand. Row -1 is the sequence added last."""
        self._parts.append((rows + len(self.sequences), places, targets, temperature))
        self.sequences += sequences
        self.count += len(rows)
        return slice(self.count - len(rows), self.count)

    def answer(self, backbone: Any, *, entropy: bool = False) -> Answers:
        """The log-prob of each token, the entropy of each distribution it was drawn from, and the states wanted."""
        states, paths = backbone.states(self.sequences)
        chosen, bits = self._decided(backbone, states, paths, entropy) if self._parts else (states.new_zeros(0), None)
        if not self._looks:
            return Answers(chosen, bits, None)
        nodes = np.concatenate([np.asarray(paths[sequence])[places] for sequence, places in self._looks])
        return Answers(chosen, bits, states.index_select(0, torch.from_numpy(nodes.astype(np.int64)).to(states.device)))

    def _decided(
        self, backbone: Any, states: Tensor, paths: Sequence[np.ndarray], entropy: bool
    ) -> tuple[Tensor, Tensor | None]:  # [J], [J] or None
        ends = np.cumsum([len(path) for path in paths])
        starts = ends - [len(path) for path in paths]
        steps = np.concatenate([starts[rows] + places for rows, places, _, _ in self._parts])
        nodes = np.concatenate(paths).astype(np.int64)[steps]
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
