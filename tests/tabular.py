"""a policy that is a table: one distribution per input and prefix, small enough to enumerate every output"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from melior.policies.base import (
    CANDIDATE_IDS,
    LOG_PROBS,
    Batch,
    ParameterGroup,
    Rates,
    Scored,
    State,
    Want,
    candidates_asked,
    likeliest_of,
)
from melior.types import Demonstration, Record, Sampling, Score, Task

Output = tuple[int, ...]


class Tabular:
    """Decides up to `length` numbers below `vocabulary`; number 0 ends an output if `stops`."""

    kind = "tabular"
    discrete = True

    def __init__(
        self,
        inputs: Sequence[str] = ("a",),
        *,
        vocabulary: int = 5,
        length: int = 3,
        stops: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        spread: float = 1.0,
    ) -> None:
        self.rows = {text: row for row, text in enumerate(inputs)}
        self.size, self.length, self.stops = vocabulary, length, stops
        self.starts = [sum(vocabulary**t for t in range(level)) for level in range(length + 1)]
        shape = (len(inputs), self.starts[length], vocabulary)
        start = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
        self.logits = start.to(dtype).requires_grad_()
        self.reference = self.logits.detach().clone()

    # ------------------------------------------------------------------ what fit needs

    def parameter_groups(self, rates: Rates) -> list[ParameterGroup]:
        return [ParameterGroup(("logits",), (self.logits,), rates.learning_rate, rates.weight_decay)]

    def parameters(self) -> Iterator[Tensor]:
        yield self.logits

    def candidates(self) -> Iterator[tuple[str, Any]]:
        yield "logits", self.logits

    def state(self) -> State:
        return {"logits": self.logits.detach()}

    def load_state(self, state: State) -> None:
        with torch.no_grad():
            self.logits.copy_(state["logits"])

    def save(self, folder: Path) -> None:
        save_file(dict(self.state()), folder / "table.safetensors")

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([list(self.logits.shape), list(self.rows)]).encode()).hexdigest()[:16]

    # ------------------------------------------------------------------ what a policy does

    def encode(self, examples: Sequence[Any]) -> Batch:
        outputs = [tuple(e.decisions if isinstance(e, Record) else e.output)[: self.length] for e in examples]
        lengths = torch.tensor([len(output) for output in outputs])
        mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
        names = {name: number for number, name in enumerate(dict.fromkeys(map(_group, examples, range(len(examples)))))}
        weights = torch.tensor([getattr(e, "weight", 1.0) for e in examples], dtype=torch.float64)
        return Batch(
            inputs=[self.rows[e.inputs] for e in examples],
            outputs=[(output, None) for output in outputs],
            mask=mask,
            weights=mask * weights[:, None],
            groups=torch.tensor([names[_group(e, index)] for index, e in enumerate(examples)]),
            columns={"examples": torch.arange(len(examples))},
        )

    def cut(self, batch: Batch, budget: int | None = None) -> Iterator[list[int]]:
        """In order, at most `budget` decisions each; None is everything at once. Whole groups are not parted."""
        together: dict[int, list[int]] = {}
        for row, group in enumerate(batch.groups.tolist() if batch.whole else range(len(batch))):
            together.setdefault(group, []).append(row)
        rows: list[int] = []
        cost = 0
        for members in together.values():
            needed = sum(len(batch.outputs[row][0]) for row in members)
            if rows and budget is not None and cost + needed > budget:
                yield rows
                rows, cost = [], 0
            rows += members
            cost += needed
        if rows:
            yield rows

    def cost(self, batch: Batch) -> int:
        return int(batch.mask.sum())

    def perturb(self, batch: Batch, key: Sequence[int]) -> Batch:
        return batch

    def score(self, batch: Batch, want: frozenset[Want] = LOG_PROBS) -> Scored:
        scored = self._score(self.logits, batch, Want.ENTROPY in want, Want.CANDIDATES in want)
        return replace(scored, states=self._states(batch)) if Want.STATES in want else scored

    @property
    def state_size(self) -> int:
        return len(self.rows) * (self.starts[-1] + self.size**self.length)

    def _states(self, batch: Batch) -> Tensor:  # [B, T + 1, D]
        """One-hot: a place of its own for every input and everything decided so far."""
        width = batch.mask.shape[1]
        decided = torch.zeros(len(batch), width + 1, dtype=torch.long)
        for row, (output, _) in enumerate(batch.outputs):
            decided[row, : len(output[:width])] = torch.tensor(output[:width], dtype=torch.long)
        places = self._nodes(decided) + torch.tensor(batch.inputs)[:, None] * (self.state_size // len(self.rows))
        states = torch.nn.functional.one_hot(places, self.state_size).to(self.logits)
        known = torch.arange(width + 1) <= batch.mask.sum(1, keepdim=True)
        return torch.where(known[:, :, None], states, 0.0)

    @torch.no_grad()
    def likeliest(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        without = {name: column for name, column in batch.columns.items() if name != CANDIDATE_IDS}
        everything = self.score(replace(batch, columns=without), frozenset({Want.CANDIDATES})).candidates
        assert everything is not None
        return likeliest_of(everything.masked_fill(~batch.mask[:, :, None], -torch.inf), k)

    @property
    def vocabulary(self) -> str:
        return f"{self.size} numbers"

    def reference_log_probs(self, batch: Batch, budget: int | None = None) -> Tensor:
        return self._score(self.reference, batch, False).log_probs

    def reference_fingerprint(self) -> str:
        told = [self.fingerprint(), self.reference.tolist()]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def _score(self, logits: Tensor, batch: Batch, entropy: bool, candidates: bool = False) -> Scored:
        decided = torch.zeros(batch.mask.shape, dtype=torch.long)
        for row, (output, _) in enumerate(batch.outputs):
            kept = output[: decided.shape[1]]
            decided[row, : len(kept)] = torch.tensor(kept, dtype=torch.long)
        nodes = self._nodes(decided)
        table = torch.log_softmax(logits[torch.tensor(batch.inputs, dtype=torch.long)[:, None], nodes], -1)  # [B, T, V]
        chosen = table.gather(-1, decided[:, :, None])[:, :, 0]
        bits = torch.where(batch.mask, -(table.exp() * table).sum(-1), 0.0) if entropy else None
        listed = candidates_asked(table, batch) if candidates else None
        return Scored(torch.where(batch.mask, chosen, 0.0), bits, candidates=listed)

    def _nodes(self, decided: Tensor) -> Tensor:
        nodes = torch.zeros_like(decided)
        number = torch.zeros(len(decided), dtype=torch.long)
        for place in range(decided.shape[1]):
            nodes[:, place] = self.starts[place] + number
            number = number * self.size + decided[:, place]
        return nodes

    @torch.no_grad()
    def sample(self, inputs: Sequence[Any], settings: Sampling, *, step: int = 0) -> list[Record]:
        """A sample is a function of (seed, step, place of the input, sample number)."""
        table = torch.log_softmax(self.logits / settings.temperature, -1)
        return [
            self._record(table, text, settings, (settings.seed, step, place, number))
            for place, text in enumerate(inputs)
            for number in range(settings.n)
        ]

    def _record(self, table: Tensor, text: str, settings: Sampling, key: tuple[int, ...]) -> Record:
        source = torch.Generator().manual_seed(int(hashlib.sha256(repr(key).encode()).hexdigest()[:15], 16))
        decided: list[int] = []
        log_probs: list[float] = []
        ended = False
        while len(decided) < min(self.length, settings.max_tokens) and not ended:
            node = self._nodes(torch.tensor([[*decided, 0]]))[0, -1]
            row = table[self.rows[text], node]
            token = int(torch.multinomial(row.exp(), 1, generator=source))
            decided.append(token)
            log_probs.append(float(row[token]))
            ended = self.stops and token == 0
        return Record(
            inputs=text,
            output=" ".join(map(str, decided)),
            decisions=tuple(decided),
            behavior_log_probs=tuple(log_probs),
            sampling=settings,
            finish="stop" if ended or not self.stops else "length",
        )

    # ------------------------------------------------------------------ enumeration

    def every_output(self) -> list[Output]:
        """Every output this policy can decide."""
        if not self.stops:
            return list(itertools.product(range(self.size), repeat=self.length))
        going = range(1, self.size)
        stopped = [(*o, 0) for n in range(self.length) for o in itertools.product(going, repeat=n)]
        return stopped + list(itertools.product(going, repeat=self.length))

    def every_row(self, text: str = "a") -> Batch:
        """A batch of every output of one input."""
        return self.encode([Demonstration(text, output) for output in self.every_output()])


class Reward:
    """Scores outputs by a table or a function; `calls` counts them."""

    def __init__(self, of: Any, name: str = "reward") -> None:
        self.of, self.name, self.calls = of, name, 0

    def grade(self, records: Sequence[Record]) -> list[Score]:
        self.calls += len(records)
        return [self.of(record) if callable(self.of) else Score(value=self.of[record.decisions]) for record in records]


def tasks_for(policy: Tabular) -> list[Task]:
    return [Task(inputs=text) for text in policy.rows]


def _group(example: Any, index: int) -> str:
    return example.group if isinstance(example, Record) and example.group else f"#{index}"
