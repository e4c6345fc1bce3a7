"""Chunks are the text's own bytes, cut where a reader would cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from rolecall.retrieval.chunks import Chunk, cut, estimate_each, token_counter
from rolecall.retrieval.sources import kind_of

REPO = Path(__file__).parents[2]
PACKAGES = Path(numpy.__file__).parents[1]
KINDS = ["markdown", "text", "code", "table", "json", "notebook", "html", "document"]
PIECES = st.sampled_from((
    "# One\n", "## Two\r\n", "word ", "naïve café ", "\n", "\r\n", "\n\n", "\r", "\u2028", "\u0085", "\f", "\t",
    "def f(x):\n", "    return 1\n", "class A:\n", "@dec\n", "```\n", "Title\n---\n", "---\n", "== T ==\n",
    "日本語の文。", "👩\u200d👩\u200d👧", "e\u0301", "a" * 60, '"', '{"a": [', "]}", ",", ";", "[x]\n", "- item\n",
))  # fmt: skip
TEXTS = st.one_of(st.lists(PIECES, max_size=60).map("".join), st.text(max_size=200))


def assert_cut_rightly(text: str, chunks: Iterable[Chunk]) -> None:
    """The spans are in order and hold the chunks' bytes, nothing but blanks lies between, and the lines are theirs."""
    data = text.encode()
    end = line = 0
    for chunk in chunks:
        assert chunk.start_byte >= end and chunk.text.strip()
        assert data[chunk.start_byte : chunk.end_byte].decode() == chunk.text
        between = data[end : chunk.start_byte]
        assert not between.decode().strip("\ufeff").strip()
        line += between.count(b"\n")
        assert chunk.start_line == line + 1
        line += chunk.text.count("\n")
        assert chunk.end_line == line + 1
        end = chunk.end_byte
    assert not data[end:].decode().strip("\ufeff").strip()


@settings(deadline=None)
@given(
    text=TEXTS,
    bom=st.booleans(),
    kind=st.sampled_from(KINDS),
    language=st.sampled_from(["python", "typescript", "c", "lua"]),
    limit=st.integers(3, 40),
)
def test_every_chunk_is_the_bytes_at_its_span_and_nothing_but_blanks_is_left_out(
    text: str, bom: bool, kind: str, language: str, limit: int
) -> None:
    text = "\ufeff" + text if bom else text
    chunks = cut(text, kind, language, "title", limit)
    assert_cut_rightly(text, chunks)
    assert max(estimate_each([chunk.text for chunk in chunks]), default=0) <= limit * 1.1


def real_files() -> Iterator[Path]:
    """Of this repository and of installed packages, a bounded number of each suffix."""
    left = {".py": 150, ".js": 10, ".h": 50, ".hpp": 15, ".pyx": 15, ".c": 20, ".cpp": 10, ".css": 10, ".csv": 10}
    left |= {".md": 40, ".rst": 30, ".txt": 30, ".json": 30, ".html": 10, ".yaml": 20, ".toml": 20}
    packages = (PACKAGES / name for name in ("sklearn", "numpy", "pip", "scipy", "torch"))
    for root in (REPO / "docs", REPO / "server", REPO / "config", *packages):
        for path in sorted(root.rglob("*")):
            if left.get(path.suffix, 0) and path.is_file() and 0 < path.stat().st_size < 100_000:
                left[path.suffix] -= 1
                yield path


def test_the_chunks_of_thousands_of_real_files_are_the_bytes_at_their_spans() -> None:
    chunks = 0
    for path in real_files():
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError:
            continue
        found = cut(text, *(kind_of(path.name) or ("text", "text")), path.name, 100)
        assert_cut_rightly(text, found)
        chunks += len(found)
    assert chunks > 10_000


def test_markdown_is_cut_at_headings_and_a_chunk_knows_its_heading_path() -> None:
    body = "Some words about this very subject. " * 3
    text = f"# Guide\n\n## Install\n\n{body}\n\n### macOS\n\n{body}\n\n```sh\n# no heading\n```\n\n## Use\n\n{body}\n"
    chunks = cut(text, "markdown", "markdown", "guide.md", 40)
    assert [chunk.heading for chunk in chunks] == ["Guide", "Guide > Install > macOS", "Guide > Use"]
    assert chunks[1].header == "guide.md > Guide > Install > macOS"
    assert chunks[1].text.startswith("### macOS") and chunks[1].text.endswith("```")


