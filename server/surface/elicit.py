"""Asking the user for a folder that a call needs and that is not allowed yet: once, where the client can ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio.to_thread
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.errors import PathNotAllowed, RetrievalError

from ..orchestration.contract import Outcome

_ALLOW = "allow"


async def with_consent(
    ctx: ServerRequestContext,
    params: types.CallToolRequestParams,
    access: AllowedFolders,
    attempt: Callable[[], Awaitable[Outcome]],
) -> Outcome | types.InputRequiredResult:
    """Make a call; where it needs a folder, ask, and make it again where the user agrees.

    In the handshake era the question is a request to the client. Since 2026-07-28 it is the call's result, and the
    client makes the call again with the answer and with `request_state`, which the server's boundary has sealed. Raises
    PathNotAllowed: as without a question, where the user declines or the client cannot ask."""
    asked = params.request_state
    if asked is not None and _accepted((params.input_responses or {}).get(_ALLOW)):
        await anyio.to_thread.run_sync(access.add, Path(asked))
    try:
        return await attempt()
    except PathNotAllowed as refused:
        can = ctx.session.client_capabilities and ctx.session.client_capabilities.elicitation
        if asked is not None or not can or (can.url and not can.form) or refused.folder is None:
            raise
        try:
            folder = await anyio.to_thread.run_sync(access.allowable, refused.folder)
            words = (
                f"{params.name} needs the folder {folder}, which Rolecall may not use yet. From now on, may its tools "
                "read it and all below it, and create new files there? `rolecall allow --remove` takes it back."
            )
            form = types.ElicitRequestFormParams(message=words, requested_schema={"type": "object", "properties": {}})
            question = types.ElicitRequest(params=form)
            if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
                return types.InputRequiredResult(input_requests={_ALLOW: question}, request_state=str(folder))
            related = ServerMessageMetadata(related_request_id=ctx.request_id)
            answer = await ctx.session.send_request(question, types.ElicitResult, metadata=related)
        except (RetrievalError, MCPError, ValidationError):  # never to be allowed, or the client cannot ask after all
            raise refused from None
        if not _accepted(answer):
            raise
    await anyio.to_thread.run_sync(access.add, folder)
    return await attempt()


def _accepted(answer: object) -> bool:
    return isinstance(answer, types.ElicitResult) and answer.action == "accept"
