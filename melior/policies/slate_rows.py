"""slate requests as tensors: each item once, each request once, whatever varies in length laid flat"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from melior.data.formats import canonical
from melior.errors import DataError
from melior.policies.columns import Columns
from melior.types import Demonstration, Item, Rated, Record, SlateRequest

NOBODY = 0  # row of the item that nobody described, and code of an id or a type that training never saw
NOTHING = -1  # row of the item viewed where none is
LONG = math.log1p(365 * 24 * 3600)  # an age of one year is 1, so that ages stay within what embeddings like


@dataclass(frozen=True)
class Ragged:
    """Lists of different lengths, one behind the other."""

    values: Tensor  # [V]
    starts: Tensor  # [R + 1]

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Ragged:
        lengths = torch.tensor([0, *map(len, lists)], dtype=torch.long)
        return cls(torch.tensor([value for each in lists for value in each], dtype=torch.long), lengths.cumsum(0))

    def lengths(self, rows: Tensor) -> Tensor:  # [B]
        return self.starts[rows + 1] - self.starts[rows]

    def places(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # [B, W] where in `values`, [B, W] bool
        """Where the lists of some rows stand, padded to the longest of them with place 0."""
        lengths = self.lengths(rows)
        steps = torch.arange(int(lengths.max()) if len(rows) else 0)
        held = steps < lengths[:, None]
        return torch.where(held, self.starts[rows][:, None] + steps, 0), held


@dataclass(frozen=True)
class Shelf:
    """Items as they are read, one per row; row 0 is the item that nobody described."""

    numbers: Tensor  # [I, N]
    codes: Tensor  # [I, C]
    ids: Tensor  # [I], 0 where training never saw the id


@dataclass(frozen=True)
class Known:
    """What the training rows held: how contexts and items are read, which ids and types of interaction there were."""

    context: Columns
    item: Columns
    ids: tuple[str, ...]
    types: tuple[str, ...]

    @classmethod
    def of(cls, catalogue: Sequence[Item], requests: Sequence[SlateRequest]) -> Known:
        return cls(
            context=_columns([request.context for request in requests]),
            item=_columns([item.features for item in catalogue]),
            ids=tuple(item.id for item in catalogue),
            types=tuple(sorted({entry.type for request in requests for entry in request.history})),
        )

    def to_json(self) -> dict[str, Any]:
        columns = {"context": self.context.to_json(), "item": self.item.to_json()}
        return {**columns, "ids": list(self.ids), "types": list(self.types)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Known:
        columns = {name: Columns.from_json(fields[name]) for name in ("context", "item")}
        return cls(**columns, ids=tuple(fields["ids"]), types=tuple(fields["types"]))


@dataclass(frozen=True)
class SlateRows:
    """The rows of one `encode`. A row answers an asking, an asking shows a request; both are rows of tensors."""

    shelf: Shelf
    viewed: Tensor  # [R] row of the shelf, NOTHING where no item was looked at
    history: Ragged  # per request, rows of the shelf
    types: Tensor  # [V], beside the history's values
    ages: Tensor  # [V] between 0 and about 1, NaN where unknown
    set_of: Tensor  # [R], which set of candidates
    sets: Ragged  # per set, rows of the shelf
    request: Tensor  # [A], which request an asking shows
    numbers: Tensor  # [A, N] of its context
    codes: Tensor  # [A, C]
    asked: Tensor  # [B], which asking a row answers
    decisions: Tensor  # [B, T] places among the candidates, 0 behind the end
    temperatures: Tensor  # [B]

    def sizes(self, rows: Tensor) -> Tensor:  # [B]
        """How many candidates each row's request has."""
        return self.sets.lengths(self.set_of[self.request[self.asked[rows]]])


