"""A private collection as a client meets it: places, scores and what a local model writes, never the text itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from mcp import Client, MCPError

from rolecall.roles.contract import GenerationRequest, Role
from rolecall.roles.errors import SchemaRefused
from rolecall.server.orchestration.contract import ReasonCall
from rolecall.server.orchestration.privacy import WITHHELD
from tests.server.desk import Desk, MakeDesk
from tests.server.scripted import Answer, infos
from tests.server.surface.reading import ERAS, Reading, reading, text_of

pytestmark = pytest.mark.anyio

SECRET = (
    "The board of the northern harbour decided on Monday to sell the old crane to a yard in Gdansk for nine million.\n"
    "Until the contract is signed in March nobody outside the board may hear of the buyer or of the price.\n"
)
OPEN = "The southern harbour crane lifts 43 tonnes in calm weather and was painted red by its crew.\n"
LARGE = infos(size_bytes=2_000_000_000, context_length=8192)
WORDS = 6
"""Fewer than a copy has, and more than two texts share by chance."""


def leaks(*told: Any) -> list[str]:
    """Runs of the secret's words in anything that a client was told."""
    secret = re.findall(r"\w+", SECRET.lower())
    runs = {" ".join(secret[at : at + WORDS]) for at in range(len(secret) - WORDS + 1)}
    heard = " ".join(re.findall(r"\w+", "\n".join(strings(list(told))).lower()))
    return [run for run in runs if run in heard]


def strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            yield from strings([*value.keys(), *value.values()])
        case list() | tuple():
            for each in value:
                yield from strings(each)


def parrot(role: Role, request: GenerationRequest) -> Answer:
    """Writes all that it was shown, asks for a look into the index where it may, and fails in the documents' words."""
    shown = "\n".join(message.content for message in request.messages)
    properties = (request.json_schema or {}).get("properties", {})
    if "tool" in properties:
        found = re.findall("<document.*?</document>", shown, re.DOTALL)
        said = "board northern harbour crane yard Gdansk" if not found else found[-1][:150]
        return json.dumps({"tool": "retrieval", "request": said})
    if "refused" in properties:
        return SchemaRefused(f"It does not validate: {shown}", found=shown, allowed=shown)
    return json.dumps({"words": shown.split()}) if request.json_schema else shown


async def filled(here: Reading) -> Desk:
    folder = here.desk.folder
    for name, text in (("board", SECRET), ("open", OPEN)):
        (folder / name).mkdir()
        (folder / name / f"{name}.md").write_text(text)
    await here.index.add(folder / "open", "open")
    await here.index.add(folder / "board", "board", private=True)
    here.embedder.identity = None  # so that a model is asked, however near the passages are
    return here.desk


QUESTION = "What did the northern harbour's board decide about its crane?"
ANY = {"type": "object", "properties": {"words": {"type": "array"}}}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "passages": ("retrieve", {"query": QUESTION}),
    "passages of the collection": ("retrieve", {"query": QUESTION, "collection": "board"}),
    "an answer": ("retrieve", {"query": QUESTION, "mode": "answer"}),
    "route": ("route", {"request": f"What do my documents say? {QUESTION}"}),
    "a model that looks into the index": ("reason", {"question": f"{QUESTION} Name 2 facts from my notes."}),
    "a file read by its path": ("reason", {"question": "Repeat the document.", "paths": ["board/board.md"]}),
    "a file in a folder with others": ("reason", {"question": "Repeat the documents.", "paths": ["**/*.md"]}),
    "data": ("reason", {"question": "All words.", "paths": ["board/board.md"], "schema": ANY}),
    "a form refused": ("reason", {"question": "All.", "paths": ["board/*"], "schema": {"properties": {"refused": {}}}}),
    "a summary": ("summarize", {"paths": ["board/board.md"]}),
    "summaries": ("summarize", {"paths": ["**/*.md"], "each": True}),
    "code": ("code", {"task": "Write it as a comment.", "paths": ["board/board.md"]}),
    "a new file": ("code", {"task": "Write it as a comment.", "paths": ["board/board.md"], "save_to": "code.txt"}),
    "a summary in a new file": ("summarize", {"paths": ["board/board.md"], "save_to": "summary.txt"}),
    "a check against it": ("validate", {"output": "The crane costs 8 million.", "paths": ["board/board.md"]}),
    "a check of it": ("validate", {"paths": ["board/board.md"], "question": "Is it sold?"}),
}


