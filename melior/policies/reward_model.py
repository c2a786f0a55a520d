"""a reward model: one number per head for each whole output, read from a trunk of any kind

trunk       reads                                                       made by
policy      the state behind the last decision: language, slates        RewardModel.on(policy)
text        prompt and answer, by a sentence encoder                    RewardModel.make(Reward(), rows)
table       columns of the inputs and of the output                     RewardModel.make(Reward(), rows)
segment     steps of observations and actions, summed                   RewardModel.make(Reward(), rows)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from melior.durable import durable_folder, verify_folder
from melior.errors import ConfigError, DataError, ModelError
from melior.policies import parameters
from melior.policies.base import Batch, ParameterGroup, Policy, Rates, Scored, State, Want
from melior.policies.freezing import Share
from melior.policies.kinds import kind_of, load_policy
from melior.policies.reward_heads import DEFAULT, Heads
from melior.policies.reward_segments import SegmentReader, Segments
from melior.policies.reward_tables import TableReader
from melior.policies.reward_texts import PairedTexts, TextReader
from melior.policies.reward_trunks import FeatureTrunk, PolicyTrunk, Reader, Trunk, load_weights
from melior.policies.tables import Table
from melior.types import Demonstration, Preference, Rated, Segment

FILE, HEADS, TRUNK = "policy.json", "heads.safetensors", "trunk"
KIND = "reward_model"
VALUES = frozenset({Want.VALUES})
T = TypeVar("T")


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Reward:
    """What a new reward model is made of, where it stands on no policy."""

    inputs: Literal["auto", "text", "table", "segment"] = "auto"  # "auto": as the first row is
    heads: tuple[str, ...] = (DEFAULT,)
    levels: Mapping[str, tuple[float, ...]] = Field(default_factory=dict)  # head → its ordered grades
    text: PairedTexts = Field(default_factory=PairedTexts)
    table: Table = Field(default_factory=Table)
    segment: Segments = Field(default_factory=Segments)


class RewardModel:
    """Rewards of whole outputs, [B, H]; `fit` trains it as it trains policies."""

    kind = KIND

    def __init__(self, trunk: Trunk, heads: Heads) -> None:
        self.trunk = trunk
        self.heads = heads.to(device=trunk.device, dtype=trunk.dtype)
        self._set_origin()

    def _set_origin(self) -> None:
        found = parameters.digest(self.heads.state_dict().items())
        self.origin = f"{self.trunk.origin}-{found}"  # a run goes on only from the weights it began with

    # ------------------------------------------------------------------ making, loading and saving

    @classmethod
    def on(
        cls,
        policy: Policy,
        heads: Sequence[str] = (DEFAULT,),
        *,
        levels: Mapping[str, Sequence[float]] | None = None,
        seed: int = 0,
    ) -> RewardModel:
        """New heads on a policy's states. The policy trains with them, as far as it is not frozen.

        Raises:
            ConfigError: for a classifier, whose states do not know the label; or heads that cannot be.
        """
        trunk = PolicyTrunk(policy)
        return cls(trunk, _drawn(lambda: Heads(heads, trunk.width, levels), seed))

    @classmethod
    def make(
        cls, config: Reward, rows: Sequence[Any], *, seed: int = 0, device: Literal["auto", "cpu", "cuda"] = "auto"
    ) -> RewardModel:
        """A model that reads rows like these, demonstrations, ratings or preferences; `seed` draws its weights.

        Raises:
            DataError: for rows that cannot be read.
            ConfigError: for heads that cannot be; ModelError if a text encoder is not there.
        """
        examples = sides(rows)
        if not examples:
            raise DataError("There are 0 rows to make a reward model from; add rows")

        def drawn() -> tuple[FeatureTrunk, Heads]:
            reader = _reader(config, examples)
            assert isinstance(reader, nn.Module)
            cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
            trunk = FeatureTrunk(reader.to("cuda" if cuda else "cpu"))
            return trunk, Heads(config.heads, trunk.width, config.levels)

        return cls(*_drawn(drawn, seed))

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> RewardModel:
        """The model of a folder that `save` or `merged` wrote.

        Raises:
            ModelError: if the folder holds none; CheckpointError if it is damaged.
        """
        folder = Path(path)
        if not (folder / FILE).is_file() or kind_of(folder) != KIND:
            found = f"a policy of kind {kind_of(folder)}" if folder.is_dir() else "nothing"
            raise ModelError(f"{folder} holds {found}, not a reward model; give the folder that RewardModel.save wrote")
        verify_folder(folder)
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
        trunk = _loaded(told["trunk"], folder / TRUNK, device)
        heads = Heads(told["names"], trunk.width, told["levels"])
        heads.load_state_dict(load_file(folder / HEADS))
        return cls(trunk, heads)

    def save(self, folder: str | Path) -> None:
        """Writes heads, and beside them the trunk as it trains (a policy's adapter, or whole weights), atomically."""
        self._write(Path(folder), self.trunk.save)

    def merged(self, folder: str | Path) -> None:
        """Writes heads and a trunk with its adapter folded in, atomically."""
        self._write(Path(folder), self.trunk.merged)

    def _write(self, folder: Path, write_trunk: Callable[[Path], None]) -> None:
        told = {"kind": KIND, "trunk": self.trunk.kind, **self.heads.to_json()}
        with durable_folder(folder) as draft:
            (draft / FILE).write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
            tensors = {name: tensor.cpu().contiguous() for name, tensor in self.heads.state_dict().items()}
            save_file(tensors, draft / HEADS)
            write_trunk(draft / TRUNK)

    # ------------------------------------------------------------------ parameters

    def candidates(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything that can train: "trunk.…" and "head.…"."""
        for name, parameter in self.trunk.candidates():
            yield f"{TRUNK}.{name}", parameter
        for name, parameter in self.heads.named_parameters():
            yield f"head.{name}", parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of them, frozen ones and those under an adapter too."""
        yield from self.trunk.parameters()
        yield from self.heads.parameters()

    def state(self) -> State:
        """Trainable tensors by name."""
        return parameters.state_of(self.candidates())

    def load_state(self, state: State) -> None:
        """Overwrites the trainable tensors, in place."""
        parameters.load_state(self.candidates(), state)

    def freeze(self, factors: Mapping[str, float]) -> dict[str, float]:
        """Takes out of training whatever the factors give 0, and returns the factors that still have a say.

        Raises:
            ConfigError: for a pattern that is no regular expression or matches no trainable parameter.
        """
        return parameters.freeze(self.candidates(), factors)

    @property
    def share(self) -> Share:
        """How many of the parameters train."""
        return parameters.share(self.parameters())

    def parameter_groups(self, rates: Rates) -> list[ParameterGroup]:
        """Trainable parameters by learning rate and weight decay; vectors never decay.

        Raises:
            ConfigError: for a pattern that is no regular expression, or matches no trainable parameter.
        """
        return parameters.parameter_groups(self.candidates(), rates)

    def fingerprint(self) -> str:
        """Of trunk, heads and trainable shapes: what must agree for a checkpoint to fit."""
        shapes = {name: list(tensor.shape) for name, tensor in self.state().items()}
        told = json.dumps([self.trunk.kind, self.trunk.fingerprint(), self.heads.to_json(), shapes], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def adapted(self) -> bool:
        """Whether an adapter trains, on weights that stay."""
        return self.trunk.adapted

    @property
    def layout(self) -> str:
        """How rows are laid out."""
        return self.trunk.layout

    @property
    def noticed(self) -> Counter[str]:
        """What was passed over while rows were read, and how often."""
        return self.trunk.noticed

    @property
    def computed(self) -> Mapping[str, int]:
        """What training passes have cost so far."""
        return self.trunk.computed

    # ------------------------------------------------------------------ outputs become rewards

    def encode(self, examples: Sequence[Any]) -> Batch:
        """One row per example: the output as a whole, of several turns the last; column "examples" [B] counts them.

        A row whose mask is empty has nothing to be read within the context.

        Raises:
            DataError: for an example that cannot be read.
        """
        return self.trunk.encode(examples)

    def cut(self, batch: Batch, budget: int | None = None) -> Iterator[list[int]]:
        """Rows of micro-batches that cost at most `budget` each; a group that is to stay whole does."""
        yield from self.trunk.cut(batch, budget)

    def cost(self, batch: Batch) -> int:
        """What `cut` holds against its budget."""
        return self.trunk.cost(batch)

    def perturb(self, batch: Batch, key: Sequence[int]) -> Batch:
        """The batch as training shows it, where the trunk leaves something out at random; a function of the key."""
        return self.trunk.perturb(batch, key)

    def score(self, batch: Batch, want: frozenset[Want] = VALUES) -> Scored:
        """Raw rewards [B, H]; with `Want.CANDIDATES` also the log-probs [B, H, K] of each head's grades."""
        values = self.heads(self.trunk.features(batch))
        grades = self.heads.grades(values) if Want.CANDIDATES in want else None
        return Scored(values.new_zeros(batch.mask.shape), values=values, candidates=grades)

    @torch.no_grad()
    def values(self, batch: Batch) -> Tensor:  # [B, H] fp64
        """Raw rewards of a whole batch, in micro-batches; NaN for rows that cannot be read."""
        found = torch.full((len(batch), len(self.heads.names)), torch.nan, dtype=torch.float64)
        readable = batch.mask.any(1)
        for rows in self.cut(batch):
            values = self.score(batch.select(rows)).values
            assert values is not None
            found[rows] = values.double().cpu()
        return torch.where(readable[:, None], found, torch.nan)

    @torch.no_grad()
    def rewards(self, examples: Sequence[Any]) -> Tensor:  # [N, H] fp64
        """What each output is worth, in the heads' units; NaN where nothing of it fits into the context.

        Of a graded head the expected grade; of one trained on ratings the expected rating, of one trained on yes and no
        the log-odds of yes; of one trained on preferences a number whose differences are the log-odds of preferring.

        Raises:
            DataError: for an example that cannot be read.
        """
        if not examples:
            return torch.zeros(0, len(self.heads.names), dtype=torch.float64)
        values = self.values(self.encode(examples))
        return self.heads.rewards(values.to(self.heads.weight.device, self.heads.weight.dtype)).double().cpu()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the heads."""
        return self.heads.names

    def member_rewards(self, examples: Sequence[Any]) -> Tensor:  # [1, N, H] fp64
        """`rewards`, as an ensemble of one says them."""
        return self.rewards(examples)[None]

    # ------------------------------------------------------------------ units

    def standardise(self, rows: Sequence[Rated]) -> None:
        """Takes the mean and spread of ratings as the units of the heads they rate, before training on them.

        Raises:
            DataError: if there are no rows, or a rating is not finite.
        """
        ratings = np.array([row.rating for row in rows], dtype=np.float64)
        if not len(ratings) or not np.isfinite(ratings).all():
            raise DataError(f"{int((~np.isfinite(ratings)).sum())} of {len(ratings)} ratings are not finite; need all")
        heads = self.heads.of(rows).numpy()
        for head in sorted(set(heads.tolist())):
            mine = ratings[heads == head]
            self._scale(head, float(mine.mean()), float(mine.std()) or 1.0)
        self._set_origin()

    def rescale(self, head: str, *, location: float, spread: float) -> None:
        """From now on a reward r of a head is told as `location + spread × r`.

        Raises:
            ConfigError: for a head that there is not, or that is told in grades; ModelError for a spread not above 0.
        """
        place = self.heads.index(head)
        if head in self.heads.levels:
            raise ConfigError(
                f"Head {head!r} is told in its own grades {list(self.heads.levels[head])}; leave its unit"
            )
        if not (spread > 0 and math.isfinite(spread) and math.isfinite(location)):
            raise ModelError(f"A head's unit needs a finite spread above 0, got {spread} around {location}")
        was, unit = float(self.heads.location[place]), float(self.heads.spread[place])
        self._scale(place, location + spread * was, spread * unit)

    def _scale(self, head: int, location: float, spread: float) -> None:
        with torch.no_grad():
            self.heads.location[head] = location
            self.heads.spread[head] = spread


def sides(rows: Sequence[Any]) -> list[Any]:
    """Rows with one output each; a preference gives two, the chosen first."""
    found: list[Any] = []
    for row in rows:
        if isinstance(row, Preference):
            found += [Demonstration(row.inputs, row.chosen), Demonstration(row.inputs, row.rejected)]
        else:
            found.append(row)
    return found


READERS: Mapping[str, Callable[[Mapping[str, Any], Path], Reader]] = {
    "text": TextReader.from_json,
    "table": TableReader.from_json,
    "segment": SegmentReader.from_json,
}


def _loaded(kind: str, folder: Path, device: str) -> Trunk:
    if kind == "policy":
        return PolicyTrunk(load_policy(folder, device=device))
    if kind not in READERS:
        raise ModelError(f"{folder} holds a trunk of kind {kind!r}; this release loads policy, {', '.join(READERS)}")
    told = json.loads((folder / "reader.json").read_text(encoding="utf-8"))
    reader = READERS[kind](told, folder)
    assert isinstance(reader, nn.Module)
    load_weights(reader, folder)
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return FeatureTrunk(reader.to("cuda" if cuda else "cpu"))


def _reader(config: Reward, examples: Sequence[Any]) -> Reader:
    kind = config.inputs if config.inputs != "auto" else _kind_of(examples[0])
    if kind == "text":
        return TextReader.make(config.text)
    if kind == "segment":
        return SegmentReader.of(examples, config.segment)
    return TableReader.of(examples, config.table)


def _kind_of(example: Any) -> str:
    """What an example holds: arrays are segments; text and messages are texts; the rest are rows of a table."""
    output = next(iter(example.output.values()), None) if isinstance(example.output, Mapping) else example.output
    if isinstance(output, np.ndarray | Segment):
        return "segment"
    return "text" if isinstance(example.inputs, str | list) or _messages(example.inputs) else "table"


def _messages(inputs: Any) -> bool:
    return isinstance(inputs, Mapping) and isinstance(inputs.get("messages"), list)


def _drawn(make: Callable[[], T], seed: int) -> T:
    """What a function makes with random weights that are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
