"""The tools, resources and prompts that the conformance tool asks for by name, laid over the product's server object.

What they return is prescribed by the tool (its SERVER_REQUIREMENTS.md and its scenarios' own words). Whatever they do
not know, the product answers.
"""

from __future__ import annotations

import base64
import json
from functools import partial
from typing import Annotated, Any, Literal

import anyio
import mcp_types as types
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.server.subscriptions import ListenHandler
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from pydantic import BaseModel, Field

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
SOUND = b"RIFF&\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0\x80>\0\0\2\0\x10\0data\2\0\0\0\0\0"
BETWEEN_S = 0.05
"""The pause that the requirements want between two notifications of one call."""

Asked = types.InputRequiredResult
server = MCPServer("fixtures")
tool = partial(server.tool, description="A fixture of the conformance tool.")
prompt = partial(server.prompt, description="A fixture of the conformance tool.")


def words(text: str) -> types.TextContent:
    return types.TextContent(type="text", text=text)


def picture() -> types.ImageContent:
    return types.ImageContent(type="image", data=PIXEL, mime_type="image/png")


def embedded(uri: str, mime_type: str, text: str) -> types.EmbeddedResource:
    held = types.TextResourceContents(uri=uri, mime_type=mime_type, text=text)
    return types.EmbeddedResource(type="resource", resource=held)


@tool()
def test_simple_text() -> str:
    return "This is a simple text response for testing."


@tool()
def test_image_content() -> list[types.ImageContent]:
    return [picture()]


@tool()
def test_audio_content() -> list[types.AudioContent]:
    return [types.AudioContent(type="audio", data=base64.b64encode(SOUND).decode(), mime_type="audio/wav")]


@tool()
def test_embedded_resource() -> list[types.EmbeddedResource]:
    return [embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")]


@tool()
def test_multiple_content_types() -> list[types.TextContent | types.ImageContent | types.EmbeddedResource]:
    mixed = embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
    return [words("Multiple content types test:"), picture(), mixed]


@tool()
def test_error_handling() -> str:
    raise RuntimeError("This tool intentionally returns an error for testing")


@tool()
async def test_tool_with_logging(ctx: Context) -> str:
    for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        note = types.LoggingMessageNotificationParams(level="info", data=text)
        await ctx.session.send_notification(types.LoggingMessageNotification(params=note), ctx.request_id)
        await anyio.sleep(BETWEEN_S)
    return "logged"


@tool()
async def test_tool_with_progress(ctx: Context) -> str:
    for done in (0, 50, 100):
        await ctx.report_progress(done, 100)
        await anyio.sleep(BETWEEN_S)
    return "done"


@tool()
async def test_sampling(prompt: str, ctx: Context) -> str:
    answer = await _ask(ctx, _sampling(prompt), types.CreateMessageResult)
    assert isinstance(answer.content, types.TextContent)
    return f"LLM response: {answer.content.text}"


class Response(BaseModel):
    response: str = Field(description="User's response")


class Defaults(BaseModel):
    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: Annotated[str, Field(json_schema_extra={"enum": ["active", "inactive", "pending"]})] = "active"
    verified: bool = True


def _titled(*named: tuple[str, str]) -> Any:
    return [{"const": value, "title": title} for value, title in named]


LEVELS = _titled(("low", "Low Priority"), ("high", "High Priority"))
RIGHTS: Any = {"type": "string", "enum": ["read", "write"]}
KINDS = _titled(("feature", "New Feature"), ("bug", "Bug Fix"))


class Choices(BaseModel):
    untitledSingle: Annotated[str, Field(json_schema_extra={"enum": ["active", "inactive"]})]
    titledSingle: Annotated[str, Field(json_schema_extra={"oneOf": LEVELS})]
    legacyEnum: Annotated[str, Field(json_schema_extra={"enum": ["s", "l"], "enumNames": ["Small", "Large"]})]
    untitledMulti: Annotated[list[str], Field(json_schema_extra={"items": RIGHTS})]
    titledMulti: Annotated[list[str], Field(json_schema_extra={"items": {"anyOf": KINDS}})]


@tool()
async def test_elicitation(message: str, ctx: Context) -> str:
    return await _elicited(ctx, message, Response)


@tool()
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    return await _elicited(ctx, "Please review these values", Defaults)


@tool()
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    return await _elicited(ctx, "Please choose", Choices)


async def _elicited(ctx: Context, message: str, form: type[BaseModel]) -> str:
    answer = await ctx.elicit(message=message, schema=form)
    content = answer.data.model_dump_json() if answer.action == "accept" else "{}"
    return f"User response: action={answer.action}, content={content}"


@tool()
def test_x_mcp_header(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})] = "none") -> str:
    return region


