"""The list of the seven tools, as a client gets it."""

from __future__ import annotations

from functools import cache
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import mcp_types as types
from pydantic import BaseModel, Field

from rolecall.config.profile import Frozen

from ..orchestration.contract import (
    Call,
    CodeCall,
    Name,
    Outcome,
    ReasonCall,
    RetrieveCall,
    RouteCall,
    SummarizeCall,
    ValidateCall,
)  # fmt: skip
from . import results

Given = TypeVar("Given", bound=Frozen)

INSTRUCTIONS = """\
Rolecall hands work to local models and local documents on this machine: private, free per call, and outside your
context. Pass file `paths` instead of reading files yourself, and `save_to` instead of retyping output.
- summarize, reason, code: bulk reading, condensing, extracting with a schema, drafting. - retrieve: find and cite
passages in the user's indexed folders. - validate: check a text against evidence, a schema or a grammar.
- route: exact arithmetic, units, dates, machine state, or let the router choose.
- job: fetch the answer of a call that came back with a `job_id`.
Do it yourself when the answer needs no file and is short, or when a result has status "unverified"."""


class JobArguments(Frozen):
    """Follow a call that came back with a `job_id`: its status, its result (as the tool's own), or cancel it. Not for
    starting work."""

    id: Name = Field(description="The `job_id` of a result.")
    action: Literal["status", "result", "cancel"] = Field(default="status", description="`result` waits for the end.")


class Tool(NamedTuple, Generic[Given]):
    """What a client sees of a tool; the arguments' docstring is its description. `writes`: it may create a file or stop
    a job."""

    title: str
    arguments: type[Given]
    result: type[BaseModel]
    writes: bool = False


TOOLS: dict[str, Tool[Call]] = {
    "route": Tool("Route and answer", RouteCall, results.RouteResult),
    "reason": Tool("Reason locally", ReasonCall, results.ReasonResult),
    "code": Tool("Write code locally", CodeCall, results.CodeResult, writes=True),
    "summarize": Tool("Summarize locally", SummarizeCall, results.SummarizeResult, writes=True),
    "retrieve": Tool("Search local documents", RetrieveCall, results.RetrieveResult),
    "validate": Tool("Validate an output", ValidateCall, results.ValidateResult),
}
"""The six that make calls."""

JOB = Tool("Follow a job", JobArguments, results.JobResult, writes=True)


@cache
def tool_list() -> types.ListToolsResult:
    """The answer to `tools/list`."""
    return types.ListToolsResult(tools=[*map(_declare, TOOLS, TOOLS.values()), _declare("job", JOB)])


def result_of(tool: str, outcome: Outcome) -> BaseModel:
    """The tool's own result: of what the outcome holds, the fields that the tool shows."""
    return TOOLS[tool].result.model_validate(outcome, from_attributes=True)


def _declare(name: str, tool: Tool[Any]) -> types.Tool:
    return types.Tool(
        name=name,
        title=tool.title,
        description=" ".join((tool.arguments.__doc__ or "").split()),
        input_schema=slim_schema(tool.arguments, "validation"),
        output_schema=slim_schema(tool.result, "serialization"),
        annotations=types.ToolAnnotations(
            read_only_hint=not tool.writes,
            destructive_hint=False if tool.writes else None,  # means something only where a tool writes; so the next
            idempotent_hint=True if tool is JOB else None,
            open_world_hint=False,
        ),
        _meta={"anthropic/alwaysLoad": True},
    )


def slim_schema(model: type[BaseModel], mode: Any) -> dict[str, Any]:
    """A model's JSON Schema at the length a context can afford.

    Generated titles, references, bounds, `null` alternatives of optional arguments and bans of further ones are left
    out: the server accepts null, and names a broken bound or an unknown argument in its error, so they tell the
    client's model nothing it needs.
    """
    schema = model.model_json_schema(mode=mode)
    definitions = schema.pop("$defs", {})
    for each in (schema, *definitions.values()):  # docstrings
        each.pop("description", None)
    slim = _slim(schema, definitions, optional_null=mode == "validation")
    assert isinstance(slim, dict)
    return slim


_UNSHOWN = {"title", "minLength", "maxLength", "maxItems", "minimum", "maximum", "exclusiveMinimum"}


def _slim(node: Any, definitions: dict[str, Any], optional_null: bool) -> Any:
    if isinstance(node, list):
        return [_slim(item, definitions, optional_null) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].removeprefix("#/$defs/")]
        return _slim({**target, **{k: v for k, v in node.items() if k != "$ref"}}, definitions, optional_null)
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            out[key] = {name: _slim(schema, definitions, optional_null) for name, schema in value.items()}
        elif key not in _UNSHOWN and not (key == "default" and value in (None, [], {})):
            out[key] = _slim(value, definitions, optional_null)
    if optional_null and "anyOf" in out:
        left = [choice for choice in out.pop("anyOf") if choice != {"type": "null"}]
        out = {**(left[0] if len(left) == 1 else {"anyOf": left}), **out}
    if optional_null or out.get("additionalProperties") is True:
        out.pop("additionalProperties", None)
    return out
