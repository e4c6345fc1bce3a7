"""Streamable HTTP on 127.0.0.1: one more listener of the host, for whoever holds the home's token."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import structlog
import uvicorn
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import (
    RequestBodyLimitMiddleware,
    TransportSecurityMiddleware,
    TransportSecuritySettings,
)
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rolecall.config.errors import ConfigError, RolecallError
from rolecall.config.home import Home

from ..errors import BadRequest, Unauthorized
from ..protocol import MAX_FRAME_BYTES
from ..session import SessionInfo, current_session
from .sessions import Refusal, Tell, client_name, parse_message

PATH = "/mcp"
_ADDRESS = "127.0.0.1"
_TOKEN_BYTES = 32


def bearer_token(home: Home) -> str:
    """The token of the home's HTTP clients, made at the first call, in a file that only its user may read. Raises
    ConfigError: the file is a link, another user's, open to others, or holds no token."""
    path = home.http_token_file
    with suppress(FileExistsError), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as made:
        made.write(secrets.token_urlsafe(_TOKEN_BYTES) + "\n")
    status = path.lstat()
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
        token = path.read_text("ascii", errors="replace").strip()
        if len(token) >= _TOKEN_BYTES:
            return token
    failed, found = f"The token in {path} cannot be trusted.", "a link, another user's, open to others, or too short"
    raise ConfigError(failed, found=found, allowed="a file of mode 0600", advice=f"Remove {path}; it is made anew.")


async def serve_http(server: Server[Any], home: Home, port: int, tell: Tell, stopping: anyio.Event) -> dict[str, Any]:
    """Serve `server` on a port of 127.0.0.1 (0 picks one) until `stopping`, then finish what is open; cancelling this
    cancels that too. `tell` gets the `url` and the `token_file` once clients can connect. Raises BadRequest: the port
    cannot be had; ConfigError: the token's file cannot be trusted."""
    token = bearer_token(home)
    try:
        sock = socket.create_server((_ADDRESS, port))
    except (OSError, OverflowError) as error:
        allowed, advice = "a free port, 1 to 65535", "Name another port, or 0 to have one picked."
        failed = f"Nothing can listen on port {port} of {_ADDRESS}."
        raise BadRequest(failed, found=str(error), allowed=allowed, advice=advice) from error
    with sock:
        # A reply's head and body are two writes: without this the second waits for the client's delayed word (40 ms).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        port = sock.getsockname()[1]
        manager = StreamableHTTPSessionManager(server, max_request_body_size=MAX_FRAME_BYTES)
        listener = _Listener(_Gate(manager, token, port))
        async with manager.run(), anyio.create_task_group() as tasks:
            tasks.start_soon(listener.listen, sock)
            url = f"http://{_ADDRESS}:{port}{PATH}"
            structlog.get_logger().info("http_opened", url=url)
            try:
                tell({"url": url, "token_file": str(home.http_token_file)})
                await stopping.wait()
                listener.finish()
                await listener.left.wait()
            finally:
                listener.drop()
    structlog.get_logger().info("http_closed", url=url)
    return {"url": url}


class _Listener(uvicorn.Server):
    """uvicorn in a process that handles its signals itself, and whose requests can be cut off."""

    def __init__(self, app: ASGIApp) -> None:
        quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False}
        super().__init__(uvicorn.Config(app, http="h11", ws="none", lifespan="off", proxy_headers=False, **quiet))
        self.left = anyio.Event()
        self._dropping = False

    async def listen(self, sock: socket.socket) -> None:
        """Serve a listening socket until `finish()` or `drop()`, and then until all that is open is answered."""
        with anyio.CancelScope(shield=True):
            await self.serve([sock])
        self.left.set()

    def finish(self) -> None:
        """Take no new connection. Streams for the server's own messages are cut: nothing else would end them."""
        self.should_exit = True
        self._cut("GET")

    def drop(self) -> None:
        """Take no new connection and cut those that there are, which to their requests is a client that left."""
        self.should_exit = self._dropping = True
        self._cut()

    def _cut(self, method: str | None = None) -> None:
        for connection in list(self.server_state.connections):
            if method in (None, (getattr(connection, "scope", None) or {}).get("method")):
                connection.transport.abort()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._dropping:
            self._cut()  # what came since
        await super().shutdown(sockets)


class _Gate:
    """The ASGI application: lets a request through to the SDK once its headers, token, size and frame are sound.

    Each session of the handshake era has its own `current_session`. Stateless requests, which belong to none, share
    the session of the token that they bear.
    """

    def __init__(self, manager: StreamableHTTPSessionManager, token: str, port: int) -> None:
        names = [f"{name}:{port}" for name in (_ADDRESS, "localhost")]
        own = TransportSecuritySettings(allowed_hosts=names, allowed_origins=[f"http://{name}" for name in names])
        self._headers = TransportSecurityMiddleware(own)
        self._limited = RequestBodyLimitMiddleware(self._guarded, MAX_FRAME_BYTES)
        self._manager = manager
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        refused = await self._headers.validate_request(request) or self._refusal(request)
        await (refused or self._limited)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        if request.url.path != PATH:
            return _refused(404, BadRequest("Nothing is served at this path.", allowed=PATH))
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        advice = "Send `Authorization: Bearer TOKEN`; `rolecall serve --http` says which file holds the token."
        error = Unauthorized("This request bears no token of this host.", advice=advice)
        return _refused(401, error, {"WWW-Authenticate": 'Bearer realm="rolecall"'})

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await receive()  # the whole of it: the limit has read it
        if body["type"] != "http.request" or body["more_body"]:
            return  # the client is gone
        message = parse_message(body["body"]) if scope["method"] == "POST" else None
        if isinstance(message, Refusal):
            refused = message.model_dump_json(by_alias=True, exclude_unset=True)
            await Response(refused, 400, media_type="application/json")(scope, receive, send)
            return
        secret = Headers(scope=scope).get(MCP_SESSION_ID_HEADER) or self._token
        # Receipts and logs hold no session's secret, only what it is known by.
        session = hashlib.sha256(secret.encode()).hexdigest()[:16]
        current_session.set(SessionInfo(session, Path.home(), client_name(message) if message else ""))
        unread = [body]

        async def again() -> Message:
            return unread.pop() if unread else await receive()

        await self._manager.handle_request(scope, again, send)


def _refused(status: int, error: RolecallError, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": error.to_dict()}, status, headers)
