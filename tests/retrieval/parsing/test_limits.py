"""What a file may take, and what it may do to the process that parses it: nothing to the next file."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import psutil
import pytest

from rolecall.retrieval.errors import FileUnreadable, RetrievalError
from rolecall.retrieval.parsing.child import Limits
from rolecall.retrieval.parsing.parser import CHILD, Parser

from .documents import docx, notebook, pdf, pptx, source, with_part, xlsx

pytestmark = pytest.mark.anyio

TEXT = b"Open the relief valve slowly, and close it at once.\n\n"
ENTITIES = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))
LAUGHS = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "ha">{ENTITIES}]>'
PATIENCE_S = 30.0


async def _works(parser: Parser) -> None:
    assert (await parser.parse(b"fine", source("a.md"), "a.md")).text == "fine"


async def _fails(parser: Parser, name: str, data: bytes, *codes: str) -> FileUnreadable:
    """And the next file is parsed."""
    with pytest.raises(FileUnreadable) as raised:
        await parser.parse(data, source(name), name)
    assert raised.value.code in codes
    await _works(parser)
    return raised.value


async def _child(parser: Parser) -> psutil.Process:
    """Of a new parser that works."""
    before = {*psutil.Process().children()}
    await _works(parser)
    (child,) = {*psutil.Process().children()} - before
    return child


def _flat(document: bytes, name: str, wrapped: str, entity: str = "&e9;") -> bytes:
    return with_part(document, name, f"{LAUGHS}{wrapped.replace('TEXT', entity)}".encode())


def _spreadsheet(text: str) -> str:
    cell = f'<row r="1"><c r="A1" t="inlineStr"><is><t>{text}</t></is></c></row>'
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    return f'<worksheet xmlns="{main}"><sheetData>{cell}</sheetData></worksheet>'


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.docx", _flat(docx("x"), "word/document.xml", "<x>TEXT</x>")),
        ("a.pptx", _flat(pptx(("x", "x")), "ppt/slides/slide1.xml", "<x>TEXT</x>")),
        ("a.xlsx", _flat(xlsx(Sheet=[["x"]]), "xl/worksheets/sheet1.xml", _spreadsheet("TEXT"))),
    ],
)
async def test_xml_bombs_fail_and_the_next_file_is_parsed(parser: Parser, name: str, data: bytes) -> None:
    await _fails(parser, name, data, "parse_failed", "parse_memory", "parse_timeout")


async def test_a_zip_bomb_is_not_unpacked(parser: Parser) -> None:
    bomb = with_part(docx("x"), "word/document.xml", b" " * 250_000_000)
    for name in ("a.docx", "a.pptx", "a.xlsx"):
        assert (await _fails(parser, name, bomb, "parse_memory")).found.startswith("it unpacks to 250,")


async def test_damaged_documents_are_parsed_or_fail_with_a_reason(parser: Parser) -> None:
    whole = {
        "a.pdf": pdf([["Valves"], ["Pumps"]]),
        "a.docx": docx("Valves", "Open slowly."),
        "a.pptx": pptx(("Valves", "Open slowly.")),
        "a.xlsx": xlsx(Stock=[["valve", 12]]),
        "a.ipynb": notebook(("markdown", "# Valves"), ("code", "x = 1")),
        "a.html": b"<h1>Valves</h1><table><tr><td>12</td></tr></table>",
    }
    chance = random.Random(7)
    for name, data in whole.items():
        for _ in range(25):
            damaged = bytearray(data)
            for _ in range(8):
                damaged[chance.randrange(len(data))] = chance.randrange(256)
            try:
                parsed = await parser.parse(bytes(damaged), source(name), name)
            except RetrievalError as error:
                assert error.found
            else:
                body = parsed.text.encode()
                assert all(body[chunk.start_byte : chunk.end_byte].decode() == chunk.text for chunk in parsed.chunks)
    await _works(parser)


async def test_no_file_on_the_disk_comes_in_by_an_entity(parser: Parser, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    outside = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "{(tmp_path / "secret").as_uri()}">]>'
    main = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = f'<w:document xmlns:w="{main}"><w:body><w:p><w:r><w:t>A&e;B</w:t></w:r></w:p></w:body></w:document>'
    document = with_part(docx("x"), "word/document.xml", (outside + body).encode())
    assert (await parser.parse(document, source("a.docx"), "a.docx")).text == "AB"


async def test_a_file_that_takes_too_long_is_given_up_and_the_next_is_parsed() -> None:
    async with Parser(Limits(chunk_tokens=40, cpu_s=0.5)) as parser:
        await _fails(parser, "a.md", TEXT * 200_000, "parse_timeout")


async def test_a_file_that_takes_too_much_memory_is_given_up_and_the_next_is_parsed() -> None:
    async with Parser(Limits(chunk_tokens=40, memory_bytes=64_000_000)) as parser:
        await _works(parser)
        await _fails(parser, "a.md", TEXT * 200_000, "parse_memory")


async def test_memory_is_sampled_where_the_system_limits_none_of_it() -> None:
    """Less than Python and its libraries take, of which a limit on data counts only a part."""
    async with Parser(Limits(chunk_tokens=40, memory_bytes=14_000_000)) as parser:
        with pytest.raises(RetrievalError, match=r"[0-9] bytes|more than that"):
            await parser.parse(TEXT * 10_000, source("a.md"), "a.md")


async def test_a_child_killed_between_two_files_costs_neither() -> None:
    async with Parser(Limits(chunk_tokens=40)) as parser:
        (await _child(parser)).kill()
        await _works(parser)


async def test_a_cancelled_file_leaves_no_child_and_the_next_is_parsed() -> None:
    async with Parser(Limits(chunk_tokens=40)) as parser:
        child = await _child(parser)
        async with anyio.create_task_group() as group:
            group.start_soon(parser.parse, TEXT * 200_000, source("a.md"), "a.md")
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert not child.is_running()
        child = await _child(parser)
    assert not child.is_running()


async def test_the_child_is_given_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    async with Parser(Limits(chunk_tokens=40)) as parser:
        child = await _child(parser)
        assert not {"AWS_SECRET_ACCESS_KEY", "HOME", "PATH"} & child.environ().keys()


def test_a_child_ends_with_its_input_and_does_not_work_on_for_nobody() -> None:
    command = [sys.executable, "-P", "-m", CHILD]
    idle = subprocess.run([*command, Limits(40).to_json()], input=b"", capture_output=True, timeout=PATIENCE_S)
    assert (idle.returncode, idle.stdout) == (0, b'{"size": 0}\n')
    data = TEXT * 200_000
    request = {"kind": "markdown", "language": "markdown", "title": "", "size": len(data)}
    busy = subprocess.run(
        [*command, Limits(40, cpu_s=0.0).to_json()],
        input=json.dumps(request).encode() + b"\n" + data,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert busy.returncode == -signal.SIGPROF


def test_a_document_can_open_connect_and_start_nothing() -> None:
    probe = """
import os, socket, subprocess, sys
from rolecall.retrieval.parsing.child import Limits, confined
guard = confined(Limits(40))
guard.watches = True
read, run = (lambda: open("/etc/passwd")), (lambda: subprocess.run(["true"]))
for attempt in (read, run, socket.socket, lambda: os.system("true")):
    try:
        attempt()
    except PermissionError:
        sys.stdout.write("refused ")
open(os.__file__).close()
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.stdout, done.stderr) == ("refused " * 4, "")
