"""sampling: submit requests, step, collect; rollouts, environments and the server drive the same one

A prompt is computed once, whatever the number of its samples, and prompts that enter together share their prefixes.
Finished rows leave the batch at once and waiting ones enter. Each sample draws its own uniform numbers, a function of
(seed, step, prompt, sample number), so it does not depend on its batch mates; the log-probs kept are those of the
distribution really sampled from, after biases, penalties, constraint, temperature, top-k and top-p.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from melior.policies.choices import Choices, Question, weigh
from melior.policies.constraints import Follower, Grammars, check_biases, shaped
from melior.policies.decoding import CachedDecoder, RecomputingDecoder
from melior.policies.head import CHUNK
from melior.policies.search import best_choices
from melior.types import Finish, Sampling

log = logging.getLogger(__name__)

MAX_ROWS = 128  # rows decoded together; how the cost of a token falls up to there: benchmarks/scaling.md
PREFILL_TOKENS = 2048  # prompt tokens computed in one forward pass
SEARCH_FROM = 32  # tokens of choices behind a prompt from which the best is searched for; fewer are computed at once


class Renders(Protocol):
    """What the engine needs of a renderer."""

    tokenizer: Any

    @property
    def stop_id(self) -> int: ...
    @property
    def stop_ids(self) -> frozenset[int]: ...
    def text(self, decisions: Sequence[int]) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and how to sample from it; `first_sample` numbers its samples from there.

    With `told` every token comes with what the policy itself thought of it, and of that many likeliest ones.
    """

    id: int
    context: tuple[int, ...]
    settings: Sampling
    step: int = 0
    first_sample: int = 0
    choices: Choices | None = None  # the settings' choices, as tokens behind this context
    told: int | None = None
    adapter: str = ""  # which of the model's adapters answers, where it has several; "" is the model alone


