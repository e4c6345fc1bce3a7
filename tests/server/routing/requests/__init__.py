"""The project's own requests, made from the templates beside this file with fixed seeds.

Each `*.txt` holds one task type's templates, one a line, under headings `= type register`; `\\n` stands for a line
break and `{slot}` for one of the fillers in `slots.txt`. `../setaside.jsonl`, which was blind until it had been scored
once, is one more register. Written for this purpose; nothing is taken from anywhere.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rolecall.server.routing.contract import TaskType

SEED = 20260
_FOLDER = Path(__file__).parent
_SLOT = re.compile(r"\{(\w+)\}")
_MIDWAY = re.compile(r"[\w,] $")
_ESCAPE = re.compile(r"\\([nt\\])")
_LANGUAGES = ("de", "fr", "es", "es-it-pt", "it-pt", "ru", "zh-ja")
_PASTED = ("chat", "mail", "table", "log", "de", "fr", "es", "ru", "zh", "ja")
_OPENINGS = (
    "please ", "hey, ", "can you tell me ", "quick question: ", "I was wondering, ", "ok so ", "Hi! ", "hello, ",
    "could you ", "I need help with this: ", "I have a request. ", "Kindly ", "sorry to ask, but ", "um ", "next: ",
    "for my homework: ", "for a colleague: ", "One more thing: ", "Thanks for earlier. ", "My boss wants this. ",
    "I'm in a hurry. ", "Not sure whether you can do this, but ", "Good morning. ", "assistant, ", "now ", "and ",
    "@bot ", "- ", "1. ", "> ", "Re: yesterday. ", "I am on the train with a bad connection, so keep it short. ",
)  # fmt: skip
_CLOSINGS = (
    " thanks", " please", "?", "!", " thx", " Thanks in advance!", " Keep it short.", " Be concise.", " asap",
    " Answer in English.", " Take your time.", " if you can", " :)", "...", " I'd appreciate it.", " No preamble.",
    "\nReturn JSON.", "\nDo not explain what you are going to do.", " (it's for work)", " Use simple words.",
)  # fmt: skip
_FRAMES = (
    "Task: {}", "Task: {}\nOutput:", "### Instruction:\n{}\n\n### Response:", "User: {}\nAssistant:", "Request: {}",
    "You are a helpful assistant.\n\n{}", "System: You are one of several agents.\nUser: {}", "<task>{}</task>",
    "Context: you work for a small company.\nTask: {}\nOutput: the result only.", "Human: {}\n\nAI:", '"{}"',
    "Goal: {}\nConstraints: be brief.", "Delegated by the planner: {}", "Subtask 2 of 4. {}", "Prompt: {}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Example:
    """A request, its type, the template it came from and that template's register, for folds that share neither."""

    text: str
    kind: TaskType
    template: str
    register: str


def examples(variants: int = 5) -> Iterator[Example]:
    """All templates, each in up to `variants` wordings; the first is the plainest."""
    for kind in TaskType:
        for register, templates in _sections(kind.value).items():
            for template in templates:
                draw = random.Random(f"{SEED} {template}")  # so that a new template moves no other's examples
                texts = {_varied(template, register, draw, plain=not turn) for turn in range(variants)}
                yield from (Example(text, kind, template, register) for text in sorted(texts))
    for line in _FOLDER.with_name("setaside.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        again = [Example(row["text"], TaskType(row["label"]), row["id"], "setaside")] * variants
        yield from again


def _varied(template: str, register: str, draw: random.Random, *, plain: bool) -> str:
    """The template filled and, unless it is to be plain, framed, mistyped or in another case."""
    text = _filled(template, draw)
    if plain:
        return text
    foreign = register.split()[-1] in _LANGUAGES
    if not foreign and len(text) < 600 and draw.random() < 0.3:
        text = draw.choice(_OPENINGS) + text
    if not foreign and "{text}" not in template and draw.random() < 0.2:
        text += draw.choice(_CLOSINGS)
    if draw.random() < 0.1:
        text = draw.choice(_FRAMES).replace("{}", text)
    chance = draw.random()
    if chance < 0.2:
        text = text.lower()
    elif chance < 0.23:
        text = text.upper()
    elif chance < 0.3:
        text = text.rstrip("?.!")
    elif chance < 0.4:
        text = text[:1].upper() + text[1:]
    return _mistyped(text, draw) if draw.random() < 0.12 else text


def _mistyped(text: str, draw: random.Random) -> str:
    """One to three letters of the first or last line swapped, dropped or doubled."""
    letters = list(text)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(1, max(2, min(len(letters) - 1, 120)))
        if place + 1 < len(letters) and letters[place].isalpha() and letters[place + 1].isalpha():
            change = draw.randrange(3)
            letters[place : place + 2] = [
                [letters[place + 1], letters[place]], [letters[place]], [letters[place], *letters[place : place + 2]],
            ][change]  # fmt: skip
    return "".join(letters)


def _filled(template: str, draw: random.Random) -> str:
    def fill(slot: re.Match[str]) -> str:
        if slot[1] == "text":
            return _document(draw)
        filler = draw.choice(_slots()[slot[1]]) if slot[1] in _slots() else slot[0]
        midway = slot[1] == "claim" and _MIDWAY.search(template[: slot.start()])
        return filler[:1].lower() + filler[1:] if midway else filler

    return _ESCAPE.sub(lambda escape: {"n": "\n", "t": "\t"}.get(escape[1], "\\"), _SLOT.sub(fill, template))


def _document(draw: random.Random) -> str:
    """A text as people paste it: written in one piece, or sentences of the pool in one to four paragraphs."""
    chance = draw.random()
    if chance < 0.2:
        return draw.choice(_slots()[draw.choice(_PASTED)])
    if chance < 0.35:
        return draw.choice(_slots()["text"])
    count = draw.choice((2, 3, 4, 5, 6, 8, 10, 14, 20, 40))
    start = draw.randrange(len(_slots()["sentence"]))
    pool = _slots()["sentence"][start:] + _slots()["sentence"][:start]
    chosen = draw.sample(pool[: count * 2], min(count, len(pool)))
    gap = draw.choice((" ", "\n", "\n\n"))
    return "".join(sentence + (gap if draw.random() < 0.2 else " ") for sentence in chosen).strip()


@cache
def _slots() -> dict[str, list[str]]:
    return _sections("slots")


def _sections(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (_FOLDER / f"{name}.txt").read_text("utf-8").splitlines():
        if line.startswith("= "):
            held = found.setdefault(line[2:], [])
        elif line.strip():
            held.append(line)
    return found
