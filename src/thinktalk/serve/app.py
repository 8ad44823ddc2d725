"""The ASGI application: routes, what surrounds them, and how it is run."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import uvicorn
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from thinktalk.live.api import Engine
from thinktalk.serve.chat import Chat
from thinktalk.serve.fetch import Remote
from thinktalk.serve.guard import Guard, Secrets, refuse
from thinktalk.serve.ice import IceServer
from thinktalk.serve.limits import MB, App, Limits, Patience, Receive, Scope, Send, read_body
from thinktalk.serve.metrics import Metrics
from thinktalk.serve.realtime import Realtime
from thinktalk.serve.reply import ClientLeftError
from thinktalk.serve.schema import (
    ApiError,
    ChatRequest,
    SecretRequest,
    SpeechRequest,
    new_id,
    parsed,
)
from thinktalk.serve.sessions import Sessions
from thinktalk.serve.sources import Sources
from thinktalk.serve.speech import Speech
from thinktalk.serve.transcriptions import FORMATS, Transcriptions

try:
    from thinktalk.serve import webrtc
except ModuleNotFoundError as error:  # the extra "webrtc" is not installed
    if error.name != "aiortc":
        raise
    webrtc = None

WEB = Path(__file__).parent / "web"
SHUTDOWN_S = 10  # for replies in progress, when the server is told to stop
CLIENT_LEFT = 499
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "connect-src 'self' data: blob: ws: wss:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'none'"
)

TRANSCRIPTION_FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "model": {"type": "string"},
        "language": {"type": "string"},
        "response_format": {"type": "string", "enum": list(FORMATS)},
        "stream": {"type": "boolean"},
        "chunking_strategy": {"type": "string"},
    },
}


@dataclass(frozen=True)
class ServeOptions:
    """keys: API keys that are accepted; none means that everyone is. origins: of foreign pages
    that may use the server, "*" for all. remote: which addresses media may be fetched from.
    ice_servers: for WebRTC."""

    max_sessions: int = 8
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    remote: Remote = "public"
    ice_servers: tuple[IceServer, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.remote not in get_args(Remote):
            raise ValueError(f"remote is {self.remote!r}; use {', '.join(get_args(Remote))}")
        if self.ice_servers and webrtc is None:
            raise ValueError("ICE servers are for WebRTC; pip install 'thinktalk[serve,webrtc]'")


def run(engine: Engine, options: ServeOptions, *, host: str, port: int) -> None:
    """Serves until interrupted; replies in progress may end first. Closes the engine."""
    config = uvicorn.Config(
        create_app(engine, options),
        host=host,
        port=port,
        log_level="warning",  # its access log would hold tokens
        access_log=False,
        ws_max_size=int(options.limits.message_mb * MB),
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
    )
    with suppress(KeyboardInterrupt):  # told again when everything has ended in good order
        _Announced(config).run()


def create_app(engine: Engine, options: ServeOptions | None = None) -> FastAPI:
    """The application over an engine, which it closes when it stops."""
    options = options or ServeOptions()
    sessions = Sessions(engine, options.limits)
    metrics = Metrics(sessions)
    sources = Sources(options.limits, remote=options.remote)
    secrets = Secrets(options.limits)
    realtime = Realtime(
        sessions, sources=sources, metrics=metrics, max_sessions=options.max_sessions
    )
    ice_servers = options.ice_servers
    calls = None if webrtc is None else webrtc.Calls(realtime, ice_servers=ice_servers)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        realtime.close()
        if calls is not None:
            calls.close()
        sources.close()
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="thinktalk",
        description="Qwen2.5-Omni behind OpenAI's chat, audio and Realtime dialects.",
        lifespan=lifespan,
        responses={400: {"description": "an error in OpenAI's form"}},
    )
    app.add_middleware(Guard, keys=options.keys, origins=options.origins, secrets=secrets)
    app.add_middleware(Patience, seconds=options.limits.unread_s)
    _add_errors(app)
    chat = Chat(sessions, sources=sources, metrics=metrics)
    speech = Speech(sessions, metrics=metrics)
    transcriptions = Transcriptions(sessions, sources=sources, metrics=metrics)
    _add_about(app, engine=engine, sessions=sessions, metrics=metrics, most=options.max_sessions)
    _post(app, "/v1/chat/completions", chat.complete, schema=ChatRequest)
    _post(app, "/v1/audio/speech", speech.say, schema=SpeechRequest)
    _post(app, "/v1/audio/transcriptions", transcriptions.transcribe, schema=None)

    _add_secrets(app, realtime=realtime, secrets=secrets, ice_servers=ice_servers)
    _add_realtime(app, realtime=realtime, calls=calls)
    paths = [route.path for route in app.routes if isinstance(route, Route)]
    app.add_middleware(Counted, metrics=metrics, paths=paths)
    if WEB.is_dir():
        app.mount("/", Page(directory=WEB, html=True), name="page")
    return app


def _add_secrets(
    app: FastAPI, *, realtime: Realtime, secrets: Secrets, ice_servers: Sequence[IceServer]
) -> None:
    """Keys for browsers, and what else they need to know before they call."""

    async def client_secrets(request: Request) -> Response:
        asked = parsed(SecretRequest, await read_body(request, realtime.limits))
        session = asked.session or {"type": "realtime"}
        config = realtime.first_config(session)
        key, expires_at = secrets.create(asked.expires_after.seconds, session)
        wire = config.wire(session=new_id("sess_"), model=realtime.model)
        answer: dict[str, Any] = {"value": key, "expires_at": expires_at, "session": wire}
        if ice_servers:
            answer["ice_servers"] = [server.wire() for server in ice_servers]
        return JSONResponse(answer)

    _post(app, "/v1/realtime/client_secrets", client_secrets, schema=SecretRequest)


def _add_realtime(app: FastAPI, *, realtime: Realtime, calls: Any) -> None:
    """The Realtime dialect: the WebSocket, and WebRTC where it is installed."""
    if calls is not None:
        add = app.add_api_route
        add("/v1/realtime/calls", calls.create, methods=["POST"], tags=["realtime"])
        hang_up = "/v1/realtime/calls/{call_id}/hangup"
        add(hang_up, calls.hang_up, methods=["POST"], tags=["realtime"])

    @app.websocket("/v1/realtime")
    async def realtime_socket(socket: WebSocket) -> None:
        setup = socket.scope.get("state", {}).get("setup")
        await realtime.serve(socket, setup=setup)


class _Announced(uvicorn.Server):
    """Tells where it serves, once it does."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            name = f"[{host}]" if ":" in host else host
            print(f"serving on http://{name}:{port} (Ctrl-C stops)", file=sys.stderr, flush=True)


