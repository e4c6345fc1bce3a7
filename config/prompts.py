"""The prompts: packaged Markdown, versioned by the hash of their content."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_PLACE = re.compile(r"\{\{(\w+)\}\}(\n*)")
_CONTROL = re.compile(
    r"<(?=[|\uff5c]|/?document|/?(?:s|think|bos|eos|pad|unk|start_of_turn|end_of_turn)\b)|\[(?=/?INST\])|<<(?=/?SYS>>)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """System message, a line `---`, user message; or the latter alone. `{{name}}` is a place for a value."""

    name: str
    text: str
    sha256: str

    def render(self, **values: str) -> tuple[str, str]:
        """(system, user) with every place filled once: what stands in a value is never taken for a place.

        An empty value takes the blank line after its place with it.
        """

        def fill(match: re.Match[str]) -> str:
            value = values[match[1]]
            return value and value + match[2]

        system, _, user = self.text.rpartition("\n---\n")
        return _PLACE.sub(fill, system).strip(), _PLACE.sub(fill, user).strip()


@cache
def prompt(name: str) -> Prompt:
    """A packaged prompt by name."""
    text = files("rolecall.config").joinpath("prompts", f"{name}.md").read_text("utf-8")
    return Prompt(name, text, hashlib.sha256(text.encode()).hexdigest())


def plain(text: str) -> str:
    """Text that cannot end a document or start a chat turn: each control token gets a space after its first sign."""
    return _CONTROL.sub(lambda match: match[0] + " ", text)


def document(text: str, title: str = "") -> str:
    """Text as data between delimiters that it cannot hold itself."""
    label = f' "{plain(title)}"'.replace("\n", " ") if title else ""
    return f"<document{label}>\n{plain(text).strip()}\n</document>"
