"""/v1/datasets: training files out of the log, and /v1/trace: what a row came from and what came of it

    {"kind": "preferences", "format": "openai-dpo", "most_per_source": 0.2}
    → {"id": "ds_…", "object": "dataset", "file_id": "file_…", "rows": 812, "left_out": {…}}

The file has purpose fine-tune, so a job can be given it at once.
"""

from __future__ import annotations

import hashlib
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from melior.errors import CheckpointError, NotFound
from melior.serving.feedback import Id
from melior.serving.files import expired, given_up, place
from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.wire import page_of, seconds
from melior.store.datasets import Exported, export
from melior.store.exports import Export, Wanted
from melior.store.lineage import Step, Trace, trace
from melior.store.query import Order, Page, new_id
from melior.store.rows import Dataset, DatasetRow, File
from melior.store.schema import clean

Short = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Source = Annotated[str, StringConstraints(max_length=200)]
MOST_SOURCES = 1_000  # named in one request
MOST_DIGITS = 12  # of a row's position

router = APIRouter(prefix="/v1", tags=["datasets"])


class Asked(BaseModel):
    """Which rows a client wants, and how they are to be written."""

    model_config = ConfigDict(extra="forbid")

    kind: Export
    format: Short | None = None
    file: Literal["jsonl", "json", "csv", "tsv", "parquet"] = "jsonl"
    origin: bool = True  # whether rows say what they were made of
    metric: Short | None = None
    at_least: float = Field(default=1.0, allow_inf_nan=False)
    silent: float | None = Field(default=None, allow_inf_nan=False)
    events: list[Short] = Field(default_factory=list, max_length=100)
    name: Short | None = None
    alias: Short | None = None
    version: Id | None = None
    episode_id: Id | None = None
    since: Short | None = None
    until: Short | None = None
    sources: list[Source] = Field(default_factory=list, max_length=MOST_SOURCES)
    without_sources: list[Source] = Field(default_factory=list, max_length=MOST_SOURCES)
    most_per_source: float | None = Field(default=None, gt=0, le=1)

    @property
    def wanted(self) -> Wanted:
        """The same to the store, whose texts hold no NUL."""
        return Wanted(
            kind=self.kind,
            metric=_clean(self.metric),
            name=_clean(self.name),
            alias=_clean(self.alias),
            version=self.version,
            episode=self.episode_id,
            since=self.since,
            until=self.until,
            sources=tuple(map(clean, self.sources)),
            without_sources=tuple(map(clean, self.without_sources)),
            most_per_source=self.most_per_source,
            at_least=self.at_least,
            events=tuple(map(clean, self.events)),
            silent=self.silent,
        )


@router.post("/datasets", dependencies=[Depends(needs("train"))])
def create(request: Request, asked: Asked) -> dict[str, Any]:
    """Rows of the log as a file. An unchanged log gives the same data set, and the file it has."""
    service: Service = request.app.state.service
    draft = service.files / new_id("file")
    name = f"{asked.kind}.{asked.file}"
    with given_up(draft):
        try:
            done = export(service.store, asked.wanted, draft, format=asked.format, origin=asked.origin, name=name)
        except NotFound as error:
            raise Problem(400, str(error), param="version") from error
        except CheckpointError as error:
            raise Problem(507, f"the rows could not be kept, and none of them was: {error}") from error
        file = _file(service, done, draft, name)
    return {**told(done.dataset, file), "not_kept": dict(done.lost)}


@router.get("/datasets", dependencies=[Depends(needs("read"))])
def listed(
    request: Request, after: Id | None = None, limit: int = Query(20, ge=1, le=1_000), order: Order = "desc"
) -> dict[str, Any]:
    """What was exported, and what runs were given."""
    service: Service = request.app.state.service
    found = service.store.datasets_page(after=after, limit=limit, order=order)
    files = _files(service, [row.id for row in found.rows])
    return page_of(found, lambda row: told(row, files.get(row.id)))