@dataclass(frozen=True)
class Sheet:
    """What one forward pass reads: only the items, askings and sets of candidates that its rows need."""

    items: Shelf  # [M]
    numbers: Tensor  # [A, N] of the contexts
    codes: Tensor  # [A, C]
    viewed: Tensor  # [A] row of the items, NOTHING where no item was looked at
    history: Tensor  # [A, H] rows of the items
    held: Tensor  # [A, H] bool, where there is an entry
    types: Tensor  # [A, H]
    ages: Tensor  # [A, H]
    candidates: Tensor  # [S, N] rows of the items
    valid: Tensor  # [S, N] bool, where there is a candidate
    set_of: Tensor  # [A]
    asked: Tensor  # [B]
    decisions: Tensor  # [B, T]
    temperatures: Tensor  # [B]

    def to(self, device: torch.device) -> Sheet:
        """The same sheet on another device; the items follow when their vectors are computed."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Sheet(items=self.items, **moved)


def sheet(rows: SlateRows, wanted: Tensor) -> Sheet:
    """What a forward pass over the wanted rows reads."""
    askings, asked = torch.unique(rows.asked[wanted], return_inverse=True)
    requests = rows.request[askings]
    sets, set_of = torch.unique(rows.set_of[requests], return_inverse=True)
    places, valid = rows.sets.places(sets)
    candidates = rows.sets.values[places]
    entries, held = rows.history.places(requests)
    history = rows.history.values[entries] if entries.numel() else entries
    viewed = rows.viewed[requests]
    needed = torch.zeros(len(rows.shelf.ids), dtype=torch.bool)
    needed[NOBODY] = True  # where padding points to
    for used in (candidates[valid], history[held], viewed[viewed != NOTHING]):
        needed[used] = True
    if 2 * int(needed.sum()) > len(needed):  # then all of them, whose vectors may still be known
        needed[:] = True
    row_of = needed.long().cumsum(0) - 1
    items = needed.nonzero()[:, 0]
    few = Shelf(rows.shelf.numbers[items], rows.shelf.codes[items], rows.shelf.ids[items])
    return Sheet(
        items=rows.shelf if needed.all() else few,
        numbers=rows.numbers[askings],
        codes=rows.codes[askings],
        viewed=torch.where(viewed == NOTHING, NOTHING, row_of[viewed.clamp(min=0)]),
        history=row_of[history.masked_fill(~held, NOBODY)],
        held=held,
        types=rows.types[entries] if entries.numel() else entries,
        ages=rows.ages[entries] if entries.numel() else entries.double(),
        candidates=row_of[candidates.masked_fill(~valid, NOBODY)],
        valid=valid,
        set_of=set_of,
        asked=asked,
        decisions=rows.decisions[wanted],
        temperatures=rows.temperatures[wanted],
    )


class Reader:
    """Examples and requests become rows of tensors. `noticed` counts what was unknown, and missing."""

    def __init__(self, known: Known, catalogue: Sequence[Item], *, positions: int, history: int) -> None:
        """Raises DataError for a catalogue without items, or with one id twice."""
        twice = [id for id, count in Counter(item.id for item in catalogue).items() if count > 1]
        if not catalogue or twice:
            told = f"item {twice[0]!r} {len(twice) and 'twice'}" if twice else "0 items"
            raise DataError(f"The catalogue has {told}; give every item once, under an id of its own")
        self.known, self.catalogue = known, tuple(catalogue)
        self.positions, self.history = positions, history
        self.noticed: Counter[str] = Counter()
        self.code_of = {id: code for code, id in enumerate(known.ids, start=1)}
        self.type_of = {type: code for code, type in enumerate(known.types, start=1)}
        self.row_of = {item.id: row for row, item in enumerate(self.catalogue, start=1)}
        nobody = known.item.encode([{}], Counter())
        listed = self._shelf(self.catalogue)
        self.shelf = _joined(Shelf(*nobody, torch.tensor([NOBODY])), listed)
        self.whole = range(1, len(self.catalogue) + 1)
        self.places = {item.id: place for place, item in enumerate(self.catalogue)}

    def _shelf(self, items: Sequence[Item]) -> Shelf:
        seen: Counter[str] = Counter()
        numbers, codes = self.known.item.encode([item.features for item in items], seen)
        self.noticed.update({f"items: {what}": count for what, count in seen.items()})
        return Shelf(numbers, codes, torch.tensor([self.code_of.get(item.id, NOBODY) for item in items]))

    def read(self, examples: Sequence[Demonstration | Record | Rated]) -> tuple[SlateRows, Tensor]:
        """Rows, and how many decisions each one holds [B].

        Raises:
            DataError: naming the first example whose slate is empty, too long, repeats an item or shows one that was
                no candidate, or whose request cannot be read.
        """
        asked, rows, places = self._requests([example.inputs for example in examples])
        decided = [
            self._decided(index, example, places[asked[index]]) for index, example in enumerate(examples)
        ]  # per example, places among its candidates
        lengths = torch.tensor([len(each) for each in decided], dtype=torch.long)
        width = int(lengths.max()) if decided else 0
        padded = torch.tensor([[*each, *[0] * (width - len(each))] for each in decided], dtype=torch.long)
        temperatures = torch.tensor([_temperature(example) for example in examples], dtype=torch.float64)
        found = replace(rows, decisions=padded.reshape(len(examples), width), temperatures=temperatures)
        return found, lengths

    def ask(self, requests: Sequence[SlateRequest]) -> tuple[SlateRows, list[Mapping[str, int]]]:
        """Rows without decisions, one per request, and the place of each id among its candidates."""
        asked, rows, places = self._requests(requests)
        return rows, [places[index] for index in asked]

    def _requests(self, requests: Sequence[Any]) -> tuple[list[int], SlateRows, list[Mapping[str, int]]]:
        """Equal objects are read once: outputs of one request share it."""
        number: dict[int, int] = {}
        distinct: list[SlateRequest] = []
        for index, request in enumerate(requests):
            if id(request) not in number:
                if not isinstance(request, SlateRequest):
                    raise DataError(f"Row {index} asks with a {type(request).__name__}; slates need a SlateRequest")
                number[id(request)] = len(distinct)
                distinct.append(request)
        asked = [number[id(request)] for request in requests]
        sets = _Sets(self)
        set_of = [sets.number(index, request) for index, request in enumerate(distinct)]
        few = sum(len(sets.rows[number]) < self.positions for number in set_of)
        self._notice(f"request with fewer than {self.positions} candidates", few)
        shelf = self._with(sets.extra)
        history, types, ages = self._histories(distinct)
        numbers, codes = self._contexts(distinct)
        rows = SlateRows(
            shelf=shelf,
            viewed=torch.tensor([self._row(r.viewed, "viewed") if r.viewed else NOTHING for r in distinct]),
            history=history,
            types=types,
            ages=ages,
            set_of=torch.tensor(set_of, dtype=torch.long),
            sets=Ragged.of(sets.rows),
            request=torch.arange(len(distinct)),
            numbers=numbers,
            codes=codes,
            asked=torch.tensor(asked, dtype=torch.long),
            decisions=torch.zeros(len(asked), 0, dtype=torch.long),
            temperatures=torch.ones(len(asked), dtype=torch.float64),
        )
        return asked, rows, [sets.places[number] for number in set_of]

    def _with(self, items: Sequence[Item]) -> Shelf:
        """The shelf with items behind it that requests brought along."""
        return _joined(self.shelf, self._shelf(items)) if items else self.shelf

    def _contexts(self, requests: Sequence[SlateRequest]) -> tuple[Tensor, Tensor]:
        seen: Counter[str] = Counter()
        found = self.known.context.encode([request.context for request in requests], seen)
        self.noticed.update({f"contexts: {what}": count for what, count in seen.items()})
        return found

    def _histories(self, requests: Sequence[SlateRequest]) -> tuple[Ragged, Tensor, Tensor]:
        """The latest entries of each history: their items, types and ages."""
        latest = [request.history[-self.history :] for request in requests]
        entries = [entry for each in latest for entry in each]
        ages = torch.tensor([math.nan if e.age_s is None else e.age_s for e in entries], dtype=torch.float64)
        if wrong := int((torch.isinf(ages) | (ages < 0)).sum()):
            raise DataError(f"{wrong} of {len(entries)} interactions have a negative or infinite age_s; give seconds")
        types = [self.type_of.get(entry.type, NOBODY) for entry in entries]
        self._notice("interaction of an unknown type", sum(type == NOBODY for type in types))
        if self.known.types:  # otherwise nobody has one
            self._notice("request without a history", sum(not each for each in latest))
        long = sum(len(request.history) > self.history for request in requests)
        self._notice(f"history cut to its latest {self.history} entries", long)
        rows = [[self._row(entry.item, "history") for entry in each] for each in latest]
        return Ragged.of(rows), torch.tensor(types, dtype=torch.long), torch.log1p(ages) / LONG

    def _row(self, id: str, where: str) -> int:
        row = self.row_of.get(id, NOBODY)
        if row == NOBODY:
            self.noticed[f"{where}: item not in the catalogue"] += 1
        return row

    def _notice(self, what: str, count: int) -> None:
        if count:
            self.noticed[what] += count

    def _decided(self, index: int, example: Any, places: Mapping[str, int]) -> list[int]:
        """The places of a slate's items among the candidates; ids count, since a catalogue may have changed."""
        output = example.output
        if isinstance(output, str) or not isinstance(output, Iterable):
            raise DataError(f"Row {index} has {output!r} as its slate; give a list of item ids, first position first")
        ids = list(output)
        if not ids or len(ids) > self.positions:
            raise DataError(
                f"Row {index} has {len(ids)} items in its slate; this policy decides 1 to {self.positions} positions"
            )
        if len(set(ids)) < len(ids):
            raise DataError(f"Row {index} shows an item twice in its slate {ids}; an item is placed once")
        if strange := [id for id in ids if id not in places]:
            raise DataError(
                f"Row {index} shows {strange[0]!r}, which is none of its {len(places)} candidates; add it to the "
                "request's candidates, or leave the row out"
            )
        return [places[id] for id in ids]


