"""Summaries of any length of text: condense parts that fit the role's context, then condense the summaries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import anyio.lowlevel
import anyio.to_thread

from rolecall.config.prompts import document, plain, prompt
from rolecall.retrieval.errors import RetrievalError
from rolecall.roles.contract import Role

from ..errors import BadRequest
from ..routing.contract import TaskType
from ..validation.answer import check_answer
from ..validation.contract import Check
from .ask import MARGIN_TOKENS, SMALL_BYTES, Ask, ask, info_of
from .contract import Item, Outcome, SummarizeCall
from .record import Run
from .staff import Staff, fix, must
from .states import Event

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

    async def whole(self, texts: Sequence[tuple[str, str]]) -> str:
        """`condense` of all there is to condense: ends in SYNTHESIS."""
        summary = await self.condense(texts)
        self.run.advance(Event.GAVE_UP if self.run.status == "unverified" else Event.PASSED)
        return summary

    async def condense(self, texts: Sequence[tuple[str, str]]) -> str:
        """One summary of titled texts, within `max_words`. Goes from MODEL_SELECTION to VALIDATION."""
        name, limit = "summarize", self._limit()
        # Two summaries fit into one part, so that every round leaves at most half as many parts.
        words = min(PART_WORDS, int((limit / 2 - MARGIN_TOKENS) / WORD_TOKENS))
        parts = await self._parts(texts, limit)
        while len(parts) > 1:
            summaries = []
            for number, part in enumerate(parts, 1):
                self.run.tell(f"summarizing part {number} of {len(parts)}", (number - 1) / len(parts))
                summaries.append(await self._one(name, part, words, final=False))
                self.run.advance(Event.NEXT_PART)
            name, before = "merge", len(parts)
            parts = (await self._parts([("", "\n\n".join(summaries))], limit))[: before - 1]
        return await self._one(name, parts[0], self.max_words, final=True)

    async def _one(self, name: str, part: str, words: int, *, final: bool) -> str:
        said = await ask(
            self.run,
            self.staff.models,
            Ask(
                role=self.role,
                name=name,
                values={"documents": part, "words": str(words), "focus": self.focus},
                check=partial(self._check, part, words if final else None),
                max_tokens=int(words * WORD_TOKENS) + 48,
                attempts=3 if final else 1,
                mends=_CUT,
            ),
        )
        text, failing = said.text, said.failing
        if failing is not None and failing.name in _CUT:
            text, failing = trim(text, words, whole=True), None
            if final:
                self.run.mark("ok", f"The summary was cut at a sentence's end to keep within {words} words.")
        if failing is not None:
            self.run.unverified(failing)
        self.run.checks.extend(said.checks if final or failing else ())
        return trim(text, words)

    def _check(self, part: str, words: int | None, answer: str, finish: str) -> tuple[Check, ...]:
        return check_answer(
            answer, task_type=TaskType.SUMMARIZATION, question="", evidence=(part,), schema=None, language=None,
            finish=finish, max_words=words,
        )  # fmt: skip

    def _limit(self) -> int:
        """Tokens of text that one call may read."""
        info, models = info_of(self.staff.models, self.role), self.staff.models
        answer = min(int(self.max_words * WORD_TOKENS) + 48, info.context_length // 2)
        frame = models.count_tokens(self.role, prompt("merge").text + self.focus)
        most = SMALL_PART_TOKENS if info.size_bytes < SMALL_BYTES else PART_TOKENS
        room = info.context_length - 2 * MARGIN_TOKENS - frame
        # A part's own summary takes up to half as many tokens as the part.
        limit = min(most, room - answer, room * 2 // 3)
        if limit < 4 * MARGIN_TOKENS:
            raise BadRequest(
                "The focus or the context leaves no room for the text.",
                found=f"a focus of {len(self.focus):,} characters in a context of {info.context_length:,} tokens",
                allowed=f"{4 * MARGIN_TOKENS} tokens for text at least",
                advice="Shorten the focus or raise the role's context_length.",
            )
        return limit

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
        shown = document(piece, title)
        tokens = self.staff.models.count_tokens(self.role, shown)
        if tokens <= limit or len(piece) < 2:
            return [(shown, tokens)]
        return [each for half in pieces(piece, (len(piece) + 1) // 2) for each in self._fitting(half, title, limit)]


async def summarize(run: Run, staff: Staff, call: SummarizeCall) -> Outcome:
    """The tool: one summary, or with `each` one per file."""
    target = None
    if call.save_to is not None:
        target = await anyio.to_thread.run_sync(staff.access.writable, call.save_to, call.cwd)
    if not (call.text or "").strip() and not call.paths:
        raise BadRequest("There is nothing to summarize.", allowed="text, paths or both", advice="Give one of them.")
    # The length is no matter: parts are made to fit the role.
    role = must(fix(run, staff, call.focus or "", TaskType.SUMMARIZATION))
    run.advance(Event.MODEL_CHOSEN)
    focus = f", with attention to: {plain(call.focus.strip())}" if call.focus and call.focus.strip() else ""
    work = Summarizer(run, staff, role, call.max_words, focus)
    texts, items = await _texts(run, staff, call)
    if call.each:
        answer = await _each(work, texts, items)
    else:
        answer = await work.condense(texts)
    run.advance(Event.GAVE_UP if run.status == "unverified" else Event.PASSED)
    if target is None:
        return run.outcome(answer, items=tuple(items))
    saved = await anyio.to_thread.run_sync(staff.access.write_new, target, answer + "\n", call.cwd)
    return run.outcome(f"Wrote {len(answer.split())} words to {saved}.", saved_path=str(saved))


async def _texts(run: Run, staff: Staff, call: SummarizeCall) -> tuple[list[tuple[str, str]], list[Item]]:
    """Titled texts that can be read, and an item for each file that cannot."""
    texts = [("text", call.text)] if call.text and call.text.strip() else []
    unread: list[Item] = []
    error: RetrievalError | None = None
    files = await anyio.to_thread.run_sync(staff.access.resolve, call.paths, call.cwd) if call.paths else ()
    for file in files:
        try:
            source = await staff.read_file(file)
        except RetrievalError as caught:
            error = caught
            unread.append(Item(str(file), str(caught), "partial"))
            run.mark("partial", f"{file} was left out: {caught.message}")
            continue
        if source.text.strip():
            texts.append((str(file), source.text))
        else:
            unread.append(Item(str(file), "The file is empty.", "ok"))
    if not texts:
        raise error or BadRequest("The files are empty.", found=", ".join(item.path for item in unread)[:300])
    return texts, unread


async def _each(work: Summarizer, texts: Sequence[tuple[str, str]], items: list[Item]) -> str:
    run = work.run
    for number, (path, text) in enumerate(texts):
        run.tell(f"summarizing {path} ({number + 1} of {len(texts)})", number / len(texts))
        if number:
            run.advance(Event.NEXT_PART)
        before, run.status = run.status, "ok"
        answer = await work.condense([(path, text)])
        items.append(Item(path, answer, run.status))
        run.mark(before, "")
    items.sort(key=lambda item: item.path)
    return "\n\n".join(f"{item.path}: {item.answer}" for item in items)


def pieces(text: str, size: int) -> list[str]:
    """Consecutive pieces of at most `size` characters, cut at paragraphs, else lines, sentences, words."""
    found, start = [], 0
    while len(text) - start > size:
        window = text[start : start + size]
        cut = next((at + len(sign) for sign in _BREAKS if (at := window.rfind(sign, size // 2)) >= 0), size)
        found.append(text[start : start + cut])
        start += cut
    return [piece for piece in (*found, text[start:]) if piece.strip()] or [text]


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
    return kept.strip() if len(words) <= max_words else kept.strip().rstrip(",;:-") + " \u2026"
