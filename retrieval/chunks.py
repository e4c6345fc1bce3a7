"""Documents cut into passages that are the file's own bytes: by heading, definition, paragraph, line, sentence.

Sized in tokens of the embedder. A chunk's `header` (path, heading path or symbol) is for embedding and full text only;
it is never part of `text`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

CountTokens = Callable[[str], int]

SECTION = 4  # boundaries this strong (headings, definitions) are crossed only to take in a small neighbour
PARAGRAPH = 2
TOLERANCE = 1.2  # a passage a little over the limit stays whole, sooner than leave a stump
_SMALL = 4  # a neighbour under 1/4 of the limit is small

_PIECES = re.compile(r"[A-Za-z]+|\d+|[^\sA-Za-z\d]")
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.*)")
_DEFINITION = re.compile(
    r"([ \t]*)(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|unsafe|override"
    r"|pub(?:\(\w+\))?|extern|inline|virtual|open|data|sealed|case|const|constexpr|local|partial)\s+)*"
    r"(?:def|class|func|fn|fun|function\*?|interface|struct|enum|trait|impl|module|namespace|type|object|protocol|extension"
    r"|sub|macro_rules!|message|service|record)\b\s*(?:\([^)]*\)\s*)?(?:<[^>]*>\s*)?([\w.:$]+)"
)
_ATTACHED = re.compile(r"([ \t]*)(?:@|#|//|/\*|\*|--|;)")
_SENTENCE = re.compile("[.!?:;\u3002\uff01\uff1f][\"'\u201d\u2019)\\]]*\\s*$")
_WORDS = re.compile(r"\S+\s*|\s+")
_HUMPS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[a-z][A-Z]|[A-Z]{2}[a-z]|[A-Za-z]\d)[A-Za-z0-9]*")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage: the file's bytes [start_byte, end_byte) decode to `text`; lines are 1-based and inclusive."""

    start_byte: int
    end_byte: int
    start_line: int
    end_line: int
    text: str
    header: str = ""


