"""Chunks are the file's own bytes, cut where a reader would cut."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from rolecall.retrieval.chunks import cut, estimate_tokens, split_identifiers, token_counter

PIECES = st.sampled_from(
    [
        *("# One\n", "## Two\r\n", "word ", "naïve café ", "\n", "\r\n", "\n\n", "\r", "\u2028", "\u0085", "\f", "\t"),
        *("def f(x):\n", "    return 1\n", "class A:\n", "@dec\n", "```\n", "Title\n---\n", "---\n"),
        *("日本語の文。", "👩\u200d👩\u200d👧", "e\u0301", "a" * 60),
    ]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=60).map("".join), st.text(max_size=200))


@settings(deadline=None)
@given(text=TEXTS, bom=st.booleans(), kind=st.sampled_from(["markdown", "text", "code"]), limit=st.integers(3, 40))
def test_every_chunk_is_the_bytes_at_its_span_and_nothing_but_blanks_is_left_out(
    text: str, bom: bool, kind: str, limit: int
) -> None:
    text = "\ufeff" + text if bom else text
    data = text.encode()
    end = 0
    left_out = b""
    for chunk in cut(text, kind, "title", limit):
        assert data[chunk.start_byte : chunk.end_byte].decode() == chunk.text
        assert chunk.text.strip() and chunk.start_byte >= end
        assert chunk.start_line == data[: chunk.start_byte].count(b"\n") + 1
        assert chunk.end_line == data[: chunk.end_byte].count(b"\n") + 1
        assert estimate_tokens(chunk.text) <= limit * 1.2
        left_out += data[end : chunk.start_byte]
        end = chunk.end_byte
    assert not (left_out + data[end:]).decode().strip("\ufeff").strip()


def test_markdown_is_cut_at_headings_and_a_chunk_knows_its_heading_path() -> None:
    body = "Some words about this very subject. " * 3
    text = f"# Guide\n\n## Install\n\n{body}\n\n### macOS\n\n{body}\n\n```sh\n# no heading\n```\n\n## Use\n\n{body}\n"
    chunks = cut(text, "markdown", "guide.md", 40)
    assert [chunk.header for chunk in chunks] == [
        "guide.md > Guide",
        "guide.md > Guide > Install > macOS",
        "guide.md > Guide > Use",
    ]
    assert chunks[1].text.startswith("### macOS") and chunks[1].text.endswith("```")


def test_code_is_cut_at_definitions_with_the_decorators_and_comments_on_them() -> None:
    body = "    total = first + second + third\n" * 4
    weight = f"    # how heavy\n    @cached\n    def weight(self):\n{body}"
    text = f"import os\n\n\nclass Box:\n    def size(self):\n{body}\n{weight}"
    chunks = cut(text, "code", "box.py", 40)
    assert [chunk.header for chunk in chunks] == ["box.py", "box.py > Box.weight"]
    assert chunks[1].text == weight.rstrip()


def test_a_long_line_is_cut_after_a_sentence() -> None:
    text = "The first sentence has a few words. The second one has some more words in it. And here is the third."
    assert [chunk.text for chunk in cut(text, "text", "x", 12)] == [
        "The first sentence has a few words.",
        "The second one has some more words in it.",
        "And here is the third.",
    ]


def test_a_little_over_the_limit_stays_whole_and_blank_text_gives_nothing() -> None:
    assert len(cut("word " * 12, "text", "x", 10)) == 1
    assert cut("\ufeff \n\t\r\n", "text", "x", 10) == cut("", "code", "x", 10) == ()


def test_an_underlined_title_of_restructured_text_is_a_heading() -> None:
    body = "Some words about this very subject. " * 5
    chunks = cut(f"Guide\n=====\n\n{body}\n\nSetup\n~~~~~\n\n{body}\n", "text", "guide.rst", 40)
    assert [chunk.header for chunk in chunks] == ["guide.rst > Guide", "guide.rst > Guide > Setup"]


def test_tokens_are_counted_by_the_embedders_tokenizer_and_an_endless_word_is_not_one(tmp_path: Path) -> None:
    words = WordPiece(
        {"[UNK]": 0, "ver": 1, "##tei": 2, "##digung": 3}, unk_token="[UNK]", max_input_chars_per_word=100
    )
    tokenizer = Tokenizer(words)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    count = token_counter(tmp_path / "tokenizer.json")
    assert (count("verteidigung"), count("x" * 2_000)) == (3, 200)
    (tmp_path / "tokenizer.json").write_text("{")
    for missing in (tmp_path / "tokenizer.json", tmp_path / "none.json", None):
        assert token_counter(missing) is estimate_tokens


def test_camel_case_words_are_split_for_full_text() -> None:
    assert split_identifiers("getUserName parses HTTPResponse2 as snake_case plain") == (
        "get User Name HTTP Response 2"
    )
