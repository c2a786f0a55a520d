"""a language model as a policy: text in, tokens decided, log-probs out"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from melior.data.chat import Renderer, Template, Turn
from melior.durable import MANIFEST, durable_folder, verify_folder
from melior.errors import ConfigError, DataError, ModelError
from melior.policies import parameters
from melior.policies.adapters import LoRA, add_adapter, is_adapter, load_adapter, without_adapter
from melior.policies.backbones import CausalBackbone, LayoutName, load_backbone, resolve
from melior.policies.base import (
    CANDIDATE_IDS,
    LOG_PROBS,
    Batch,
    ParameterGroup,
    Rates,
    Scored,
    State,
    Want,
    padded_states,
    score_all,
)
from melior.policies.choices import Choices, portions, weigh
from melior.policies.engine import PREFILL_TOKENS, Engine, Request
from melior.policies.freezing import Share
from melior.policies.head import likeliest_tokens
from melior.policies.scoring import Decided, nodes_added, score_decisions
from melior.types import Demonstration, Preference, Rated, Record, Sampling

log = logging.getLogger(__name__)

DEFAULT_BUDGET = 896  # nodes of one micro-batch: near full matrix speed, about 1.1 GB at 135M (docs/experiments.md)


class LanguagePolicy:
    """A causal language model that scores and samples completions.

    Every forward pass of training and scoring is deterministic: the model stays in train mode, so that gradient
    checkpointing works, with every dropout at zero.
    """

    kind = "language"
    discrete = True

    def __init__(
        self, backbone: CausalBackbone, renderer: Renderer, *, base: str, max_length: int | None = None
    ) -> None:
        self.backbone = backbone
        self.renderer = renderer
        self.base = base  # name or folder of the model that an adapter stands on
        self.origin = ""  # of the weights as loaded: a run goes on only from those it began with
        limit = backbone.max_length
        self.max_length = min(max_length or limit, limit)

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        adapter: LoRA | None = None,
        layout: LayoutName = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto",
        device: str = "auto",
        template: Template = "auto",
        max_length: int | None = None,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> LanguagePolicy:
        """The policy of a local folder (whole model or adapter), a name that `melior pull` knows, or a hub id.

        `adapter` adds a fresh LoRA; a folder that holds an adapter is loaded on its base and stays trainable.
        `layout="auto"` checks at load that the forest layout reproduces the model's own padded forward, and falls back
        to padded rows with a warning; "forest" refuses instead. `dtype="auto"` is float32 on CPU, bfloat16 on GPU.

        Raises:
            ModelError: if weights, tokenizer or template are missing or do not fit; LayoutError for a layout.
            CheckpointError: if a folder that melior wrote is damaged.
        """
        folder = _whole(resolve(path))
        base, trained = str(path), None
        if isinstance(folder, Path) and is_adapter(folder):
            if adapter is not None:
                raise ConfigError(f"{path} already holds an adapter; load it without adapter=, or merge it first")
            trained = folder
            base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
            folder = _whole(resolve(base))
        backbone, tokenizer = load_backbone(folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        if trained is not None:
            backbone.model = load_adapter(backbone.model, trained)
        elif adapter is not None:
            backbone.model.config._name_or_path = base if isinstance(folder, str) else str(folder)
            backbone.model = add_adapter(backbone.model, adapter)
        backbone.make_deterministic(gradient_checkpointing)
        backbone.choose_layout(layout)
        policy = cls(backbone, Renderer(tokenizer, template, backbone.stop_ids), base=base, max_length=max_length)
        policy.origin = backbone.digest()
        return policy

    def save(self, folder: str | Path) -> None:
        """Writes weights (an adapter in PEFT's format, or the whole model) and tokenizer, atomically."""
        with durable_folder(Path(folder)) as draft:
            self.backbone.save(draft)
            self.renderer.tokenizer.save_pretrained(str(draft))

    def merged(self, folder: str | Path) -> None:
        """Writes the whole model with the adapter folded into its matrices."""
        with durable_folder(Path(folder)) as draft:
            self.backbone.save_merged(draft)
            self.renderer.tokenizer.save_pretrained(str(draft))

    def state(self) -> State:
        """Trainable tensors by name."""
        return parameters.state_of(self.candidates())

    def load_state(self, state: State) -> None:
        """Overwrites the trainable tensors, in place."""
        parameters.load_state(self.candidates(), state)

    def fingerprint(self) -> str:
        """Of architecture, trainable shapes, tokenizer and template: what must agree for a checkpoint to fit."""
        shapes = {name: list(parameter.shape) for name, parameter in self.backbone.trainable()}
        told = json.dumps([self.backbone.architecture, shapes, self.renderer.fingerprint], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def candidates(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Everything that can train: every weight, or the adapter's."""
        return self.backbone.candidates()

    def freeze(self, factors: Mapping[str, float]) -> dict[str, float]:
        """Takes out of training whatever the factors give 0, and returns the factors that still have a say.

        Raises:
            ConfigError: for a pattern that is no regular expression or matches no trainable parameter.
        """
        return parameters.freeze(self.candidates(), factors)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """All of them, frozen ones and those under an adapter too."""
        return self.backbone.model.parameters()

    @property
    def noticed(self) -> Counter[str]:
        """Nothing: a text is read whole, or refused."""
        return Counter()

    @property
    def computed(self) -> Mapping[str, int]:
        """Tokens computed so far, shared prefixes once, and those that padded rows would have computed."""
        return {"nodes": self.backbone.nodes, "padded_tokens": self.backbone.padded_tokens}

    @property
    def share(self) -> Share:
        """How many of the model's parameters train."""
        return parameters.share(self.parameters())

    def parameter_groups(self, rates: Rates) -> list[ParameterGroup]:
        """Trainable parameters by learning rate and weight decay; vectors (norms, biases) never decay.

        Raises:
            ConfigError: for a pattern that is no regular expression, or matches no trainable parameter.
        """
        return parameters.parameter_groups(self.candidates(), rates)

    @property
    def adapted(self) -> bool:
        """Whether an adapter trains, on weights that stay."""
        return self.backbone.adapted

    @property
    def layout(self) -> str:
        """How rows are laid out."""
        return self.backbone.layout

    # ------------------------------------------------------------------ records become batches

    def encode(self, examples: Sequence[Record | Demonstration | Rated]) -> Batch:
        """One row per decided turn; column "examples" [B] says which example each row came from.

        A row longer than `max_length` is cut at its end, and one that then has no decision left keeps an empty mask.
        A record whose sampling has choices is scored as one of them; beyond `max_length` it has no decision.

        Raises:
            DataError: if an example cannot be rendered, its context is empty, its ids come from another tokenizer, or
                its output is none of its choices.
        """
        turns: list[Turn] = []
        source: list[int] = []
        for index, example in enumerate(examples):
            found = self._turns(example)
            turns += found
            source += [index] * len(found)
        choices = self._choices([examples[index] for index in source], turns)
        room = [max(0, self.max_length - len(turn.context)) for turn in turns]
        decisions = [
            turn.decisions[:space] if choice is None or choice.longest <= space else ()
            for turn, choice, space in zip(turns, choices, room, strict=True)
        ]
        width = max((len(decided) for decided in decisions), default=0)
        lengths = torch.tensor([len(decided) for decided in decisions])
        mask = torch.arange(width)[None, :] < lengths[:, None] if turns else torch.zeros(0, 0, dtype=torch.bool)
        row_weights = torch.tensor([getattr(examples[index], "weight", 1.0) for index in source])
        names = [_group_name(examples[index], index) for index in source]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return Batch(
            # Nothing is decided behind a context that fills the model, so one token of it stands for the row.
            inputs=[turn.context if space else turn.context[:1] for turn, space in zip(turns, room, strict=True)],
            outputs=[
                Decided(ids, _temperature(examples[index]), choice if ids else None)
                for ids, index, choice in zip(decisions, source, choices, strict=True)
            ],
            mask=mask,
            weights=mask * row_weights[:, None] if turns else torch.zeros(0, 0),
            groups=torch.tensor([numbers[name] for name in names], dtype=torch.long),
            columns={"examples": torch.tensor(source, dtype=torch.long)},
        )

    def _turns(self, example: Any) -> list[Turn]:
        if isinstance(example, Preference):
            raise DataError("A Preference has two outputs; encode its chosen and its rejected side as Demonstrations")
        if isinstance(example, Record) and example.decisions is not None and example.context is not None:
            if example.fingerprint not in (None, self.renderer.fingerprint):
                raise DataError(
                    f"A record was sampled with tokenizer {example.fingerprint}, this policy has "
                    f"{self.renderer.fingerprint}; its ids mean other text here"
                )
            found = [Turn(tuple(example.context), tuple(example.decisions))]
        elif isinstance(example, Demonstration):
            found = self.renderer.turns(example)
        else:
            found = [self.renderer.turn(example.inputs, example.output)]
        if any(not turn.context for turn in found):
            raise DataError("An empty input has no token to decide from; give it text, or a tokenizer with a bos_token")
        return found

    def _choices(self, examples: Sequence[Any], turns: Sequence[Turn]) -> list[Choices | None]:
        """The choices that each turn was one of, where its example is a record with choices."""
        found: list[Choices | None] = []
        known: dict[str, Choices] = {}  # the outputs of one group share their input
        for example, turn in zip(examples, turns, strict=True):
            texts = example.sampling.choices if isinstance(example, Record) and example.sampling else ()
            if not texts:
                found.append(None)
                continue
            key = repr((example.inputs, texts))
            if key not in known:
                known[key] = Choices.of([other.decisions for other in self.renderer.choices(example.inputs, texts)])
            if turn.decisions not in known[key].ids:
                raise DataError(
                    f"The output {example.output!r:.60} is none of the {len(texts)} choices it was sampled from"
                )
            found.append(known[key])
        return found

    def cut(self, batch: Batch, budget: int | None = None) -> Iterator[list[int]]:
        """Rows of micro-batches of at most `budget` tokens after sharing.

        A group over budget is cut between rows, unless the batch's groups are to stay whole.
        """
        budget = budget or DEFAULT_BUDGET
        by_group: dict[int, list[int]] = {}
        for row, group in enumerate(batch.groups.tolist()):
            by_group.setdefault(group, []).append(row)
        rows: list[int] = []
        cost = 0
        for members in by_group.values():
            ordered = sorted(members, key=lambda row: self._sequence(batch, row))
            needed = sum(self._added(batch, *pair) for pair in pairwise([*rows[-1:], *ordered]))
            if rows and cost + needed > budget:
                yield rows
                rows, cost = [], 0
            for row in ordered:
                added = self._added(batch, rows[-1] if rows else None, row)
                if rows and cost + added > budget and not batch.whole:
                    yield rows
                    rows, cost, added = [], 0, self._added(batch, None, row)
                rows.append(row)
                cost += added
        if rows:
            yield rows

    @staticmethod
    def _added(batch: Batch, before: int | None, row: int) -> int:
        """Nodes that a row adds behind the row before it."""
        previous = None if before is None else (batch.inputs[before], batch.outputs[before])
        return nodes_added(batch.inputs[row], batch.outputs[row], previous)

    def cost(self, batch: Batch) -> int:
        """Tokens read and decided; a prefix that rows share counts each time."""
        return sum(map(len, batch.inputs)) + int(batch.mask.sum())

    def perturb(self, batch: Batch, key: Sequence[int]) -> Batch:
        """The same batch: language models are trained without dropout."""
        return batch

    @staticmethod
    def _sequence(batch: Batch, row: int) -> tuple[int, ...]:
        return batch.inputs[row] + batch.outputs[row].decisions

    # ------------------------------------------------------------------ scoring

    def score(self, batch: Batch, want: frozenset[Want] = LOG_PROBS) -> Scored:
        """Log-probs of every decision at the temperature it was sampled with, in one forward pass.

        Candidates are answered where the batch has a column "candidate_ids", absent otherwise.
        """
        mask = batch.mask.cpu().numpy()
        columns = [row.nonzero()[0] for row in mask]
        asked = None
        if Want.CANDIDATES in want and CANDIDATE_IDS in batch.columns:
            asked = [ids[row] for ids, row in zip(batch.columns[CANDIDATE_IDS].cpu().numpy(), mask, strict=True)]
        found = score_decisions(self.backbone, batch.inputs, batch.outputs, columns, want, asked)
        return Scored(
            _rows(batch.mask, found.log_probs) if found.log_probs else torch.zeros(batch.mask.shape),
            _rows(batch.mask, found.entropy) if Want.ENTROPY in want else None,
            candidates=None if asked is None else _rows(batch.mask, found.candidates, fill=-torch.inf),
            states=padded_states(found.states, batch.mask.shape[1]) if Want.STATES in want else None,
        )

    @torch.no_grad()
    def likeliest(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """Ids and log-probs [B, T, K] of the k likeliest tokens at each place, whatever the row's choices were."""
        ids = torch.full((*batch.mask.shape, k), -1)
        log_probs = torch.full(ids.shape, -torch.inf, dtype=torch.float64)
        if not bool(batch.mask.any()):
            return ids, log_probs
        states = self.score(batch, frozenset({Want.STATES})).states
        assert states is not None
        temperatures = torch.tensor([decided.temperature for decided in batch.outputs], dtype=torch.float64)
        inverse = (1 / temperatures)[:, None].expand(batch.mask.shape)[batch.mask]
        read = states[:, :-1][batch.mask.to(states.device)]
        head, known = self.backbone.head, len(self.renderer.tokenizer)
        found = likeliest_tokens(head, read, inverse.to(read.device, self.backbone.head_dtype), k, known=known)
        width = found[0].shape[1]
        ids[batch.mask, :width], log_probs[batch.mask, :width] = found[0].cpu(), found[1].double().cpu()
        return ids, log_probs

    @property
    def state_size(self) -> int:
        """D of the states: the model's hidden size."""
        return int(self.backbone.config.hidden_size)

    @property
    def vocabulary(self) -> str:
        """Of tokenizer and template."""
        return self.renderer.fingerprint

    def log_probs(self, records: Sequence[Record | Demonstration | Rated]) -> list[Tensor]:
        """One tensor [T] of nats per record, in order: the log-probability of each of its decisions."""
        batch = self.encode(records)
        found: dict[int, Tensor] = {}
        for rows in self.cut(batch):
            part = batch.select(rows)
            scored = self.score(part)
            for place, row in enumerate(rows):
                found[row] = scored.log_probs[place][part.mask[place].to(scored.log_probs.device)]
        pieces: list[list[Tensor]] = [[] for _ in records]
        for row, example in enumerate(batch.columns["examples"].tolist()):
            pieces[example].append(found[row])
        return [torch.cat(piece) if piece else torch.zeros(0) for piece in pieces]

    def reference_log_probs(self, batch: Batch, budget: int | None = None) -> Tensor:
        """Log-probs [B, T] of the model without its adapter.

        Raises:
            ModelError: for a fully trained model, whose starting point is gone; load a second policy as the reference.
        """
        if not self.backbone.adapted:
            raise ModelError("A policy without an adapter has no reference inside it; load a second one for that")
        with without_adapter(self.backbone.model):
            return score_all(self, batch, budget)

    def reference_fingerprint(self) -> str:
        """Of the model under the adapter, its precision and layout, tokenizer and template."""
        weights = self.backbone.digest(adapter=False)
        dtype = str(next(self.parameters()).dtype)
        told = [self.backbone.architecture, self.renderer.fingerprint, weights, dtype, self.layout, self.max_length]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    # ------------------------------------------------------------------ sampling

    def sample(
        self, inputs: Sequence[Any], settings: Sampling | Sequence[Sampling] | None = None, *, step: int = 0
    ) -> list[Record]:
        """`n` records per input, in order; settings are one for all, or one per input.

        A sample is a function of (seed, step, prompt, sample number) alone; equal inputs in one call are computed
        once and get different samples.

        Raises:
            DataError: if a prompt leaves no room for `max_tokens` in the model's context.
        """
        each = [settings or Sampling()] * len(inputs) if not isinstance(settings, Sequence) else list(settings)
        engine = self.engine()
        contexts = [self.renderer.context(given) for given in inputs]
        seen: dict[tuple[int, ...], int] = {}
        for index, (context, wanted) in enumerate(zip(contexts, each, strict=True)):
            choices, tokens, what = None, wanted.max_tokens, f"max_tokens={wanted.max_tokens}"
            if wanted.choices:
                choices = self._choices_behind(inputs[index], wanted.choices, wanted.max_tokens)
                tokens, what = choices.longest, f"a choice of {choices.longest} tokens"
            self._check_room(index, context, tokens, what)
            first = seen.get(context, 0)
            seen[context] = first + wanted.n
            engine.submit(
                Request(id=index, context=context, settings=wanted, step=step, first_sample=first, choices=choices)
            )
        engine.run()
        samples = sorted(engine.collect(), key=lambda sample: (sample.request, sample.number))
        return [
            Record(
                inputs=inputs[sample.request],
                output=sample.text,
                group=_group_of(contexts[sample.request], sample.request),
                context=contexts[sample.request],
                decisions=sample.decisions,
                behavior_log_probs=sample.log_probs,
                sampling=each[sample.request],
                fingerprint=self.renderer.fingerprint,
                finish=sample.finish,
            )
            for sample in samples
        ]

    @torch.no_grad()
    def choice_log_probs(self, inputs: Sequence[Any], choices: Sequence[str]) -> Tensor:  # [B, C] fp64
        """The log-prob in nats of each choice for each input, where one of the choices is taken.

        Raises:
            DataError: if a prompt leaves no room for a choice, or two choices have the same tokens.
        """
        texts = Sampling(choices=tuple(choices)).choices
        contexts = [self.renderer.context(given) for given in inputs]
        questions = []
        for index, (given, context) in enumerate(zip(inputs, contexts, strict=True)):
            found = self._choices_behind(given, texts, self.max_length)
            self._check_room(index, context, found.longest, f"a choice of {found.longest} tokens")
            questions.append((context, found))
        rows: list[Tensor] = []
        for part in portions(questions, PREFILL_TOKENS):
            rows += weigh(self.backbone, part)
        return torch.log_softmax(torch.stack(rows), -1).cpu() if rows else torch.zeros(0, len(texts))

    def _check_room(self, index: int, context: Sequence[int], tokens: int, what: str) -> None:
        """Raises DataError if a context is empty, or leaves no room for that many tokens."""
        if not context:
            raise DataError("An empty input has no token to decide from; give it text, or a tokenizer with a bos_token")
        if len(context) + tokens > self.max_length:
            raise DataError(
                f"Prompt {index} has {len(context)} tokens; with {what} it exceeds the context of {self.max_length}; "
                "shorten it, or lower max_tokens"
            )

    def _choices_behind(self, inputs: Any, choices: Sequence[str], max_tokens: int) -> Choices:
        """The choices as tokens behind an input.

        Raises:
            DataError: if one is longer than `max_tokens`, or two have the same tokens.
        """
        turns = self.renderer.choices(inputs, choices)
        found = Choices.of([turn.decisions for turn in turns])
        if found.longest > max_tokens:
            longest = max(range(len(turns)), key=lambda index: len(turns[index].decisions))
            raise DataError(
                f"The choice {choices[longest]!r} has {found.longest} tokens, the stop token included, and max_tokens "
                f"is {max_tokens}; raise it, or shorten the choice"
            )
        return found

    def engine(self, **limits: int) -> Engine:
        """A fresh sampling engine over this policy's weights."""
        return Engine(self.backbone, self.renderer, **limits)


def _whole(folder: Path | str) -> Path | str:
    """The same folder, once every file is found to be what melior wrote; folders of others hold no such record."""
    if isinstance(folder, Path) and (folder / MANIFEST).is_file():
        verify_folder(folder)
    return folder


def _rows(mask: Tensor, values: Sequence[Tensor], fill: float = 0.0) -> Tensor:  # of [T, …] each -> [B, T, …]
    """Each row's values in its first columns, `fill` behind them."""
    whole = torch.cat(list(values))
    row, column = mask.nonzero().unbind(1)
    result = torch.full((*mask.shape, *whole.shape[1:]), fill, dtype=whole.dtype, device=whole.device)
    return result.index_put((row.to(whole.device), column.to(whole.device)), whole)


def _temperature(example: Any) -> float:
    """Greedy records are scored at temperature 1: what was sampled greedily has no log-probability of its own."""
    sampling = getattr(example, "sampling", None)
    return sampling.temperature if sampling is not None and sampling.temperature > 0 else 1.0


def _group_of(context: Sequence[int], place: int) -> str:
    """The group of a prompt's samples: records of several calls, put together, never mix two prompts."""
    return f"{hashlib.sha256(np.array(context, dtype=np.int64).tobytes()).hexdigest()[:12]}:{place}"


def _group_name(example: Any, index: int) -> str:
    return example.group if isinstance(example, Record) and example.group else f"#{index}"
