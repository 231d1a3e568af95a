"""The HTTP API put together: the ingest routes in front, FastAPI behind, one database for both."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from sqlalchemy import Engine, text
from sqlalchemy.orm import sessionmaker
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.clock import SYSTEM, Clock, DatabaseClock
from api.database import connector, open_database
from api.flusher import Flusher
from api.http import (
    addons,
    apps,
    backtest,
    billing_profiles,
    billing_runs,
    corrections,
    credit_notes,
    custom_invoicing,
    customer_apps,
    customer_overrides,
    customers,
    dispositions,
    events,
    explain,
    feature_cost,
    features,
    invoice_actions,
    invoice_documents,
    invoice_update,
    invoices,
    llm_prices,
    meters,
    payments,
    plan_addons,
    plans,
    progress,
    quarantine,
    simulation,
    subjects,
    subscription_addons,
    subscriptions,
    tax_rates,
    test_clock,
    usage,
)
from api.http.auth import KeyRing, reader
from api.http.body import WireResponse
from api.http.ingest import MAX_BODY, OPENAPI_PATHS, Ingest, body_too_large
from api.http.problems import PROBLEM_RESPONSES, handle_errors, of_error, problem
from api.metrics import CONTENT_TYPE, Metrics
from api.settings import Settings
from metering.errors import TollgateError

__all__ = ["create_app"]

_WITH_KEY = ("/api/v1/", "/api/v2/", "/metrics")
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}")
AREAS = (
    usage,
    invoices,
    meters,
    progress,
    features,
    feature_cost,
    llm_prices,
    plans,
    addons,
    plan_addons,
    backtest,
    billing_runs,
    apps,
    custom_invoicing,
    billing_profiles,
    customer_apps,
    customer_overrides,
    customers,
    subscriptions,
    subscription_addons,
    tax_rates,
    credit_notes,
    payments,
    invoice_actions,
    invoice_update,
    invoice_documents,
    explain,
    simulation,
    quarantine,
    subjects,
    corrections,
    dispositions,
    events,
)
"""Each has a router. A request tries one after the other: what is asked most comes first."""


def create_app(engine: Engine, settings: Settings) -> ASGIApp:
    """The whole API as one ASGI application over a migrated database."""
    aside = open_database(engine.url, connections=2)  # for what must be answered when all others are busy
    keys = KeyRing(sessionmaker(aside), settings.api_key, enabled=settings.auth)
    clock: Clock = SYSTEM if settings.test_clock is None else DatabaseClock(aside)
    flusher = Flusher(connect=connector(engine), now=clock)
    app = FastAPI(
        title="Tollgate",
        summary="Usage metering and billing; speaks OpenMeter's API.",
        openapi_url="/api/openapi.json",
        docs_url="/api/docs",
        redoc_url=None,
        separate_input_output_schemas=False,
        default_response_class=WireResponse,
        responses=PROBLEM_RESPONSES,
        lifespan=_lifespan(flusher, aside),
    )
    app.state.sessions = sessionmaker(engine, expire_on_commit=False)
    app.state.clock = clock
    app.state.invoice_template = settings.invoice_template
    app.state.permits = asyncio.Semaphore(settings.connections)
    for area in AREAS:
        app.include_router(area.router)
    if settings.test_clock is not None:
        app.include_router(test_clock.router)
    _add_health(app, aside, clock)
    _add_ingest(app)
    handle_errors(app)
    _document(app)
    return _Front(app, keys, Ingest(flusher, settings.kong_subject, clock))


def _lifespan(flusher: Flusher, aside: Engine) -> Any:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        flusher.start()
        yield
        await asyncio.to_thread(flusher.stop)
        aside.dispose()

    return lifespan


def _add_health(app: FastAPI, engine: Engine, clock: Clock) -> None:
    @app.get("/healthz", include_in_schema=False)
    async def alive() -> Response:
        return PlainTextResponse("ok")

    @app.get("/readyz", include_in_schema=False)
    def ready() -> Response:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        return PlainTextResponse("ok")

    metrics = Metrics(engine, clock)

    @app.get("/metrics", include_in_schema=False, dependencies=[reader])
    def numbers() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_ingest(app: FastAPI) -> None:
    """What _Front answers itself, so that another method there is a 405 and not a 404."""

    async def not_a_source(_: Request) -> Response:
        raise HTTPException(404)

    for path in OPENAPI_PATHS:
        app.router.add_route(path, not_a_source, methods=["POST"], include_in_schema=False)


def _document(app: FastAPI) -> None:
    """Add the routes that FastAPI does not know to its OpenAPI document, and its 422s become our 400s."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            schema = get_openapi(title=app.title, version="1", summary=app.summary, routes=app.routes)
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for path, item in OPENAPI_PATHS.items():
                schema["paths"].setdefault(path, {}).update(item)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


class _Front:
    """Gives each request its id, asks for a key, keeps bodies small, takes in usage and hands on the rest."""

    def __init__(self, app: ASGIApp, keys: KeyRing, ingest: Ingest) -> None:
        self.app = app
        self.keys = keys
        self.ingest = ingest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        if b"%00" in scope.get("raw_path", b"") + scope["query_string"]:
            detail = "PostgreSQL can't hold U+0000, so nothing here has it in its name"
            await problem(400, detail, request_id=request_id)(scope, receive, send)
            return
        try:
            if scope["path"].startswith(_WITH_KEY):  # before a byte of the body is read
                scope["state"]["role"] = await self.keys.authenticate(_authorization(scope))
            if self.ingest.takes(scope):
                await (await self.ingest(scope, receive))(scope, receive, send)
            else:
                await self._hand_on(scope, receive, send, request_id)
        except TollgateError as error:
            await of_error(error, request_id)(scope, receive, send)
        except Exception:  # noqa: BLE001  logged, and the client gets an answer whatever it was
            structlog.get_logger().exception("unexpected_error", request_id=request_id)
            await problem(500, "", request_id=request_id)(scope, receive, send)

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        try:
            await self.app(scope, _limited(receive), send)
        except _BodyTooLarge:
            await of_error(body_too_large(), request_id)(scope, receive, send)
        except Exception:  # noqa: BLE001, S110  problems.py has logged and answered it, Starlette raises it again
            pass


def _authorization(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return str(value.decode("latin-1"))
    return None


class _BodyTooLarge(BaseException):
    """Passes through FastAPI's own handling of errors in bodies, which would make it a 400."""


def _limited(receive: Receive) -> Receive:
    received = 0

    async def receive_some() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY:
            raise _BodyTooLarge
        return message

    return receive_some


def _request_id(scope: Scope) -> str:
    """The client's X-Request-Id if it is harmless, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return secrets.token_hex(16)
