"""Summaries of any length of text: condense parts that fit the role's context, then condense the summaries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio.lowlevel

from rolecall.config.prompts import document, prompt
from rolecall.roles.contract import Role
from rolecall.roles.errors import WorkerDied, WorkerTimeout

from ..errors import BadRequest
from ..routing.contract import TaskType
from ..validation.answer import checker, failed
from .ask import Ask, ask
from .contract import Item, Outcome, SummarizeCall
from .record import Run
from .staff import Staff, choose
from .states import Event
from .turn import MARGIN_TOKENS, info_of, is_small

PART_TOKENS = 3_000
"""A part is read within a role's time-out also where prefill runs at 300 tokens/s, the least of the profiles' Macs."""

SMALL_PART_TOKENS = 1_200
PART_WORDS = 120
WORD_TOKENS = 1.6
"""Tokens per word of prose, with room for names and figures."""

_CUT = ("finished", "word_limit")

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]\s*|[^\s\u3040-\u30ff\u3400-\u9fff]+\s*")
_SENTENCE_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]]*(?=\s|$)|[\u3002\uff01\uff1f]")
_BREAKS = ("\n\n", "\n", ". ", "。", " ")


@dataclass(frozen=True, slots=True)
class Summarizer:
    """One request's way to condense: who, how long, and what to attend to."""

    run: Run
    staff: Staff
    role: Role
    max_words: int
    focus: str

    async def condense(self, texts: Sequence[tuple[str, str]]) -> str:
        """One summary of titled texts, within `max_words`. Goes from MODEL_SELECTION to VALIDATION."""
        limit = self._limit()
        # Two summaries fit into one part, so that every round leaves at most half as many parts.
        words = min(PART_WORDS, int((limit / 2 - MARGIN_TOKENS) / WORD_TOKENS))
        parts = await self._parts(texts, limit)
        while len(parts) > 1:
            summaries = []
            for number, part in enumerate(parts, 1):
                self.run.tell(f"summarizing part {number} of {len(parts)}", (number - 1) / len(parts))
                summaries.append(await self._one(part, words, final=False))
                self.run.advance(Event.NEXT_PART)
            before, parts = len(parts), await self._parts([("summaries of the parts", "\n\n".join(summaries))], limit)
            if len(parts) >= before:
                self.run.mark("partial", "The text did not get shorter when it was condensed: its end was left out.")
                parts = parts[: before - 1]
        return await self._one(parts[0], self.max_words, final=True)

    async def _one(self, part: str, words: int, *, final: bool) -> str:
        values = {"documents": part, "words": str(words), "focus": self.focus}
        check = checker(TaskType.SUMMARIZATION, "", evidence=(part,), max_words=words if final else None)
        wanted = Ask(
            role=self.role, name="summarize", values=values, check=check, max_tokens=_tokens(words),
            attempts=3 if final else 1, mends=_CUT,
        )  # fmt: skip
        said = await ask(self.run, self.staff, wanted)
        text, checks, failing = said.text, said.checks, said.failing
        if failing is not None and failing.name in _CUT:
            text = trim(text, words, whole=True)
            checks = tuple(each for each in check(text, "stop") if each.name not in _CUT)
            failing = failed(checks)
            if final and not text.endswith("\u2026") and _SENTENCE_END.search(text[-3:]):
                self.run.mark("ok", f"The summary was cut at a sentence's end to keep within {words} words.")
            elif final:
                self.run.mark("partial", f"The summary was cut in mid-sentence to keep within {words} words.")
        if failing is not None:
            self.run.unverified(failing)
        self.run.checks.extend(checks if final or failing else ())
        return trim(text, words)

    def _limit(self) -> int:
        """Tokens of text that one call may read."""
        info, models = info_of(self.staff.models, self.role), self.staff.models
        frame = models.count_tokens(self.role, prompt("summarize").text + self.focus)
        most = SMALL_PART_TOKENS if is_small(info) else PART_TOKENS
        room = info.context_length - 2 * MARGIN_TOKENS - frame
        # A part's own summary takes up to half as many tokens as the part.
        limit = min(most, room - min(_tokens(self.max_words), info.context_length // 2), room * 2 // 3)
        # Where a long focus leaves less than this, `ask` refuses the first part with the figures.
        return max(limit, 4 * MARGIN_TOKENS)

    async def _parts(self, texts: Sequence[tuple[str, str]], limit: int) -> list[str]:
        """Delimited documents, each within what one call can read; small texts share one."""
        parts, held, used = list[str](), list[str](), 0
        for title, text in texts:
            for piece in pieces(text, limit * 3):
                await anyio.lowlevel.checkpoint()
                for fitting, tokens in self._fitting(piece, title, limit):
                    if held and used + tokens > limit:
                        parts.append("\n\n".join(held))
                        held, used = [], 0
                    held.append(fitting)
                    used += tokens
        return [*parts, "\n\n".join(held)]

    def _fitting(self, piece: str, title: str, limit: int) -> list[tuple[str, int]]:
        shown = document(piece, Path(title).name)
        tokens = self.staff.models.count_tokens(self.role, shown)
        if tokens <= limit or len(piece) < 2:
            return [(shown, tokens)]
        return [each for half in pieces(piece, (len(piece) + 1) // 2) for each in self._fitting(half, title, limit)]


async def summarize(run: Run, staff: Staff, call: SummarizeCall) -> Outcome:
    """The tool: one summary, or with `each` one per file."""
    target = await staff.target(call.save_to, call.cwd)
    focus = (call.focus or "").strip()
    if not (call.text or "").strip() and not call.paths:
        raise BadRequest("There is nothing to summarize.", allowed="text, paths or both", advice="Give one of them.")
    # The length is no matter: parts are made to fit the role.
    role = choose(run, staff, focus, TaskType.SUMMARIZATION)
    work = Summarizer(run, staff, role, call.max_words, f", with attention to: {focus}" if focus else "")
    texts, items = await _texts(run, staff, call)
    answer = await (_each(work, texts, items) if call.each else work.condense(texts))
    run.advance(Event.GAVE_UP if run.status == "unverified" else Event.PASSED)
    if target is None:
        return run.outcome(answer, items=tuple(items))
    saved = await staff.save(run, target, answer + "\n", call.cwd)
    return run.outcome(f"Wrote {len(answer.split())} words to {saved}.", saved_path=saved)


async def _texts(run: Run, staff: Staff, call: SummarizeCall) -> tuple[list[tuple[str, str]], list[Item]]:
    """Titled texts that can be read, and an item for each file that cannot."""
    sources, refused = await staff.read_any(run, call.paths, call.cwd)
    given = [("text", call.text or ""), *((str(source.path), source.text) for source in sources)]
    texts = [(title, text) for title, text in given if text.strip()]
    if not texts:
        empty = BadRequest("The files are empty.", advice="Name files that hold text.")
        raise refused.popitem()[1] if refused else empty
    unread = [Item(str(file), str(error), "partial") for file, error in refused.items()]
    return texts, unread + [Item(title, "The file is empty.", "ok") for title, text in given[1:] if not text.strip()]


async def _each(work: Summarizer, texts: Sequence[tuple[str, str]], items: list[Item]) -> str:
    """One item per text; where the model fails on one, that item says so and the others are answered."""
    run, failures = work.run, 0
    for number, (path, text) in enumerate(texts):
        run.tell(f"summarizing {path} ({number + 1} of {len(texts)})", number / len(texts))
        if number:
            run.advance(Event.NEXT_PART)
        before, run.status = run.status, "ok"
        try:
            answer = await work.condense([(path, text)])
        except (WorkerDied, WorkerTimeout) as error:
            failures += 1
            if failures == len(texts):
                raise
            answer = str(error)
            run.mark("partial", f"{path} has no summary: {error.message}")
            run.advance(Event.FELL_BACK)
        items.append(Item(path, answer, run.status))
        run.mark(before, "")
    items.sort(key=lambda item: item.path)
    return "\n\n".join(f"{item.path}: {item.answer}" for item in items)


def _tokens(words: int) -> int:
    return int(words * WORD_TOKENS) + 48


def pieces(text: str, size: int) -> list[str]:
    """Consecutive pieces of at most `size` characters, cut at paragraphs, else lines, sentences, words."""
    found, start = [], 0
    while len(text) - start > size:
        window = text[start : start + size]
        cut = next((at + len(sign) for sign in _BREAKS if (at := window.rfind(sign, size // 2)) >= 0), size)
        found.append(text[start : start + cut])
        start += cut
    return [piece for piece in (*found, text[start:]) if piece.strip()] or [""]


def trim(text: str, max_words: int, *, whole: bool = False) -> str:
    """At most `max_words` words, cut at the last sentence's end in the last two thirds, else at a word.

    `whole` cuts a last sentence without an end also where the words are few enough.
    """
    words = _WORD.findall(text)
    if len(words) <= max_words and not whole:
        return text.strip()
    kept = "".join(words[:max_words]).rstrip()
    ends = [match.end() for match in _SENTENCE_END.finditer(kept) if match.end() > len(kept) // 3]
    if ends:
        return kept[: ends[-1]].strip()
    return kept.strip() if len(words) <= max_words else kept.strip().rstrip(",;:-") + "\u2026"
