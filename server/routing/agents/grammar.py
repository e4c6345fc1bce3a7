"""Lark grammars over whole words: a request either parses to its last word or not at all.

A word that no grammar knows ends the attempt at once, so most requests cost a few dictionary look-ups.
"""

from __future__ import annotations

import re
from collections import defaultdict
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
    """A compiled grammar. `phrases` (literals, units, places) and `patterns` for single words give terminals; `users`
    are the rules that each symbol stands in, with their numbers, `counts` how many symbols each rule has."""

    phrases: Mapping[tuple[str, ...], set[str]]
    patterns: tuple[tuple[str, re.Pattern[str]], ...]
    parser: Any
    users: Mapping[str, list[tuple[int, Any]]]
    counts: tuple[int, ...]

    def parses(self, words: list[str]) -> Iterator[Parse]:
        """Parses of all of `words` but what carries the request ("hey, could you tell me"), shortest core first."""
        from lark.exceptions import LarkError

        starts, ends = _frame(tuple(words))
        for start in starts:
            tokens = list(self.tokens(words[start:]))
            for taken in [count for count, (_, _, end) in enumerate(tokens, start=1) if start + end in ends]:
                parser = self.narrowed(frozenset[str]().union(*(names for names, _, _ in tokens[:taken])))
                try:
                    tree = parser.parse(tokens[:taken]) if parser else None
                except LarkError:
                    continue
                if tree is not None:
                    yield _plain(tree.children[0])

    def narrowed(self, known: frozenset[str]) -> Any:
        """The parser without the rules that these terminals cannot complete, since lark predicts every rule at every
        word; None where no request can be made of them."""
        found: set[str] = set()
        left = list(self.counts)
        kept: defaultdict[Any, list[Any]] = defaultdict(list)
        ready = ["", *sorted(known)]  # one order in every process
        while ready:
            if (name := ready.pop()) in found:
                continue
            found.add(name)
            for number, rule in self.users.get(name, ()):
                left[number] -= 1
                if not left[number]:
                    kept[rule.origin].append(rule)
                    ready.append(rule.origin.name)
        if "start" not in found:
            return None
        fewer, front, earley = copy(self.parser), copy(self.parser.parser), copy(self.parser.parser.parser)
        fewer.parser, front.parser, earley.predictions = front, earley, kept
        return fewer

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


@lru_cache(maxsize=8)
def _frame(words: tuple[str, ...]) -> tuple[list[int], set[int]]:
    """Where the request may begin: after each run of carrier phrases, the longest first; and where it may end: what
    follows is carrier phrases only."""
    before, after = vocabulary("BEFORE"), vocabulary("AFTER")
    starts, ends, count = {0}, {len(words)}, len(words)
    for position in range(count - 1):
        if position in starts:
            reach = range(position + 1, min(position + _LONGEST_PHRASE, count - 1) + 1)
            starts.update(end for end in reach if words[position:end] in before)
    for position in range(count - 1, 0, -1):
        if words[position] == "!" in words[:position] and words[position - 1][0].isdigit():
            continue  # "5! + 3!" exclaims nothing
        reach = range(position + 1, min(position + _LONGEST_PHRASE, count) + 1)
        if any(end in ends and words[position:end] in after for end in reach):
            ends.add(position)
    return sorted(starts, reverse=True), ends


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
    text = _lifted(re.sub(r'"([^"\n]+)"([?*+]?)', _by_word, re.sub(r"^//.*$", "", text, flags=re.MULTILINE)))
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
    needs = [{symbol.name for symbol in rule.expansion} or {""} for rule in parser.rules]
    users: dict[str, list[tuple[int, Any]]] = {}
    for number, (names, rule) in enumerate(zip(needs, parser.rules, strict=True)):
        for symbol in names:
            users.setdefault(symbol, []).append((number, rule))
    return Grammar(phrases, tuple(patterns), parser, users, tuple(map(len, needs)))


def _by_word(literal: re.Match[str]) -> str:
    words = " ".join(f'"{word}"' for word in pieces_of(literal[1]))
    return f"({words}){literal[2]}" if literal[2] and " " in words else words + literal[2]


def _lifted(text: str) -> str:
    """Give each group of literals and each optional symbol a rule of its own, since lark multiplies them out."""
    rules: dict[str, str] = {}

    def lift(found: re.Match[str]) -> str:
        return rules.setdefault(found[1] or f"| {found[2]}", f"_lifted_{len(rules)}")

    definitions = [line for line in text.splitlines() if _TERMINAL.match(line)]
    text = "\n".join(line for line in text.splitlines() if not _TERMINAL.match(line))
    lifted = None
    while lifted != text:
        lifted, text = text, re.sub(r"\(((?:\"[^\"\n]+\"|[\w*+ |])+)\)|((?:\w+|\"[^\"\n]+\"))\?", lift, text)
    return "\n".join([text, *definitions, *(f"{name}: {body}" for body, name in rules.items()), ""])


def _plain(node: Any) -> Any:
    """A lark tree as nested lists of strings."""
    return [str(node.data), *map(_plain, node.children)] if hasattr(node, "children") else str(node)