def test_code_is_cut_at_definitions_with_the_decorators_and_comments_on_them() -> None:
    body = "        total = first + second + third\n" * 4
    weight = f"    # how heavy\n    @cached\n    def weight(self):\n{body}"
    text = f"import os\n\n\nclass Box:\n    def size(self):\n{body}\n{weight}"
    chunks = cut(text, "code", "python", "box.py", 40)
    assert [chunk.header for chunk in chunks] == ["box.py", "box.py > Box.weight"]
    assert chunks[1].text == weight.rstrip()


def test_a_tables_header_row_goes_with_each_chunk_and_no_row_is_cut() -> None:
    rows = [f'{i},"a note of two lines,\nthe second ""{i}"""\n' for i in range(40)]
    chunks = cut("id,note\n" + "".join(rows), "table", "csv", "notes.csv", 60)
    assert len(chunks) > 5
    assert {chunk.header for chunk in chunks} == {"notes.csv > id | note"} and {chunk.heading for chunk in chunks} == {
        ""
    }
    assert all(chunk.text.endswith('"""') for chunk in chunks)


def test_json_on_one_line_is_cut_at_members_headed_by_their_keys() -> None:
    scripts = ", ".join(f'"{name}": "{"some words " * 6}"' for name in ("build", "test"))
    text = f'{{"scripts": {{{scripts}}}, "files": [{{"a": "{"b " * 20}"}}, {{"c": "{"d " * 20}"}}]}}'
    chunks = cut(text, "json", "json", "package.json", 34)
    assert [(chunk.heading, chunk.text[:9]) for chunk in chunks] == [
        ("", '{"scripts'),
        ("scripts.test", '"test": "'),
        ("files", '"files": '),
        ("files[1]", '{"c": "d '),
    ]


def test_a_page_begins_below_the_headings_of_the_last_and_is_the_place_of_its_chunks() -> None:
    above = [(1, "Guide")]
    first, second = (
        cut(text, "markdown", "markdown", "x", 100, place=place, above=above)
        for text, place in (("Words.\n\n## Use\n", "page 1"), ("More words.\n", "page 2"))
    )
    assert [(chunk.heading, chunk.place) for chunk in (*first, *second)] == [
        ("Guide", "page 1"),
        ("Guide > Use", "page 2"),
    ]


def test_a_long_line_is_cut_after_a_sentence() -> None:
    text = "The first sentence has a few words. The second one has some more words in it. And here is the third."
    assert [chunk.text for chunk in cut(text, "text", "text", "x", 12)] == [
        "The first sentence has a few words.",
        "The second one has some more words in it.",
        "And here is the third.",
    ]


def test_a_little_over_the_limit_stays_whole_and_blank_text_gives_nothing() -> None:
    assert len(cut("word " * 11, "text", "text", "x", 10)) == 1
    for kind in KINDS:
        assert cut("\ufeff \n\t\r\n", kind, "python", "x", 10) == cut("", kind, "python", "x", 10) == ()


@pytest.mark.parametrize(
    ("kind", "language", "text"),
    [
        ("code", "python", "(" * 100_000),
        ("code", "cpp", "{" * 100_000),
        ("code", "javascript", "f(function(){" * 10_000),
        ("json", "json", "[" * 100_000 + "]" * 100_000),
        ("json", "json", '{"a":' * 30_000),
        ("json", "json", '"\\"' * 100_000),
        ("table", "csv", '"' + "x," * 200_000),
        ("markdown", "markdown", "> " * 50_000),
        ("text", "text", "x" * 1_000_000),
        ("code", "go", "x := 1; " * 10_000),
    ],
    ids=lambda value: str(value)[:12],
)
def test_deep_nesting_and_endless_lines_are_cut_like_any_text(kind: str, language: str, text: str) -> None:
    chunks = cut(text, kind, language, "x", 200)
    assert_cut_rightly(text, chunks)
    assert max(estimate_each([chunk.text for chunk in chunks])) <= 220


def test_tokens_are_counted_by_the_embedders_tokenizer_and_an_endless_word_is_not_one(tmp_path: Path) -> None:
    words = WordPiece(
        {"[UNK]": 0, "ver": 1, "##tei": 2, "##digung": 3}, unk_token="[UNK]", max_input_chars_per_word=100
    )
    tokenizer = Tokenizer(words)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    count = token_counter(tmp_path / "tokenizer.json")
    assert list(count(["verteidigung", "x" * 2_000])) == [3, 200]
    (tmp_path / "tokenizer.json").write_text("{")
    for missing in (tmp_path / "tokenizer.json", tmp_path / "none.json", None):
        assert token_counter(missing) is estimate_each