@tool()
async def test_missing_capability(ctx: Context) -> str:
    if not (ctx.client_capabilities and ctx.client_capabilities.sampling):
        needed = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "Sampling is needed.", needed)
    return "declared"


@tool()
async def test_trigger_tool_change(ctx: Context) -> str:
    await ctx.notify_tools_changed()
    return "told"


@tool()
async def test_trigger_prompt_change(ctx: Context) -> str:
    await ctx.notify_prompts_changed()
    return "told"


# Since 2026-07-28 a server asks by returning what it needs; the client calls again with the answers.


@tool()
async def test_input_required_result_elicitation(ctx: Context) -> str | Asked:
    if (name := _field(ctx, "user_name", "name")) is None:
        return Asked(input_requests={"user_name": _form("What is your name?", name="string")})
    return f"Hello, {name}!"


@tool()
async def test_input_required_result_sampling(ctx: Context) -> str | Asked:
    match (ctx.input_responses or {}).get("capital_question"):
        case types.CreateMessageResult(content=types.TextContent(text=text)):
            return text
    return Asked(input_requests={"capital_question": _sampling("What is the capital of France?")})


@tool()
async def test_input_required_result_list_roots(ctx: Context) -> str | Asked:
    match (ctx.input_responses or {}).get("client_roots"):
        case types.ListRootsResult(roots=roots):
            return f"{len(roots)} roots"
    return Asked(input_requests={"client_roots": types.ListRootsRequest()})


@tool()
async def test_input_required_result_request_state(ctx: Context) -> str | Asked:
    if ctx.request_state == "asked" and _field(ctx, "confirm", "ok") is not None:
        return "state-ok"
    return Asked(input_requests={"confirm": _form("Please confirm", ok="boolean")}, request_state="asked")


@tool()
async def test_input_required_result_tampered_state(ctx: Context) -> str | Asked:
    return await test_input_required_result_request_state(ctx)


@tool()
async def test_input_required_result_multiple_inputs(ctx: Context) -> str | Asked:
    wanted: dict[str, types.InputRequest] = {
        "user_name": _form("What is your name?", name="string"),
        "greeting": _sampling("Greet the user"),
        "client_roots": types.ListRootsRequest(),
    }
    if wanted.keys() <= (ctx.input_responses or {}).keys():
        return "all answered"
    return Asked(input_requests=wanted, request_state="asked")


@tool()
async def test_input_required_result_multi_round(ctx: Context) -> str | Asked:
    match json.loads(ctx.request_state or "[]"), _field(ctx, "step1", "name"), _field(ctx, "step2", "color"):
        case [str() as name], _, str() as colour:
            return f"{name} likes {colour}"
        case _, str() as name, _:
            second: dict[str, types.InputRequest] = {"step2": _form("Which colour do you like?", color="string")}
            return Asked(input_requests=second, request_state=json.dumps([name]))
    return Asked(input_requests={"step1": _form("What is your name?", name="string")}, request_state="[]")


@tool()
async def test_input_required_result_capabilities(ctx: Context) -> Asked:
    can = ctx.client_capabilities
    wanted: dict[str, types.InputRequest] = {}
    if can and can.sampling:
        wanted["sample"] = _sampling("Say hello")
    if can and can.elicitation:
        wanted["ask"] = _form("What is your name?", name="string")
    return Asked(input_requests=wanted, request_state="asked")


