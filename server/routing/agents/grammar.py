"""Lark grammars over whole words: a request either parses to its last word or not at all.

A word that no grammar knows ends the attempt at once, so most requests cost a few dictionary look-ups.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from .contract import Parse
from .words import pieces_of, vocabulary

_LONGEST_PHRASE = 6
_TERMINAL = re.compile(r"_?[A-Z]+: /|%declare")


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar. `phrases` (literals, units, places), then `patterns` for single words, give terminals."""

    phrases: Mapping[tuple[str, ...], str]
    patterns: tuple[tuple[str, re.Pattern[str]], ...]
    parser: Any

    def parses(self, words: list[str]) -> Iterator[Parse]:
        """Parses of all of `words` but what carries the request ("hey, could you tell me"), shortest core first."""
        from lark.exceptions import LarkError

        for start in _starts(words):
            tokens = list(self.tokens(words[start:]))
            for taken in _ends(words[start:], tokens):
                try:
                    tree = self.parser.parse(tokens[:taken])
                except LarkError:
                    continue
                yield _plain(tree.children[0])

    def tokens(self, words: list[str]) -> Iterator[tuple[str, str, int]]:
        """Terminal, text and end position of each phrase, the longest each time, up to a word that is in none."""
        position = 0
        while position < len(words):
            for size in range(min(_LONGEST_PHRASE, len(words) - position), 0, -1):
                phrase = tuple(words[position : position + size])
                if name := self.phrases.get(phrase):
                    break
            else:
                size, word = 1, words[position]
                name = next((name for name, pattern in self.patterns if pattern.fullmatch(word)), None)
                if name is None:
                    return
            yield name, " ".join(words[position : position + size]), position + size
            position += size


def _starts(words: list[str]) -> list[int]:
    """Where the request may begin: after each run of carrier phrases, the longest run first."""
    before, reached, open_ends = vocabulary("BEFORE"), {0}, [0]
    while open_ends:
        position = open_ends.pop()
        for size in range(1, _LONGEST_PHRASE + 1):
            end = position + size
            if end < len(words) and end not in reached and tuple(words[position:end]) in before:
                reached.add(end)
                open_ends.append(end)
    return sorted(reached, reverse=True)


def _ends(words: list[str], tokens: list[tuple[str, str, int]]) -> list[int]:
    """How many tokens the request may have: what follows them is carrier phrases only. Shortest first."""
    after, reached = vocabulary("AFTER"), {len(words)}
    for position in range(len(words) - 1, 0, -1):
        sizes = range(1, min(_LONGEST_PHRASE, len(words) - position) + 1)
        if any(position + size in reached and tuple(words[position : position + size]) in after for size in sizes):
            reached.add(position)
    return [count for count, (_, _, end) in enumerate(tokens, start=1) if end in reached]


@cache
def grammar(name: str) -> Grammar:
    """The grammar of `NAME.lark`, loaded at its first use. Its literals of several words are split into words."""
    from lark import Lark
    from lark.lexer import Lexer, PatternStr, Token

    class Words(Lexer):  # type: ignore[misc]  # lark is not checked
        """Takes the tokens that `Grammar.tokens` made."""

        def __init__(self, conf: Any) -> None:
            pass

        def lex(self, data: list[tuple[str, str, int]]) -> Iterator[Token]:
            return (Token(kind, text) for kind, text, _ in data)

    text = files("rolecall.server.routing.agents").joinpath(f"{name}.lark").read_text("utf-8")
    text = _shared_words(_lifted(re.sub(r'"([^"\n]+)"', _by_word, re.sub(r"^//.*$", "", text, flags=re.MULTILINE))))
    parser = Lark(text, parser="earley", lexer=Words, ambiguity="resolve", maybe_placeholders=False)
    literals = [terminal for terminal in parser.terminals if isinstance(terminal.pattern, PatternStr)]
    phrases: dict[tuple[str, ...], str] = {(terminal.pattern.value,): terminal.name for terminal in literals}
    for terminal in ("UNIT", "CITY"):
        for phrase in vocabulary(terminal) if terminal in text else ():
            phrases.setdefault(phrase, terminal)
    patterns = [
        (terminal.name, re.compile(terminal.pattern.value))
        for terminal in parser.terminals
        if not isinstance(terminal.pattern, PatternStr)
    ]
    return Grammar(phrases, tuple(patterns), parser)


def _by_word(literal: re.Match[str]) -> str:
    words = [f'"{word}"' for word in pieces_of(literal[1])]
    return words[0] if len(words) == 1 else f"({' '.join(words)})"


def _shared_words(text: str) -> str:
    """Let a word that is a literal in one place be a month, a unit or a number in another: a word has one terminal."""
    literals = sorted(set(re.findall(r'"([^"\n]+)"', text)))
    extra: dict[str, str] = {}
    terminals = re.findall(r"^([A-Z]+): /(.*)/$", text, re.MULTILINE)
    declared = [(name, vocabulary(name)) for name in ("UNIT", "CITY") if name in text]
    for name, held in [*((name, re.compile(body)) for name, body in terminals), *declared]:
        matches = held.fullmatch if isinstance(held, re.Pattern) else lambda word, held=held: (word,) in held
        shared = [word for word in literals if matches(word)]
        extra |= {f"WORD_{literals.index(word)}": word for word in shared}
        if shared:
            both = " | ".join([name, *(f"WORD_{literals.index(word)}" for word in shared)])
            text = re.sub(rf"(?<!\w){name}(?!\w|:)(?<!declare {name})", f"_{name.lower()}_word", text)
            text += f"\n_{name.lower()}_word: {both}"
    return text + "".join(f'\n{name}: "{word}"' for name, word in extra.items()) + "\n"


def _lifted(text: str) -> str:
    """Give each group of literals a rule of its own, since lark multiplies groups out into thousands of rules."""
    rules: dict[str, str] = {}

    def lift(group: re.Match[str]) -> str:
        return rules.setdefault(group[1], f"_group_{len(rules)}")

    definitions = "\n".join(line for line in text.splitlines() if _TERMINAL.match(line))
    text = "\n".join(line for line in text.splitlines() if not _TERMINAL.match(line))
    lifted = None
    while lifted != text:
        lifted, text = text, re.sub(r"\(((?:\"[^\"\n]+\"|[\w? |])+)\)", lift, text)
    return f"{text}\n{definitions}" + "".join(f"\n{name}: {body}" for body, name in rules.items()) + "\n"


def _plain(node: Any) -> Any:
    """A lark tree as nested lists of strings."""
    from lark import Tree

    if isinstance(node, Tree):
        return [str(node.data), *(_plain(child) for child in node.children)]
    return str(node)
