"""what went wrong, as clients of the OpenAI dialect expect it: a status, a sentence, a type, a code

{"error": {"message": …, "type": …, "param": …, "code": …}}
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from melior.errors import (
    DatabaseAway,
    DiskFull,
    Forbidden,
    MeliorError,
    NotFound,
    StoreError,
    UnknownModel,
)

KINDS: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
AWAY: Mapping[int, str] = {503: "database_unavailable", 507: "insufficient_storage"}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a person's share of it, or a file
AGAIN_S = 5  # when to come again, where the database could not
CODES: Mapping[int, str] = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed"}


class Problem(Exception):
    """An answer that is no answer; `retry` says whether a client that tries again may have better luck."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry: bool | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code if code is not None else CODES.get(status)
        told = {} if retry is None else {"x-should-retry": str(retry).lower()}
        self.headers = {**told, **(headers or {})}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def answer(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body, self.status, headers=self.headers)


def problem_of(error: MeliorError) -> Problem:
    """What a client is told of one of our errors: all of them are sentences for people who can put them right."""
    if isinstance(error, UnknownModel):
        return Problem(404, str(error), param="model", code="model_not_found")
    if isinstance(error, NotFound):
        return Problem(404, str(error))
    if isinstance(error, Forbidden):
        return Problem(403, str(error))
    if isinstance(error, DatabaseAway):
        status = 507 if isinstance(error, DiskFull) else 503
        return Problem(status, str(error), code=AWAY[status], retry=True, headers={"retry-after": str(AGAIN_S)})
    if isinstance(error, StoreError):  # tried again it would be refused again
        return Problem(409, str(error), code="conflict", retry=False)
    return Problem(400, str(error))


def no_room(error: BaseException | None) -> Problem | None:
    """What a client is told where what it sent found no room here; None of other errors."""
    if not isinstance(error, OSError) or error.errno not in NO_ROOM:
        return None
    told = f"this server has no room for what came ({os.strerror(error.errno)}); try again when there is some"
    return Problem(507, told, code=AWAY[507], retry=True, headers={"retry-after": str(AGAIN_S)})


def tell_problems(app: FastAPI) -> None:
    """Makes the app answer every error in this form; what nobody foresaw is the guard's to tell."""

    @app.exception_handler(Problem)
    def known(request: Request, error: Problem) -> JSONResponse:
        return error.answer()

    @app.exception_handler(MeliorError)
    def ours(request: Request, error: MeliorError) -> JSONResponse:
        return problem_of(error).answer()

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])  # the first is where it came in: body, query, path
        return Problem(400, f"{place or 'the request'}: {first['msg']}", param=place or None).answer()

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> JSONResponse:
        if (full := no_room(error.__cause__)) is not None:  # for a body, while it was taken in
            return full.answer()
        told = f"{request.method} {request.url.path} is not served here" if error.status_code in (404, 405) else ""
        allowed = {"allow": ", ".join(_methods(app, request.url.path))} if error.status_code == 405 else {}
        return Problem(error.status_code, told or str(error.detail), headers=allowed).answer()


def _methods(app: FastAPI, path: str) -> list[str]:
    """What can be asked of a path: of all its routes, where the router knows but the first."""
    routes = [route for route in app.routes if isinstance(route, APIRoute) and route.path_regex.match(path)]
    return sorted({method for route in routes for method in route.methods or ()})