class _Sets:
    """Sets of candidates, each one read once."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.rows: list[Sequence[int]] = []
        self.places: list[Mapping[str, int]] = []
        self.extra: list[Item] = []  # that requests brought along
        self.extra_row: dict[str, int] = {}  # by content
        self.known: dict[Any, int] = {}

    def number(self, index: int, request: SlateRequest) -> int:
        """Which set a request's candidates are."""
        if request.candidates is None:
            return self._numbered(None, lambda: (self.reader.whole, self.reader.places))
        candidates = request.candidates
        brought = tuple(canonical(each) for each in candidates if not isinstance(each, str))
        key = (candidates if not brought else tuple(map(_id, candidates)), brought)
        return self._numbered(key, lambda: self._read(index, candidates))

    def _numbered(self, key: Any, read: Callable[[], tuple[Sequence[int], Mapping[str, int]]]) -> int:
        if key not in self.known:
            self.known[key] = len(self.rows)
            rows, places = read()
            self.rows.append(rows)
            self.places.append(places)
        return self.known[key]

    def _read(self, index: int, candidates: Sequence[str | Item]) -> tuple[list[int], Mapping[str, int]]:
        """Rows of the shelf, and the place of each id."""
        if not candidates:
            raise DataError(f"Request {index} has 0 candidates; give at least one, or None for the whole catalogue")
        places = {_id(each): place for place, each in enumerate(candidates)}
        if len(places) < len(candidates):
            twice = next(id for id, count in Counter(map(_id, candidates)).items() if count > 1)
            raise DataError(
                f"Request {index} has {twice!r} twice among its {len(candidates)} candidates; give each item once"
            )
        rows = [
            self.reader._row(each, "candidates") if isinstance(each, str) else self._brought(each)
            for each in candidates
        ]
        return rows, places

    def _brought(self, item: Item) -> int:
        """The row of an item that came with its request, behind the catalogue's."""
        content = canonical(item)
        if content not in self.extra_row:
            self.extra_row[content] = len(self.reader.catalogue) + 1 + len(self.extra)
            self.extra.append(item)
            self.reader._notice("candidates: new item, of an id unseen in training", item.id not in self.reader.code_of)
        return self.extra_row[content]


def _id(candidate: str | Item) -> str:
    return candidate if isinstance(candidate, str) else candidate.id


def _joined(first: Shelf, second: Shelf) -> Shelf:
    """Items of one shelf behind those of another."""
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return Shelf(*(torch.cat(pair) for pair in pairs))


def _columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """The columns of rows that may have none."""
    return Columns.of(rows) if any(value is not None for row in rows for value in row.values()) else Columns({}, {}, {})


def _temperature(example: Any) -> float:
    """Greedy slates are scored at temperature 1: what was sampled greedily has no log-probability of its own."""
    sampling = getattr(example, "sampling", None)
    return sampling.temperature if sampling is not None and sampling.temperature > 0 else 1.0