class Page(StaticFiles):
    """The page's files, with what browsers should know about them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await refuse(scope, send, ApiError(404, "there is nothing here; /docs lists what is"))
            return
        await super().__call__(scope, receive, send)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Content-Security-Policy"] = PAGE_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-cache"
        return response


class Counted:
    """ASGI middleware: counts requests by path and status."""

    def __init__(self, app: App, *, metrics: Metrics, paths: Sequence[str]):
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def send_counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, send_counted)


def _add_about(
    app: FastAPI, *, engine: Engine, sessions: Sessions, metrics: Metrics, most: int
) -> None:
    """What the server says about itself."""
    began = time.time()
    model = {
        "id": engine.model_name,
        "object": "model",
        "created": int(began),
        "owned_by": "thinktalk",
    }

    @app.get("/health", tags=["about"])
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "model": engine.model_name,
            "sessions": sessions.num_open,
            "max_sessions": most,
            "waiting": sessions.num_waiting,
            "uptime_s": round(time.time() - began, 1),
        }

    @app.get("/metrics", tags=["about"], response_class=PlainTextResponse)
    async def metrics_page() -> Response:
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", tags=["about"])
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}", tags=["about"])
    async def one_model(name: str) -> dict[str, Any]:
        if name != engine.model_name:
            message = f"the model {name!r} is not loaded; {engine.model_name} is"
            raise ApiError(404, message, code="model_not_found", param="model")
        return model

    @app.get("/v1/voices", tags=["about"])
    async def voices() -> dict[str, Any]:
        data = [{"id": name, "object": "voice", "name": name} for name in engine.voices]
        return {"object": "list", "data": data}


def _add_errors(app: FastAPI) -> None:
    """Every error leaves in OpenAI's form."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def by_framework(request: Request, error: HTTPException) -> Response:
        remedies = {404: "/docs lists what there is", 405: "/docs lists how it is asked"}
        asked = f"{request.method} {request.url.path}: {error.detail}"
        remedy = remedies.get(error.status_code)
        body = ApiError(error.status_code, f"{asked}; {remedy}" if remedy else asked).body
        return JSONResponse(body, error.status_code, headers=error.headers)

    @app.exception_handler(ClientLeftError)
    async def left(_: Request, error: ClientLeftError) -> Response:
        return Response(status_code=CLIENT_LEFT)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        message = "the server made a mistake; its log tells more"
        return JSONResponse(ApiError(500, message).body, 500)


def _post(
    app: FastAPI,
    path: str,
    endpoint: Callable[[Request], Awaitable[Response]],
    *,
    schema: type[BaseModel] | None,
) -> None:
    """A POST route whose body the endpoint reads itself, with its schema for the docs."""
    if schema is None:
        content = {"multipart/form-data": {"schema": TRANSCRIPTION_FORM}}
    else:
        content = {"application/json": {"schema": inlined(schema.model_json_schema())}}
    extra = {"requestBody": {"required": True, "content": content}}
    tag = path.split("/")[2]
    app.add_api_route(path, endpoint, methods=["POST"], openapi_extra=extra, tags=[tag])


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema without references, so that it may stand anywhere."""
    definitions = schema.get("$defs", {})

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(part) for part in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return walk(definitions[node["$ref"].rsplit("/", 1)[-1]])
        return {key: walk(value) for key, value in node.items() if key != "$defs"}

    return walk(schema)
