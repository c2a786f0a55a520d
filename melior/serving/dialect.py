"""objects of the OpenAI dialect and ours, as the schema of the server tells them; answers may hold more than is told"""

from __future__ import annotations

from typing import Any, Generic, Literal, NotRequired, TypeVar

from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

T = TypeVar("T")


class Wrong(TypedDict):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(TypedDict):
    """An answer that is no answer."""

    error: Wrong


class Listed(TypedDict, Generic[T]):
    """A page of a list."""

    object: Literal["list"]
    data: list[T]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Deleted(TypedDict):
    """Something that is no longer found."""

    id: str
    object: str
    deleted: Literal[True]


class FileObject(TypedDict):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None


class JobError(TypedDict):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class FineTuningJob(TypedDict):
    """A job."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    model: str
    fine_tuned_model: str | None
    training_file: str | None
    validation_file: str | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    metadata: dict[str, str]
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    error: JobError | None


class JobEvent(TypedDict):
    """What happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class JobCheckpoint(TypedDict):
    """A model as it was while a job went on."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, Any]


class Model(TypedDict):
    """What can answer."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(TypedDict):
    """All that can answer."""

    object: Literal["list"]
    data: list[Model]


class Choice(TypedDict):
    """One of the answers to a request."""

    index: int
    finish_reason: str
    message: dict[str, Any]
    logprobs: NotRequired[dict[str, Any] | None]


class Usage(TypedDict):
    """Tokens that were read and decided."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(TypedDict):
    """An answer; its id is the id of its decision."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Decision(TypedDict):
    """What was decided, with the chance it had."""

    decision_id: str
    object: Literal["decision"]
    output: Any
    log_prob: float | None
    propensities: list[float] | None
    policy_version: str


class LeftOut(TypedDict):
    """Rows of the log that are not in a data set."""

    count: int
    first: str


class Dataset(TypedDict):
    """Rows out of the log, or what a run was given."""

    id: str
    object: Literal["dataset"]
    created_at: int
    kind: str
    format: str | None
    file_id: str | None
    rows: int
    fingerprint: str
    asked: dict[str, Any]
    sources: dict[str, int]
    left_out: dict[str, LeftOut]
    not_kept: NotRequired[dict[str, int]]


class MadeOf(TypedDict):
    """What a row came from."""

    decision_id: str | None
    feedback_id: str | None


class DatasetRow(TypedDict):
    """What one row of a data set was made of."""

    id: str
    object: Literal["dataset.row"]
    position: int
    made_of: list[MadeOf]


class Trace(TypedDict):
    """What a row of any kind came from and what came of it."""

    object: Literal["trace"]
    kind: str
    id: str
    facts: dict[str, Any]
    came_from: list[dict[str, Any]]
    became: list[dict[str, Any]]


class FeedbackKept(TypedDict):
    """Feedback that is durable."""

    feedback_id: str


class WebhookEndpoint(TypedDict):
    """An address that is told what happens."""

    id: str
    object: Literal["webhook_endpoint"]
    created_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    signing_secret: NotRequired[str]


class WebhookTest(TypedDict):
    """What an address answered to a message that tells of nothing."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    success: Literal[True]
    status_code: int


class EventTypes(TypedDict):
    """What there is to be told."""

    object: Literal["list"]
    data: list[str]
