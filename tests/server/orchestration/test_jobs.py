"""Results of jobs on disk: bounded in number and time, and not lost where the disk refuses them."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from rolecall.config.errors import RolecallError
from rolecall.roles.contract import Event, Generated, Loading, Prefilling, Queued, Role
from rolecall.server.errors import JobUnknown
from rolecall.server.orchestration import jobs as module
from rolecall.server.orchestration.contract import Call, OnProgress, Outcome, ReasonCall
from rolecall.server.orchestration.jobs import Jobs
from rolecall.server.orchestration.turn import Words
from rolecall.server.telemetry.store import ReceiptStore

from ..desk import served

pytestmark = pytest.mark.anyio

CALL = ReasonCall(question="Why?")
DONE = Outcome(answer="Because.", status="ok", receipt_id="R1", data={"half a pair": "\ud800"})


def unheard(words: str, fraction: float | None) -> None:
    return None


async def unasked(call: Call, tell: OnProgress) -> Outcome:
    raise AssertionError("nothing is to be run")


async def test_the_latest_200_results_are_kept_for_seven_days_and_for_one_where_no_content_is(tmp_path: Path) -> None:
    store = ReceiptStore(tmp_path / "receipts.sqlite3")
    async with served(unasked, store) as jobs:
        ids = [await jobs.keep("reason", DONE) for _ in range(module.MAX_RESULTS + 1)]
        assert all(ids)
        with pytest.raises(JobUnknown):
            await jobs.status(str(ids[0]))
        latest = await jobs.status(str(ids[-1]))
        assert latest.outcome is not None and latest.outcome.data == {"half a pair": "?"}

        await store.run(("UPDATE results SET at = ?", (time.time() - module.UNWANTED_S - 60,)))
        assert (await jobs.status(str(ids[-1]))).state == "finished"
        async with anyio.create_task_group() as tasks:
            with pytest.raises(JobUnknown):
                await Jobs(unasked, store, tasks, keep_content=False).status(str(ids[-1]))

        await store.run(("UPDATE results SET at = ?", (time.time() - module.KEPT_S - 60,)))
        with pytest.raises(JobUnknown):
            await jobs.status(str(ids[-1]))
        await jobs.keep("reason", DONE)
        assert len(await store.run(("SELECT id FROM results", ()))) == 1
    await store.aclose()


async def test_a_job_whose_result_cannot_be_written_is_known_while_the_host_lives(tmp_path: Path) -> None:
    (tmp_path / "receipts.sqlite3").mkdir()
    gate = anyio.Event()

    async def slow(call: Call, tell: OnProgress) -> Outcome:
        await gate.wait()
        return DONE

    async with served(slow, ReceiptStore(tmp_path / "receipts.sqlite3")) as jobs:
        partial = await jobs.run(CALL, unheard, 0.01)
        assert partial.job_id is not None and jobs.busy
        gate.set()
        await jobs.drained()
        assert not jobs.busy
        assert (await jobs.result(partial.job_id)).outcome == DONE
        assert await jobs.keep("reason", DONE) is None


@pytest.mark.parametrize("typed", [True, False])
async def test_how_a_job_failed_is_kept_with_its_code_and_nothing_of_its_inside(tmp_path: Path, typed: bool) -> None:
    gate = anyio.Event()

    async def failing(call: Call, tell: OnProgress) -> Outcome:
        await gate.wait()
        raise JobUnknown("Told.", advice="Do it.") if typed else ValueError("secret inside")

    store = ReceiptStore(tmp_path / "receipts.sqlite3")
    async with served(failing, store) as jobs:
        id = (await jobs.run(CALL, unheard, 0.01)).job_id
        gate.set()
        await jobs.drained()
        state = await jobs.status(str(id))
        assert state.state == "failed" and "secret" not in state.words
        with pytest.raises(RolecallError) as caught:
            await jobs.result(str(id))
    await store.aclose()
    assert caught.value.code == ("job_unknown" if typed else "internal") and "secret" not in str(caught.value)


async def test_a_model_at_work_is_told_of_in_words_with_its_figures() -> None:
    ticks = iter((10.0, 12.0))
    words = Words(Role.CODING, lambda: next(ticks))
    events: tuple[Event, ...] = (
        Queued(2), Loading("m", 400_000_000, 1_200_000_000), Prefilling(300, 1200), Generated("a", "thinking", 5),
        Generated("b", "answer", 25),
    )  # fmt: skip

    assert [words.of(event) for event in events] == [
        "coding: waiting, position 2 in the queue",
        "coding: loading m, 0.40 of 1.20 GB",
        "coding: reading, 25% of 1200 tokens",
        "coding: thinking, 5 tokens",
        "coding: writing, 25 tokens, 10.0 tokens/s",
    ]
