"""Where a text may be cut, how gladly, and what stands above each place: for prose, code, tables and JSON."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from .definitions import Definition, definitions

LINE, SENTENCE, PARAGRAPH, SECTION = 0, 1, 2, 20
"""Strengths of a boundary. From PARAGRAPH up to SECTION lie the levels of nested data. SECTION and above (headings,
definitions) are crossed only to take in a small neighbour."""

Headings = list[tuple[int, str]]
"""Open ones, the outer first, each with its level."""

_DEPTHS = SECTION - PARAGRAPH - 2  # levels of nested data that are told apart
_NESTED = 5  # definitions in each other that a heading names
_LABEL_CHARS = 80
_KEY_CHARS = 40
_UNIT_CHARS = 16  # elements shorter than this are not told apart: an array of a million numbers has some
_COLUMNS_CHARS = 300  # of a table's header row, which goes with each of its chunks

_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.*)")
_EQUALS = re.compile(r" ?(={1,6}|=(?: =){1,5}) +([^=\s].*?)((?: ?=)*) *$")  # AsciiDoc, MediaWiki
_TEX = re.compile(r"\s*\\(part|chapter|section|subsection|subsubsection)\*?\{([^}]*)")
_TEX_LEVELS = {"part": 1, "chapter": 2, "section": 3, "subsection": 4, "subsubsection": 5}
_SENTENCE_END = re.compile("[.!?\u3002\uff01\uff1f][\"'\u201d\u2019)\\]]*\\s*$")
_ITEM = re.compile(r"\s*(?:[-*+\u2022]|\d{1,3}[.)])\s")
_ATTACHED = re.compile(r"\s*(?:@|#|//|/\*|\*|--|;)")
_NUMBER = re.compile(r"\s*[-+]?[\d.,]*\d%?\s*")
_JSON = re.compile(r'("(?:[^"\\\n]|\\.)*+"?)(\s*+:)?|[{}\[\],\n]')


@dataclass(frozen=True, slots=True)
class Outline:
    """A text in `units` (joined, they are the text), each with the strength of the boundary before it and its heading;
    `columns` is a table's header row."""

    units: list[str]
    strengths: list[int]
    headings: list[str]
    columns: str = ""


def outline(text: str, kind: str, language: str, title: str, above: Headings | None = None) -> Outline:
    """By `kind` (see `Kind`), and for code by `language`; `title` ends in the file's name, `above` as in `cut`."""
    lines: list[str] = _LINES.findall(text)
    if kind == "table":
        return _table(lines)
    if kind == "json":
        return _json(text)
    if kind == "code":
        found = definitions(text, language, title)
        levels = 3 if language == "yaml" else 1
        return _by_indentation(lines, levels) if found is None else _code(lines, found)
    return _prose(lines, kind == "text", [] if above is None else above)


def _prose(lines: list[str], plain: bool, path: Headings) -> Outline:
    """Headings, paragraphs, list items and sentences that end a line. `plain` text may be reStructuredText, AsciiDoc,
    MediaWiki or TeX, with other signs of a heading than Markdown."""
    strengths, headings = [LINE] * len(lines), [""] * len(lines)
    fence, heading = "", " > ".join(name for _, name in path)
    front_matter = bool(lines) and lines[0].strip("\ufeff \r\n") == "---" and "---" in map(str.strip, lines[1:])
    for i, line in enumerate(lines):
        above = lines[i - 1] if i else ""
        if i and line.strip():
            if not above.strip():
                strengths[i] = SENTENCE if fence else PARAGRAPH
            elif not fence and (_ITEM.match(line) or _SENTENCE_END.search(above[-12:])):
                strengths[i] = SENTENCE
        marker = _FENCE.match(line)
        found = None if fence or front_matter else _heading(lines, i, plain)
        if front_matter:
            front_matter = i == 0 or line.strip() != "---"
        elif marker and not fence:
            fence = marker[1]
        elif marker and fence and marker[1].startswith(fence) and not line.strip(" `~\r\n"):
            fence = ""
        elif found:
            level, name = found
            path[:] = [*(entry for entry in path if entry[0] < level), (level, name)]
            heading = " > ".join(name for _, name in path)
            strengths[i] = SECTION + 6 - level
        headings[i] = heading
    return Outline(lines, strengths, headings)


def _heading(lines: list[str], i: int, plain: bool) -> tuple[int, str] | None:
    line = lines[i].rstrip("\r\n").removeprefix("\ufeff")
    if found := _ATX.match(line):
        return len(found[1]), found[2].rstrip(" \t#")[:_LABEL_CHARS]
    if plain and (found := _TEX.match(line)):
        return _TEX_LEVELS[found[1]], found[2][:_LABEL_CHARS]
    separate = i == 0 or not lines[i - 1].strip()
    if plain and (found := _EQUALS.match(line)) and (found[3] or (separate and len(found[1]) > 1)):
        return found[1].count("="), found[2][:_LABEL_CHARS]
    below = lines[i + 1].strip() if i + 1 < len(lines) else ""
    title = line.strip() and not line.startswith(("    ", "\t", ">", "-", "|", "*"))
    if separate and title and len(below) > 2 and below == below[0] * len(below):
        level = ('=-~^"+' if plain else "=-").find(below[0]) + 1
        return (level, line.strip()[:_LABEL_CHARS]) if level else None
    return None


