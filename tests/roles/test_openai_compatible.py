"""An endpoint is probed before it is used, refuses what it cannot do, and every fault of a server is a typed error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from rolecall.config.settings import EndpointSettings
from rolecall.roles.contract import EngineResult, Event, Generated, GenerationRequest, Message, OnEvent, Prefilling
from rolecall.roles.errors import (
    EndpointUnavailable,
    PromptTooLong,
    QueueFull,
    RoleError,
    SchemaRefused,
    WorkerDied,
    WorkerTimeout,
)
from rolecall.roles.openai_compatible import QUEUE_LIMIT, Capabilities, Endpoint
from tests.roles.openai_server import STREAM, Server, event, holds, respond, says, serving

pytestmark = pytest.mark.anyio
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}
SECRET = "sk-very-secret-7391"


def ask(text: str = "The capital of France?", **more: Any) -> GenerationRequest:
    return GenerationRequest(messages=(Message(role="user", content=text),), **{"max_tokens": 16, **more})


@asynccontextmanager
async def endpoint_to(server: Server, **settings: Any) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint("big", EndpointSettings(url=server.url, model="tiny", **settings))
    yield endpoint
    await endpoint.aclose()


async def generate(
    endpoint: Endpoint,
    request: GenerationRequest,
    thinks: bool = False,
    thinking_budget: int | None = None,
    on_event: OnEvent | None = None,
) -> EngineResult:
    return await endpoint.generate(request, thinks, thinking_budget, on_event)


async def test_a_stream_becomes_events_and_a_result_with_the_servers_counts() -> None:
    events: list[Event] = []
    async with serving(reply="It is Paris.") as server, endpoint_to(server) as endpoint:
        result = await generate(endpoint, ask(temperature=0.5, seed=2**40, stop=("x",)), on_event=events.append)

    assert (result.text, result.finish) == ("It is Paris.", "stop")
    assert (result.prompt_tokens, result.completion_tokens, result.cached_tokens) == (11, 3, 5)
    assert isinstance(events[0], Prefilling)
    assert "".join(e.text for e in events if isinstance(e, Generated)) == "It is Paris."
    (sent,) = server.streamed
    assert (sent["model"], sent["max_tokens"], sent["stop"], sent["top_p"]) == ("tiny", 16, ["x"], 1.0)


async def test_a_listener_that_fails_breaks_no_answer() -> None:
    def fail(event: Event) -> None:
        raise ValueError("the listener's own fault")

    async with serving(reply="It is Paris.") as server, endpoint_to(server) as endpoint:
        assert (await generate(endpoint, ask(), on_event=fail)).text == "It is Paris."


async def test_tokens_are_estimated_where_the_server_counts_none_and_the_log_says_so() -> None:
    with capture_logs() as logs:
        async with serving(reply="It is Paris.", usage=False) as server, endpoint_to(server) as endpoint:
            result = await generate(endpoint, ask("x" * 400))

    assert (result.prompt_tokens, result.completion_tokens) == (100, 3)
    assert "endpoint_tokens_estimated" in [line["event"] for line in logs]


async def test_a_server_is_probed_once_and_again_after_it_failed() -> None:
    async with serving() as server, endpoint_to(server) as endpoint:
        first = await endpoint.capabilities()
        await generate(endpoint, ask())
        probes = len(server.bodies) - len(server.streamed)
        server.faults = [says(respond(404, b"{}"))]
        with pytest.raises(EndpointUnavailable):
            await generate(endpoint, ask())
        assert await endpoint.capabilities() == first
        assert len(server.bodies) - len(server.streamed) == 2 * probes
    assert first == Capabilities(context_length=4096, schema=True, logprobs=True, extras=True)


async def test_a_server_that_ignores_schemas_is_found_out_and_a_schema_or_regex_refused() -> None:
    async with serving(enforces=False) as server, endpoint_to(server) as endpoint:
        assert (await endpoint.capabilities()).schema is False
        with pytest.raises(SchemaRefused, match="not enforced"):
            await generate(endpoint, ask(json_schema=SCHEMA))
        with pytest.raises(SchemaRefused, match="regex"):
            await generate(endpoint, ask(regex="[0-9]+"))
        assert server.streamed == []


async def test_a_schema_is_passed_on_to_a_server_that_enforces_it() -> None:
    async with serving() as server, endpoint_to(server) as endpoint:
        result = await generate(endpoint, ask(json_schema=SCHEMA))

    assert json.loads(result.text) == {"city": "Paris"}


async def test_options_beyond_the_api_are_left_out_where_the_server_rejects_them() -> None:
    async with serving(extras=False) as server, endpoint_to(server) as endpoint:
        await generate(endpoint, ask(repetition_penalty=1.1), thinking_budget=0)
        assert not (await endpoint.capabilities()).extras
    assert not {"repetition_penalty", "chat_template_kwargs"} & server.streamed[0].keys()

    async with serving() as server, endpoint_to(server) as endpoint:
        await generate(endpoint, ask(repetition_penalty=1.1), thinking_budget=0)
    assert server.streamed[0]["repetition_penalty"] == 1.1
    assert server.streamed[0]["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize("models", [b"", b"nonsense", b'{"data": 5}', b'{"data": [{"id": "other"}]}'])
async def test_a_server_without_a_list_of_its_models_is_used_all_the_same(models: bytes) -> None:
    async with serving(models=models) as server, endpoint_to(server, context_length=99) as endpoint:
        assert (await generate(endpoint, ask())).text == "Paris."
        assert (await endpoint.capabilities()).context_length == 99


@pytest.mark.parametrize(
    ("reply", "reasoning", "thinks", "answer", "thought"),
    [
        ("Paris.", "Hm, France.", False, "Paris.", "Hm, France."),
        ("<think>Hm,\nFrance.</think>\n\nIt is Paris.", "", False, "It is Paris.", "Hm,\nFrance."),
        ("Hm, France. </think> It is Paris.", "", True, "It is Paris.", "Hm, France."),
        ("It is Paris.", "", True, "It is Paris.", ""),
        ("It is <think> a tag </think> there.", "", False, "It is <think> a tag </think> there.", ""),
    ],
)
async def test_thinking_is_split_from_the_answer_however_the_server_gives_it(
    reply: str, reasoning: str, thinks: bool, answer: str, thought: str
) -> None:
    async with serving(reply=reply, reasoning=reasoning) as server, endpoint_to(server) as endpoint:
        result = await generate(endpoint, ask(), thinks)

    assert (result.text.strip(), result.thinking) == (answer, thought)


async def test_a_thinking_tag_that_comes_in_pieces_is_no_text() -> None:
    pieces = [event(content=piece) for piece in ("<th", "ink>a", "b</", "think", ">c")]
    whole = STREAM + b"".join(pieces) + event("stop") + b"data: [DONE]\n\n"
    async with serving(faults=[says(whole)]) as server, endpoint_to(server) as endpoint:
        result = await generate(endpoint, ask())

    assert (result.text, result.thinking) == ("c", "ab")


async def test_keepalives_and_odd_events_are_passed_over() -> None:
    odd = b': keepalive 1/2\n\ndata: {"choices": null}\r\n\r\ndata: {"choices": [{"delta": null}]}\n\n'
    whole = STREAM + odd + event(content="yes") + event("length")
    async with serving(faults=[says(whole)]) as server, endpoint_to(server) as endpoint:
        result = await generate(endpoint, ask())

    assert (result.text, result.finish) == ("yes", "length")


async def test_labels_are_scored_where_the_server_says_their_probability_and_refused_where_not() -> None:
    async with serving() as server, endpoint_to(server) as endpoint:
        assert await endpoint.score(ask().messages, ["Rome", "Paris"]) == (-3.0, -0.1)
        with pytest.raises(SchemaRefused, match=r"'London'.* none of the 3 most probable"):
            await endpoint.score(ask().messages, ["Paris", "London"])


async def test_labels_are_refused_without_log_probabilities() -> None:
    async with serving(logprobs={}) as server, endpoint_to(server) as endpoint:
        with pytest.raises(SchemaRefused, match="log-probabilities"):
            await endpoint.score(ask().messages, ["Paris"])


async def test_a_prompt_beyond_the_context_is_refused_before_or_as_the_server_says() -> None:
    said = respond(400, b'{"error": {"message": "maximum context length is 9", "code": "context_length_exceeded"}}')
    async with serving() as server, endpoint_to(server) as endpoint:
        with pytest.raises(PromptTooLong, match="about 4100 tokens"):
            await generate(endpoint, ask("long" * 4100))
        assert server.streamed == []
        with pytest.raises(PromptTooLong, match="about 11 tokens and 4090"):  # a server may have cut the prompt
            await generate(endpoint, ask("x", max_tokens=4090))
        server.faults = [says(said)]
        with pytest.raises(PromptTooLong, match="context_length_exceeded"):
            await generate(endpoint, ask())


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_busy_server_is_asked_again_before_the_first_token(status: int) -> None:
    async with serving(faults=[says(respond(status, b"{}"))]) as server, endpoint_to(server) as endpoint:
        assert (await generate(endpoint, ask())).text == "Paris."
        assert len(server.streamed) == 2


async def test_a_server_that_stays_busy_is_unavailable_after_three_attempts() -> None:
    async with serving(faults=[says(respond(429, b"{}"))] * 9) as server, endpoint_to(server) as endpoint:
        with pytest.raises(EndpointUnavailable, match="status 429"):
            await generate(endpoint, ask())
        assert len(server.streamed) == 3


async def test_a_server_that_is_not_there_is_unavailable_at_once() -> None:
    async with serving() as server:
        pass
    async with endpoint_to(server) as endpoint:
        with pytest.raises(EndpointUnavailable, match="no connection"):
            await generate(endpoint, ask())


async def test_a_silent_server_is_away_for_all_who_wait_once_one_has_found_out() -> None:
    async with serving(silent=True) as server, endpoint_to(server, timeout_s=0.3) as endpoint:

        async def ask_it() -> None:
            with pytest.raises(EndpointUnavailable, match="no token in time"):
                await generate(endpoint, ask())

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask_it)
        assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("raw", "error", "found"),
    [
        (respond(302, b"", Location="http://127.0.0.1:1/v1"), EndpointUnavailable, "status 302"),
        (respond(401, b"{}"), EndpointUnavailable, "status 401"),
        (respond(400, b"[1"), SchemaRefused, "status 400"),
        (STREAM + b"data: {nonsense\n\n", EndpointUnavailable, "no chat completion"),
        (STREAM + b"data: [1, 2]\n\n", EndpointUnavailable, "no chat completion"),
        (STREAM + b'data: {"choices": [{"delta": {"content": 7}}]}\n\n', EndpointUnavailable, "no chat completion"),
        (STREAM + b'data: {"error": {"message": "out of memory"}}\n\n', EndpointUnavailable, "error"),
        (STREAM, EndpointUnavailable, "without an end"),
        (STREAM + event(content="It is"), WorkerDied, "without an end"),
        (STREAM + event(content="It is") + b"data: {nonsense\n\n", WorkerDied, "no chat completion"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + event(content="It is"), WorkerDied, "broke"),
        (b"this is not HTTP\r\n\r\n", EndpointUnavailable, "broke"),
    ],
)
async def test_a_broken_answer_is_a_typed_error_and_never_asked_for_twice_once_it_began(
    raw: bytes, error: type[RoleError], found: str
) -> None:
    async with serving(faults=[says(raw)] * 3) as server, endpoint_to(server) as endpoint:
        with pytest.raises(error, match=found):
            await generate(endpoint, ask())
        assert error is EndpointUnavailable or len(server.streamed) == 1


@pytest.mark.parametrize("raw", [b"", STREAM])
async def test_a_slow_first_token_is_a_timeout_and_the_request_is_not_repeated(raw: bytes) -> None:
    async with serving(faults=[holds(raw)] * 3) as server, endpoint_to(server) as endpoint:
        await endpoint.capabilities()
        with pytest.raises(WorkerTimeout):
            await generate(endpoint, ask(timeout_s=0.2))
        assert len(server.streamed) == 1


async def test_silence_counts_as_a_timeout_where_the_request_has_no_time_of_its_own() -> None:
    async with serving(faults=[holds()]) as server, endpoint_to(server, timeout_s=0.3) as endpoint:
        await endpoint.capabilities()
        with pytest.raises(WorkerTimeout):
            await generate(endpoint, ask())


async def test_what_came_before_the_time_was_over_is_kept() -> None:
    async with serving(faults=[holds(STREAM + event(content="It is"))]) as server, endpoint_to(server) as endpoint:
        await endpoint.capabilities()
        result = await generate(endpoint, ask(timeout_s=0.3))

    assert (result.text, result.finish) == ("It is", "timeout")


async def test_cancelling_closes_the_stream_at_once() -> None:
    async with serving(faults=[holds(STREAM + event(content="It is"))]) as server, endpoint_to(server) as endpoint:
        async with anyio.create_task_group() as group:

            def stop(event: Event) -> None:
                if isinstance(event, Generated):
                    group.cancel_scope.cancel()

            group.start_soon(generate, endpoint, ask(), False, None, stop)
        with anyio.fail_after(2):
            await server.closed_by_client.wait()


async def test_no_more_requests_are_sent_at_once_than_allowed_and_a_bounded_number_waits_for_a_time() -> None:
    async with serving(faults=[holds()] * 2) as server, endpoint_to(server, concurrency=2) as endpoint:
        await endpoint.capabilities()
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(generate, endpoint, ask())
            with anyio.fail_after(5):
                while server.busy < 2:
                    await anyio.lowlevel.checkpoint()
            with pytest.raises(QueueFull, match=r"0 requests before it.* 2 requests at once"):
                await generate(endpoint, ask(deadline_s=0.1))
            for _ in range(QUEUE_LIMIT):
                group.start_soon(generate, endpoint, ask())
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(QueueFull, match=f"{QUEUE_LIMIT} requests before it"):
                await generate(endpoint, ask())
            group.cancel_scope.cancel()
        assert server.most_at_once == 2


async def test_the_key_goes_to_the_server_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BIG_KEY", SECRET)
    monkeypatch.setenv("OPENAI_ORG_ID", "someone-elses")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Other: thing")
    caplog.set_level(logging.DEBUG)
    echo = json.dumps({"error": {"message": f"Incorrect key {SECRET}; you said: my document", "code": SECRET}}).encode()
    bad = [says(respond(status, echo)) for status in (400, 401, 404)]
    errors = []
    with capture_logs() as logs:
        async with serving(faults=bad) as server, endpoint_to(server, api_key_env="BIG_KEY") as endpoint:
            for _ in bad:
                with pytest.raises(RoleError) as raised:
                    await generate(endpoint, ask("my document"))
                errors.append(f"{raised.value} {raised.value.to_dict()} {raised.value!r}")
    said = " ".join([*errors, str(logs), caplog.text, *capsys.readouterr()])

    assert server.headers[-1]["authorization"] == f"bearer {SECRET}"
    assert not [name for name in server.headers[-1] if name.startswith(("x-", "openai-"))]
    assert SECRET not in said and "my document" not in said


async def test_a_named_key_that_is_not_set_is_said_by_its_name() -> None:
    async with serving() as server, endpoint_to(server, api_key_env="NO_SUCH_KEY") as endpoint:
        with pytest.raises(EndpointUnavailable, match="NO_SUCH_KEY"):
            await generate(endpoint, ask())
        assert server.bodies == []


async def test_without_the_openai_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    async with serving() as server, endpoint_to(server) as endpoint:
        with pytest.raises(EndpointUnavailable, match=r"pip install 'rolecall\[openai\]'"):
            await generate(endpoint, ask())
        assert server.bodies == []
