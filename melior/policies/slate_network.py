"""the network of a slate policy: items and requests as vectors, a first stage over all candidates, a second over few

    first stage     s(i)    = q · v(i) + a(i)                     the same at every position
    second stage    s(i, t) = s(i) + u(placed before t, q) · w(i) / c     at position t, for the shortlist

`q` reads the context, the item viewed and the history; `u` reads what was placed, in order. Without combinations there
is no second stage, and slates are Plackett and Luce's.

Source: Plackett 1975, doi:10.2307/2346567; the history's sum without normalisation: Zhou et al. 2018,
arXiv:1706.06978, §4.3; sums over what was placed: Zaheer et al. 2017, arXiv:1703.06114.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from melior.policies.slate_rows import NOTHING, Known, Sheet, Shelf
from melior.policies.tables import Table, TableFeatures

CELL_SPREAD = 0.2  # of first embeddings of cells: with a tenth of it requests are told apart much later
ID_SPREAD = 0.1  # deviation of first id embeddings: ids differ from the start, and first slates are nearly uniform
LOW = -1e30  # the score of what is not free, where -inf alone in a sum would have no gradient
EQUAL = 2.0**-10  # nats between first-stage scores that rank alike: a thousand times what rounding makes of equal ones
SHARED = 8  # products with all items are cheaper than gathering vectors up to this many items per candidate


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Slate:
    """How a slate is decided: how many positions, what its scores may depend on, and how large the network is."""

    positions: int = Field(default=5, ge=1)
    combinations: bool = True  # False: the score of a free item does not depend on what was placed (Plackett–Luce)
    width: int = Field(default=64, ge=1)  # of the vectors of requests and items
    blocks: int = Field(default=1, ge=0)  # residual layers over the features of a context, and of an item
    history: int = Field(default=50, ge=0)  # entries that are read, the latest
    shortlist: int = Field(default=256, ge=1)  # candidates that the second stage compares; the first picks them
    exploration: float = Field(default=0.02, gt=0, lt=1)  # of each position, chosen by the first stage among all
    hidden: float = Field(default=0.05, ge=0, lt=1)  # share of ids and cells plain SFT hides, for unseen ones
    precision: str = Field(default="float32", pattern="^float(32|64)$")


@dataclass(frozen=True)
class Vectors:
    """What is said of items."""

    items: Tensor  # [M, D]
    offers: Tensor  # [M, D] what requests are compared with
    appeal: Tensor  # [M]
    fits: Tensor  # [M, D] what baskets are compared with


@dataclass(frozen=True)
class Staged:
    """What the first stage found. S is one set of candidates for all rows, or one per asking."""

    requests: Tensor  # [A, D]
    scores: Tensor  # [A, N], -inf where there is no candidate
    vectors: Vectors
    candidates: Tensor  # [S, N] rows of the items
    shortlist: Tensor | None  # [A, K] places among the candidates; None: all of them
    share: Tensor  # [A], of the first stage in each choice; 0 where the shortlist is everything


class SlateNetwork(nn.Module):
    """Log-probs of slates; reads sheets."""

    def __init__(self, config: Slate, known: Known) -> None:
        super().__init__()
        self.config, width = config, config.width
        table = Table(width=width, blocks=config.blocks, hidden=0.0, dropout=0.0)
        with warnings.catch_warnings():  # of layers without inputs, where there are no features
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.item = TableFeatures(known.item, table)
            self.context = TableFeatures(known.context, table)
            for features in (self.item, self.context):
                for cells in (features.numeric, features.missing, features.categories):
                    nn.init.normal_(cells, std=CELL_SPREAD)
        self.ids = nn.Parameter(ID_SPREAD * torch.randn(len(known.ids), width))
        self.viewed = nn.Linear(width, width)
        self.nothing = nn.Parameter(torch.zeros(width))  # beside an item viewed: none was
        self.history = _History(width, len(known.types))
        self.request = _Residual(width)
        self.offer = nn.Linear(width, width, bias=False)
        self.appeal = nn.Linear(width, 1)
        self.basket = _Basket(width, config.positions) if config.combinations else None
        self.fits = nn.Linear(width, width, bias=False) if config.combinations else None
        self.kept: tuple[Shelf, list[Tensor], Vectors] | None = None
        for parameter in self.parameters():  # buffers stay as they are: edges of bins need their digits
            parameter.data = parameter.data.to(getattr(torch, config.precision))

    # ------------------------------------------------------------------ stages

    def first(self, sheet: Sheet) -> Staged:
        """The first stage: requests against candidates, before anything is placed."""
        vectors = self._vectors(sheet.items)
        requests = self._requests(sheet, vectors.items)
        one = len(sheet.candidates) == 1
        candidates = sheet.candidates if one else sheet.candidates[sheet.set_of]
        valid = (sheet.valid if one else sheet.valid[sheet.set_of]).expand(len(requests), -1)
        scores = _products(requests[:, None], vectors.offers, candidates)[:, 0]
        scores = scores / math.sqrt(self.config.width) + vectors.appeal[candidates]
        scores = torch.where(valid, scores, -torch.inf)
        shortlist, share = None, torch.zeros_like(scores[:, 0])
        if self.basket is not None and scores.shape[1] > self.config.shortlist:
            shortlist = best_places(scores.detach(), self.config.shortlist)
            share = torch.where(valid.sum(1) > self.config.shortlist, self.config.exploration, share)
        return Staged(requests, scores, vectors, candidates, shortlist, share)

    def states(self, staged: Staged, asked: Tensor, placed: Tensor) -> Tensor | None:  # [B], [B, P] -> [B, P + 1, D]
        """What the second stage compares items with, before anything is placed, and after each of P items."""
        if self.basket is None:
            return None
        rows = staged.candidates.expand(len(staged.requests), -1)[asked]
        return self.basket(staged.requests[asked], staged.vectors.items[rows.gather(1, placed)])

    def seen(self, staged: Staged, asked: Tensor, placed: Tensor) -> Tensor:  # [B], [B, P] -> [B, P + 1, 1 or 2 D]
        """The request, and what stands in the slate, before anything is placed and after each of P items."""
        requests = staged.requests[asked][:, None].expand(-1, placed.shape[1] + 1, -1)
        basket = self.states(staged, asked, placed)
        return requests if basket is None else torch.cat([requests, basket], dim=2)

    def log_probs(self, staged: Staged, sheet: Sheet, mask: Tensor) -> Tensor:  # [B, T]
        """Log-probs of the decisions, all positions at once."""
        asked, heat = sheet.asked, sheet.temperatures.to(staged.scores)[:, None]
        decisions = sheet.decisions[:, : mask.shape[1]]
        plain = torch.zeros_like(staged.scores[:0])
        if staged.shortlist is not None or self.basket is None:
            plain = plackett_luce(staged.scores[asked] / heat, decisions, mask)
        states = self.states(staged, asked, decisions[:, :-1]) if self.basket is not None else None
        if states is None:
            return plain
        scores, slots = self._second(staged, asked, states, decisions)
        taken = taken_before(slots, mask, scores.shape[2])
        scores = torch.where(taken, -torch.inf, scores / heat[:, :, None])
        chosen = scores.gather(2, slots.clamp(min=0)[:, :, None])[:, :, 0] - scores.logsumexp(2)
        chosen = torch.where(mask & (slots >= 0), chosen, torch.where(mask, -torch.inf, 0.0).to(chosen))
        if staged.shortlist is None:
            return chosen
        return torch.where(mask, _mixture(chosen, plain, staged.share[asked][:, None]), 0)

    def all_log_probs(
        self,
        staged: Staged,
        asked: Tensor,  # [B]
        states: Tensor | None,  # [B, T, D]
        taken: Tensor,  # [B, T, N] bool
        temperatures: Tensor,  # [B]
    ) -> Tensor:  # [B, T, N]
        """Log-probs of every candidate at some positions, -inf where it is not free."""
        heat = temperatures.to(staged.scores)[:, None, None]
        scores = staged.scores[asked][:, None].expand(taken.shape)
        plain = torch.where(taken, -torch.inf, scores / heat)
        if states is None:
            return plain.log_softmax(2)
        second, _ = self._second(staged, asked, states, torch.zeros_like(taken[:, :, 0], dtype=torch.long))
        if staged.shortlist is None:
            return torch.where(taken, -torch.inf, second / heat).log_softmax(2)
        places = staged.shortlist[asked][:, None].expand(second.shape)
        second = torch.where(taken.gather(2, places), -torch.inf, second / heat).log_softmax(2)
        spread = torch.full_like(plain, -torch.inf).scatter(2, places, second)
        return _mixture(spread, plain.log_softmax(2), staged.share[asked][:, None, None])

    def _second(
        self, staged: Staged, asked: Tensor, states: Tensor, decisions: Tensor
    ) -> tuple[Tensor, Tensor]:  # [B, T, K], [B, T]
        """Scores of the shortlist at each position, and the decisions' places in it, -1 outside."""
        first = staged.scores
        candidates, slots = staged.candidates, decisions
        if staged.shortlist is not None:
            chosen = staged.shortlist
            slot_of = torch.full(first.shape, -1, device=first.device)
            slot_of = slot_of.scatter(1, chosen, torch.arange(chosen.shape[1], device=first.device).expand_as(chosen))
            slots = slot_of[asked].gather(1, decisions)
            first = first.gather(1, chosen)
            candidates = candidates.expand(len(first), -1).gather(1, chosen)
        candidates = candidates if len(candidates) == 1 else candidates[asked]
        bonus = _products(states, staged.vectors.fits, candidates) / math.sqrt(self.config.width)
        return first[asked][:, None] + bonus, slots

    # ------------------------------------------------------------------ vectors

    def _vectors(self, shelf: Shelf) -> Vectors:
        """The items' vectors, kept from the last call where neither the weights nor the shelf have changed since."""
        if torch.is_grad_enabled():
            return self._computed(shelf)
        parts = (self.item, self.offer, self.appeal, *([] if self.fits is None else [self.fits]))
        weights = [self.ids, *(parameter for part in parts for parameter in part.parameters())]
        if self.kept is None or self.kept[0] is not shelf or not all(map(torch.equal, weights, self.kept[1])):
            self.kept = (shelf, [weight.clone() for weight in weights], self._computed(shelf))
        return self.kept[2]

    def _computed(self, shelf: Shelf) -> Vectors:
        """An item is what its features say, and what is known of its id alone."""
        device = self.ids.device
        own = torch.cat([torch.zeros_like(self.ids[:1]), self.ids])
        items = self.item(shelf.numbers.to(device), shelf.codes.to(device)) + own[shelf.ids.to(device)]
        fits = items if self.fits is None else self.fits(items)
        return Vectors(items, self.offer(items), self.appeal(items)[:, 0], fits)

    def _requests(self, sheet: Sheet, items: Tensor) -> Tensor:  # [A, D]
        seen = torch.where((sheet.viewed == NOTHING)[:, None], self.nothing, self.viewed(items)[sheet.viewed])
        found = self.context(sheet.numbers, sheet.codes) + seen
        return self.request(found + self.history(found, items[sheet.history], sheet.held, sheet.types, sheet.ages))


