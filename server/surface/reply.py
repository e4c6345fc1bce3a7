"""What goes back to the client: an outcome as a result that a context can hold, a job's state, a typed error."""

from __future__ import annotations

import json
import re
from typing import Any

import mcp_types as types
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from rolecall.config.errors import RolecallError
from rolecall.retrieval.contract import IndexState

from ..errors import BadRequest, ResourceUnknown, told
from ..orchestration.contract import Outcome
from ..orchestration.jobs import Job, Jobs
from .results import JobResult
from .tools import result_of

MAX_RESULT_BYTES = 68_000
"""Under 20,000 tokens at 3.5 bytes each, with what is around text and content. Claude Code cuts at 25,000."""

BYTES_PER_TOKEN = 3.5

MAX_REASONS = 4
"""Of those for which files are not in the index, the commonest are named."""

_UNITS_S = ((172_800, 86_400, "d"), (7_200, 3_600, "h"), (120, 60, "min"))

RESOURCE_NOT_FOUND = -32002
"""Source: the specification of 2025-11-25, "Resources"; that of 2026-07-28 retires it for -32602."""

_FENCED = re.compile(r"^(```+|~~~+).*?^\1[ \t]*$", re.DOTALL | re.MULTILINE)


async def reply(jobs: Jobs, tool: str, outcome: Outcome, id: str | None = None) -> types.CallToolResult:
    """The answer as text and as structured content; what it cost in `_meta`.

    A result that is too long is cut, with a link to the whole of it, which is kept (under `id` already, or now).
    """
    result, fresh, links = *plain_result(tool, outcome), list[types.ResourceLink]()
    if (size := _size(result)) > MAX_RESULT_BYTES:
        id = id or await jobs.keep(tool, outcome)
        uri = f"rolecall://results/{id}"
        where = f"the whole of it is the resource {uri}" if id else "the rest could not be kept"
        note = f"Only a part is shown (the result has about {size / BYTES_PER_TOKEN:,.0f} tokens, estimated): {where}."
        result = cut({**result, "warnings": [note, *result["warnings"]]}, MAX_RESULT_BYTES)
        if id:
            name = f"The whole result of {tool}"
            links = [types.ResourceLink(type="resource_link", name=name, uri=uri, mime_type="application/json")]
    text, warnings = result["answer"].removesuffix(fresh) + fresh, result["warnings"]
    if result["status"] != "ok" or warnings:
        text += f"\n\n[status: {result['status']}]" + "".join(f"\n- {warning}" for warning in warnings)
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text), *links],
        structured_content=_once(result, by_model=bool(outcome.meta.get("model_calls"))),
        _meta={"rolecall/cost": outcome.meta},
    )


def plain_result(tool: str, outcome: Outcome) -> tuple[dict[str, Any], str]:
    """The whole result, and the words on the index that end its answer, unless it has that as data."""
    result = result_of(tool, outcome).model_dump(mode="json")
    fresh = f"\n\n[{freshness(outcome.index)}]" if outcome.index else ""
    if "index" not in result:
        result["answer"] += fresh
    return result, fresh


def freshness(index: IndexState) -> str:
    """How complete and how old the searched index is, in a line."""
    reasons = sorted(index.reasons.items(), key=lambda reason: (-reason[1], reason[0]))
    listed = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in reasons[:MAX_REASONS])
    counts = f"index: {index.indexed:,} files, {index.pending:,} pending, {index.skipped:,} skipped"
    counts += f", {index.failed:,} failed" + (f" ({listed})" if listed else "")
    if index.age_s is None:
        return f"{counts}; never synced whole"
    unit_s, unit = next(((s, name) for least_s, s, name in _UNITS_S if index.age_s >= least_s), (1, "s"))
    return f"{counts}; synced {index.age_s / unit_s:.0f} {unit} ago"


def _once(result: dict[str, Any], by_model: bool) -> dict[str, Any]:
    """The result without what its answer would say once more: passages, code blocks, summaries of single files."""
    answer = result["answer"]
    if result.get("passages") and not by_model:
        answer = f"{len(result['passages'])} passages, under `passages`, the best first."
    elif result.get("items"):
        answer = f"{len(result['items'])} summaries, under `items`."
    elif result.get("blocks"):
        answer = _FENCED.sub("[under `blocks`]", answer)
    return {**result, "answer": answer}


async def job_reply(jobs: Jobs, id: str, job: Job) -> types.CallToolResult:
    """A job's state, and its tool's result once it has one."""
    state = JobResult(
        id=id, tool=job.tool, state=job.state, words=job.words, fraction=job.fraction, seconds=round(job.seconds, 1)
    )
    content = state.model_dump(mode="json")
    if job.outcome is None:
        text = f"{job.tool} is {job.state} after {job.seconds:.0f} s: {job.words}"
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], structured_content=content)
    answer = await reply(jobs, job.tool, job.outcome, id)
    return answer.model_copy(update={"structured_content": {**content, "result": answer.structured_content}})


def error_result(error: RolecallError, request_id: str | int | None) -> types.CallToolResult:
    """A failure as a tool error whose text is complete: code, message, request id, what to do."""
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=f"[{error.code}] {error} (request {request_id})")],
        is_error=True,
        _meta={"rolecall/error": {**error.to_dict(), "request_id": request_id}},
    )


async def typed(ctx: ServerRequestContext, call_next: CallNext) -> HandlerResult:
    """Middleware: what other requests than tool calls fail with, typed and in the codes of the client's era.

    The SDK would send the client an exception's own words, and log them.
    """
    try:
        return await call_next(ctx)
    except (MCPError, ValidationError):
        raise
    except Exception as error:
        failed = told(ctx.method, error)
    code = types.INVALID_PARAMS if isinstance(failed, BadRequest) else types.INTERNAL_ERROR
    data = failed.to_dict()
    if isinstance(failed, ResourceUnknown):
        data["uri"] = (ctx.params or {}).get("uri")  # the specification wants it in both eras
        code = code if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS else RESOURCE_NOT_FOUND
    raise MCPError(code, str(failed), data)


def cut(result: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    """The result with its longest members halved until it fits; `data`, which must stay valid, goes as a whole."""
    result = dict(result)
    while _size(result) > max_bytes:
        name = max(result, key=lambda each: _bytes(result[each]))
        value = result[name]
        result[name] = value[: len(value) // 2] if isinstance(value, str | list) and name != "data" else None
    return result


def _size(result: dict[str, Any]) -> int:
    """Bytes of the result as structured content and as text."""
    return _bytes(result) + _bytes(result["answer"])


def _bytes(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
