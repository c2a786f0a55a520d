"""the HTTP server, put together: guard, routes, errors, and what is done when it starts and stops"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import Depends, FastAPI, Request, Response

from melior.serving import (
    chat,
    checkpoints,
    completions,
    datasets,
    decisions,
    embeddings,
    eval_compare,
    eval_runs,
    evals,
    feedback,
    files,
    fine_tuning,
    graders,
    models,
    webhooks,
)
from melior.serving.access import AccessLog
from melior.serving.metrics import Counted
from melior.serving.openapi import describe
from melior.serving.problems import Problem, tell_problems
from melior.serving.security import Guard, check_routes, needs
from melior.serving.service import Service

SERVED = (
    chat,
    checkpoints,
    completions,
    datasets,
    decisions,
    embeddings,
    eval_compare,
    eval_runs,
    evals,
    feedback,
    files,
    fine_tuning,
    graders,
    models,
    webhooks,
)
KEEP_S = 10.0  # for answers that clients left to be in the log when a server stops


def create_app(service: Service) -> FastAPI:
    """The app of a service. Started and stopped with it: whatever works beside the requests.

    Raises:
        ConfigError: if a route says not what scope it needs.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            if service.keeping:
                await asyncio.wait(service.keeping, timeout=KEEP_S)
            service.stop()

    app = FastAPI(title="melior", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json")
    app.state.service = service
    for served in SERVED:
        app.router.routes.extend(served.router.routes)  # as they are, so that `check_routes` sees every one
    _watched(app)
    tell_problems(app)
    check_routes(app)
    describe(app)
    settings = service.settings
    guard: Mapping[str, Any] = {
        "store": service.store,
        "hosts": settings.hosts,
        "origins": settings.origins,
        "limits": settings.limits,
        "draining": service.draining,
    }
    app.add_middleware(Guard, **guard)
    app.add_middleware(Counted, metrics=service.metrics)  # what the guard refuses is counted too
    app.add_middleware(AccessLog)  # outermost
    return app


def _watched(app: FastAPI) -> None:
    """Whether it lives, whether it takes requests, and what it counted."""

    @app.get("/healthz", tags=["health"])
    async def alive() -> dict[str, str]:
        """Whether the process answers at all."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"])
    async def ready(request: Request) -> dict[str, str]:
        """Whether new requests should come here."""
        service: Service = request.app.state.service
        if service.draining.is_set():
            raise Problem(503, "this server is stopping; ask another", retry=True)
        await anyio.to_thread.run_sync(lambda: service.store.runs(status="queued"))  # the database answers
        return {"status": "ok"}

    @app.get("/metrics", tags=["health"], dependencies=[Depends(needs("read"))])
    def metrics(request: Request) -> Response:
        """What was counted, as Prometheus reads it."""
        service: Service = request.app.state.service
        return Response(service.metrics.exposition(), media_type=service.metrics.content_type)
