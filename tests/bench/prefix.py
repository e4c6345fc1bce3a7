"""The second question on a 3,000-token file against the first: what the prefix cache saves.

Two ways: the model manager, and the tool `reason` over stdio with the file in `paths`, whose time to first token is
that of its first word of progress about writing. Every round has a file of its own.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio

from rolecall.config.home import Home
from rolecall.config.prompts import document, prompt
from rolecall.roles.contract import GenerationRequest, Message, Role
from rolecall.roles.manager import ModelManager

from .stage import Clock, command, filler, rolecall_client, show, spread, starter_home, starter_settings

# No limit that a slow machine would meet: past a client's deadline a call would go on as a job.
CONFIG = "profile: starter\nroles: {reasoning: {timeout_s: 600.0}}\nhost: {call_deadline_s: 600.0}\n"
FILE_TOKENS = 3000
MAX_TOKENS = 24
QUESTIONS = ("What is told of the keeper?", "Which place is named first?")


def main(rounds: int) -> None:
    with starter_home(CONFIG) as home:
        figures = anyio.run(_through_manager, home, rounds)
        folder = home.root.parent / "files"
        folder.mkdir()
        command(home, "allow", str(folder))
        tool = anyio.run(_through_tool, home, folder, rounds)
    figures |= {"tool": tool}
    lines = [
        f"second question on a file of {FILE_TOKENS} tokens, {rounds} rounds; bound on time to first token: a tenth",
        _line("model manager", figures) + f"; {figures['cached_tokens']} of {figures['prompt_tokens']} tokens cached",
        _line("`reason` over stdio", tool),
    ]
    show("prefix", lines, figures)


def _line(way: str, row: dict[str, Any]) -> str:
    first_s, second_s, ratio = row["first_s"], row["second_s"], row["ratio"]
    return f"{way}: first {first_s['median']:.2f} s, second {second_s['median']:.2f} s, ratio {ratio['median']:.3f}"


async def _through_manager(home: Home, rounds: int) -> dict[str, Any]:
    taken: tuple[list[float], list[float]] = [], []
    cached, prompt_tokens = 0, 0
    async with ModelManager(home, starter_settings(home)) as manager:
        await manager.load(Role.REASONING)
        for number in range(rounds):
            text = file_text(manager, number)
            for question, values in zip(QUESTIONS, taken, strict=True):
                clock = Clock()
                result = await manager.generate(Role.REASONING, _request(text, question), clock.on_event)
                values.append(clock.first_token_s)
                cached, prompt_tokens = result.cached_tokens, result.prompt_tokens
    return {"rounds": rounds, "cached_tokens": cached, "prompt_tokens": prompt_tokens, **_figures(*taken)}


async def _through_tool(home: Home, folder: Path, rounds: int) -> dict[str, Any]:
    taken: tuple[list[float], list[float]] = [], []
    async with ModelManager(home, starter_settings(home)) as manager:
        for number in range(rounds):
            (folder / f"{number}.txt").write_text(file_text(manager, rounds + number))
    async with rolecall_client(home, folder) as ask:
        await ask.call_tool("reason", {"question": "Name a colour."})
        for number in range(rounds):
            for question, values in zip(QUESTIONS, taken, strict=True):
                values.append(await _first_token(ask, f"{number}.txt", question))
    return _figures(*taken)


async def _first_token(ask: Any, path: str, question: str) -> float:
    start, first_s = time.perf_counter(), 0.0

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        nonlocal first_s
        if not first_s and message and "writing" in message:
            first_s = time.perf_counter() - start

    arguments = {"question": question, "paths": [path]}
    found = await ask.call_tool("reason", arguments, progress_callback=on_progress)
    assert not found.is_error, found.content
    return first_s or time.perf_counter() - start


def _figures(first_s: list[float], second_s: list[float]) -> dict[str, Any]:
    ratios = [second / first for first, second in zip(first_s, second_s, strict=True)]
    return {"first_s": spread(first_s), "second_s": spread(second_s), "ratio": spread(ratios)}


def file_text(manager: ModelManager, seed: int) -> str:
    """A text of about 3,000 tokens that is like no other from its first words on."""
    words = FILE_TOKENS
    while manager.count_tokens(Role.REASONING, text := filler(f"file {seed}", words)) > FILE_TOKENS:
        words -= 20
    return text.replace(" lamp ", " lamp.\n")


def _request(text: str, question: str) -> GenerationRequest:
    system, user = prompt("read").render(documents=document(text, "file.txt"), length="", question=question)
    messages = (Message(role="system", content=system), Message(role="user", content=user))
    return GenerationRequest(messages=messages, max_tokens=MAX_TOKENS)
