"""Lark grammars over whole words: a request either parses to its last word or not at all.

A word that no grammar knows ends the attempt at once, so most requests cost a few dictionary look-ups.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from .contract import Parse
from .words import pieces_of, vocabulary

_LONGEST_PHRASE = 6
_TERMINAL = re.compile(r"_?[A-Z]+: /|%declare")
_Lexed = tuple["_AnyOf", str, int]


class _AnyOf(frozenset[str]):
    """The type of a word that may be several terminals ("may", "second", "in"): equal to each of them."""

    def __eq__(self, other: object) -> bool:
        return other in self

    __hash__ = frozenset.__hash__


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar. `phrases` (literals, units, places) and `patterns` for single words give terminals."""

    phrases: Mapping[tuple[str, ...], set[str]]
    patterns: tuple[tuple[str, re.Pattern[str]], ...]
    parser: Any

    def parses(self, words: list[str]) -> Iterator[Parse]:
        """Parses of all of `words` but what carries the request ("hey, could you tell me"), shortest core first."""
        from lark.exceptions import LarkError

        for start in _starts(words):
            tokens = list(self.tokens(words[start:]))
            for taken in _ends(words[start:], tokens):
                known = frozenset[str]().union(*(names for names, _, _ in tokens[:taken]))
                try:
                    tree = narrowed(self.parser, known).parse(tokens[:taken])
                except LarkError:
                    continue
                yield _plain(tree.children[0])

    def tokens(self, words: list[str]) -> Iterator[_Lexed]:
        """Terminals, text and end position of each phrase, the longest each time, up to a word that is in none."""
        position = 0
        while position < len(words):
            for size in range(min(_LONGEST_PHRASE, len(words) - position), 0, -1):
                phrase = tuple(words[position : position + size])
                names = self.phrases.get(phrase, set())
                if size == 1:
                    names = names | {name for name, pattern in self.patterns if pattern.fullmatch(phrase[0])}
                if names:
                    break
            else:
                return
            position += size
            yield _AnyOf(names), " ".join(phrase), position


@lru_cache(maxsize=256)
def narrowed(parser: Any, known: frozenset[str]) -> Any:
    """The parser without the rules that these terminals cannot complete: lark predicts every rule at every word."""
    found, left = set(known), set(parser.rules)
    while done := {rule for rule in left if all(symbol.name in found for symbol in rule.expansion)}:
        found.update(rule.origin.name for rule in done)
        left -= done
    fewer, front, earley = copy(parser), copy(parser.parser), copy(parser.parser.parser)
    kept = {origin: [rule for rule in rules if rule not in left] for origin, rules in earley.predictions.items()}
    fewer.parser, front.parser, earley.predictions = front, earley, kept
    return fewer


def _starts(words: list[str]) -> list[int]:
    """Where the request may begin: after each run of carrier phrases, the longest run first."""
    before, reached = vocabulary("BEFORE"), {0}
    for position in range(len(words) - 1):
        ends = range(position + 1, min(position + _LONGEST_PHRASE, len(words) - 1) + 1) if position in reached else ()
        reached.update(end for end in ends if tuple(words[position:end]) in before)
    return sorted(reached, reverse=True)


def _ends(words: list[str], tokens: list[_Lexed]) -> list[int]:
    """How many tokens the request may have: what follows them is carrier phrases only. Shortest first."""
    after, reached = vocabulary("AFTER"), {len(words)}
    for position in range(len(words) - 1, 0, -1):
        ends = range(position + 1, min(position + _LONGEST_PHRASE, len(words)) + 1)
        if any(end in reached and tuple(words[position:end]) in after for end in ends):
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

        def lex(self, data: list[_Lexed]) -> Iterator[Token]:
            return (Token(kinds, text) for kinds, text, _ in data)

    text = files("rolecall.server.routing.agents").joinpath(f"{name}.lark").read_text("utf-8")
    text = _lifted(re.sub(r'"([^"\n]+)"', _by_word, re.sub(r"^//.*$", "", text, flags=re.MULTILINE)))
    parser = Lark(text, parser="earley", lexer=Words, ambiguity="resolve", maybe_placeholders=False)
    phrases: dict[tuple[str, ...], set[str]] = {}
    patterns = []
    for terminal in parser.terminals:
        if isinstance(terminal.pattern, PatternStr):
            phrases.setdefault((terminal.pattern.value,), set()).add(terminal.name)
        else:
            patterns.append((terminal.name, re.compile(terminal.pattern.value)))
    for kind in ("UNIT", "CITY"):
        for phrase in vocabulary(kind) if kind in text else ():
            phrases.setdefault(phrase, set()).add(kind)
    return Grammar(phrases, tuple(patterns), parser)


def _by_word(literal: re.Match[str]) -> str:
    words = [f'"{word}"' for word in pieces_of(literal[1])]
    return words[0] if len(words) == 1 else f"({' '.join(words)})"


def _lifted(text: str) -> str:
    """Give each group of literals a rule of its own, since lark multiplies groups out into thousands of rules."""
    rules: dict[str, str] = {}

    def lift(group: re.Match[str]) -> str:
        return rules.setdefault(group[1], f"_group_{len(rules)}")

    definitions = [line for line in text.splitlines() if _TERMINAL.match(line)]
    text = "\n".join(line for line in text.splitlines() if not _TERMINAL.match(line))
    lifted = None
    while lifted != text:
        lifted, text = text, re.sub(r"\(((?:\"[^\"\n]+\"|[\w? |])+)\)", lift, text)
    return "\n".join([text, *definitions, *(f"{name}: {body}" for body, name in rules.items()), ""])


def _plain(node: Any) -> Any:
    """A lark tree as nested lists of strings."""
    return [str(node.data), *map(_plain, node.children)] if hasattr(node, "children") else str(node)
