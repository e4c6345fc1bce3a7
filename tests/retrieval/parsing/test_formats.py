"""One real file of each format, cut into chunks that know where they stand."""

from __future__ import annotations

import pytest

from rolecall.retrieval.chunks import Chunk
from rolecall.retrieval.errors import FileUnreadable
from rolecall.retrieval.parsing.parser import Parsed, Parser

from .documents import docx, notebook, pdf, pptx, source, xlsx

pytestmark = pytest.mark.anyio

HTML = b"""<html><head><title>A page</title><style>p {}</style></head><body><nav>Menu</nav><h1>Valves</h1>
<p>Open the <a href="https://example.org/?q=secret">relief_valve</a> <b>slowly</b>.<img alt="a valve" src="data:x"></p>
<p style="display:none">Hidden</p><table><tr><td>size</td></tr><tr><td>12</td></tr></table>
<script>run()</script></body>"""


async def _parsed(parser: Parser, name: str, data: bytes) -> Parsed:
    """Whatever the format, a chunk's bytes are those at its span."""
    parsed = await parser.parse(data, source(name), f"folder/{name}")
    body = parsed.text.encode()
    assert parsed.converted or body == data
    for chunk in parsed.chunks:
        assert body[chunk.start_byte : chunk.end_byte].decode() == chunk.text
        assert body[: chunk.start_byte].count(b"\n") + 1 == chunk.start_line
        assert body[: chunk.end_byte].count(b"\n") + 1 == chunk.end_line
    return parsed


def _places(parsed: Parsed) -> list[tuple[str, str]]:
    return [(chunk.place, chunk.text) for chunk in parsed.chunks]


def _only(parsed: Parsed) -> Chunk:
    (chunk,) = parsed.chunks
    return chunk


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.md", b"# Valves\n\nOpen slowly.\n"),
        ("a.rst", b"Valves\n======\n\nOpen slowly.\n"),
        ("a.txt", "\ufeffÖffne langsam.\r\n".encode()),
        ("a.py", b"def valve() -> int:\n    return 1\n"),
        ("a.csv", b"valve,size\nrelief,12\n"),
        ("a.tsv", b"valve\tsize\nrelief\t12\n"),
        ("a.json", b'{"valve": {"size": 12}}'),
        ("a.jsonl", b'{"valve": 1}\n{"valve": 2}\n'),
    ],
)
async def test_text_code_and_data_are_cited_in_the_file_s_own_bytes(parser: Parser, name: str, data: bytes) -> None:
    parsed = await _parsed(parser, name, data)
    assert not parsed.converted and parsed.chunks
    assert all(chunk.header.startswith(f"folder/{name}") for chunk in parsed.chunks)


async def test_html_is_what_a_reader_sees_without_addresses(parser: Parser) -> None:
    parsed = await _parsed(parser, "a.html", HTML)
    assert parsed.text == "# Valves\n\nOpen the relief_valve **slowly**.a valve\n\n| size |\n| --- |\n| 12 |"
    assert _only(parsed).heading == "Valves"


async def test_html_nested_too_deep_for_its_structure_is_plain_text(parser: Parser) -> None:
    parsed = await _parsed(parser, "a.html", b"<div>" * 20_000 + b"deep" + b"</div>" * 20_000)
    assert parsed.text == "deep"


async def test_the_title_of_a_page_without_a_heading_is_one(parser: Parser) -> None:
    assert (await _parsed(parser, "a.htm", b"<title>Pumps</title><p>Prime.")).text == "# Pumps\n\nPrime."


async def test_html_says_its_encoding(parser: Parser) -> None:
    latin = '<meta charset="iso-8859-1"><p>Öl</p>'.encode("latin-1")
    assert (await _parsed(parser, "a.html", latin)).text == "Öl"