@router.get("/datasets/{dataset_id}", dependencies=[Depends(needs("read"))])
def one(request: Request, dataset_id: Id) -> dict[str, Any]:
    """One data set."""
    service: Service = request.app.state.service
    row = _dataset(service, dataset_id)
    return told(row, _files(service, [row.id]).get(row.id))


@router.get("/datasets/{dataset_id}/rows", dependencies=[Depends(needs("read"))])
def rows(
    request: Request, dataset_id: Id, after: Id | None = None, limit: int = Query(100, ge=1, le=1_000)
) -> dict[str, Any]:
    """What each row of an export was made of, in their order; the rows themselves are in its file."""
    service: Service = request.app.state.service
    row = _dataset(service, dataset_id)
    name, _, last = (after or f"{row.id}:-1").rpartition(":")
    if name != row.id or not last.removeprefix("-").isdecimal() or len(last) > MOST_DIGITS:
        raise NotFound(f"there is no row {after!r} in this list to go on after")
    links = service.store.dataset_rows(row.id, after=int(last), limit=limit)
    made = [(at, list(group)) for at, group in groupby(links, key=lambda link: link.position)]
    more = row.details is not None and int(last) + limit + 1 < row.rows
    return page_of(Page(made, more), lambda pair: _told_row(row, *pair))


@router.get("/trace/{reference:path}", dependencies=[Depends(needs("read"))], tags=["trace"])
def traced(request: Request, reference: str, shown: int = Query(5, ge=1, le=100)) -> dict[str, Any]:
    """What a row of any kind came from and what came of it; `shown` rows of each sort, and how many more there are."""
    found: Trace = trace(request.app.state.service.store, clean(reference), shown=shown)
    return {
        "object": "trace",
        "kind": found.kind,
        "id": found.id,
        "facts": dict(found.facts),
        "came_from": [_told_step(step) for step in found.came_from],
        "became": [_told_step(step) for step in found.became],
    }


def told(row: Dataset, file: File | None) -> dict[str, Any]:
    """A data set as it is listed; `file` is what of it can be downloaded."""
    details = row.details or {}
    asked = dict(details.get("asked", {"kind": row.kind}))
    return {
        "id": row.id,
        "object": "dataset",
        "created_at": seconds(row.created),
        "kind": asked.pop("kind"),
        "format": details.get("format"),
        "file_id": None if file is None else file.id,
        "rows": row.rows,
        "fingerprint": row.fingerprint,
        "asked": asked,
        "sources": details.get("sources", {}),
        "left_out": details.get("left_out", {}),
    }


def _file(service: Service, done: Exported, draft: Path, name: str) -> File:
    """The file of an export: the one that is there with these bytes, or what was written now."""
    with draft.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    for known in service.store.files_of([done.dataset.id]):
        if known.sha256 == digest and known.filename == name and not expired(known) and place(service, known).exists():
            draft.unlink()
            return known
    size = draft.stat().st_size
    return service.store.add_file(
        name, "fine-tune", size=size, sha256=digest, file_id=draft.name, dataset_id=done.dataset.id
    )


def _files(service: Service, datasets: list[str]) -> dict[str, File]:
    """The newest file of each."""
    found = service.store.files_of(datasets)
    return {str(row.dataset_id): row for row in found if not expired(row)}


def _dataset(service: Service, dataset_id: str) -> Dataset:
    row = service.store.dataset(dataset_id)
    if row.id != dataset_id:
        raise NotFound(f"there is no dataset {dataset_id!r}")
    return row


def _told_row(row: Dataset, position: int, links: list[DatasetRow]) -> dict[str, Any]:
    made_of = [{"decision_id": link.decision_id, "feedback_id": link.feedback_id} for link in links]
    return {"id": f"{row.id}:{position}", "object": "dataset.row", "position": position, "made_of": made_of}


def _told_step(step: Step) -> dict[str, Any]:
    way = [_told_step(each) for each in step.steps]
    about = {"relation": step.relation, "kind": step.kind, "id": step.id, "facts": dict(step.facts)}
    return {**about, "steps": way, "told": step.told, "more": step.more}


def _clean(text: str | None) -> str | None:
    return None if text is None else clean(text)
