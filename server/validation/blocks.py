"""Code and JSON in a model's answer: found, and judged by parser and schema alone. Nothing is ever executed."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import textwrap
import threading
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic_core import from_json

from rolecall.roles.schema import keeps_to

from .contract import Check, Verdict, said

MAX_CODE_CHARS = 200_000
MAX_YAML_CHARS = 50_000
"""YAML is read by a parser in plain Python, at about 100,000 characters a second."""
MAX_JSON_CHARS = 1_000_000
MAX_STARTS = 100
"""How many opening brackets are tried as the start of a value before the answer counts as having none."""
_BASH_TIMEOUT_S = 5.0
_FENCE = re.compile(r"^[ ]{0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n`]*$")

_one_at_a_time = threading.Lock()
"""CPython 3.11 and 3.12 count the depth of what `ast.parse` builds for all threads together, and may raise SystemError.
Source: https://github.com/python/cpython/issues/106905. `catch_warnings` is for one thread as well."""


@dataclass(frozen=True)
class CodeBlock:
    """One piece of code. `language` is "" where the answer names none; `parses` is None where no parser is here."""

    language: str
    code: str
    parses: bool | None


def code_blocks(text: str, language: str | None = None) -> tuple[CodeBlock, ...]:
    """The fenced blocks of an answer that hold code, in order; an unclosed last fence runs to the end of the text.

    Without a fence, the whole answer is one block where `language` is given and the text parses in it.
    """
    found = fenced(text, language or "")
    if not found and language and parses(text, language)[0]:
        found = [(language.lower(), text.strip() + "\n")]
    return tuple(CodeBlock(name, code, parses(code, name)[0]) for name, code in found)


def fenced(text: str, language: str = "") -> list[tuple[str, str]]:
    """(language, code) of each fenced block that is not empty; `language` is that of a fence which names none."""
    found: list[tuple[str, list[str]]] = []
    fence = ""
    for line in text.splitlines():
        mark = _FENCE.match(line) if len(line) < 200 else None
        if fence and mark and mark[1].startswith(fence) and not mark[2]:
            fence = ""
        elif fence:
            found[-1][1].append(line)
        elif mark:
            fence = mark[1]
            found.append(((mark[2] or language).lower(), []))
    return [(name, "\n".join(lines) + "\n") for name, lines in found if any(line.strip() for line in lines)]


def parse_check(output: str, language: str) -> Check:
    """The check `parses`: each block in `language`, or the whole output, parses. Decisive unless there is no parser."""
    blocks, parser = fenced(output, language), _PARSERS.get(language.lower())
    codes = [code for name, code in blocks if _PARSERS.get(name) is parser]
    if parser and blocks and not codes:
        return said("parses", Verdict.UNSUPPORTED, f"the output has code blocks, but none in {language}")
    for code in codes or [output]:
        fits, why = parses(code, language)
        if not fits:
            return said("parses", Verdict.ABSTAIN if fits is None else Verdict.UNSUPPORTED, why)
    return said("parses", Verdict.SUPPORTED, f"the {language} parses")


def broken_check(output: str) -> Check | None:
    """The check `parses` of the first fenced block that does not parse in the language that it names, or None."""
    broken = next((block for block in code_blocks(output) if block.parses is False), None)
    return parse_check(broken.code, broken.language) if broken else None


def parses(code: str, language: str) -> tuple[bool | None, str]:
    """Whether the code parses, and why not. None where no parser for the language (a name, or an alias such as `py`)
    is here and reads that much."""
    parser = _PARSERS.get(language.lower())
    longest = MAX_YAML_CHARS if parser is _yaml else MAX_CODE_CHARS
    if parser is None or len(code) > longest or (parser is _shell and not shutil.which("bash")):
        return None, f"no parser for {len(code)} characters of {language!r} here"
    fault = "there is no code" if not code.strip() else "the code holds a NUL character" if "\0" in code else ""
    try:
        if not fault:
            parser(code)
    except SyntaxError as error:
        fault = f"line {error.lineno}: {error.msg}"
    except (RecursionError, MemoryError):
        fault = "nested too deeply to parse"
    except Exception as error:  # parsers meet odd input with errors of many kinds; none is ours
        fault = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return (False, f"the {language} does not parse: {fault}") if fault else (True, "")


def strict_json(text: str) -> Any:
    """The value without NaN and Infinity, of 200 levels at most; every fault is a ValueError."""
    return from_json(text.encode("utf-8", "replace"), allow_inf_nan=False)


def schema_check(output: str, schema: dict[str, Any]) -> Check:
    """The decisive check `schema`: the output's JSON value against the schema.

    The whole text is tried first, then its fenced blocks, then the first object or array that stands in prose. It
    abstains where the schema itself cannot be applied.
    """
    try:
        fits, detail = keeps_to(_find_json(output), schema)
    except ValueError as fault:
        fits, detail = False, str(fault)
    return said("schema", {True: Verdict.SUPPORTED, False: Verdict.UNSUPPORTED, None: Verdict.ABSTAIN}[fits], detail)


def parse_python(source: str, mode: str = "exec") -> ast.AST:
    """The tree of a source text, from any thread; raises as `ast.parse`."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source, mode=mode)


def _find_json(text: str) -> Any:
    """The first JSON value of the text; a ValueError says why there is none."""
    if len(text) > MAX_JSON_CHARS:
        raise ValueError(f"the answer has {len(text)} characters; at most {MAX_JSON_CHARS} are read as JSON")
    faults = []
    for code in (text.strip(), *(code for _, code in fenced(text)[:MAX_STARTS])):
        try:
            return strict_json(code)
        except ValueError as fault:
            faults.append(fault)
    for start in islice(re.finditer(r"\{|\[", text), MAX_STARTS):
        try:
            _, end = json.JSONDecoder().raw_decode(text, start.start())
            value = strict_json(text[start.start() : end])
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) or value:
            return value
    raise ValueError(f"the answer is not JSON: {faults[0]}")


def _python(code: str) -> None:
    parse_python(textwrap.dedent(code))


def _yaml(code: str) -> None:
    import yaml

    # Composing builds no objects and expands no aliases, so a "billion laughs" file stays small.
    for _ in yaml.compose_all(code, Loader=yaml.SafeLoader):
        pass


def _shell(code: str) -> None:
    # `-n` reads without executing; no start-up file, no environment.
    reader = [str(shutil.which("bash")), "--norc", "--noprofile", "-n"]
    ran = subprocess.run(reader, input=code.encode(), capture_output=True, timeout=_BASH_TIMEOUT_S, env={})
    if ran.returncode:
        raise ValueError(ran.stderr.decode(errors="replace").strip() or "bash cannot read it")


_PARSERS: dict[str, Callable[[str], object]] = {
    **dict.fromkeys(("python", "py", "python3"), _python),
    "json": strict_json,
    **dict.fromkeys(("yaml", "yml"), _yaml),
    "toml": tomllib.loads,
    **dict.fromkeys(("shell", "bash", "sh"), _shell),
}
