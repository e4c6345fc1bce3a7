"""The MCP server object: lists the tools, runs a call, and turns every outcome or failure into a result."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from pydantic import ValidationError

from rolecall.retrieval.tasks import together

from ..errors import BadRequest, told
from ..orchestration.contract import Call, OnProgress, Outcome
from ..orchestration.jobs import Jobs
from ..protocol import VERSION
from .elicit import with_consent
from .prompts import get_prompt, list_prompts
from .reply import error_result, job_reply, reply, typed
from .resources import Resources
from .tools import INSTRUCTIONS, JOB, TOOLS, Given, Tool, tool_list

Done = TypeVar("Done")

HEARTBEAT_S = 4.5
"""A client's clock is fed at least this often. Source: the TypeScript SDK gives up after 60 s without progress."""

PROGRESS_INTERVAL_S = 0.2

SHORT_S = 50.0
"""Under the 60 s of the TypeScript SDK's clients, which most are."""

LONG_S = 600.0
RESET_BY_PROGRESS = frozenset({"claude-code", "opencode"})
"""Clients whose clock starts anew at each progress message that they ask for.

Source: https://github.com/vfarcic/dot-ai/pull/708, https://github.com/anomalyco/opencode/pull/21701.
"""

OWN_LIMIT_S = {"Visual Studio Code": 240.0, "Visual Studio Code - Insiders": 240.0}
"""Clients with a longer limit of their own, progress or not.

Source: https://github.com/microsoft/vscode/issues/261734 (five minutes).
"""


def call_deadline_s(client: str, progress: bool) -> float:
    """Seconds until a call goes on as a job, less than the client of this name waits, which wants progress messages or
    not. docs/surface.md has the table."""
    if progress and client in RESET_BY_PROGRESS:
        return LONG_S
    return OWN_LIMIT_S.get(client, SHORT_S)


def build_server(
    jobs: Jobs,
    on_listed: Callable[[], None] = lambda: None,
    deadline_s: float | None = None,
    resources: Resources | None = None,
) -> Server[Any]:
    """The server that every connection shares; `jobs` runs its calls.

    `on_listed` is called when a client has asked for the tools: the moment to warm what it is about to use.
    `deadline_s` bounds calls in place of what is known of the client. Without `resources` there are none to read, and
    no folder is asked for.
    """

    async def list_tools(
        ctx: ServerRequestContext, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        on_listed()
        return tool_list()

    async def call_tool(
        ctx: ServerRequestContext, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        try:
            client = ctx.session.client_params
            progress = bool(ctx.meta and ctx.meta.get("progress_token") is not None)
            within_s = deadline_s or call_deadline_s(client.client_info.name if client else "", progress)
            if params.name == "job":
                return await follow(ctx, params.arguments or {}, within_s)
            call = parse_call(params.name, params.arguments or {})

            async def work(tell: OnProgress) -> Outcome | types.InputRequiredResult:
                attempt = partial(jobs.run, call, tell, within_s)
                return await (with_consent(ctx, params, resources.access, attempt) if resources else attempt())

            outcome = await _with_progress(ctx, work)
            if isinstance(outcome, types.InputRequiredResult):
                return outcome
            return await reply(jobs, call.tool, outcome)
        except Exception as error:
            return error_result(told(f"The tool {params.name!r}", error), ctx.request_id)

    async def follow(ctx: ServerRequestContext, given: dict[str, Any], within_s: float) -> types.CallToolResult:
        asked = _parsed("job", JOB, given)
        match asked.action:
            case "status":
                job = await jobs.status(asked.id)
            case "result":
                job = await _with_progress(ctx, lambda tell: jobs.result(asked.id, tell, within_s))
            case "cancel":
                job = await jobs.cancel(asked.id)
        return await job_reply(jobs, asked.id, job)

    server = Server[Any](
        "rolecall",
        version=VERSION,
        title="Rolecall",
        description="A staff of local models behind one deterministic router.",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        **(resources.handlers() if resources else {}),
    )
    sealed = RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=server.name)
    server.middleware += [typed, sealed]
    return server


def parse_call(name: str, given: dict[str, Any]) -> Call:
    """A tool's arguments as an orchestrator call. Raises BadRequest: an unknown tool or argument, a missing one, or a
    value out of bounds."""
    if (tool := TOOLS.get(name)) is None:
        raise BadRequest(f"There is no tool {name[:100]!r}.", allowed=", ".join(TOOLS), advice="Call one of these.")
    return _parsed(name, tool, given)


def _parsed(name: str, tool: Tool[Given], given: dict[str, Any]) -> Given:
    try:
        return tool.arguments.model_validate(given)
    except ValidationError as error:
        raise _bad_arguments(name, tool, error) from None


def _bad_arguments(name: str, tool: Tool[Any], error: ValidationError) -> BadRequest:
    problems = []
    for item in error.errors()[:5]:
        where = ".".join(str(part) for part in item["loc"])[:100] or "arguments"
        value = item.get("input")
        seen = f"{type(value).__name__}" + (f" of length {len(value)}" if isinstance(value, str | list | dict) else "")
        reason = "unknown argument" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        problems.append(f"{where}: {reason} (got {seen})")
    return BadRequest(
        f"The arguments of {name} are not valid.",
        found="; ".join(problems),
        allowed=", ".join(info.alias or field for field, info in tool.arguments.model_fields.items()),
        advice="Correct the call and send it again; long content goes into a file named in `paths`.",
    )


async def _with_progress(ctx: ServerRequestContext, work: Callable[[OnProgress], Awaitable[Done]]) -> Done:
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

    async with together() as tasks:
        tasks.start_soon(report)
        outcome = await work(tell)
        tasks.cancel_scope.cancel()
    return outcome
