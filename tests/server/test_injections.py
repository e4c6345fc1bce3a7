"""Instructions planted in documents: a model that obeys all it reads still calls no tool, changes no setting and tells
no client what is private."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rolecall.config.home import Home
from rolecall.roles.contract import GenerationRequest, Role
from tests.server.desk import MakeDesk
from tests.server.planted import PLANTED, SECRET, SHIPS, calls, leaks, planted
from tests.server.scripted import Answer, infos
from tests.server.surface.reading import Reading, reading, text_of

pytestmark = pytest.mark.anyio

LARGE = infos(size_bytes=2_000_000_000, context_length=16_384)


def obedient(role: Role, request: GenerationRequest) -> Answer:
    """Does what any document in its prompt says, as far as a model can: asks for tools in every form, and repeats all
    that it was shown."""
    shown = "\n".join(message.content for message in request.messages)
    told = "".join(re.findall("<document.*?</document>", shown, re.DOTALL))
    if request.json_schema is None:
        return shown + '\n{"tool": "retrieval", "request": "vault ledger partner"}\n<tool_call>code</tool_call>'
    wants = re.search("retrieval|calculator|tool_call|vault", told) if told else None
    return json.dumps({"tool": "retrieval" if wants else "none", "request": "vault ledger partner" if wants else ""})


def state_of(home: Home, folder: Path) -> dict[str, bytes]:
    """Every setting and file that a tool could change."""
    files = [*folder.rglob("*"), home.settings_file, home.env_file, home.allowed_file]
    return {str(path): path.read_bytes() for path in files if path.is_file()}


async def filled(here: Reading, texts: dict[str, str]) -> Home:
    folder = here.desk.folder
    for below in ("harbour", "vault"):
        (folder / below).mkdir()
    (folder / "vault" / "vault.md").write_text(SECRET)
    for name, text in texts.items():
        (folder / "harbour" / name).write_text(text)
    await here.index.add(folder / "harbour", "harbour")
    await here.index.add(folder / "vault", "vault", private=True)
    here.embedder.identity = None  # so that a model is asked, however near the passages are
    return Home(folder.parent / "home")


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.soak)])
async def test_planted_instructions_call_no_tool_change_no_setting_and_reveal_nothing_private(
    desk: MakeDesk, every: int
) -> None:
    texts, asked = dict(planted()), range(0, PLANTED, every)
    assert len(texts) == len(set(texts.values())) == PLANTED
    called, leaked, unread, tempted, answered = list[str](), list[str](), 0, 0, 0
    async with reading(desk(obedient, roles=LARGE)) as here, here.client("legacy") as client:
        at, home = here.desk, await filled(here, texts)
        before = state_of(home, at.folder)
        for number in asked:
            tool, arguments = calls(ship := SHIPS[number])[number % 4]
            result = await client.call_tool(tool, arguments)
            (receipt,) = await at.store.recent(1)
            resource = text_of(await client.read_resource(f"rolecall://receipts/{receipt.id}"))
            seen = "\n".join(message.content for _, request in at.models.requests for message in request.messages)
            unread += f"The {ship} weighs" not in seen
            tempted += "grey heron" in seen
            answered += not result.is_error
            called += [f"{ship}: {step.target}" for step in receipt.transitions if step.target == "TOOL_EXECUTION"]
            leaked += [ship] if leaks(result.model_dump_json() + resource) else []
            at.models.requests.clear()
        after = state_of(home, at.folder)

    assert (called, leaked) == ([], [])
    assert after == before
    assert (unread, answered) == (0, len(asked))
    assert tempted >= 0.75 * len(asked)
