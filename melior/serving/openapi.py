"""the schema at /v1/openapi.json, told as it is: who may ask, what comes back, and what comes back instead

It is written here in one place: FastAPI knows paths and bodies, and this adds the token, the scopes, the objects of
`dialect.py` and the errors. A test lets schemathesis compare it with what the server does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from melior.serving import dialect
from melior.serving.dialect import Listed
from melior.serving.security import OPEN, scope_of

ANSWERS: Mapping[str, Any] = {
    "POST /v1/files": dialect.FileObject,
    "GET /v1/files": Listed[dialect.FileObject],
    "GET /v1/files/{file_id}": dialect.FileObject,
    "DELETE /v1/files/{file_id}": dialect.Deleted,
    "POST /v1/fine_tuning/jobs": dialect.FineTuningJob,
    "GET /v1/fine_tuning/jobs": Listed[dialect.FineTuningJob],
    "GET /v1/fine_tuning/jobs/{job_id}": dialect.FineTuningJob,
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": dialect.FineTuningJob,
    "POST /v1/fine_tuning/jobs/{job_id}/pause": dialect.FineTuningJob,
    "POST /v1/fine_tuning/jobs/{job_id}/resume": dialect.FineTuningJob,
    "GET /v1/fine_tuning/jobs/{job_id}/events": Listed[dialect.JobEvent],
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": Listed[dialect.JobCheckpoint],
    "GET /v1/models": dialect.Models,
    "GET /v1/models/{model}": dialect.Model,
    "POST /v1/chat/completions": dialect.ChatCompletion,
    "GET /v1/chat/completions": Listed[dialect.ChatCompletion],
    "GET /v1/chat/completions/{completion_id}": dialect.ChatCompletion,
    "POST /v1/chat/completions/{completion_id}": dialect.ChatCompletion,
    "DELETE /v1/chat/completions/{completion_id}": dialect.Deleted,
    "POST /v1/decisions": dialect.Decision,
    "POST /v1/feedback": dialect.FeedbackKept,
    "POST /v1/datasets": dialect.Dataset,
    "GET /v1/datasets": Listed[dialect.Dataset],
    "GET /v1/datasets/{dataset_id}": dialect.Dataset,
    "GET /v1/datasets/{dataset_id}/rows": Listed[dialect.DatasetRow],
    "GET /v1/trace/{reference}": dialect.Trace,
    "POST /v1/webhook_endpoints": dialect.WebhookEndpoint,
    "GET /v1/webhook_endpoints": Listed[dialect.WebhookEndpoint],
    "GET /v1/webhook_endpoints/{webhook_id}": dialect.WebhookEndpoint,
    "POST /v1/webhook_endpoints/{webhook_id}": dialect.WebhookEndpoint,
    "DELETE /v1/webhook_endpoints/{webhook_id}": dialect.Deleted,
    "POST /v1/webhook_endpoints/{webhook_id}/rotate_secret": dialect.WebhookEndpoint,
    "POST /v1/webhook_endpoints/{webhook_id}/test": dialect.WebhookTest,
    "GET /v1/webhook_event_types": dialect.EventTypes,
}
# what is no JSON, or not only
MEDIA: Mapping[str, tuple[str, ...]] = {
    "GET /v1/files/{file_id}/content": ("application/octet-stream",),
    "GET /metrics": ("text/plain",),
    "POST /v1/chat/completions": ("application/json", "text/event-stream"),
    "POST /v1/completions": ("application/json", "text/event-stream"),
}
REFUSED = {
    "4XX": "Something is wrong with the request; the sentence says what, `param` where.",
    "5XX": "Something is wrong here, or the server is busy or stopping; it may be tried again.",
}
TITLE = "melior"
ABOUT = "The OpenAI dialect, and melior's own words for decisions and feedback, on models that are yours."


def describe(app: FastAPI) -> None:
    """Makes the app tell the whole of its schema."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _told(plain(), app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _told(schema: dict[str, Any], app: FastAPI) -> dict[str, Any]:
    schema["info"] |= {"title": TITLE, "description": ABOUT}
    parts = schema.setdefault("components", {})
    parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    schemas = parts.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which nobody gets to see here
        schemas.pop(name, None)
    error = _schema_of(dialect.Error, schemas)
    parts["responses"] = {name: {"description": told, "content": _json(error)} for name, told in REFUSED.items()}
    for name, operation in _operations(schema).items():
        _tell(operation, name, schemas)
    for route in app.routes:
        if isinstance(route, APIRoute) and (scope := scope_of(route)) is not None:
            for method in route.methods or ():
                found = schema["paths"].get(route.path_format, {}).get(method.lower(), {})
                found["description"] = f"{found.get('description', '')}\n\nNeeds the scope `{scope}`.".strip()
    return schema


def _operations(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    }


def _tell(operation: dict[str, Any], name: str, schemas: dict[str, Any]) -> None:
    """What one operation needs and gives."""
    operation["summary"] = operation.get("description", name).partition("\n")[0].rstrip(".")
    operation["operationId"] = _id(name)
    answers = operation["responses"]
    answers.pop("422", None)
    if name.partition(" ")[2] not in OPEN:
        operation["security"] = [{"bearer": []}]
        answers |= {status: {"$ref": f"#/components/responses/{status}"} for status in REFUSED}
    else:
        answers["503"] = {"$ref": "#/components/responses/5XX"}
    good = next(status for status in answers if status.startswith("2"))
    content = _json(_schema_of(ANSWERS[name], schemas)) if name in ANSWERS else answers[good].get("content", {})
    kinds = MEDIA.get(name)
    if kinds is not None:
        content = {kind: content.get(kind, {"schema": {"type": "string"}}) for kind in kinds}
    answers[good] = {"description": "As asked.", "content": content}


def _schema_of(kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to the schema of a type, which is kept with all it holds."""
    made = TypeAdapter(kind).json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    schemas.update(made.pop("$defs", {}))
    name = "".join(part.__name__ for part in (*get_args(kind), get_origin(kind) or kind))  # FileObjectListed
    schemas[name] = {**made, "title": name}
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _id(name: str) -> str:
    """`GET /v1/files/{file_id}` as get_files_file_id."""
    return "_".join(re.findall(r"[a-z0-9]+", name.lower().replace("/v1/", "_")))