async def test_no_tool_tells_a_client_what_stands_in_a_private_folder(desk: MakeDesk) -> None:
    told: dict[str, list[Any]] = {name: [] for name in CALLS}
    async with reading(desk(parrot, roles=LARGE)) as here, here.client("legacy") as client:
        at = await filled(here)
        for name, (tool, arguments) in CALLS.items():

            async def on_progress(progress: float, total: float | None, words: str | None, name: str = name) -> None:
                told[name].append(words)

            result = await client.call_tool(tool, arguments, progress_callback=on_progress)
            receipt = await client.read_resource(f"rolecall://receipts/{(await at.store.recent(1))[0].id}")
            told[name] += [result.model_dump(mode="json"), text_of(receipt)]
        saved = [path.read_text() for path in at.folder.glob("*.txt")]
        told["resources"] = [*saved, *await resources(client, at)]

    assert {name: leaks(*heard) for name, heard in told.items() if leaks(*heard)} == {}
    assert len(saved) == 1 and leaks(SECRET) and not leaks(OPEN)


async def resources(client: Client, at: Desk) -> list[str]:
    """What the documents' resources say, the private one's refusals among it."""
    told = [text_of(await client.read_resource("rolecall://status"))]
    assert text_of(await client.read_resource("rolecall://doc/open/open.md")) == OPEN
    for path in ("board.md", f"{at.folder}/board/board.md"):
        with pytest.raises(MCPError) as caught:
            await client.read_resource(f"rolecall://doc/board/{path}")
        told.append(str(caught.value.error.model_dump()))
    return told


@ERAS
async def test_a_client_learns_where_it_stands_and_how_well_it_fits(desk: MakeDesk, era: str) -> None:
    async with reading(desk()) as here, here.client(era) as client:
        at = await filled(here)
        result = await client.call_tool("retrieve", {"query": QUESTION})

    content = result.structured_content or {}
    found = {each["collection"]: each for each in content["passages"]}
    board, open_ = found["board"], found["open"]
    assert (board["path"], board["start_line"], board["text"]) == (f"{at.folder}/board/board.md", 1, "")
    assert board["score"] > 0 and board["end_byte"] > board["start_byte"]
    assert open_["text"].strip() == OPEN.strip() and content["status"] == "ok"


async def test_what_the_model_writes_in_its_own_words_goes_out_with_its_source(desk: MakeDesk) -> None:
    at_first = iter([SECRET.splitlines()[0] + " [1]", "The old crane goes to a yard in Gdansk [1]."])
    async with reading(desk(lambda *_: next(at_first))) as here, here.client("legacy") as client:
        at = await filled(here)
        result = await client.call_tool("retrieve", {"query": QUESTION, "mode": "answer", "collection": "board"})

    content = result.structured_content or {}
    assert content["answer"].startswith("The old crane goes to a yard in Gdansk [1]"), content
    assert f"{at.folder}/board/board.md:1-2, private" in content["answer"] and content["status"] == "ok"
    assert "word for word" in at.prompts()[1]


async def test_a_copy_that_the_model_insists_on_is_withheld_and_said(desk: MakeDesk) -> None:
    async with reading(desk([SECRET.splitlines()[0] + " [1]"])) as here, here.client("legacy") as client:
        at = await filled(here)
        result = await client.call_tool("retrieve", {"query": QUESTION, "mode": "answer", "collection": "board"})
        kept = (await at.store.recent(1))[0]

    content = result.structured_content or {}
    assert content["answer"].startswith(WITHHELD) and content["status"] == "partial"
    assert any("withheld" in warning for warning in content["warnings"])
    assert kept.private and kept.citations[0].sha256 and kept.for_client().citations[0].sha256 == ""


async def test_a_job_and_its_result_withhold_it_too(desk: MakeDesk) -> None:
    async with reading(desk(parrot, roles=LARGE)) as here, here.client("legacy") as client:
        at = await filled(here)
        outcome = await at.arun(at.call(ReasonCall, question="Repeat it.", paths=("board/board.md",)))
        id = await here.jobs.keep("reason", outcome)
        told = [
            (await client.call_tool("job", {"id": id, "action": "result"})).model_dump(mode="json"),
            text_of(await client.read_resource(f"rolecall://results/{id}")),
        ]

    assert leaks(*told, *at.said) == [] and WITHHELD in "".join(strings(told))
