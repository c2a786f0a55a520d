"""/v1/files: what clients bring to learn from, and what jobs leave them

An upload is multipart, as the OpenAI dialect has it, with the fields purpose, file and expires_after[…].
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from fastapi import APIRouter, Depends, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse

from melior.durable import durable_file
from melior.errors import CheckpointError, NotFound, StoreError
from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.service import Service
from melior.serving.wire import MOST, Order, page_of, seconds
from melior.store.query import new_id
from melior.store.rows import File

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
CHUNK = 1 << 20  # bytes taken at a time
SHORTEST, LONGEST = 3_600, 2_592_000  # seconds until a file expires, as OpenAI has it

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/files", tags=["files"])


@router.post("", dependencies=[Depends(needs("train"))])
def upload(
    request: Request,
    file: UploadFile,
    purpose: str = Form(),
    anchor: str | None = Form(None, alias="expires_after[anchor]"),
    expires: int | None = Form(None, alias="expires_after[seconds]"),
) -> dict[str, Any]:
    """A file, kept under an id of its own."""
    if purpose not in get_args(Purpose):
        known = ", ".join(get_args(Purpose))
        raise Problem(400, f"purpose is {purpose!r}; it is one of {known}", param="purpose")
    if expires is not None and (anchor not in (None, "created_at") or not SHORTEST <= expires <= LONGEST):
        limits = f"a file expires from {SHORTEST:,} to {LONGEST:,} seconds after created_at"
        raise Problem(400, limits, param="expires_after")
    service: Service = request.app.state.service
    _drop_expired(service)
    name = new_id("file")
    with given_up(service.files / name):
        size, digest = _write(service.files, name, file)
        if not size:
            raise Problem(400, f"{file.filename or 'the file'} is empty; send what is in it", param="file")
        gone = None if expires is None else _in(expires)
        given = file.filename or name
        return told(service.store.add_file(given, purpose, size=size, sha256=digest, file_id=name, expires=gone))


@router.get("", dependencies=[Depends(needs("read"))])
def listed(
    request: Request,
    purpose: str | None = None,
    after: str | None = None,
    limit: int = Query(MOST, ge=1, le=MOST),
    order: Order = "desc",
) -> dict[str, Any]:
    """The files there are."""
    service: Service = request.app.state.service
    _drop_expired(service)
    return page_of(service.store.file_page(purpose=purpose, after=after, limit=limit, order=order), told)


@router.get("/{file_id}", dependencies=[Depends(needs("read"))])
def one(request: Request, file_id: str) -> dict[str, Any]:
    """One file."""
    return told(found(request.app.state.service, file_id))


@router.get("/{file_id}/content", dependencies=[Depends(needs("read"))])
def content(request: Request, file_id: str) -> FileResponse:
    """Its bytes, as they came; never as a page that a browser would show."""
    service: Service = request.app.state.service
    row = found(service, file_id)
    return FileResponse(place(service, row), media_type="application/octet-stream", filename=row.filename)


@router.delete("/{file_id}", dependencies=[Depends(needs("train"))])
def delete(request: Request, file_id: str) -> dict[str, Any]:
    """The file, gone; what was learnt from it stays, and says from where."""
    service: Service = request.app.state.service
    row = found(service, file_id)
    service.store.delete_file(row.id)
    place(service, row).unlink(missing_ok=True)
    return {"id": row.id, "object": "file", "deleted": True}


def found(service: Service, file_id: str) -> File:
    """A file that is there.

    Raises:
        NotFound: if there is none, or it has expired.
    """
    row = service.store.file(file_id)
    if expired(row):
        raise NotFound(f"file {file_id!r} has expired")
    return row


def expired(row: File) -> bool:
    """Whether its time is over."""
    return row.expires is not None and row.expires < _in(0)


def place(service: Service, row: File) -> Path:
    """Where its bytes are. The name is ours: what a client calls a file is never a path."""
    return service.files / row.id


@contextmanager
def given_up(path: Path) -> Iterator[None]:
    """Takes the bytes at `path` away again where what is done within fails: no row would name them."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def told(row: File) -> dict[str, Any]:
    """A file as the dialect has it."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": seconds(row.created),
        "expires_at": None if row.expires is None else seconds(row.expires),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": row.status,
        "status_details": row.details or None,
    }


def _drop_expired(service: Service) -> None:
    """Files whose time is over go as if they had been deleted; jobs that began before have links of their own."""
    for row in filter(expired, service.store.files()):
        try:
            place(service, row).unlink(missing_ok=True)  # first: a database on a full disk may need the room
            service.store.delete_file(row.id)
        except NotFound:  # another request did the same
            continue
        except (StoreError, OSError) as error:  # nobody is shown it, and it is tried again
            log.warning("%s has expired and stays for now: %s", row.id, error)


def _write(folder: Path, name: str, file: UploadFile) -> tuple[int, str]:
    """Bytes and sha256 of what was written, durably."""
    folder.mkdir(parents=True, exist_ok=True)
    size, digest = 0, hashlib.sha256()
    try:
        with durable_file(folder / name) as target:
            while chunk := file.file.read(CHUNK):
                target.write(chunk)
                digest.update(chunk)
                size += len(chunk)
    except CheckpointError as error:
        raise Problem(507, f"the file could not be kept, and nothing of it was: {error}") from error
    return size, digest.hexdigest()


def _in(seconds: int) -> str:
    then = datetime.now(UTC) + timedelta(seconds=seconds)
    return then.isoformat(timespec="microseconds").replace("+00:00", "Z")
