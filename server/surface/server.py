"""The MCP server object: lists the six tools, runs a call, and turns every outcome or failure into a result."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import anyio
import mcp_types as types
import structlog
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from pydantic import ValidationError

from rolecall.config.errors import RolecallError

from ..errors import BadRequest
from ..orchestration.contract import Call, OnProgress, Outcome
from ..protocol import VERSION
from ..session import current_session
from .tools import INSTRUCTIONS, TOOLS, result_of, spec_of, tool_list

RunCall = Callable[[Call, OnProgress], Awaitable[Outcome]]

HEARTBEAT_S = 5.0
"""A client's clock is fed at least this often. Source: the TypeScript SDK gives up after 60 s without progress."""

PROGRESS_INTERVAL_S = 0.2

log = structlog.get_logger()


def build_server(run: RunCall, on_listed: Callable[[], None] = lambda: None) -> Server[Any]:
    """The server that every connection shares; `run` is the orchestrator.

    `on_listed` is called when a client has asked for the tools: the moment to warm what it is about to use.
    """

    async def list_tools(
        ctx: ServerRequestContext[Any, Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        on_listed()
        return tool_list()

    async def call_tool(
        ctx: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        try:
            call = parse_call(params.name, params.arguments or {})
            outcome = await _with_progress(ctx, lambda tell: run(call, tell))
        except RolecallError as error:
            return error_result(error, ctx.request_id)
        except Exception as error:
            log.exception("tool_failed", tool=params.name, error=type(error).__name__)
            internal = RolecallError(
                f"The tool {params.name!r} failed inside the host ({type(error).__name__}).",
                advice="Try again; `rolecall logs` has the details.",
            )
            return error_result(internal, ctx.request_id)
        return success_result(params.name, outcome)

    return Server(
        "rolecall",
        version=VERSION,
        title="Rolecall",
        description="A staff of local models behind one deterministic router.",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def parse_call(name: str, given: dict[str, Any]) -> Call:
    """A tool's arguments as an orchestrator call, for the session that is asking.

    Raises:
        BadRequest: an unknown tool or argument, a missing one, or a value out of bounds.
    """
    spec = spec_of(name)
    if spec is None:
        raise BadRequest(
            f"There is no tool {name[:100]!r}.",
            allowed=", ".join(tool.name for tool in TOOLS),
            advice="Call one of these.",
        )
    try:
        parsed = spec.arguments.model_validate(given)
    except ValidationError as error:
        raise _bad_arguments(name, error, list(spec.arguments.model_json_schema()["properties"])) from None
    return parsed.call(current_session.get())


def _bad_arguments(name: str, error: ValidationError, allowed: list[str]) -> BadRequest:
    problems = []
    for item in error.errors()[:5]:
        where = ".".join(str(part) for part in item["loc"]) or "arguments"
        value = item.get("input")
        seen = f"{type(value).__name__}" + (f" of length {len(value)}" if isinstance(value, str | list | dict) else "")
        reason = "unknown argument" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        problems.append(f"{where}: {reason} (got {seen})")
    return BadRequest(
        f"The arguments of {name} are not valid.",
        found="; ".join(problems),
        allowed=", ".join(allowed),
        advice="Correct the call and send it again; long content goes into a file named in `paths`.",
    )


async def _with_progress(
    ctx: ServerRequestContext[Any, Any], work: Callable[[OnProgress], Awaitable[Outcome]]
) -> Outcome:
    """Run `work` while its latest words go to the client: at most five times a second, at least every five."""
    words, fraction = "working", 0.0
    news = anyio.Event()
    started = time.monotonic()

    def tell(message: str, done: float | None) -> None:
        nonlocal words, fraction
        words = message
        if done is not None:
            fraction = max(fraction, min(done, 0.99))
        news.set()

    async def report() -> None:
        nonlocal news
        value = 0.0
        while True:
            with anyio.move_on_after(HEARTBEAT_S) as silence:
                await news.wait()
            news = anyio.Event()
            said = f"{words} ({time.monotonic() - started:.0f} s)" if silence.cancelled_caught else words
            # The protocol wants every value above the last one, also where nothing is known to have advanced.
            value = max(value + 0.001, fraction * 100)
            await ctx.session.report_progress(value, 100.0, said)
            await anyio.sleep(PROGRESS_INTERVAL_S)

    outcome: Outcome | Exception
    async with anyio.create_task_group() as group:
        group.start_soon(report)
        try:
            outcome = await work(tell)
        except Exception as error:  # raised below, where the task group does not wrap it
            outcome = error
        group.cancel_scope.cancel()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def success_result(tool: str, outcome: Outcome) -> types.CallToolResult:
    """The answer as text and as structured content; what it cost in `_meta`."""
    result = result_of(tool, outcome)
    text = outcome.answer
    if outcome.status != "ok" or outcome.warnings:
        text += f"\n\n[status: {outcome.status}]" + "".join(f"\n- {warning}" for warning in outcome.warnings)
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)],
        structured_content=result.model_dump(mode="json"),
        _meta={"rolecall/cost": asdict(outcome.meta)},
    )


def error_result(error: RolecallError, request_id: str | int | None) -> types.CallToolResult:
    """A failure as a tool error whose text is complete: code, message, request id, what to do."""
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=f"[{error.code}] {error} (request {request_id})")],
        is_error=True,
        _meta={"rolecall/error": {**error.to_dict(), "request_id": request_id}},
    )
