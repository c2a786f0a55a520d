"""what the store hands out: frozen rows, one class per table

Field names are column names. Times are UTC in ISO 8601.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from melior.types import Record, Score

RunStatus = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
Verdict = Literal["promote", "reject", "inconclusive"]
Action = Literal["promote", "rollback"]
JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
Wanted = Literal["", "cancel", "pause"]
Level = Literal["info", "warn", "error"]
MeasureType = Literal["boolean", "number", "rating", "comment", "demonstration", "preference", "event"]
DeliveryStatus = Literal["waiting", "delivered", "failed"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The rows a run or an evaluation read, known by their fingerprint."""

    id: str
    fingerprint: str
    kind: str
    path: str
    rows: int
    created: str
    details: Mapping[str, Any] | None = None  # of an export: what was asked for and what was left out


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run; `created` is when it started."""

    id: str
    method: str
    config: Mapping[str, Any]
    status: RunStatus
    folder: str
    base_model: str | None
    base_version: str | None
    dataset_id: str | None
    finished: str | None
    metrics: Mapping[str, Any]
    error: str
    created: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A record with what the log knows about it. For chat, the completion's id is the decision's id."""

    id: str
    record: Record
    run_id: str | None
    alias: str | None
    episode_id: str | None
    propensities: Any
    created: str


@dataclass(frozen=True, kw_only=True)
class Grade:
    """A score, and the decision it is of."""

    id: str
    decision_id: str
    score: Score
    created: str


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """What somebody said of a decision or an episode."""

    id: str
    metric: str
    value: Any
    decision_id: str | None
    episode_id: str | None
    source: str
    comment: str
    tags: Mapping[str, str]
    created: str
    replaces_id: str | None = None  # what the same source said before, and takes back with this
    made_from_id: str | None = None  # the feedback that a person turned into this
    given_by: str = ""  # the name of the key that brought it, whatever source it named


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What values a metric of feedback may have; the newest row of a name is in force."""

    id: str
    name: str
    type: MeasureType
    low: float | None
    high: float | None
    description: str
    created: str


@dataclass(frozen=True, kw_only=True)
class DatasetRow:
    """What one row of a dataset was made of; a row made of several feedbacks has several."""

    dataset_id: str
    position: int
    decision_id: str | None
    feedback_id: str | None


@dataclass(frozen=True, kw_only=True)
class Version:
    """A policy in a folder, and where it came from."""

    id: str
    name: str
    folder: str
    fingerprint: str  # sha256 over the names and hashes of `files`
    files: Mapping[str, str]  # path inside the folder → sha256
    base_model: str
    parent_id: str | None
    run_id: str | None
    dataset_id: str | None
    method: str
    metrics: Mapping[str, Any]
    created: str
    deleted: str | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one grader said of a version, or of a base model, on held-out items."""

    id: str
    version_id: str | None
    base_model: str | None
    dataset_id: str | None
    grader: str
    sampling: Mapping[str, Any] | None
    values: Mapping[str, Sequence[float | None]]  # item id → one value per sample, None where the grader failed
    summary: Mapping[str, Any]
    created: str


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Whether the candidate may replace the baseline; no baseline means the base model itself."""

    id: str
    candidate_id: str
    baseline_id: str | None
    verdict: Verdict
    evaluation_ids: tuple[str, ...]
    details: Mapping[str, Any]
    created: str


@dataclass(frozen=True, kw_only=True)
class AliasEvent:
    """An alias began to point to a version: who did it, why, and after which gate."""

    id: str
    name: str
    alias: str
    action: Action
    version_id: str
    previous_id: str | None
    undo_id: str | None  # the event whose state a rollback of this one restores
    gate_id: str | None
    forced: bool
    actor: str
    reason: str
    created: str


@dataclass(frozen=True, kw_only=True)
class Alias:
    """Which version `name@alias` is now, and the event that made it so."""

    name: str
    alias: str
    version_id: str
    event_id: str


@dataclass(frozen=True, kw_only=True)
class File:
    """What a client uploaded, or a job wrote; its bytes stand in the data folder under its id."""

    id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    status: Literal["uploaded", "processed", "error"]
    details: str
    expires: str | None
    deleted: str | None
    created: str
    dataset_id: str | None = None  # of an export


@dataclass(frozen=True, kw_only=True)
class Eval:
    """What is to be graded and how, again and again: a client's evaluation, of which each run is a job."""

    id: str
    name: str
    asked: Mapping[str, Any]
    labels: Mapping[str, str]
    updated: str
    deleted: str | None
    created: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """Training that somebody asked for, and who works on it."""

    id: str
    method: str
    asked: Mapping[str, Any]
    recipe: Mapping[str, Any]
    folder: str
    status: JobStatus
    wanted: Wanted
    owner: str
    lease: str | None
    fence: int
    attempts: int
    training_file: str | None
    validation_file: str | None
    run_id: str | None
    result: Mapping[str, Any]
    error: Mapping[str, Any] | None
    labels: Mapping[str, str]
    finished: str | None
    request_key: str | None
    created: str
    eval_id: str | None = None  # what it is a run of, where it evaluates
    deleted: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """Something that happened to a job."""

    id: str
    job_id: str
    level: Level
    type: Literal["message", "metrics"]
    message: str
    data: Mapping[str, Any]
    created: str


@dataclass(frozen=True, kw_only=True)
class Key:
    """Somebody's token, as far as anybody else may know it."""

    id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    revoked: str | None
    created: str


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A chat completion that its client asked to keep."""

    id: str
    model: str
    request: Mapping[str, Any]
    response: Mapping[str, Any]
    labels: Mapping[str, str]
    deleted: str | None
    created: str


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """An address that is told when jobs end."""

    id: str
    name: str
    url: str
    events: tuple[str, ...]
    secret: str
    former: str | None  # the secret before it, which signs too until `former_until`
    former_until: str | None
    revoked: str | None
    created: str


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One message to a webhook, and how far it is."""

    id: str
    webhook_id: str
    type: str
    body: Mapping[str, Any]
    status: DeliveryStatus
    attempts: int
    due: str | None
    error: str
    created: str