def estimate_tokens(text: str) -> int:
    """WordPiece tokens of a text without a tokenizer: 0.94 to 1.13 of all-MiniLM-L6-v2's count on English prose,
    Markdown and Python, 0.7 on German (measured)."""
    return sum(1 + (len(piece) - 1) // 7 for piece in _PIECES.findall(text))


def token_counter(tokenizer: Path | None) -> CountTokens:
    """Counts tokens with the embedder's `tokenizer.json`; by estimate where there is none that can be read."""
    if tokenizer is None or not tokenizer.is_file():
        return estimate_tokens
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_file(str(tokenizer))
    except Exception:  # the library raises nothing narrower; the embedder itself tells of a damaged folder
        return estimate_tokens
    loaded.no_truncation()
    loaded.no_padding()
    # A word that the vocabulary does not know is one token however long, and must not make a passage endless.
    return lambda text: max(len(loaded.encode(text, add_special_tokens=False)), len(text.strip()) // 10)


def split_identifiers(text: str) -> str:
    """The parts of camelCase words in a text, each word once, for a full-text index that splits only at delimiters."""
    words = dict.fromkeys(_IDENTIFIER.findall(text))
    return " ".join(part for word in words for part in _HUMPS.findall(word))


def cut(text: str, kind: str, title: str, limit_tokens: int, count: CountTokens = estimate_tokens) -> tuple[Chunk, ...]:
    """Chunks of about `limit_tokens`, 1.2 times that at most, in order, without overlap; blank text gives none.

    `kind` is markdown|text|code; `title` starts every header (a path's tail).
    """
    lines = _LINES.findall(text)
    if kind == "code":
        strengths, labels = _outline_code(lines)
    else:  # text may be reStructuredText, with more kinds of underlines
        strengths, labels = _outline_prose(lines, "=-" if kind == "markdown" else '=-~^"+')
    spans = _Cutter(lines, strengths, limit_tokens, count).spans(0, len(lines))
    chunks = []
    char = byte = line = 0
    for start, end, _ in spans:
        start += start == 0 and text.startswith("\ufeff")
        kept = text[start:end].rstrip()
        if kept:
            blank = kept.rfind("\n", 0, len(kept) - len(kept.lstrip())) + 1  # the first line's indentation stays
            start, kept = start + blank, kept[blank:]
            byte += len(text[char:start].encode())
            line += text.count("\n", char, start)
            size, height = len(kept.encode()), kept.count("\n")
            header = f"{title} > {labels[line]}" if labels[line] else title
            chunks.append(Chunk(byte, byte + size, line + 1, line + 1 + height, kept, header))
            char, byte, line = start + len(kept), byte + size, line + height
    return tuple(chunks)


Span = tuple[int, int, int]  # first character, end, tokens


class _Cutter:
    """Cuts at the strongest boundaries first, then joins small neighbours."""

    def __init__(self, lines: list[str], strengths: list[int], limit: int, count: CountTokens) -> None:
        self._lines, self._strengths, self._limit, self._count = lines, strengths, limit, count
        self._chars = [0, *accumulate(len(line) for line in lines)]
        self._tokens = [0, *accumulate(count(line) for line in lines)]

    def spans(self, low: int, high: int) -> list[Span]:
        tokens = self._tokens[high] - self._tokens[low]
        if tokens <= self._limit * TOLERANCE:
            return [(self._chars[low], self._chars[high], tokens)]
        if high - low == 1:
            return self._cut_line(low)
        strongest = max(self._strengths[low + 1 : high])
        cuts = [low, *(i for i in range(low + 1, high) if self._strengths[i] == strongest), high]
        joined: list[Span] = []
        for start, end in pairwise(cuts):
            for span in self.spans(start, end):
                small = joined and min(joined[-1][2], span[2]) * _SMALL < self._limit
                if joined and joined[-1][2] + span[2] <= self._limit and (strongest < SECTION or small):
                    joined[-1] = (joined[-1][0], span[1], joined[-1][2] + span[2])
                else:
                    joined.append(span)
        return joined

    def _cut_line(self, index: int) -> list[Span]:
        """A line over the limit: after sentences where one ends in the second half, else between words."""
        line, offset = self._lines[index], self._chars[index]
        longest = self._limit  # characters: no character costs more than a token
        bounds = [
            min(at + longest, word.end())
            for word in _WORDS.finditer(line)
            for at in range(word.start(), word.end(), longest)
        ]
        out: list[Span] = []
        start, at, tokens, sentence = 0, 0, 0, (0, 0)
        for end in bounds:
            cost = self._count(line[at:end])
            if tokens + cost > self._limit and at > start:
                stop, used = sentence if sentence[1] * 2 > self._limit else (at, tokens)
                out.append((offset + start, offset + stop, used))
                start, tokens, sentence = stop, tokens - used, (0, 0)
            tokens, at = tokens + cost, end
            if _SENTENCE.search(line, max(start, end - 12), end):
                sentence = (end, tokens)
        return [*out, (offset + start, offset + len(line), tokens)]


def _outline_prose(lines: list[str], underlines: str) -> tuple[list[int], list[str]]:
    """Paragraphs and headings, which `#` begins or a line of one of these marks follows."""
    strengths, labels = [0] * len(lines), [""] * len(lines)
    path: list[tuple[int, str]] = []
    fence = ""
    front_matter = bool(lines) and lines[0].strip("\ufeff \r\n") == "---" and "---" in map(str.strip, lines[1:])
    for i, line in enumerate(lines):
        after_blank = i > 0 and not lines[i - 1].strip() and bool(line.strip())
        strengths[i] = (1 if fence else PARAGRAPH) if after_blank else 0
        marker = _FENCE.match(line)
        heading = None if fence or front_matter else _heading(lines, i, underlines)
        if front_matter:
            front_matter = i == 0 or line.strip() != "---"
        elif marker and not fence:
            fence = marker[1]
        elif marker and fence and marker[1].startswith(fence) and not line.strip(" `~\r\n"):
            fence = ""
        elif heading:
            level, name = heading
            path = [*(entry for entry in path if entry[0] < level), (level, name)]
            strengths[i] = SECTION + 6 - level
        labels[i] = " > ".join(name for _, name in path)
    return strengths, labels


def _heading(lines: list[str], i: int, underlines: str) -> tuple[int, str] | None:
    line = lines[i].rstrip("\r\n").removeprefix("\ufeff")
    if found := _ATX.match(line):
        return len(found[1]), found[2].rstrip(" \t#")[:80]
    below = lines[i + 1].strip() if i + 1 < len(lines) else ""
    title = line.strip() and not line.startswith(("    ", "\t", ">", "-", "|", "*"))
    if title and len(below) > 2 and below == below[0] * len(below) and (i == 0 or not lines[i - 1].strip()):
        level = underlines.find(below[0]) + 1
        return (level, line.strip()[:80]) if level else None
    return None


def _outline_code(lines: list[str]) -> tuple[list[int], list[str]]:
    """Definitions by keyword and indentation, with the comments and decorators that stand on them."""
    strengths, labels = [0] * len(lines), [""] * len(lines)
    path: list[tuple[int, str]] = []
    for i, line in enumerate(lines):
        if not line.strip():
            labels[i] = labels[i - 1] if i else ""
            continue
        indent = len(line) - len(line.lstrip())
        if i and not lines[i - 1].strip():
            strengths[i] = PARAGRAPH + (indent == 0)
        if found := _DEFINITION.match(line):
            path = [*(entry for entry in path if entry[0] < indent), (indent, found[2].rstrip(".:"))]
        elif indent == 0 and not line.startswith((")", "}", "]", "{")) and not _ATTACHED.match(line):
            path = []
        labels[i] = ".".join(name for _, name in path)
        if found:
            first = i
            while first and (above := _ATTACHED.match(lines[first - 1])) and len(above[1]) == indent:
                first -= 1
                strengths[first], labels[first] = 0, labels[i]
            strengths[i] = 0
            strengths[first] = SECTION + (indent == 0)
    return strengths, labels