class _Residual(nn.Module):
    """One hidden layer, added; nothing at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, 2 * width), _silent(2 * width, width)

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors + self.outer(torch.relu(self.inner(self.norm(vectors))))


class _History(nn.Module):
    """The sum of what each interaction says, weighted by how much it matters for this request."""

    def __init__(self, width: int, types: int) -> None:
        super().__init__()
        self.types = nn.Parameter(ID_SPREAD * torch.randn(types + 1, width))
        self.item, self.times = nn.Linear(width, width, bias=False), nn.Linear(3, width)
        self.asked, self.gate = nn.Linear(width, width, bias=False), nn.Linear(width, 1)
        self.told, self.together = nn.Linear(width, width), _silent(width, width, bias=False)

    def forward(
        self,
        requests: Tensor,  # [A, D]
        items: Tensor,  # [A, H, D]
        held: Tensor,  # [A, H] bool
        types: Tensor,  # [A, H]
        ages: Tensor,  # [A, H], NaN where unknown
    ) -> Tensor:  # [A, D]
        unknown = torch.isnan(ages)
        after = held.flip(1).cumsum(1).flip(1).clamp(min=1)  # 1 for the latest
        times = torch.stack([ages.nan_to_num(0.0), unknown.to(ages), 1.0 / after], dim=2).to(requests)
        entries = self.item(items) + self.times(times) + self.types[types]
        hidden = torch.relu(entries + self.asked(requests)[:, None])
        told = torch.sigmoid(self.gate(hidden)) * (self.told(entries) + self.together(hidden))
        return torch.where(held[:, :, None], told, 0).sum(1)


class _Basket(nn.Module):
    """What the items placed so far ask for next: a term per pair, and a hidden layer over all of them in order."""

    def __init__(self, width: int, positions: int) -> None:
        super().__init__()
        self.pairs = _silent(width, width, bias=False)
        self.item = nn.Linear(width, width, bias=False)
        self.place = nn.Parameter(ID_SPREAD * torch.randn(positions, width))
        self.norm = nn.LayerNorm(width)
        self.asked, self.placed = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width, bias=False)
        self.outer = _silent(2 * width, width, bias=False)

    def forward(self, requests: Tensor, placed: Tensor) -> Tensor:  # [B, D], [B, P, D] -> [B, P + 1, D]
        count = placed.shape[1]
        tokens = torch.relu(self.item(placed) + self.place[:count])
        start = torch.zeros_like(requests[:, None])
        pairs = torch.cat([start, self.pairs(placed).cumsum(1)], dim=1)
        before = torch.cat([start, tokens.cumsum(1)], dim=1)
        places = nn.functional.pad(self.place, (0, 0, 0, 1))[: count + 1]  # no place comes behind the last
        inner = self.placed(before + places) + self.asked(self.norm(requests))[:, None]
        return pairs + self.outer(torch.relu(inner))


def best_places(scores: Tensor, count: int) -> Tensor:  # [A, N] -> [A, count]
    """Places of the highest scores, in no order; of equal ones, as items that nobody knows are, the first.

    `topk` alone takes any of equal ones, others in a wider batch, and a slate's chance would depend on its batch mates;
    so would it on the last digits of scores, which a wider batch changes too, and which are left out here.
    """
    scores = (scores / EQUAL).round()
    last = scores.topk(count, dim=1).values[:, -1:]
    above, level = scores > last, scores == last
    room = count - above.sum(1, keepdim=True)
    return (above | (level & (level.cumsum(1) <= room))).to(torch.uint8).topk(count, dim=1).indices


def plackett_luce(
    scores: Tensor,  # [B, N], -inf where there is no candidate
    decisions: Tensor,  # [B, T] places among the candidates
    mask: Tensor,  # [B, T] bool, True where a place was filled, from the left
) -> Tensor:  # [B, T]
    """Log-probs of slates drawn without repetition from fixed scores: s(t) minus the log-sum over what is still free.

    The free ones are those never placed, and those placed from t on, so all positions cost one sum over the candidates.

    Source: Plackett 1975, doi:10.2307/2346567; Luce 1959, "Individual choice behavior".
    """
    width, count = scores.shape[1], decisions.shape[1]
    spare = torch.full_like(scores[:, :1], LOW)  # where padding writes
    rest = torch.cat([scores, spare], dim=1).scatter(1, torch.where(mask, decisions, width), LOW)
    chosen = scores.gather(1, decisions)
    later = torch.ones(count, count, dtype=torch.bool, device=scores.device).triu()
    free = torch.where(later & mask[:, None], chosen[:, None], LOW)  # [B, T, T]
    total = torch.cat([free, rest.logsumexp(1)[:, None, None].expand(-1, count, 1)], dim=2).logsumexp(2)
    return torch.where(mask, chosen - total, 0)


def taken_before(slots: Tensor, mask: Tensor, width: int) -> Tensor:  # [B, T], [B, T] -> [B, T, width] bool
    """Which places are no longer free at each position that is decided; a negative slot takes none."""
    count = slots.shape[1]
    earlier = torch.ones(count, count, dtype=torch.bool, device=slots.device).tril(-1)
    used = torch.where(earlier & mask[:, :, None] & (slots >= 0)[:, None], slots[:, None], width)
    blank = torch.zeros(*slots.shape, width + 1, dtype=torch.bool, device=slots.device)
    return blank.scatter(2, used, True)[:, :, :width]


def _products(states: Tensor, vectors: Tensor, candidates: Tensor) -> Tensor:  # [B, T, D], [M, D], [S, N] -> [B, T, N]
    """Each state with the vectors of its row's candidates; one set of candidates may serve all rows."""
    if len(candidates) == 1:
        return states @ vectors[candidates[0]].T
    if len(vectors) <= SHARED * candidates.shape[1]:
        every = states @ vectors.T
        return every.gather(2, candidates[:, None].expand(-1, states.shape[1], -1))
    return states @ vectors[candidates].transpose(1, 2)


def _mixture(second: Tensor, first: Tensor, share: Tensor) -> Tensor:
    """log((1 - share) · e^second + share · e^first), where either chance may be 0, or both."""
    second, first = second + torch.log1p(-share), first + torch.log(share)
    nothing = torch.isneginf(second) & torch.isneginf(first)
    found = torch.logaddexp(second.masked_fill(nothing, 0.0), first.masked_fill(nothing, 0.0))
    return found.masked_fill(nothing, -torch.inf)


def _silent(inner: int, outer: int, bias: bool = True) -> nn.Linear:
    """A layer that says nothing until it has learnt to."""
    layer = nn.Linear(inner, outer, bias=bias)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