def _sampling(text: str) -> types.CreateMessageRequest:
    message = types.SamplingMessage(role="user", content=words(text))
    return types.CreateMessageRequest(params=types.CreateMessageRequestParams(messages=[message], max_tokens=100))


def _form(message: str, **fields: Literal["string", "boolean"]) -> types.ElicitRequest:
    properties = {name: {"type": kind} for name, kind in fields.items()}
    schema = {"type": "object", "properties": properties, "required": list(fields)}
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=message, requested_schema=schema))


def _field(ctx: Context, request: str, name: str) -> Any:
    answer = (ctx.input_responses or {}).get(request)
    return (answer.content or {}).get(name) if isinstance(answer, types.ElicitResult) else None


async def _ask(ctx: Context, request: types.CreateMessageRequest, kind: type[types.CreateMessageResult]) -> Any:
    related = ServerMessageMetadata(related_request_id=ctx.request_id)
    return await ctx.session.send_request(request, kind, metadata=related)


@server.resource("test://static-text", mime_type="text/plain")
def static_text() -> str:
    return "This is the content of the static text resource."


@server.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    return base64.b64decode(PIXEL)


@server.resource("test://watched-resource", mime_type="text/plain")
def watched() -> str:
    return "Watched resource content"


@server.resource("test://template/{id}/data", mime_type="application/json")
def template(id: str) -> str:
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


@prompt()
def test_simple_prompt() -> str:
    return "This is a simple prompt for testing."


@prompt()
def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


@prompt()
def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
    held = embedded(resourceUri, "text/plain", "Embedded resource content for testing.")
    return [UserMessage(held), UserMessage("Please process the embedded resource above.")]


@prompt()
def test_prompt_with_image() -> list[UserMessage]:
    return [UserMessage(picture()), UserMessage("Please analyze the image above.")]


@prompt()
async def test_input_required_result_prompt(ctx: Context) -> list[UserMessage] | Asked:
    if (context := _field(ctx, "user_context", "context")) is None:
        return Asked(input_requests={"user_context": _form("What context should it use?", context="string")})
    return [UserMessage(f"Use this context: {context}")]


def lay_over(product: Server[Any]) -> None:
    """Add the fixtures to the product's server object: lists are joined, and a fixture's name or URI goes to it."""
    fixtures = server._lowlevel_server
    for method, listed in (
        ("tools/list", "tools"),
        ("prompts/list", "prompts"),
        ("resources/list", "resources"),
        ("resources/templates/list", "resource_templates"),
    ):
        _join(product, fixtures, method, listed)
    for method, key, prefix in (
        ("tools/call", "name", "test_"),
        ("prompts/get", "name", "test_"),
        ("resources/read", "uri", "test://"),
        ("resources/subscribe", "uri", "test://"),
        ("resources/unsubscribe", "uri", "test://"),
    ):
        _divide(product, fixtures, method, key, prefix)
    listening = product.get_request_handler("subscriptions/listen")
    assert listening and isinstance(listening.handler, ListenHandler)
    server._subscriptions = listening.handler._bus
    product.add_request_handler("logging/setLevel", types.SetLevelRequestParams, _nothing)


async def _nothing(_ctx: Any, _params: Any) -> types.EmptyResult:
    return types.EmptyResult()


def _join(product: Server[Any], fixtures: Server[Any], method: str, listed: str) -> None:
    own, added = product.get_request_handler(method), fixtures.get_request_handler(method)
    assert own and added

    async def both(ctx: Any, params: Any) -> Any:
        first: Any = await own.handler(ctx, params)
        second: Any = await added.handler(ctx, params)
        return first.model_copy(update={listed: [*getattr(first, listed), *getattr(second, listed)]})

    product.add_request_handler(method, own.params_type, both)


def _divide(product: Server[Any], fixtures: Server[Any], method: str, key: str, prefix: str) -> None:
    own, added = product.get_request_handler(method), fixtures.get_request_handler(method)
    assert own

    async def either(ctx: Any, params: Any) -> Any:
        handler = added.handler if added else _nothing
        return await (handler if str(getattr(params, key)).startswith(prefix) else own.handler)(ctx, params)

    product.add_request_handler(method, own.params_type, either)
