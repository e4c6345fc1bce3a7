"""Updates of resources: whoever subscribed hears of a change once, however often it happens before that is sent."""

from __future__ import annotations

from functools import partial

import anyio
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.session import ServerSession
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourceUpdated, ServerEvent

from ..errors import BadRequest

MODELS, STATUS = "rolecall://models", "rolecall://status"

_WANTED = "rolecall_wanted"


class Updates:
    """Tells subscribers of both eras what changed; `run` sends until it is cancelled. For one event loop.

    `listen` answers `subscriptions/listen`; `subscribe` and `unsubscribe` are the handshake era's.
    """

    def __init__(self) -> None:
        self._bus = InMemorySubscriptionBus()
        self._tasks = anyio.create_task_group()
        self._changed, self._news = set[str](), anyio.Event()
        self.listen = ListenHandler(self._bus)

    def changed(self, *uris: str) -> None:
        """Note that resources changed; returns at once."""
        self._changed.update(uris)
        self._news.set()

    async def run(self) -> None:
        async with self._tasks:
            while True:
                await self._news.wait()
                self._news = anyio.Event()
                while self._changed:
                    await self._bus.publish(ResourceUpdated(self._changed.pop()))

    async def subscribe(self, ctx: ServerRequestContext, params: types.SubscribeRequestParams) -> types.EmptyResult:
        if params.uri not in (MODELS, STATUS):
            allowed, advice = f"{MODELS}, {STATUS}", "Subscribe to one of these; read the others when needed."
            raise BadRequest("This resource sends no updates.", allowed=allowed, advice=advice)
        connection = ctx.session._connection  # the SDK offers nothing else that lives as long as the subscription
        if _WANTED not in connection.state:
            wanted = connection.state[_WANTED] = set[str]()
            hear = partial(self._hear, ctx.session, wanted, set())
            connection.exit_stack.callback(self._bus.subscribe(hear))
        connection.state[_WANTED].add(params.uri)
        return types.EmptyResult()

    async def unsubscribe(self, ctx: ServerRequestContext, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        ctx.session._connection.state.get(_WANTED, set[str]()).discard(params.uri)
        return types.EmptyResult()

    def _hear(self, session: ServerSession, wanted: set[str], sending: set[str], event: ServerEvent) -> None:
        """In a task, as a client that does not read must hold up no other; what waits to be sent tells it all."""
        if isinstance(event, ResourceUpdated) and event.uri in wanted - sending:
            sending.add(event.uri)
            self._tasks.start_soon(self._send, session, event.uri, sending)

    async def _send(self, session: ServerSession, uri: str, sending: set[str]) -> None:
        await session.send_resource_updated(uri)
        sending.discard(uri)