def _table(lines: list[str]) -> Outline:
    """Rows, with the line breaks inside quotes; the first row is the header unless it holds a number."""
    if not lines:
        return Outline([], [], [])
    delimiter = max(",;\t|", key=lines[0].count)
    strengths = [LINE] * len(lines)
    reader = csv.reader(lines, delimiter=delimiter)
    header: list[str] = []
    row = 0
    try:
        for cells in reader:
            strengths[row] = PARAGRAPH
            header = header or cells
            row = reader.line_num
    except csv.Error:  # a cell over 128 kB, or a bare carriage return: from here on a line is a row
        strengths[row:] = [PARAGRAPH] * (len(lines) - row)
    named = not any(_NUMBER.fullmatch(cell) for cell in header)
    columns = " | ".join(" ".join(cell.split()) for cell in header).removeprefix("\ufeff") if named else ""
    return Outline(lines, strengths, [""] * len(lines), columns[:_COLUMNS_CHARS])


def _json(text: str) -> Outline:
    """Members, the outer ones first, each headed by its keys (`scripts.test`, `items[3].name`); of JSON lines each
    is one. Text that is no JSON is cut all the same."""
    cuts: list[tuple[int, int, str]] = []
    for start, strength, heading in _members(text):
        if not cuts or strength != cuts[-1][1] or start - cuts[-1][0] >= _UNIT_CHARS:
            cuts.append((start, strength, heading))
    starts = [0, *(start for start, _, _ in cuts), len(text)]
    units = [text[start:end] for start, end in pairwise(starts)]  # the last is empty where a line break ends the text
    return Outline(units, [LINE, *(cut[1] for cut in cuts)], ["", *(cut[2] for cut in cuts)])


def _members(text: str) -> Iterator[tuple[int, int, str]]:
    """(first character, strength, heading) of each member and element, and of each further line."""
    path: list[str | int] = []  # of the open containers: the key, or the index in an array
    depth = 0
    start: int | None = None  # where the next member begins; None where none is awaited
    for found in _JSON.finditer(text):
        token = found[0]
        if start is not None:
            blank = not text[start : found.start()].strip()
            if blank and token == "\n":
                start = found.end()
                continue
            if not (blank and token in ("]", "}")):
                if found[2]:
                    path[-1] = found[1].strip('"')[:_KEY_CHARS]
                yield start, SECTION - 1 - depth, _joined(path)
            start = None
        if token == "\n":
            yield found.end(), LINE if depth else SECTION - 1, _joined(path)
        elif token in ("[", "{"):
            depth += 1
            if depth <= _DEPTHS:
                path.append(0 if token == "[" else "")
                start = found.end()
        elif token in ("]", "}"):
            if 0 < depth <= _DEPTHS:
                path.pop()
            depth = max(0, depth - 1)
        elif token == "," and 0 < depth <= _DEPTHS:
            if isinstance(index := path[-1], int):
                path[-1] = index + 1
            start = found.end()


def _joined(path: list[str | int]) -> str:
    keys = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path if key != "")
    return keys.removeprefix(".")[: 2 * _LABEL_CHARS]


def _code(lines: list[str], found: Iterable[Definition]) -> Outline:
    """Definitions within definitions, each with the comments and decorators that stand on it."""
    strengths, headings = [LINE] * len(lines), [""] * len(lines)
    path: list[Definition] = []
    pending = iter(found)
    following = next(pending, None)
    for i, line in enumerate(lines):
        if i and line.strip() and not lines[i - 1].strip():
            strengths[i] = PARAGRAPH + (not line[0].isspace())
        path = [one for one in path if one.last_line >= i]
        while following is not None and following.first_line <= i:
            while path and path[-1].end_byte <= following.start_byte:
                path.pop()
            if following.first_line == i:
                strengths[i] = max(strengths[i], SECTION + max(0, 3 - len(path)))
            if len(path) < _NESTED:
                path.append(following)
            following = next(pending, None)
        headings[i] = ".".join(one.name for one in path)
    return Outline(lines, strengths, headings)


def _by_indentation(lines: list[str], levels: int) -> Outline:
    """For code without a grammar here, or too broken for it: a line with deeper ones below heads them, at the margin
    or, where there are more `levels`, in the lines that another heads; so does `[section]`. Comments go with what
    follows."""
    strengths, headings = [LINE] * len(lines), [""] * len(lines)
    section = heading = ""
    path: list[tuple[int, str]] = []
    for i, line in enumerate(lines):
        indent, below = _indent(line), lines[i + 1] if i + 1 < len(lines) else ""
        if line.strip() and i and not lines[i - 1].strip():
            strengths[i] = PARAGRAPH + (indent == 0)
        if line.strip() and line[indent] not in ")}]{" and not _is_comment(line):
            path = [entry for entry in path if entry[0] < indent]
            label = line.strip()[:_LABEL_CHARS].rstrip(" {([:=")
            names = line.startswith("[") and line.rstrip().endswith("]")
            deeper = below.startswith("{") or (_indent(below) > indent and bool(below.strip()))
            heads = not names and deeper and len(path) < levels and (bool(path) or indent == 0)
            if names:
                section = label
            elif heads:
                path.append((indent, label))
            heading = " > ".join(filter(None, (section, *(label for _, label in path))))
            if names or heads:
                first = i
                while first and _is_comment(lines[first - 1]) and _indent(lines[first - 1]) == indent:
                    first -= 1
                    strengths[first + 1], headings[first] = LINE, heading
                strengths[first] = SECTION + 2 if indent == 0 else SECTION - len(path)
        headings[i] = heading
    return Outline(lines, strengths, headings)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_comment(line: str) -> bool:
    """Or a decorator; but `#name {` and `@media {` are selectors."""
    return bool(_ATTACHED.match(line)) and not line.rstrip().endswith("{")
