"""Resources as a client reads them: what is offered, whose it is, and what is never shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

import anyio
import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp.client.subscriptions import ResourceUpdated
from mcp.shared.message import SessionMessage

from rolecall.server.orchestration.contract import Outcome, RouteCall
from rolecall.server.session import SessionInfo, current_session
from rolecall.server.surface.updates import MODELS, STATUS
from tests.server.desk import ListRetriever, MakeDesk
from tests.server.surface.reading import ERAS, fill, reading, text_of

pytestmark = pytest.mark.anyio
UNKNOWN = {"legacy": -32002, "2026-07-28": -32602}


async def refused(client: Client, uri: str) -> MCPError:
    with pytest.raises(MCPError) as caught:
        await client.read_resource(uri)
    return caught.value


def told(error: MCPError) -> dict[str, Any]:
    """What a refusal says, beside the URI that was asked for."""
    return {"message": error.error.message, **error.error.data, "uri": None}


@ERAS
async def test_resources_and_templates_are_listed_with_titles_and_types(desk: MakeDesk, era: str) -> None:
    async with reading(desk()) as here, here.client(era) as client:
        listed = (await client.list_resources()).resources
        templates = (await client.list_resource_templates()).resource_templates
        can = here.server.get_capabilities(protocol_version=client.protocol_version).resources

    assert [each.uri for each in listed] == [MODELS, STATUS]
    assert [each.uri_template for each in templates] == [
        "rolecall://receipts/{id}", "rolecall://results/{id}", "rolecall://doc/{collection}/{path}",
    ]  # fmt: skip
    assert all(each.title and each.description for each in listed)
    assert all(each.title and each.description for each in templates)
    assert {each.mime_type for each in listed} == {"application/json"}
    assert can is not None and can.subscribe


@ERAS
async def test_models_and_status_tell_what_is_in_memory_and_indexed(desk: MakeDesk, era: str) -> None:
    async with reading(desk()) as here, here.client(era) as client:
        fill(here.desk.folder)
        await here.desk.models.load("coding")
        await here.index.add(here.desk.folder, "notes")
        models = json.loads(text_of(await client.read_resource(MODELS)))
        status = json.loads(text_of(await client.read_resource(STATUS)))

    assert [each["model"] for each in models["resident"]] == status["resident"] == ["scripted/coding"]
    assert {"role", "model", "present"} <= models["roles"][0].keys()
    (collection,) = status["collections"]
    assert (collection["collection"], collection["files"]) == ("notes", 2)


@ERAS
async def test_a_receipt_is_read_by_its_own_session_and_by_no_other(desk: MakeDesk, era: str) -> None:
    async with reading(desk()) as here:
        outcome = await here.desk.arun(here.desk.call(RouteCall, request="what is 2 + 2?"))
        uri = f"rolecall://receipts/{outcome.receipt_id}"
        async with here.client(era) as own:
            receipt = json.loads(text_of(await own.read_resource(uri)))
        async with here.client(era, session="s2") as other:
            errors = [await refused(other, uri), await refused(other, "rolecall://receipts/nothing")]

    assert (receipt["id"], receipt["tool"]) == (outcome.receipt_id, "route")
    assert [error.code for error in errors] == [UNKNOWN[era]] * 2
    assert told(errors[0]) == told(errors[1])


@ERAS
async def test_a_kept_result_is_read_whole_by_whoever_holds_its_id(desk: MakeDesk, era: str) -> None:
    async with reading(desk()) as here, here.client(era, session="s2") as client:
        outcome = Outcome(answer="x" * 100_000, status="ok", receipt_id="R")
        made = await here.jobs.keep("code", outcome)
        result = json.loads(text_of(await client.read_resource(f"rolecall://results/{made}")))
        assert (await refused(client, f"rolecall://results/{'0' * 32}")).code == UNKNOWN[era]

    assert len(result["answer"]) == 100_000


@ERAS
async def test_an_indexed_file_is_read_by_relative_absolute_and_encoded_path(desk: MakeDesk, era: str) -> None:
    async with reading(desk()) as here, here.client(era) as client:
        folder = here.desk.folder
        fill(folder)
        await here.index.add(folder, "my notes/1")
        prefix = "rolecall://doc/my%20notes%2F1"
        read = [
            await client.read_resource(f"{prefix}/{path}")
            for path in ("pump.md", f"{folder}/pump.md", f"%2F{str(folder)[1:]}/pump.md", "deep/tea%20100%25.txt")
        ]

    assert [text_of(each)[:3] for each in read] == ["# P", "# P", "# P", "Gre"]
    assert [each.contents[0].mime_type for each in read] == ["text/markdown"] * 3 + ["text/plain"]


@ERAS
async def test_what_is_not_indexed_or_not_allowed_is_unknown_in_the_same_words(desk: MakeDesk, era: str) -> None:
    async with reading(desk()) as here, here.client(era) as client:
        folder = here.desk.folder
        fill(folder)
        (folder.parent / "outside.txt").write_text("outside")
        await here.index.add(folder, "notes")
        (folder / "later.md").write_text("later")
        (folder / "away.md").symlink_to(folder.parent / "outside.txt")
        doc = "rolecall://doc/notes"
        uris = [
            f"{doc}/later.md", f"{doc}/away.md", f"{doc}/.env", f"{doc}/", doc, f"{doc}/deep", f"{doc}/../outside.txt",
            f"{doc}/%2e%2e/outside.txt", f"{doc}/deep/..%2F..%2Foutside.txt", f"{doc}/deep/../pump.md",
            f"{doc}/%252e%252e/outside.txt", f"{doc}/%2Fetc%2Fpasswd", f"{doc}//etc/passwd", f"{doc}/pump.md%00",
            f"{doc}/pump.md%2500", f"{doc}/%ff", f"{doc}/p%75mp.md?x=1", f"{doc}/{'a/' * 5000}", f"{doc}/PUMP.MD",
            "rolecall://doc/other/pump.md", "rolecall://doc/%2E%2E/pump.md", f"file://{folder}/pump.md", "models",
            f"http://doc/notes/{folder}/pump.md", "rolecall://", "rolecall:models", "rolecall://models/", "", "://",
            "rolecall://receipts/%27%20OR%201=1", "rolecall://results/../models", "rolecall://MODELS",
        ]  # fmt: skip
        errors = [await refused(client, uri) for uri in uris]
        assert text_of(await client.read_resource(f"{doc}/p%75mp.md")).startswith("# Pump")

        (folder / "pump.md").unlink()
        (folder / "pump.md").symlink_to(folder / "later.md")
        errors.append(await refused(client, f"{doc}/pump.md"))
        here.desk.access.remove(folder)
        errors.append(await refused(client, f"{doc}/deep/tea%20100%25.txt"))

    assert {error.code for error in errors} == {UNKNOWN[era]}
    assert all(told(error) == told(errors[0]) for error in errors)
    assert [error.error.data["uri"] for error in errors[: len(uris)]] == uris
    assert errors[0].error.data["code"] == "resource_unknown"


@ERAS
async def test_a_file_that_is_too_large_is_told_by_its_size(desk: MakeDesk, era: str) -> None:
    async with reading(desk()) as here, here.client(era) as client:
        fill(here.desk.folder)
        await here.index.add(here.desk.folder, "notes")
        os.truncate(here.desk.folder / "pump.md", 3_000_000)
        error = await refused(client, "rolecall://doc/notes/pump.md")

    assert (error.code, error.error.data["code"]) == (-32603, "file_unreadable")
    assert "3,000,000" in error.error.data["found"]


class BrokenRetriever(ListRetriever):
    async def collections(self) -> NoReturn:
        raise ValueError("a document's text")


@ERAS
async def test_an_unexpected_failure_is_typed_and_tells_nothing_of_its_inside(desk: MakeDesk, era: str) -> None:
    async with reading(desk(), BrokenRetriever()) as here, here.client(era) as client:
        error = await refused(client, STATUS)

    assert (error.code, error.error.data["code"]) == (-32603, "internal")
    assert "document" not in json.dumps(error.error.model_dump())


async def test_a_client_of_the_handshake_era_hears_of_what_it_subscribed_to(desk: MakeDesk) -> None:
    send, receive = anyio.create_memory_object_stream[str](10)

    async def hear(message: Any) -> None:
        if isinstance(message, types.ResourceUpdatedNotification):
            send.send_nowait(str(message.params.uri))

    with send, receive:
        async with reading(desk()) as here, here.client("legacy", message_handler=hear) as client:

            async def ask(kind: Any, params: Any, uri: str) -> None:
                await client.session.send_request(kind(params=params(uri=uri)), types.EmptyResult)

            for uri in (STATUS, MODELS, STATUS):
                await ask(types.SubscribeRequest, types.SubscribeRequestParams, uri)
            fill(here.desk.folder)
            await here.index.add(here.desk.folder, "notes")
            with anyio.fail_after(10):
                assert await receive.receive() == STATUS
            here.updates.changed(MODELS, MODELS)
            with anyio.fail_after(10):
                while (heard := await receive.receive()) == STATUS:
                    pass
            assert heard == MODELS
            await ask(types.UnsubscribeRequest, types.UnsubscribeRequestParams, MODELS)
            here.updates.changed(MODELS, STATUS)
            with anyio.fail_after(10):
                assert await receive.receive() == STATUS
            with pytest.raises(MCPError, match="sends no updates") as caught:
                await ask(types.SubscribeRequest, types.SubscribeRequestParams, "rolecall://receipts/R1")
            assert caught.value.code == -32602


async def test_a_client_of_the_stateless_era_listens(desk: MakeDesk) -> None:
    async with (
        reading(desk()) as here,
        here.client("2026-07-28") as client,
        client.listen(resource_subscriptions=[STATUS]) as heard,
    ):
        here.updates.changed(MODELS, STATUS)
        with anyio.fail_after(10):
            assert await anext(heard) == ResourceUpdated(STATUS)
        fill(here.desk.folder)
        await here.index.add(here.desk.folder, "notes")
        with anyio.fail_after(10):
            assert await anext(heard) == ResourceUpdated(STATUS)
            await here.index.remove("notes")
            assert await anext(heard) == ResourceUpdated(STATUS)


async def test_a_subscription_ends_with_its_connection(desk: MakeDesk) -> None:
    async with reading(desk()) as here:
        async with here.client("legacy") as client:
            params = types.SubscribeRequestParams(uri=STATUS)
            await client.session.send_request(types.SubscribeRequest(params=params), types.EmptyResult)
            assert len(here.updates._bus._listeners) == 1
        assert not here.updates._bus._listeners


async def test_a_client_that_does_not_read_holds_up_no_other_and_has_one_update_waiting(desk: MakeDesk) -> None:
    token = current_session.set(SessionInfo("deaf", Path("/")))
    to_server, reads = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    writes, from_server = anyio.create_memory_object_stream[SessionMessage](0)

    async def ask(number: int, method: str, **params: Any) -> None:
        request = types.JSONRPCRequest(jsonrpc="2.0", id=number, method=method, params=params)
        await to_server.send(SessionMessage(request))
        assert isinstance((await from_server.receive()).message, types.JSONRPCResponse)

    with to_server, from_server, anyio.fail_after(10):
        async with reading(desk()) as here, anyio.create_task_group() as tasks:
            tasks.start_soon(here.server.run, reads, writes, here.server.create_initialization_options())
            info = {"name": "deaf", "version": "1"}
            await ask(1, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=info)
            await ask(2, "resources/subscribe", uri=STATUS)
            async with (
                here.client("2026-07-28") as client,
                client.listen(resource_subscriptions=[STATUS]) as heard,
            ):
                for _ in range(100):
                    here.updates.changed(STATUS)
                    assert await anext(heard) == ResourceUpdated(STATUS)
            waiting = (await from_server.receive()).message
            assert isinstance(waiting, types.JSONRPCNotification)
            assert (waiting.method, waiting.params) == ("notifications/resources/updated", {"uri": STATUS})
            with pytest.raises(anyio.WouldBlock):
                from_server.receive_nowait()
            to_server.close()
    current_session.reset(token)


@ERAS
async def test_a_collection_is_completed_by_its_first_letters(desk: MakeDesk, era: str) -> None:
    async with reading(desk()) as here, here.client(era) as client:
        fill(here.desk.folder)
        for name in ("notes", "novels", "code"):
            await here.index.add(here.desk.folder, name)
        ref = types.PromptReference(name="ask-my-docs")
        names = (await client.complete(ref, {"name": "collection", "value": "no"})).completion
        others = (await client.complete(ref, {"name": "question", "value": "no"})).completion

    assert (names.values, names.total, others.values) == (["notes", "novels"], 2, [])
