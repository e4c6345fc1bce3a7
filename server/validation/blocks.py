"""Code blocks of a model's answer, and whether code parses. Nothing is ever executed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .contract import Check, Verdict
from .parses import can_parse, parse_fault, same_language

_FENCE = re.compile(r"^[ ]{0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n`]*$")


@dataclass(frozen=True)
class CodeBlock:
    """One piece of code. `language` is "" where the answer names none; `parses` is None where no parser is here."""

    language: str
    code: str
    parses: bool | None


def code_blocks(text: str, language: str | None = None, *, check: bool = True) -> tuple[CodeBlock, ...]:
    """The fenced blocks of an answer, in order; an unclosed last fence runs to the end of the text.

    Without a fence, the whole answer is one block where `language` is given and the text parses in it. `check=False`
    leaves `parses` None.
    """
    blocks: list[CodeBlock] = []
    fence, name, lines = "", "", list[str]()
    for line in text.splitlines():
        found = _FENCE.match(line) if len(line) < 200 else None
        if fence and found and found[1].startswith(fence) and not found[2]:
            blocks.append(_block(name, lines, language, check))
            fence = ""
        elif fence:
            lines.append(line)
        elif found:
            fence, name, lines = found[1], found[2], []
    if fence and any(line.strip() for line in lines):
        blocks.append(_block(name, lines, language, check))
    if not blocks and language and text.strip() and can_parse(language, text) and parse_fault(text, language) is None:
        blocks.append(CodeBlock(language.lower(), text.strip() + "\n", True))
    return tuple(blocks)


def _block(name: str, lines: list[str], language: str | None, check: bool) -> CodeBlock:
    code = "\n".join(lines) + "\n"
    named = (name or language or "").lower()
    parses = parse_fault(code, named) is None if check and can_parse(named, code) else None
    return CodeBlock(named, code, parses)


def parse_check(output: str, language: str) -> Check:
    """The check `parses`: each block in `language`, or the whole output, parses. Decisive unless there is no parser."""
    name = language.lower()
    if not can_parse(name, output):
        detail = f"no parser for {len(output)} characters of {language!r} here"
        return Check(name="parses", verdict=Verdict.ABSTAIN, decisive=False, detail=detail)
    blocks = code_blocks(output, name, check=False)
    codes = [block.code for block in blocks if same_language(block.language, name)]
    if blocks and not codes:
        return _said(Verdict.UNSUPPORTED, f"the output has code blocks, but none in {name}")
    for code in codes or [output]:
        fault = parse_fault(code, name) if code.strip() else "there is no code"
        if fault is not None:
            return _said(Verdict.UNSUPPORTED, f"the {name} does not parse: {fault}")
    return _said(Verdict.SUPPORTED, f"the {name} parses")


def _said(verdict: Verdict, detail: str) -> Check:
    return Check(name="parses", verdict=verdict, decisive=True, detail=detail)