@dataclass(frozen=True)
class Thought:
    """What the policy itself thought of a token, in nats: at temperature 1, before anything cut or added to it."""

    token: int
    log_prob: float
    likeliest: tuple[tuple[int, float], ...]  # token ids and their log-probs, the likeliest first


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One finished output. `log_probs` are nats under the sampling distribution, None for greedy decoding."""

    request: int
    number: int
    decisions: tuple[int, ...]
    log_probs: tuple[float, ...] | None
    text: str
    finish: Finish
    thoughts: tuple[Thought, ...] = ()  # one per decision, where they were asked for


@dataclass
class _Row:
    """One output in the making."""

    request: Request
    number: int
    uniforms: np.ndarray  # one per token still possible
    decisions: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish: Finish | None = None
    follower: Follower | None = None  # of the settings' constraint
    thoughts: list[Thought] = field(default_factory=list)


class Engine:
    """Continuous batching over one model."""

    def __init__(self, backbone: Any, renderer: Renders, *, max_rows: int = MAX_ROWS) -> None:
        self.backbone = backbone
        self.renderer = renderer
        self.max_rows = max_rows
        self.decoder = (CachedDecoder if backbone.layout == "forest" else RecomputingDecoder)(backbone)
        self.waiting: deque[Request] = deque()
        self.choosing: deque[Request] = deque()  # waiting too, to be answered with one of their choices
        self.rows: list[_Row] = []  # in the order of the decoder's rows
        self.done: list[Sample] = []
        self.tokens = 0  # decided so far
        self.on_finish: Callable[[Sample], None] = lambda sample: None

    # ------------------------------------------------------------------ the four verbs

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            ConfigError: if its constraint cannot be followed, or it biases a token that there is not.
        """
        self.follow(request.settings)
        check_biases(request.settings, len(self.backbone.head.weight))
        (self.waiting if request.choices is None else self.choosing).append(request)

    @torch.no_grad()
    def step(self) -> bool:
        """Admits what fits and decides one token for every row; False when nothing is left to do."""
        self._choose()
        self._admit()
        if not self.rows:
            return bool(self.waiting or self.choosing)  # everything admitted may have ended at its first token
        with self.backbone.adapted_by([row.request.adapter for row in self.rows]):
            states = self.decoder.advance([row.decisions[-1] for row in self.rows])
        self._decide(self.rows, states)
        self._release()
        return True

    def collect(self) -> list[Sample]:
        """Samples finished since the last call."""
        finished, self.done = self.done, []
        return finished

    def cancel(self, request: int) -> None:
        """Ends a request; what it has decided so far, if anything, is collected with finish "cancelled"."""
        never_begun = [waiting for waiting in (*self.waiting, *self.choosing) if waiting.id == request]
        self.waiting, self.choosing = (
            deque(waiting for waiting in queue if waiting.id != request) for queue in (self.waiting, self.choosing)
        )
        for row in self.rows:
            if row.request.id == request:
                row.finish = "cancelled"
        self._release()
        for waiting in never_begun:
            for number in range(waiting.settings.n):
                self._hand_over(_row(waiting, number), "cancelled")

    def run(self) -> None:
        """Steps until every request has finished."""
        while self.step():
            pass

    def follow(self, settings: Sampling) -> Follower | None:
        """What holds an output to the constraint of the settings, if they have one.

        Raises:
            ConfigError: if it cannot be followed.
        """
        if not settings.constraint:
            return None
        return Grammars.of(self.renderer, len(self.backbone.head.weight)).follow(settings.constraint)

    @torch.no_grad()
    def read(self, context: Sequence[int], likeliest: int, adapter: str = "") -> list[Thought]:
        """What the policy thought of every token of a context but its first."""
        known = len(self.renderer.tokenizer)
        found: list[Thought] = []
        with self.backbone.adapted_by([adapter]):
            states, paths = self.backbone.states([tuple(context)])
            states = states[torch.from_numpy(np.asarray(paths[0], dtype=np.int64)).to(states.device)]
        for start in range(0, len(context) - 1, CHUNK):
            part = slice(start, min(start + CHUNK, len(context) - 1))
            own = torch.log_softmax(self.backbone.head.logits(states[part]), -1)
            tokens = context[part.start + 1 : part.stop + 1]
            found += [_thought(row, token, likeliest, known) for row, token in zip(own, tokens, strict=True)]
        return found

    # ------------------------------------------------------------------ inside

    def _choose(self) -> None:
        """Answers requests that have choices, as many as one forward pass takes: a whole choice is one draw."""
        if not self.choosing:
            return
        search = self._searched(self.choosing[0])
        part: list[Question] = []
        tokens = 0
        for request in self.choosing:
            assert request.choices is not None
            tokens += len(request.context) + (0 if search else request.choices.size)
            full = tokens > PREFILL_TOKENS or len(part) >= self.max_rows
            other = self._searched(request) != search or request.adapter != self.choosing[0].adapter
            if (part and full) or other:
                break
            part.append((request.context, request.choices))
        with self.backbone.adapted_by([self.choosing[0].adapter]):
            found: Sequence[Any] = best_choices(self.backbone, part) if search else weigh(self.backbone, part)
        for (_, choices), answer in zip(part, found, strict=True):
            request = self.choosing.popleft()
            if search:
                self._take(request, choices, [answer] * request.settings.n)
            else:
                self._draw(request, choices, answer)

    def _searched(self, request: Request) -> bool:
        """Whether only the best of many choices is wanted, which need not compute them all."""
        many = request.choices is not None and request.choices.size > SEARCH_FROM
        return many and request.settings.temperature == 0 and self.backbone.layout == "forest"

    def _draw(self, request: Request, choices: Choices, weights: Tensor) -> None:
        """Draws the samples of a request from its choices' log-probs [C]."""
        numbers = range(request.settings.n)
        uniforms = torch.tensor([float(_row(request, number).uniforms[0]) for number in numbers], dtype=torch.float64)
        each = [request.settings] * request.settings.n
        drawn, _ = choose(weights.expand(request.settings.n, -1), each, uniforms)
        self._take(request, choices, drawn.tolist(), choices.branches(temper(weights[None], each[:1])[0]))

    def _take(self, request: Request, choices: Choices, drawn: list[int], branches: Tensor | None = None) -> None:
        """Hands over the choices that were drawn, with the log-probs of their tokens [N]."""
        for number, choice in enumerate(drawn):
            row = _row(request, number)
            row.decisions = list(choices.ids[choice])
            if branches is not None:
                row.log_probs = branches[torch.from_numpy(choices.paths[choice])].tolist()
            self.tokens += len(row.decisions)
            self._hand_over(row, "stop")

    def _admit(self) -> None:
        """Prefills waiting requests while rows are free; a first token comes from the prompt's last state."""
        entering: list[Request] = []
        rows = len(self.rows)
        prompt_tokens = 0
        while self.waiting:
            request = self.waiting[0]
            again = bool(entering) and entering[-1].context == request.context  # computed once
            cost = 0 if again else len(request.context)
            fits = rows + request.settings.n <= self.max_rows and prompt_tokens + cost <= PREFILL_TOKENS
            if not fits and (entering or self.rows):
                break
            entering.append(self.waiting.popleft())
            rows += request.settings.n
            prompt_tokens += cost
        if not entering:
            return
        for adapter in dict.fromkeys(request.adapter for request in entering):  # equal prompts differ under another
            self._enter([request for request in entering if request.adapter == adapter])
        self._release()

    def _enter(self, entering: Sequence[Request]) -> None:
        """Prefills requests of one adapter and decides their first tokens."""
        with self.backbone.adapted_by([entering[0].adapter]):
            states = self.decoder.admit([(request.context, request.settings.n) for request in entering])
        new = [_row(request, number) for request in entering for number in range(request.settings.n)]
        for row in new:
            row.follower = self.follow(row.request.settings)
        repeats = torch.tensor([request.settings.n for request in entering], device=states.device)
        self._decide(new, states.repeat_interleave(repeats, 0))
        self.rows += new

    def _decide(self, rows: Sequence[_Row], states: Tensor) -> None:
        """Samples one token per row from the head's distribution and notes what ended."""
        logits = self.backbone.head.logits(states)
        own = self._own(rows, logits)
        live = self._shape(rows, logits)
        if len(live) < len(rows):
            rows, logits = [rows[index] for index in live], logits[live]
            own = {place: own[index] for place, index in enumerate(live) if index in own}
        if not rows:
            return
        uniforms = np.array([row.uniforms[len(row.decisions)] for row in rows])
        tokens, log_probs = choose(logits, [row.request.settings for row in rows], torch.from_numpy(uniforms))
        self.tokens += len(rows)
        for place, (row, token, log_prob) in enumerate(zip(rows, tokens.tolist(), log_probs.tolist(), strict=True)):
            if row.request.told is not None:
                row.thoughts.append(_thought(own[place], token, row.request.told, len(self.renderer.tokenizer)))
            row.decisions.append(token)
            row.log_probs.append(log_prob)
            settings = row.request.settings
            stopped = token in self.renderer.stop_ids
            if row.follower is not None and not stopped:
                row.follower.take(token)
            if not stopped and settings.stop:
                text = self.renderer.text(row.decisions)
                stopped = any(stop in text for stop in settings.stop)
            if stopped:
                row.finish = "stop"
            elif len(row.decisions) >= settings.max_tokens:
                row.finish = "stop" if row.follower is not None and row.follower.ended else "length"

    def _own(self, rows: Sequence[_Row], logits: Tensor) -> dict[int, Tensor]:  # [R, V] -> number of a row → [V]
        """The policy's own log-probs, for rows whose request asks what it thought."""
        asking = [index for index, row in enumerate(rows) if row.request.told is not None]
        own = torch.log_softmax(logits[asking], -1) if asking else ()
        return dict(zip(asking, own, strict=True))

    def _shape(self, rows: Sequence[_Row], logits: Tensor) -> list[int]:  # [R, V]
        """Writes biases, penalties and constraints into the logits; rows that can go on are returned."""
        live = list(range(len(rows)))
        for index, row in enumerate(rows):
            settings = row.request.settings
            if row.follower is None and not settings.biased:
                continue  # rows that ask for nothing of it pay nothing for it
            allowed = None if row.follower is None else row.follower.allowed()
            if allowed is not None and not bool(allowed.any()):
                log.warning("an output is given up: its constraint became too complex to follow")
                row.finish = "cancelled"
                live.remove(index)
            else:
                logits[index] = shaped(logits[index], settings, row.decisions, allowed)
        return live

    def _release(self) -> None:
        """Hands finished rows over and frees their places."""
        staying = [index for index, row in enumerate(self.rows) if row.finish is None]
        if len(staying) == len(self.rows):
            return
        for row in self.rows:
            if row.finish is not None:
                self._hand_over(row, row.finish)
        self.rows = [self.rows[index] for index in staying]
        self.decoder.keep(staying)

    def _hand_over(self, row: _Row, finish: Finish) -> None:
        self.done.append(self._sample(row, finish))
        self.on_finish(self.done[-1])

    def _sample(self, row: _Row, finish: Finish) -> Sample:
        text = self.renderer.text(row.decisions)
        cuts = [text.index(stop) for stop in row.request.settings.stop if stop in text]
        greedy = row.request.settings.temperature == 0
        return Sample(
            request=row.request.id,
            number=row.number,
            decisions=tuple(row.decisions),
            log_probs=None if greedy else tuple(row.log_probs),
            text=text[: min(cuts)] if cuts else text,
            finish=finish,
            thoughts=tuple(row.thoughts),
        )