async def test_a_notebook_s_cells_are_places_and_its_outputs_are_left_out(parser: Parser) -> None:
    data = notebook(("markdown", "# Valves\nThe data."), ("code", "x = '```'"), ("code", ""))
    parsed = await _parsed(parser, "a.ipynb", data)
    assert _places(parsed) == [("cell 1", "# Valves\nThe data."), ("cell 2", "````python\nx = '```'\n````")]
    assert parsed.chunks[1].heading == "Valves"


async def test_a_pdf_s_pages_are_places(parser: Parser) -> None:
    parsed = await _parsed(parser, "a.pdf", pdf([["Relief valves", "open slowly."], [], ["Pumps."]]))
    assert _places(parsed) == [("page 1", "Relief valves\nopen slowly."), ("page 3", "Pumps.")]


async def test_a_docx_has_its_headings(parser: Parser) -> None:
    chunk = _only(await _parsed(parser, "a.docx", docx("Valves", "Open slowly.")))
    assert (chunk.heading, chunk.text) == ("Valves", "# Valves\n\nOpen slowly.")


async def test_a_deck_s_slides_are_places_with_title_body_and_notes(parser: Parser) -> None:
    parsed = await _parsed(parser, "a.pptx", pptx(("Valves", "Open slowly."), ("Pumps", "Prime first.")))
    assert [chunk.place for chunk in parsed.chunks] == ["slide 1", "slide 2"]
    assert parsed.chunks[1].text == "# Pumps\n\nPrime first.\n\nnote on Pumps"


async def test_a_workbook_s_sheets_are_places_and_each_chunk_knows_its_columns(parser: Parser) -> None:
    rows = [["part", "size"], *([f"valve {i}", i] for i in range(40))]
    parsed = await _parsed(parser, "a.xlsx", xlsx(Stock=rows, Notes=[["note"], [None], ["ask first"]]))
    assert {chunk.place for chunk in parsed.chunks} == {"sheet Stock", "sheet Notes"}
    assert all("part | size" in chunk.header for chunk in parsed.chunks if chunk.place == "sheet Stock")
    assert parsed.chunks[-1].text.endswith("note\nask first")


async def test_text_in_utf16_is_converted(parser: Parser) -> None:
    parsed = await _parsed(parser, "a.txt", "Öl".encode("utf-16"))
    assert (parsed.converted, parsed.text) == (True, "Öl")


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("a.md", b"text\0", "binary"),
        ("a.md", b"\xe4", "file_unreadable"),
        ("a.js", b"x();" * 2_000, "generated"),
        ("a.go", b"// Code generated by a tool. DO NOT EDIT.\n", "generated"),
        ("a.ts", b"/**\n * @generated by a tool\n */\n", "generated"),
        ("a.pdf", pdf([["secret"]], encrypted=True), "encrypted"),
        ("a.pdf", pdf([[]]), "no_text"),
        ("a.pdf", b"no PDF", "parse_failed"),
        ("a.docx", b"no zip", "parse_failed"),
        ("a.docx", bytes.fromhex("d0cf11e0a1b11ae1") + b"Word.Document.8", "parse_failed"),
        ("a.xlsx", bytes.fromhex("d0cf11e0a1b11ae1") + "EncryptedPackage".encode("utf-16-le"), "encrypted"),
        ("a.pptx", docx("Valves"), "parse_failed"),
        ("a.ipynb", b"{}", "parse_failed"),
        ("a.ipynb", b"[" * 100_000, "parse_failed"),
    ],
)
async def test_what_cannot_be_read_has_a_reason(parser: Parser, name: str, data: bytes, code: str) -> None:
    with pytest.raises(FileUnreadable) as raised:
        await parser.parse(data, source(name), name)
    assert raised.value.code == code
    assert raised.value.found and raised.value.advice


async def test_a_mention_of_generated_code_is_not_generated(parser: Parser) -> None:
    assert (await _parsed(parser, "a.py", b'MARK = "@generated"\n# see @ generated\n')).chunks


async def test_an_empty_file_has_no_chunks(parser: Parser) -> None:
    assert await parser.parse(b"", source("a.md"), "a.md") == Parsed("", False, ())
