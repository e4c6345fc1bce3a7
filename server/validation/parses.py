"""Whether code parses: Python, JSON, YAML, TOML, XML, HTML and shell, by parser alone. Nothing is executed."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import textwrap
import tomllib
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

MAX_CODE_CHARS = 200_000
MAX_YAML_CHARS = 50_000
"""YAML is read by a parser in plain Python, at about 100,000 characters a second."""
MAX_DEPTH = 200
_BASH_TIMEOUT_S = 5.0
_VOID_TAGS = "area base br col embed hr img input link meta source track wbr"
_VOID = frozenset(_VOID_TAGS.split())
_OPTIONAL_TAGS = "p li dt dd tr td th thead tbody tfoot option optgroup colgroup html head body"
_OPTIONAL_END = frozenset(_OPTIONAL_TAGS.split())


def can_parse(language: str, code: str = "") -> bool:
    """Whether a parser for the language (a name or an alias such as `py`, `sh`) is here and reads that much code."""
    parser = _PARSERS.get(language.lower())
    if parser is None or len(code) > (MAX_YAML_CHARS if parser is _yaml else MAX_CODE_CHARS):
        return False
    return parser is not _shell or shutil.which("bash") is not None


def same_language(one: str, other: str) -> bool:
    """Whether two names mean one language that is parsed here ("py" and "python")."""
    return one in _PARSERS and _PARSERS[one] is _PARSERS.get(other)


def parse_fault(code: str, language: str) -> str | None:
    """Why the code does not parse, or None where it does. Call only where `can_parse(language, code)`."""
    if "\0" in code:
        return "the code holds a NUL character"
    try:
        return _PARSERS[language.lower()](code)
    except (RecursionError, MemoryError):
        return "nested too deeply to parse"
    except Exception as fault:  # parsers meet odd input with errors of many kinds; none is ours
        return f"{type(fault).__name__}: {' '.join(str(fault).split())[:300]}"


def _python(code: str) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(textwrap.dedent(code))
        except SyntaxError as fault:
            return f"line {fault.lineno}: {fault.msg}"
    return None


def _json(code: str) -> str | None:
    strict_json(code)
    return None


def strict_json(text: str) -> Any:
    """`json.loads` without NaN and Infinity, and with a bound on depth; every fault is a ValueError."""
    try:
        value = json.loads(text, parse_constant=refuse_constant)
        bound_depth(value)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    return value


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def bound_depth(value: Any) -> None:
    """Raises ValueError where lists and objects nest more than `MAX_DEPTH` deep."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        nested = [item for item in level if isinstance(item, dict | list)]
        level = [child for item in nested for child in (item.values() if isinstance(item, dict) else item)]


def _yaml(code: str) -> str | None:
    import yaml

    # Composing builds no objects and expands no aliases, so a "billion laughs" file stays small.
    for _ in yaml.compose_all(code, Loader=yaml.SafeLoader):
        pass
    return None


def _toml(code: str) -> str | None:
    tomllib.loads(code)
    return None


def _xml(code: str) -> str | None:
    from xml.parsers import expat

    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise ValueError("entity declarations are not read")

    parser.EntityDeclHandler = refuse
    parser.Parse(code.encode(), True)
    return None


def _html(code: str) -> str | None:
    walker = _Tags()
    walker.feed(code)
    walker.close()
    left = [tag for tag in walker.open if tag not in _OPTIONAL_END]
    fault = walker.fault or (f"<{left[-1]}> is never closed" if left else None)
    return fault if walker.seen else "there is no tag"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fault: str | None = None
        self.seen = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen = True
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open[-1] != tag and self.open[-1] in _OPTIONAL_END:
            self.open.pop()
        if self.open and self.open[-1] == tag:
            self.open.pop()
        elif tag not in _VOID and tag not in _OPTIONAL_END:
            self.fault = self.fault or f"line {self.getpos()[0]}: </{tag}> closes nothing that is open"


def _shell(code: str) -> str | None:
    # `-n` reads without executing; no start-up file, no environment.
    reader = ["bash", "--norc", "--noprofile", "-n"]
    ran = subprocess.run(reader, input=code.encode(), capture_output=True, timeout=_BASH_TIMEOUT_S, env={})
    if ran.returncode == 0:
        return None
    return ran.stderr.decode(errors="replace").strip()[:300] or "bash cannot read it"


_PARSERS: dict[str, Callable[[str], str | None]] = {
    **dict.fromkeys(("python", "py", "python3"), _python),
    **dict.fromkeys(("json",), _json),
    **dict.fromkeys(("yaml", "yml"), _yaml),
    **dict.fromkeys(("toml",), _toml),
    **dict.fromkeys(("xml", "svg"), _xml),
    **dict.fromkeys(("html",), _html),
    **dict.fromkeys(("shell", "bash", "sh"), _shell),
}
