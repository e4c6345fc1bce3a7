"""What the command line asks of the host about models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic_core import from_json, to_json

from rolecall.config.home import Home
from rolecall.config.settings import EndpointSettings, load_settings
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.contract import AddReport, Filters, Found, IndexState, OnIndexed, Passage, Verdict
from rolecall.roles.contract import ModelEvent
from rolecall.roles.errors import ModelUnknown
from rolecall.server.errors import BadRequest
from rolecall.server.host.compose import _open_history
from rolecall.server.host.downloads import Downloads
from rolecall.server.host.operations import Operations
from rolecall.server.orchestration.run import Orchestrator
from rolecall.server.orchestration.staff import Staff
from rolecall.server.routing.router import Router
from rolecall.server.session import SessionInfo, current_session
from rolecall.server.telemetry.history import ModelHistory
from rolecall.server.telemetry.store import ReceiptStore
from tests.roles.openai_server import serving

from .desk import ListRetriever, MakeDesk, passage
from .scripted import ScriptedModels

pytestmark = pytest.mark.anyio
KEY = "sk-very-secret-7391"


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[Operations]:
    home = Home(tmp_path / "home").create()
    store = ReceiptStore(home.receipts_db)

    async def pull(name: str, seen: Any) -> object:
        raise AssertionError("unasked")

    def desk() -> Orchestrator:
        raise AssertionError("unasked")

    yield Operations(
        load_settings(home, profile="starter"), AllowedFolders(home), ScriptedModels(["unasked"]), store,
        ModelHistory(store), Downloads(pull), desk,
    )  # fmt: skip
    store._close()


async def call(operations: Operations, op: str, **params: Any) -> Any:
    return from_json(to_json(await operations.table()[op](lambda update: None, params)))


async def test_an_answer_from_the_index_says_how_fresh_it_is(operations: Operations, desk: MakeDesk) -> None:
    here = desk(passages=(passage("The north depot has 3 crates."),), pending=2)
    asking = replace(operations, desk=lambda: here.orchestrator)
    asked = {"request": "What do our notes say about the depot?"}
    current_session.set(SessionInfo("s1", here.folder))
    found = await call(asking, "tool", name="route", arguments=asked)
    assert found["answer"].endswith("[index: 1 files, 2 pending, 0 skipped, 0 failed; synced 1 s ago]")


async def test_a_model_is_pinned_and_let_go_again(operations: Operations) -> None:
    assert (await call(operations, "models_pin", name="coding", pinned=True))["pinned"]
    (resident,) = await call(operations, "models_ps")
    assert (resident["roles"], resident["pinned"]) == (["coding"], True)
    assert not (await call(operations, "models_pin", name="coding", pinned=False))["pinned"]
    with pytest.raises(ModelUnknown):
        await call(operations, "models_pin", name="nonsense", pinned=True)
    with pytest.raises(BadRequest, match="pinned"):
        await call(operations, "models_pin", name="coding")


async def test_memory_is_that_of_now_and_of_the_last_day(operations: Operations) -> None:
    operations.history.note(ModelEvent("loaded", "a", seconds=2.0, size_bytes=1, cold=True))
    await call(operations, "models_load", name="coding")
    found = await call(operations, "memory")
    assert (found["budget_bytes"], found["measured_bytes"]) == (100, 1)
    assert (found["average_bytes"], found["loads"]["cold_starts"]) == (None, 1)


async def test_servers_of_models_are_tried_and_no_key_is_shown(
    operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIG_KEY", KEY)
    async with serving(reply="It is Paris.") as server:
        big = EndpointSettings(url=server.url, model="tiny", api_key_env="BIG_KEY")
        gone = EndpointSettings(url="http://127.0.0.1:9/v1", model="tiny")
        operations.settings.endpoints.update(big=big, gone=gone)
        there, missing = await call(operations, "endpoints")

    assert (there["name"], there["error"]) == ("big", None)
    assert there["host"] == f"127.0.0.1:{server.port}" and there["capabilities"]["context_length"] == 4096
    assert missing["capabilities"] is None
    assert missing["error"]["code"] == "endpoint_unavailable" and missing["error"]["advice"]
    assert KEY not in f"{there}{missing}" and "BIG_KEY" not in f"{there}{missing}"


async def test_a_download_that_breaks_down_is_reported_and_the_next_one_is_made() -> None:
    got = anyio.Event()

    async def pull(name: str, seen: Any) -> object:
        if name == "odd":
            raise ValueError("of a kind that nobody foresaw")
        got.set()
        return None

    downloads = Downloads(pull)
    downloads.add(["odd", "sound"])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(downloads.run)
        with anyio.fail_after(5):
            await got.wait()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert list(downloads.state()["failed"]) == ["odd"] and not downloads.busy


async def test_what_happens_to_models_as_the_host_ends_is_kept(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    async with _open_history(home) as (_, history):
        history.note(ModelEvent("unloaded", "a"))
    async with _open_history(home) as (store, _):
        assert [row[0] for row in await store.run(("SELECT kind FROM model_events", ()))] == ["unloaded"]


class Recorder(ListRetriever):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    async def add(
        self, folder: Path, collection: str | None = None, on_progress: OnIndexed | None = None,
        max_files: int | None = None, private: bool | None = None,
    ) -> AddReport:  # fmt: skip
        self.asked.append((max_files, private))
        assert on_progress
        on_progress(1, 2, "/work/a.md", 3)
        return REPORT

    async def watch(self, collection: str | None, on_synced: Callable[[AddReport], None]) -> None:
        on_synced(REPORT)
        await anyio.sleep_forever()

    async def search(
        self, query: str, collection: str | None = None, max_results: int = 8, filters: Filters | None = None,
        leg: str = "fused",
    ) -> Found:  # fmt: skip
        self.asked.append((filters, leg))
        return Found(passages=(), index=IndexState(indexed=0, pending=0, skipped=0, failed=0, age_s=None))

    async def check(self, passages: Sequence[Passage]) -> tuple[Verdict, ...]:
        return ("gone",) * len(passages)


REPORT = AddReport(collection="a", indexed=0, skipped=0, failed=(), seconds=0.0)


@pytest.fixture
def index(operations: Operations) -> tuple[Operations, Recorder]:
    recorder = Recorder()
    router = Router(operations.models, "starter")
    staff = Staff(operations.models, recorder, router, operations.access, operations.settings)
    desk = Orchestrator(staff, operations.store)
    return replace(operations, desk=lambda: desk), recorder


async def test_a_first_index_of_many_files_needs_the_users_word(index: tuple[Operations, Recorder]) -> None:
    operations, recorder = index
    await call(operations, "index_add", folder="/work")
    await call(operations, "index_add", folder="/work", confirmed=True, private=True)
    assert recorder.asked == [(50_000, None), (None, True)]


async def test_indexing_tells_files_and_chunks(index: tuple[Operations, Recorder]) -> None:
    told: list[dict[str, Any]] = []
    await index[0].table()["index_add"](told.append, {"folder": "/work"})
    assert told == [{"done": 1, "total": 2, "words": "1 of 2 files, 3 chunks", "path": "/work/a.md"}]


async def test_a_watch_tells_each_sync_and_ends_with_the_host(index: tuple[Operations, Recorder]) -> None:
    operations, told = index[0], list[dict[str, Any]]()

    async def watch() -> None:
        assert await operations.table()["index_watch"](told.append, {}) is None

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await anyio.wait_all_tasks_blocked()
        assert told == [{"synced": REPORT}]
        for each in operations.watches:
            each.cancel()
    assert operations.watches == set()


async def test_a_search_takes_filters_and_a_leg_and_citations_are_checked(index: tuple[Operations, Recorder]) -> None:
    operations, recorder = index
    await call(operations, "search", query="crane", max_results=3, filters={"kind": "code"}, leg="text")
    assert recorder.asked == [(Filters(kind="code"), "text")]
    with pytest.raises(BadRequest, match="leg"):
        await call(operations, "search", query="crane", max_results=3, leg="third")
    passage = Passage(path="/a", collection="a", start_line=1, end_line=1, start_byte=0, end_byte=1, score=1, text="x")
    (checked,) = await call(operations, "check", passages=[passage.model_dump(mode="json")])
    assert checked == "gone"
