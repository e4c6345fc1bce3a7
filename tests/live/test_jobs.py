"""A call that outlasts its client: partial, the client restarted, the result; cancelled; cut off by the host's end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from rolecall.config.home import Home
from rolecall.server.host.control import ControlClient, stop_host

from .conftest import BRISK, Tell, connected
from .test_clients import FACTS

pytestmark = [pytest.mark.live, pytest.mark.anyio]

PATIENCE_S = 240.0


async def job(client: Client, id: str, action: str) -> dict[str, Any]:
    result = await client.call_tool("job", {"id": id, "action": action})
    assert not result.is_error and result.structured_content is not None, result.content
    return result.structured_content


async def test_a_job_survives_its_client_is_cancelled_within_a_second_and_its_host_says_so_when_it_ends(
    text_only: Home, tmp_path: Path, tell: Tell
) -> None:
    text_only.settings_file.write_text(
        BRISK.replace("spare_worker: false", "spare_worker: false, call_deadline_s: 0.5")
    )
    said: list[tuple[float, str]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        said.append((progress, message or ""))

    async def start(client: Client, subject: str, notes: int) -> str:
        text = " ".join(f"Note {number} on {subject}. {FACTS[number % len(FACTS)]}" for number in range(notes))
        asked = {"text": text, "max_words": 40}
        partial = await client.call_tool("summarize", asked, progress_callback=on_progress)
        content = partial.structured_content or {}
        assert content["status"] == "partial", content
        return str(content["job_id"])

    try:
        with anyio.fail_after(PATIENCE_S):
            async with connected(tmp_path) as client:
                began = time.monotonic()
                id = await start(client, "harbours", 3)
            async with connected(tmp_path) as client:
                while (state := await job(client, id, "result"))["state"] == "running":
                    said.append((0.0, state["words"]))
                took_s = time.monotonic() - began
                assert state["result"]["answer"] and state["result"]["receipt_id"]

                long = await start(client, "bakeries", 12)
                while "writing" not in (await job(client, long, "status"))["words"]:
                    await anyio.sleep(0.1)
                began = time.monotonic()
                assert (await job(client, long, "cancel"))["state"] == "cancelled"
                async with ControlClient.open(text_only) as control:
                    while any(each["in_use"] for each in await control.call("models_ps")):
                        await anyio.sleep(0.02)
                stopped_s = time.monotonic() - began

                cut_off = await start(client, "depots", 24)
            await stop_host(text_only, drain_s=0.2)
            async with connected(tmp_path) as client:
                assert (await job(client, cut_off, "status"))["state"] == "cancelled"
                assert (await job(client, id, "result"))["result"] == state["result"]
    finally:
        await stop_host(text_only)

    words = " | ".join(message for _, message in said)
    assert "loading" in words and "GB" in words and "% of" in words and "tokens/s" in words
    tell(f"a job: {took_s:.1f} s over two clients; cancelled, and no model in use after {stopped_s:.2f} s")
    assert stopped_s < 1.0