def _thought(own: Tensor, token: int, likeliest: int, known: int) -> Thought:  # [V]
    best = own[:known].topk(min(likeliest, known))  # most models have more rows than tokens
    return Thought(token, float(own[token]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


def _row(request: Request, number: int) -> _Row:
    digest = hashlib.sha256(np.array(request.context, dtype=np.int64).tobytes()).digest()
    prompt = int.from_bytes(digest[:8], "big")
    seeds = np.random.SeedSequence([request.settings.seed, request.step, prompt, request.first_sample + number])
    uniforms = np.random.Generator(np.random.Philox(seeds)).random(request.settings.max_tokens)
    return _Row(request=request, number=number, uniforms=uniforms)


def choose(
    logits: Tensor,  # [R, V]
    settings: Sequence[Sampling],  # one per row
    uniforms: Tensor,  # [R] in [0, 1)
) -> tuple[Tensor, Tensor]:  # [R] tokens, [R] nats
    """Tokens drawn by inverting each row's distribution function at its uniform number, and their log-probs.

    Greedy rows get the most probable token and its log-prob at temperature 1.
    """
    scaled = temper(logits, settings)
    peak = scaled.amax(-1, keepdim=True)
    tokens, totals = invert((scaled - peak).exp_(), uniforms.to(logits.device))
    greedy = torch.tensor([s.temperature == 0 for s in settings], device=logits.device)
    if bool(greedy.any()):
        tokens = torch.where(greedy, scaled.argmax(-1), tokens)
    return tokens, (scaled.gather(-1, tokens[:, None]) - peak)[:, 0] - totals.log()


def temper(
    logits: Tensor,  # [R, V]
    settings: Sequence[Sampling],  # one per row
) -> Tensor:  # [R, V]
    """Logits of the distribution sampled from: divided by the temperature, -inf where truncation cuts."""
    temperatures = [s.temperature if s.temperature > 0 else 1.0 for s in settings]
    # Every pass over [R, V] costs as much as a layer, so what changes nothing is left out.
    scaled = logits if set(temperatures) == {1.0} else logits / logits.new_tensor(temperatures)[:, None]
    if any(s.temperature > 0 and (s.top_k > 0 or s.top_p < 1) for s in settings):
        scaled = truncate(scaled - torch.logsumexp(scaled, dim=-1, keepdim=True), settings)
    return scaled


def truncate(
    log_probs: Tensor,  # [R, V] normalised
    settings: Sequence[Sampling],  # one per row
) -> Tensor:  # [R, V]
    """-inf outside each row's top-k, and outside the smallest set of tokens whose probability reaches top-p.

    Source: Holtzman et al. 2019, arXiv:1904.09751, §3.1.
    """
    size = log_probs.shape[-1]
    sampled = [s if s.temperature > 0 else Sampling() for s in settings]
    counts = torch.tensor([s.top_k or size for s in sampled], device=log_probs.device).clamp(max=size)
    shares = torch.tensor([s.top_p for s in sampled], dtype=torch.float64, device=log_probs.device)
    ordered, order = torch.sort(log_probs, dim=-1, descending=True, stable=True)
    ranks = torch.arange(size, device=log_probs.device)[None]
    kept = ranks < counts[:, None]
    within = torch.where(kept, ordered.double().exp(), 0.0)
    before = within.cumsum(-1) - within  # probability of the tokens ahead; top-p acts on what top-k left
    kept &= (before < shares[:, None] * within.sum(-1, keepdim=True)) | (shares[:, None] >= 1)
    return log_probs.masked_fill(~torch.zeros_like(kept).scatter(-1, order, kept), -torch.inf)


def invert(
    weights: Tensor,  # [R, V] probabilities, but for a factor per row
    uniforms: Tensor,  # [R] in [0, 1)
) -> tuple[Tensor, Tensor]:  # [R], [R] fp64
    """The first token at which the cumulative probability exceeds the uniform number, and the sum of the weights.

    Never a token of weight 0. Sums of 256 tokens are accumulated first and the token is then sought in one of them:
    one cheap pass over [R, V].
    """
    width = 256
    rows, size = weights.shape
    padded = weights if size % width == 0 else torch.nn.functional.pad(weights, (0, -size % width))
    padded = padded.view(rows, -1, width)
    totals = padded.sum(-1, dtype=torch.float64).cumsum(-1)  # [R, V / width]
    # In float64 the product can round up to the total itself; staying below it keeps the search inside.
    goal = torch.minimum(uniforms.double() * totals[:, -1], torch.nextafter(totals[:, -1], totals.new_zeros(())))
    bucket = torch.searchsorted(totals, goal[:, None], right=True)  # [R, 1]
    ahead = torch.where(bucket > 0, totals.gather(-1, (bucket - 1).clamp(min=0)), 0.0)
    inside = padded.gather(1, bucket[:, :, None].expand(-1, -1, width))[:, 0].double()  # [R, width]
    steps = ahead + inside.cumsum(-1)
    place = torch.searchsorted(steps, goal[:, None], right=True)
    last = torch.where(inside > 0, torch.arange(width, device=inside.device), 0).amax(-1, keepdim=True)
    return (bucket * width + torch.minimum(place, last))[:, 0], totals[:, -1]
