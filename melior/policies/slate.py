"""a slate policy: items placed one after the other, each with a log-probability that knows what was placed before

policy = SlatePolicy.make(Slate(positions=5), catalogue, [row.inputs for row in rows])
fit(policy, Examples(policy, rows), supervised(), FitConfig(learning_rate=3e-3))
policy.sample([SlateRequest(viewed="tent")], Sampling(temperature=0))[0].output  # ["stove", "mat", …]
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from melior.data.formats import as_json, canonical, fingerprint
from melior.durable import MANIFEST, durable_folder, verify_folder
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
from melior.policies.columns import UNKNOWN
from melior.policies.freezing import Share
from melior.policies.kinds import kind_of
from melior.policies.slate_network import Slate, SlateNetwork, taken_before
from melior.policies.slate_rows import Known, Reader, Shelf, SlateRows, sheet
from melior.policies.slate_sampling import check, chunks, contents, draw, orders
from melior.types import Demonstration, Item, Preference, Rated, Record, Sampling, SlateRequest

DEFAULT_BUDGET = 1 << 20  # scores of one micro-batch, about 100 MB with their gradients

Handle = tuple[SlateRows, int]  # a row of an encoded batch


class SlatePolicy:
    """Decides slates: `positions` different items of a request's candidates, the first position first.

    The chance of an item at a position is a softmax over the candidates still free, given the request and the items
    already placed; without `combinations` it is Plackett and Luce's. A request with more than `shortlist` candidates is
    decided in two stages, when combinations are on: the first stage scores all candidates once and the best `shortlist`
    of them are compared by the second; each position is then drawn

        with chance 1 - exploration   from the second stage's softmax over the shortlist's free items
        with chance exploration       from the first stage's softmax over all free candidates

    and log-probs are those of this mixture, exactly. So every candidate keeps a chance: no logged item has probability
    0, importance weights stay defined, and a chosen item outside the shortlist pulls the first stage towards it, which
    also learns through the second, whose scores stand on its own. What this costs: an item outside the shortlist gets
    a part of `exploration` at most, so it weighs little in off-policy estimates until the first stage ranks it higher,
    and the shortlist's edge itself has no gradient. Fewer candidates are decided by the second stage alone.
    """

    kind = "slate"
    discrete = True
    adapted = False
    layout = "flat"

    def __init__(self, config: Slate, network: SlateNetwork, known: Known, catalogue: Sequence[Item]) -> None:
        self.config, self.network, self.known = config, network, known
        self.reader = Reader(known, catalogue, positions=config.positions, history=config.history)
        self.spent = {"scores": 0}
        self.reference = copy.deepcopy(network).requires_grad_(False)
        self.origin = parameters.digest(self.candidates())  # a run goes on only from the weights it began with

    # ------------------------------------------------------------------ making, loading and saving

    @classmethod
    def make(
        cls, config: Slate, catalogue: Sequence[Item], requests: Sequence[SlateRequest], seed: int = 0
    ) -> SlatePolicy:
        """A fresh policy, that reads contexts and histories as the training requests have them.

        An empty catalogue is made of the items that requests bring as candidates.

        Raises:
            DataError: for a catalogue without items or with one id twice, or a feature that cannot be read.
            ConfigError: for a shortlist shorter than the slate.
        """
        if config.shortlist < config.positions:
            raise ConfigError(
                f"A shortlist of {config.shortlist} cannot fill {config.positions} positions; raise shortlist"
            )
        items = list(catalogue) or _brought(requests)
        known = Known.of(items, requests)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = SlateNetwork(config, known)
        return cls(config, network, known, items)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> SlatePolicy:
        """The policy of a folder that `save` wrote, on a GPU if there is one.

        Raises:
            ModelError: if the folder holds no slate policy; CheckpointError if it is damaged.
        """
        folder = Path(path)
        if not (folder / "policy.json").is_file():
            raise ModelError(f"{folder} holds no policy.json, so no slate policy; give the folder that save() wrote")
        if (folder / MANIFEST).is_file():
            verify_folder(folder)
        held = kind_of(folder)
        if held != cls.kind:
            raise ModelError(f"{folder} holds a policy of kind {held!r}, not a slate policy")
        told = json.loads((folder / "policy.json").read_text())
        config, known = Slate(**told["settings"]), Known.from_json(told["known"])
        lines = (folder / "catalogue.jsonl").read_text().splitlines()
        network = SlateNetwork(config, known)
        network.load_state_dict(load_file(folder / "model.safetensors"))
        network.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        return cls(config, network, known, [Item(**json.loads(line)) for line in lines])

    def save(self, folder: str | Path) -> None:
        """Writes settings, catalogue and weights, atomically."""
        told = {"kind": self.kind, "settings": asdict(self.config), "known": self.known.to_json()}
        with durable_folder(Path(folder)) as draft:
            (draft / "policy.json").write_text(json.dumps(told, indent=1))
            items = self.reader.catalogue
            lines = [json.dumps(as_json({"id": item.id, "features": dict(item.features)})) for item in items]
            (draft / "catalogue.jsonl").write_text("\n".join(lines) + "\n")
            weights = {name: tensor.contiguous().cpu() for name, tensor in self.network.state_dict().items()}
            save_file(weights, draft / "model.safetensors")

    def restock(self, catalogue: Sequence[Item]) -> None:
        """Takes another catalogue, which candidates=None means from now on; ids it did not train on are new ones."""
        noticed = self.noticed
        self.reader = Reader(self.known, catalogue, positions=self.config.positions, history=self.config.history)
        self.reader.noticed.update(noticed)

    @property
    def catalogue(self) -> tuple[Item, ...]:
        """The items it knows."""
        return self.reader.catalogue

    @property
    def computed(self) -> Mapping[str, int]:
        """Scores of candidates that training passes compared so far."""
        return self.spent

    @property
    def noticed(self) -> Counter[str]:
        """What was unknown, missing or cut in everything read so far, and how often."""
        return self.reader.noticed

    # ------------------------------------------------------------------ parameters

    def candidates(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Everything that can train."""
        return self.network.named_parameters()

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """All of them, frozen ones too."""
        return self.network.parameters()

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
        """How many of the network's parameters train."""
        return parameters.share(self.network.parameters())

    def parameter_groups(self, rates: Rates) -> list[ParameterGroup]:
        """Trainable parameters by learning rate and weight decay; vectors never decay.

        Raises:
            ConfigError: for a pattern that is no regular expression, or matches no trainable parameter.
        """
        return parameters.parameter_groups(self.candidates(), rates)

    def fingerprint(self) -> str:
        """Of settings, columns, ids and trainable shapes: what must agree for a checkpoint to fit."""
        shapes = {name: list(tensor.shape) for name, tensor in self.state().items()}
        told = json.dumps([asdict(self.config), self.known.to_json(), shapes], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    # ------------------------------------------------------------------ records become batches

    def encode(self, examples: Sequence[Record | Demonstration | Rated]) -> Batch:
        """One row per slate; column "examples" [B] counts them.

        A slate may be shorter than `positions`: as many decisions as it has items, of the first positions.

        Raises:
            DataError: naming the row whose slate is empty, too long, repeats an item or shows one that was no
                candidate, or whose request has no candidates, or one of them twice.
        """
        if any(isinstance(example, Preference) for example in examples):
            raise DataError("A Preference has two outputs; encode its chosen and its rejected side as Demonstrations")
        rows, lengths = self.reader.read(examples)
        mask = torch.arange(rows.decisions.shape[1]) < lengths[:, None]
        weights = torch.tensor([getattr(example, "weight", 1.0) for example in examples])
        names = [_group_name(example, index) for index, example in enumerate(examples)]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        handles = [(rows, row) for row in range(len(examples))]
        return Batch(
            inputs=handles,
            outputs=handles,
            mask=mask,
            weights=mask * weights[:, None],
            groups=torch.tensor([numbers[name] for name in names], dtype=torch.long),
            columns={"examples": torch.arange(len(examples))},
        )

    def cut(self, batch: Batch, budget: int | None = None) -> Iterator[list[int]]:
        """Rows of micro-batches of at most `budget` scores; a group over budget is cut between rows.

        Where the batch says `whole` it is not, whatever it costs.
        """
        budget = budget or DEFAULT_BUDGET
        costs = self._costs(batch)
        if sum(costs) <= budget:
            if costs:
                yield list(range(len(costs)))
            return
        members: dict[int, list[int]] = {}
        for row, group in enumerate(batch.groups.tolist()):
            members.setdefault(group, []).append(row)
        rows: list[int] = []
        spent = 0
        for group in members.values():
            if rows and spent + sum(costs[row] for row in group) > budget:
                yield rows
                rows, spent = [], 0
            for row in group:
                if rows and spent + costs[row] > budget and not batch.whole:
                    yield rows
                    rows, spent = [], 0
                rows.append(row)
                spent += costs[row]
        if rows:
            yield rows

    def cost(self, batch: Batch) -> int:
        """Scores of candidates that are compared, all positions and both stages."""
        return sum(self._costs(batch))

    def _costs(self, batch: Batch) -> list[int]:
        costs = torch.zeros(len(batch), dtype=torch.long)
        for rows, wanted, places in _parts(batch):
            sizes = rows.sizes(wanted)
            seconds = batch.mask[places].sum(1).clamp(min=1) * sizes.clamp(max=self.config.shortlist)
            costs[places] = seconds + torch.where(sizes > self.config.shortlist, sizes, 0)
        return costs.tolist()

    def perturb(self, batch: Batch, key: Sequence[int]) -> Batch:
        """The batch with some ids and cells hidden, so that items and categories never seen come to mean something."""
        if not self.config.hidden or not len(batch):
            return batch
        generator = torch.Generator().manual_seed(_number(canonical(list(key))) >> 1)
        handles: list[Handle] = [(rows, 0) for rows, _ in batch.inputs]
        for rows, wanted, places in _parts(batch):
            hidden = self._hide(rows, wanted, generator)
            for row, place in enumerate(places.tolist()):
                handles[place] = (hidden, row)
        return replace(batch, inputs=handles, outputs=handles)

    def _hide(self, rows: SlateRows, wanted: Tensor, generator: torch.Generator) -> SlateRows:
        """The wanted rows alone, each with an asking of its own, and parts of what they say hidden."""
        askings, shelf = rows.asked[wanted], rows.shelf

        def drawn(shape: Sequence[int]) -> Tensor:
            return torch.rand(tuple(shape), generator=generator) < self.config.hidden

        numbers, codes = rows.numbers[askings], rows.codes[askings]
        return replace(
            rows,
            shelf=Shelf(
                numbers=shelf.numbers.masked_fill(drawn(shelf.numbers.shape), torch.nan),
                codes=shelf.codes.masked_fill(drawn(shelf.codes.shape), UNKNOWN),
                ids=shelf.ids.masked_fill(drawn([len(self.known.ids) + 1])[shelf.ids], UNKNOWN),
            ),
            request=rows.request[askings],
            numbers=numbers.masked_fill(drawn(numbers.shape), torch.nan),
            codes=codes.masked_fill(drawn(codes.shape), UNKNOWN),
            asked=torch.arange(len(wanted)),
            decisions=rows.decisions[wanted],
            temperatures=rows.temperatures[wanted],
        )

    # ------------------------------------------------------------------ scoring

    def score(self, batch: Batch, want: frozenset[Want] = LOG_PROBS) -> Scored:
        """Log-probs of every decision at the temperature it was sampled with, all positions in one pass."""
        if torch.is_grad_enabled():
            self.spent["scores"] += self.cost(batch)
        return self._score(self.network, batch, want)

    def _score(self, network: SlateNetwork, batch: Batch, want: frozenset[Want]) -> Scored:
        dtype, device = network.ids.dtype, network.ids.device
        mask = batch.mask.to(device)
        log_probs = torch.zeros(mask.shape, dtype=dtype, device=device)
        dense = torch.zeros(*mask.shape, 0, dtype=dtype, device=device)
        behind = torch.zeros(len(batch), mask.shape[1] + 1, self.state_size, dtype=dtype, device=device)
        if not mask.numel():
            return Scored(log_probs, log_probs, candidates=dense, states=behind)
        whole = bool(want & {Want.ENTROPY, Want.CANDIDATES})
        for rows, wanted, places in _parts(batch):
            read = sheet(rows, wanted).to(device)
            decided = mask[places]
            staged = network.first(read)
            found = network.log_probs(staged, read, decided)
            log_probs = log_probs.index_copy(0, places.to(device), found)
            decisions = read.decisions[:, : mask.shape[1]]
            if Want.STATES in want:
                seen = network.seen(staged, read.asked, decisions)
                known = torch.arange(seen.shape[1], device=device) <= decided.sum(1, keepdim=True)
                behind = behind.index_copy(0, places.to(device), torch.where(known[:, :, None], seen, 0.0))
            if whole:
                states = network.states(staged, read.asked, decisions[:, :-1])
                taken = taken_before(decisions, decided, staged.scores.shape[1])
                every = network.all_log_probs(staged, read.asked, states, taken, read.temperatures)
                dense = _placed(dense, every.masked_fill(~decided[:, :, None], -torch.inf), places.to(device))
        entropy = None
        if Want.ENTROPY in want:
            free = ~torch.isneginf(dense)
            finite = torch.where(free, dense, 0)
            entropy = -torch.where(free, finite.exp() * finite, 0).sum(2)
        return Scored(
            log_probs,
            entropy,
            candidates=candidates_asked(dense, batch) if Want.CANDIDATES in want else None,
            states=behind if Want.STATES in want else None,
        )

    @torch.no_grad()
    def likeliest(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """Ids and log-probs [B, T, K] of the k likeliest decisions at each place; -1 and -inf where there are fewer."""
        everything = {name: column for name, column in batch.columns.items() if name != CANDIDATE_IDS}
        found = self.score(replace(batch, columns=everything), frozenset({Want.CANDIDATES})).candidates
        assert found is not None
        return likeliest_of(found.masked_fill(~batch.mask.to(found.device)[:, :, None], -torch.inf), k)

    @property
    def vocabulary(self) -> str:
        """Of the catalogue's ids and their order."""
        return hashlib.sha256(json.dumps([item.id for item in self.reader.catalogue]).encode()).hexdigest()[:16]

    @property
    def state_size(self) -> int:
        """D of the states: of what is known of the request, and of what stands in the slate already."""
        return self.config.width * (2 if self.config.combinations else 1)

    @torch.no_grad()
    def log_probs(self, examples: Sequence[Record | Demonstration | Rated]) -> list[Tensor]:
        """One tensor [T] of nats per example, in order: the log-probability of each of its decisions."""
        batch = self.encode(examples)
        found = score_all(self, batch)
        return [row[held] for row, held in zip(found, batch.mask, strict=True)]

    @torch.no_grad()
    def reference_log_probs(self, batch: Batch, budget: int | None = None) -> Tensor:
        """Log-probs [B, T] of the policy as it was made or loaded."""
        result = torch.zeros(batch.mask.shape, dtype=torch.float64)
        for rows in self.cut(batch, budget):
            part = batch.select(rows)
            result[rows, : part.mask.shape[1]] = self._score(self.reference, part, LOG_PROBS).log_probs.double().cpu()
        return result

    def reference_fingerprint(self) -> str:
        """Of the weights it was made or loaded with, their precision, its settings and its catalogue."""
        weights = parameters.digest(self.reference.state_dict().items())
        told = [self.fingerprint(), weights, self.config.precision, fingerprint(self.reader.catalogue)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(
        self, inputs: Sequence[SlateRequest], settings: Sampling | Sequence[Sampling] | None = None, *, step: int = 0
    ) -> list[Record]:
        """`n` slates per request, in order; settings are one for all, or one per request.

        A slate is a function of (seed, step, request, sample number) alone. `temperature=0` serves the item most
        probable at each position, and records no log-probs: nothing was left to chance, so nothing can be learnt from
        it off-policy. A request with fewer candidates than positions gets a shorter slate, and is noticed.

        Raises:
            ConfigError: for top_k or top_p: every item keeps its propensity.
            DataError: for a request without candidates, or with one of them twice.
        """
        each = [settings or Sampling()] * len(inputs) if not isinstance(settings, Sequence) else list(settings)
        check(each)
        rows, places = self.reader.ask(inputs)
        sizes = rows.sizes(torch.arange(len(inputs))).tolist()
        keys = contents(inputs)
        wanted = orders(keys, each, sizes, self.config.positions)
        names = {id(found): list(found) for found in places}
        records: list[Record] = []
        for part in chunks(wanted, sizes):
            decided = draw(self.network, rows, part, [each[order.owner] for order in part], keys, step)
            for order, (chosen, chances) in zip(part, decided, strict=True):
                ids = names[id(places[order.owner])]
                settled = each[order.owner]
                records.append(
                    Record(
                        inputs=inputs[order.owner],
                        output=[ids[place] for place in chosen],
                        group=f"{keys[order.owner].hex()[:12]}:{order.owner}",
                        decisions=tuple(chosen),
                        behavior_log_probs=tuple(chances) if settled.temperature else None,
                        sampling=settled,
                        finish="length" if order.cut else "stop",
                    )
                )
        return records


def _brought(requests: Sequence[SlateRequest]) -> list[Item]:
    """The items that requests bring, each once, as it came first."""
    found: dict[str, Item] = {}
    for request in requests:
        for each in request.candidates or ():
            if not isinstance(each, str):
                found.setdefault(each.id, each)
    return list(found.values())


def _parts(batch: Batch) -> Iterator[tuple[SlateRows, Tensor, Tensor]]:
    """The rows of each `encode` that a batch holds, and where in the batch they stand."""
    if not len(batch):
        return
    stores, wanted = zip(*batch.inputs, strict=True)
    numbers, index = list(map(id, stores)), torch.tensor(wanted)
    if numbers.count(numbers[0]) == len(numbers):
        yield stores[0], index, torch.arange(len(numbers))
        return
    for number, rows in dict(zip(numbers, stores, strict=True)).items():
        places = torch.tensor([place for place, each in enumerate(numbers) if each == number])
        yield rows, index[places], places


def _placed(dense: Tensor, part: Tensor, places: Tensor) -> Tensor:  # [B, T, K], [b, T, k] -> [B, T, max(K, k)]
    """Log-probs of candidates put in their rows; who has fewer candidates has -inf behind them."""
    missing = part.shape[2] - dense.shape[2]
    dense = torch.nn.functional.pad(dense, (0, max(missing, 0)), value=-torch.inf)
    part = torch.nn.functional.pad(part, (0, max(-missing, 0)), value=-torch.inf)
    return dense.index_copy(0, places, part)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _group_name(example: Any, index: int) -> str:
    return example.group if isinstance(example, Record) and example.group else f"#{index}"
