"""a classifier as a policy: one decision, the label; or one per label, where several may be right

one label        decisions [B, 1], the label's number; candidates [B, 1, K]
several labels   decisions [B, L], 1 where the label applies; candidates [B, L, 2]: it does not, it does
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from melior.data.formats import canonical
from melior.data.formats.rows import ColumnKind
from melior.durable import durable_folder, verify_folder
from melior.errors import ConfigError, DataError, ModelError
from melior.policies import parameters
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
    score_all,
)
from melior.policies.freezing import Share
from melior.policies.images import ImageInputs, Pictures
from melior.policies.inputs import SEEDS, Inputs, drop, read_each, uniforms
from melior.policies.labels import Labels
from melior.policies.tables import Table, TableInputs
from melior.policies.texts import TextInputs, Texts
from melior.types import Image, Record, Sampling

FILE, WEIGHTS = "policy.json", "model.safetensors"
HEAD_STREAM = 1 << 16  # of noise: the head's dropout; what reads the inputs counts its own from 0
DROPOUT = 0.1  # of features before the head, where nobody says and the inputs are pictures or texts (arXiv:1810.04805)


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Classifier:
    """What a new classifier is made of."""

    inputs: Literal["auto", "table", "image", "text"] = "auto"  # "auto": as the first row's inputs are
    labels: tuple[str, ...] = ()  # in this order; (): those of the rows, sorted
    several: bool = False  # whether an input may have any number of labels
    backbone: str = "auto"  # image: small, efficientnet-lite0; text: minilm, a folder or a hub id
    dropout: float | None = Field(default=None, ge=0, lt=1)  # of features, in plain SFT; None: 0.1, for tables 0
    table: Table = Field(default_factory=Table)
    image: Pictures = Field(default_factory=Pictures)
    text: Texts = Field(default_factory=Texts)


class ClassifierPolicy:
    """Labels of table rows, pictures or texts, with their probabilities.

    Scoring is deterministic whatever the mode of the modules: there is no dropout in them and no batch's statistics.
    """

    kind = "classifier"
    discrete = True
    adapted = False

    def __init__(self, config: Classifier, labels: Labels, inputs: Inputs, head: nn.Linear, *, device: str) -> None:
        self.config, self.labels, self.inputs = config, labels, inputs
        assert isinstance(inputs, nn.Module)
        self.network = nn.ModuleDict({"encoder": inputs, "head": head}).to(_device(device))
        self.head = head
        default = 0.0 if inputs.kind == "table" else DROPOUT
        self.dropout = default if config.dropout is None else config.dropout
        self._computed = {"outputs": 0, "inputs": 0}
        self.start = {name: tensor.detach().clone() for name, tensor in self.candidates()}
        self.origin = parameters.digest(self.start.items())  # a run goes on only from the weights it began with

    # ------------------------------------------------------------------ making, loading and saving

    @classmethod
    def make(cls, config: Classifier, rows: Sequence[Any], *, seed: int = 0, device: str = "auto") -> ClassifierPolicy:
        """A classifier with a new head for the labels and inputs of training rows; `seed` draws its weights.

        `rows` are demonstrations, ratings, preferences or tasks; tasks have no labels, so `config.labels` names them.

        Raises:
            ConfigError: for fewer than two labels, or a backbone that there is not.
            DataError: for inputs that cannot be read.
            ModelError: if the backbone is not on this machine.
        """
        if not rows:
            raise DataError("There are 0 rows to make a classifier from; add rows")
        labels = Labels.of(rows, given=config.labels, several=config.several)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inputs = _made(config, [row.inputs for row in rows])
            head = nn.Linear(inputs.width, labels.outputs)
            nn.init.normal_(head.weight, std=0.01)  # labels about as probable as they are common, whatever the features
            with torch.no_grad():
                head.bias.copy_(torch.tensor(labels.prior(rows)))
        labels.notice(rows, inputs.noticed)
        return cls(config, labels, inputs, head, device=device)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> ClassifierPolicy:
        """The classifier that `save` wrote.

        Raises:
            ModelError: if the folder holds none.
            CheckpointError: if its files are not those that were written.
        """
        folder = Path(folder)
        told = read_policy(folder, cls.kind)
        verify_folder(folder)
        config = TypeAdapter(Classifier).validate_python(told["config"])
        labels = Labels(tuple(told["labels"]), told["several"])
        inputs = READERS[told["inputs"]](told["encoder"], folder)
        head = nn.Linear(inputs.width, labels.outputs)
        assert isinstance(inputs, nn.Module)
        nn.ModuleDict({"encoder": inputs, "head": head}).load_state_dict(load_file(folder / WEIGHTS))
        return cls(config, labels, inputs, head, device=device)

    def save(self, folder: str | Path) -> None:
        """Writes settings, labels, what was learnt of the inputs, and every weight, atomically."""
        told = {
            "kind": self.kind,
            "config": TypeAdapter(Classifier).dump_python(self.config, mode="json"),
            "labels": list(self.labels.names),
            "several": self.labels.several,
            "inputs": self.inputs.kind,
            "encoder": self.inputs.to_json(),
        }
        with durable_folder(Path(folder)) as draft:
            (draft / FILE).write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
            save_file(tensors, draft / WEIGHTS)
            self.inputs.write_files(draft)

    def state(self) -> State:
        """Trainable tensors by name."""
        return parameters.state_of(self.candidates())

    def load_state(self, state: State) -> None:
        """Overwrites the trainable tensors, in place."""
        parameters.load_state(self.candidates(), state)

    def fingerprint(self) -> str:
        """Of labels, inputs and trainable shapes: what must agree for a checkpoint to fit."""
        shapes = {name: list(parameter.shape) for name, parameter in parameters.trainable(self.candidates()).items()}
        told = [self.labels.fingerprint, self.inputs.kind, self.inputs.to_json(), self.dropout, shapes]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def candidates(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every weight: of what reads the inputs ("encoder."), and of the head."""
        return self.network.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of them, frozen ones too."""
        return self.network.parameters()

    def freeze(self, factors: Mapping[str, float]) -> dict[str, float]:
        """Takes out of training whatever the factors give 0, and returns the factors that still have a say.

        Raises:
            ConfigError: for a pattern that is no regular expression or matches no parameter.
        """
        return parameters.freeze(self.candidates(), factors)

    @property
    def share(self) -> Share:
        """How many of the parameters train."""
        return parameters.share(self.parameters())

    def parameter_groups(self, rates: Rates) -> list[ParameterGroup]:
        """Trainable parameters by learning rate and weight decay; vectors (norms, biases) never decay.

        Raises:
            ConfigError: for a pattern that is no regular expression, or matches no trainable parameter.
        """
        return parameters.parameter_groups(self.candidates(), rates)

    @property
    def layout(self) -> str:
        """How rows are laid out."""
        return "rows"

    @property
    def columns(self) -> Mapping[str, ColumnKind]:
        """What each column of a table is read as; none for pictures and texts."""
        return self.inputs.columns

    @property
    def computed(self) -> Mapping[str, int]:
        """Outputs that were scored with a gradient, and inputs read for them: outputs of one input share it."""
        return self._computed

    @property
    def noticed(self) -> Counter[str]:
        """What was passed over in labels and inputs, and how often."""
        return self.inputs.noticed

    # ------------------------------------------------------------------ rows become batches

    def encode(self, examples: Sequence[Any]) -> Batch:
        """One row per example; equal inputs of one object are read once.

        Raises:
            DataError: for a label that this classifier has not, a record of other labels, or unreadable inputs.
        """
        decided = [self.labels.decisions(example) for example in examples]
        names = [_group_name(example, index) for index, example in enumerate(examples)]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        mask = torch.ones(len(examples), self.labels.width, dtype=torch.bool)
        weights = torch.tensor([getattr(example, "weight", 1.0) for example in examples])
        return Batch(
            inputs=self._read([example.inputs for example in examples]),
            outputs=[(ids, _temperature(example)) for ids, example in zip(decided, examples, strict=True)],
            mask=mask,
            weights=mask * weights[:, None],
            groups=torch.tensor([numbers[name] for name in names], dtype=torch.long),
            columns={"examples": torch.arange(len(examples))},
        )

    def _read(self, inputs: Sequence[Any]) -> list[Any]:
        """Handles of inputs; outputs of one input share theirs, so that its features are computed once."""
        places: dict[int, int] = {}
        owners = [places.setdefault(id(given), len(places)) for given in inputs]
        firsts = list(dict(zip(owners, inputs, strict=True)).values())
        handles = self.inputs.encode(firsts)
        return [handles[owner] for owner in owners]

    def cut(self, batch: Batch, budget: int | None = None) -> Iterator[list[int]]:
        """Rows of micro-batches of at most `budget`, long ones together; a group over budget is cut between rows.

        Where the batch says `whole` it is not, whatever it costs.
        """
        budget = budget or self.inputs.budget
        costs = [self.inputs.cost(row) for row in batch.inputs]
        by_group: dict[int, list[int]] = {}
        for row, group in enumerate(batch.groups.tolist()):
            by_group.setdefault(group, []).append(row)
        rows: list[int] = []
        spent = 0
        for members in sorted(by_group.values(), key=lambda members: max(costs[row] for row in members)):
            if rows and spent + sum(costs[row] for row in members) > budget:
                yield rows
                rows, spent = [], 0
            for row in members:
                if rows and spent + costs[row] > budget and not batch.whole:
                    yield rows
                    rows, spent = [], 0
                rows.append(row)
                spent += costs[row]
        if rows:
            yield rows

    def cost(self, batch: Batch) -> int:
        """What its rows count in a micro-batch: one each, of text its tokens."""
        return sum(self.inputs.cost(row) for row in batch.inputs)

    def perturb(self, batch: Batch, key: Sequence[int]) -> Batch:
        """The batch with a seed per row, of which augmentation and dropout are functions; the same one without them."""
        if not (self.dropout or self.inputs.random):
            return batch
        source = int.from_bytes(hashlib.sha256(repr(tuple(key)).encode()).digest()[:8], "big", signed=True)
        return batch.with_columns(**{SEEDS: torch.arange(len(batch)) * 2 + source % (1 << 62)})

    # ------------------------------------------------------------------ scoring

    def score(self, batch: Batch, want: frozenset[Want] = LOG_PROBS) -> Scored:
        """Log-probs of every decision at the temperature it was sampled with, in one forward pass."""
        width = batch.mask.shape[1]
        device = self.head.weight.device
        mask = batch.mask.to(device)
        temperatures = torch.tensor([temperature for _, temperature in batch.outputs], dtype=torch.float64)
        seeds = batch.columns.get(SEEDS)
        features = self._features(batch.inputs) if seeds is None else read_each(self._features, batch.inputs, seeds)
        table = self._table(features, temperatures)[:, :width]  # [B, T, K]
        decided = torch.tensor([ids[:width] for ids, _ in batch.outputs], dtype=torch.long, device=device)
        chosen = table.gather(-1, decided.view(len(batch), width, 1))[:, :, 0]
        entropy = torch.where(mask, _entropy(table), 0.0) if Want.ENTROPY in want else None
        candidates = candidates_asked(table, batch) if Want.CANDIDATES in want else None
        states = features[:, None].expand(-1, width + 1, -1) if Want.STATES in want else None
        return Scored(torch.where(mask, chosen, 0.0), entropy=entropy, candidates=candidates, states=states)

    @torch.no_grad()
    def likeliest(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """Ids and log-probs [B, T, K] of the k likeliest decisions at each place; -1 and -inf where there are fewer."""
        everything = {name: column for name, column in batch.columns.items() if name != CANDIDATE_IDS}
        found = self.score(replace(batch, columns=everything), frozenset({Want.CANDIDATES})).candidates
        assert found is not None
        return likeliest_of(found.masked_fill(~batch.mask.to(found.device)[:, :, None], -torch.inf), k)

    @property
    def vocabulary(self) -> str:
        """Of the labels and their order."""
        return self.labels.fingerprint

    @property
    def state_size(self) -> int:
        """D of the states: of the features that the head reads, the same before and behind a label."""
        return self.head.in_features

    def _features(self, rows: Sequence[Any], seeds: Tensor | None = None) -> Tensor:  # [B, D]
        """What the head reads of each row."""
        if not rows:
            return self.head.weight.new_zeros(0, self.head.in_features)
        if seeds is None:
            places: dict[int, int] = {}
            owners = [places.setdefault(id(row), len(places)) for row in rows]
            distinct = list(dict(zip(owners, rows, strict=True)).values())
            found = self.inputs(distinct)
            self._count(len(rows), len(distinct))
            return found[torch.tensor(owners, device=found.device)] if len(distinct) < len(rows) else found
        self._count(len(rows), len(rows))
        return drop(self.inputs(rows, seeds), self.dropout, seeds, HEAD_STREAM)

    def _table(self, features: Tensor, temperatures: Tensor) -> Tensor:  # [B, D], [B] -> [B, T, K]
        """Log-probs of everything that can be decided, in fp32 at least."""
        if not len(features):
            return features.new_zeros(0, self.labels.width, self.labels.choices)
        logits = self.head(features)
        logits = logits / temperatures.to(logits)[:, None]
        if self.labels.several:
            return torch.stack([nn.functional.logsigmoid(-logits), nn.functional.logsigmoid(logits)], -1)
        return torch.log_softmax(logits, -1)[:, None, :]

    def _count(self, rows: int, inputs: int) -> None:
        if torch.is_grad_enabled():
            self._computed["outputs"] += rows
            self._computed["inputs"] += inputs

    def log_probs(self, examples: Sequence[Any]) -> list[Tensor]:
        """One tensor [T] of nats per example, in order."""
        batch = self.encode(examples)
        found: dict[int, Tensor] = {}
        for rows in self.cut(batch):
            found |= dict(zip(rows, self.score(batch.select(rows)).log_probs.unbind(), strict=True))
        return [found[row] for row in range(len(batch))]

    def reference_log_probs(self, batch: Batch, budget: int | None = None) -> Tensor:
        """Log-probs [B, T] of the policy as it was made or loaded."""
        with self._at_start():
            return score_all(self, batch, budget)

    def reference_fingerprint(self) -> str:
        """Of the weights it was made or loaded with, their precision, and how it reads inputs."""
        told = [self.fingerprint(), parameters.digest(self.start.items()), str(self.head.weight.dtype)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    @contextmanager
    def _at_start(self) -> Iterator[None]:
        now = {name: parameter.data for name, parameter in self.candidates()}
        try:
            for name, parameter in self.candidates():
                parameter.data = self.start[name].to(now[name])
            yield
        finally:
            for name, parameter in self.candidates():
                parameter.data = now[name]

    @torch.no_grad()
    def probabilities(self, inputs: Sequence[Any]) -> Tensor:  # [B, K]
        """Each label's probability, in the order of `labels.names`; of several labels, each one's own."""
        table = self._tables(self._read(inputs))
        return (table[:, :, 1] if self.labels.several else table[:, 0]).exp()

    def _tables(self, rows: list[Any], temperatures: Sequence[float] = ()) -> Tensor:  # [B, T, K]
        """Log-probs of all rows on the CPU, in micro-batches."""
        each = torch.tensor(temperatures or [1.0] * len(rows), dtype=torch.float64)
        found = torch.zeros(len(rows), self.labels.width, self.labels.choices, dtype=self.head.weight.dtype)
        order = sorted(range(len(rows)), key=lambda row: self.inputs.cost(rows[row]))
        places: list[int] = []
        spent = 0
        for row in [*order, -1]:
            if places and (row < 0 or spent + self.inputs.cost(rows[row]) > self.inputs.budget):
                features = self._features([rows[place] for place in places])
                found[places] = self._table(features, each[places]).cpu()
                places, spent = [], 0
            if row >= 0:
                places.append(row)
                spent += self.inputs.cost(rows[row])
        return found

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(
        self, inputs: Sequence[Any], settings: Sampling | Sequence[Sampling] | None = None, *, step: int = 0
    ) -> list[Record]:
        """`n` records per input, grouped by input, in order; settings are one for all, or one per input.

        A sample is a function of (seed, step, content of the input, sample number); equal inputs in one call get
        different samples. `temperature=0` is the most probable output, without behavior log-probs.

        Raises:
            ConfigError: for top_k or top_p: labels are few, and a probability that was cut off teaches nothing; and
                for choices other than the labels.
        """
        each = list(settings) if isinstance(settings, Sequence) else [settings or Sampling()] * len(inputs)
        for wanted in each:
            if wanted.top_k or wanted.top_p < 1:
                told = f"top_k={wanted.top_k}, top_p={wanted.top_p}"
                raise ConfigError(f"A classifier samples from all its labels, got {told}; leave them at 0 and 1")
            if wanted.choices and set(wanted.choices) != set(self.labels.names):
                told = f"its own {len(self.labels.names)} labels, got {len(wanted.choices)} other choices"
                raise ConfigError(f"A classifier decides among {told}; leave sampling.choices out")
        table = self._tables(self._read(inputs), [wanted.temperature or 1.0 for wanted in each])
        contents = [canonical(given) for given in inputs]
        seen: Counter[str] = Counter()
        seeds: list[int] = []
        for content, wanted in zip(contents, each, strict=True):
            numbers = range(seen[content], seen[content] + wanted.n)
            seeds += [_seed(wanted.seed, step, content, number) for number in numbers]
            seen[content] += wanted.n
        counts = torch.tensor([wanted.n for wanted in each], dtype=torch.long)
        owners = torch.repeat_interleave(torch.arange(len(inputs)), counts)
        chances = table[owners].double().exp().cumsum(-1)  # [N, T, K]
        drawn = uniforms(torch.tensor(seeds, dtype=torch.long), self.labels.width)[:, :, None] * chances[:, :, -1:]
        decided = (chances <= drawn).sum(-1)  # [N, T]
        greedy = torch.tensor([wanted.temperature == 0 for wanted in each], dtype=torch.bool)[owners]
        decided = torch.where(greedy[:, None], table[owners].argmax(-1), decided)
        log_probs = table[owners].gather(-1, decided[:, :, None])[:, :, 0]
        return [
            Record(
                inputs=inputs[owner],
                output=self.labels.output(ids),
                group=f"{hashlib.sha256(contents[owner].encode()).hexdigest()[:12]}:{owner}",
                decisions=tuple(ids),
                behavior_log_probs=None if each[owner].temperature == 0 else tuple(chance),
                sampling=each[owner],
                fingerprint=self.labels.fingerprint,
                finish="stop",
            )
            for owner, ids, chance in zip(owners.tolist(), decided.tolist(), log_probs.tolist(), strict=True)
        ]


READERS: dict[str, Callable[[dict[str, Any], Path], Inputs]] = {
    "table": lambda told, folder: TableInputs.from_json(told),
    "image": ImageInputs.from_json,
    "text": TextInputs.from_json,
}


def read_policy(folder: Path, kind: str) -> dict[str, Any]:
    """What a saved policy's policy.json says.

    Raises:
        ModelError: if there is none, or it is of another kind.
    """
    try:
        told = dict(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder} holds no {kind}: it has no readable {FILE}") from error
    if told.get("kind") != kind:
        raise ModelError(f"{folder} holds a policy of kind {told.get('kind')}, not a {kind}; load it as what it is")
    return told


def _made(config: Classifier, inputs: Sequence[Any]) -> Inputs:
    kind = config.inputs if config.inputs != "auto" else _kind_of(inputs[0])
    if kind == "table":
        return TableInputs.of(inputs, config.table)
    if kind == "image":
        return ImageInputs.make(inputs, config.image, backbone=config.backbone)
    return TextInputs.make(config.text, backbone=config.backbone)


def _kind_of(given: Any) -> str:
    """What an input is.

    Raises:
        DataError: for what no classifier reads.
    """
    kinds: list[tuple[Any, str]] = [(str, "text"), (Image, "image"), (Mapping, "table")]
    found = next((kind for type_, kind in kinds if isinstance(given, type_)), None)
    if found is None:
        raise DataError(f"A classifier reads a table's row, an Image or a text, got a {type(given).__name__}")
    return found


def _entropy(table: Tensor) -> Tensor:  # [B, T, K] → [B, T]
    return -(table.exp() * table).sum(-1)


def _seed(seed: int, step: int, content: str, number: int) -> int:
    key = f"{seed}:{step}:{number}:{content}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big", signed=True)


def _temperature(example: Any) -> float:
    """Greedy records are scored at temperature 1: what was sampled greedily has no log-probability of its own."""
    sampling = getattr(example, "sampling", None)
    return sampling.temperature if sampling is not None and sampling.temperature > 0 else 1.0


def _group_name(example: Any, index: int) -> str:
    return example.group if isinstance(example, Record) and example.group else f"#{index}"


def _device(name: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
