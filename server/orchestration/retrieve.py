"""Search the index: passages with citations, or a short local answer that cites them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from rolecall.config.prompts import document
from rolecall.retrieval.contract import Found, Passage

from ..routing.contract import TaskType
from ..validation.contract import Check, Verdict
from .ask import Ask, ask, checker, settle
from .contract import Outcome, RetrieveCall
from .record import Run
from .staff import Staff, choose, fix
from .states import Event
from .turn import info_of

_CITED = re.compile(r"\[(\d{1,3})\]")
_SENTENCE = re.compile(r".+?(?:[.!?]+(?=\s)|[\u3002\uff01\uff1f]+|\Z)\s*", re.DOTALL)
_NOTHING = "the sources do not say"

ATTRIBUTION = 0.6
"""Share of a sentence's longer words that a passage must hold to be cited for it where the model cited nothing."""


async def retrieve(run: Run, staff: Staff, call: RetrieveCall) -> Outcome:
    """The tool. An answer that no passage supports is `unverified`.

    Raises:
        IndexEmpty: nothing is indexed, or no such collection.
    """
    fix(run, staff, call.query, TaskType.RETRIEVAL, by_model=False)
    run.advance(Event.RETRIEVAL_CHOSEN)
    found = await search(run, staff, call)
    if call.mode == "passages" or not found.passages:
        run.advance(Event.PASSAGES_FOUND)
        return run.outcome(in_words(found.passages), passages=found.passages, index=found.index)
    run.advance(Event.ANSWER_WANTED)
    answer = await _cited(run, staff, call.query, found.passages)
    return run.outcome(answer, passages=found.passages, index=found.index)


async def search(run: Run, staff: Staff, call: RetrieveCall) -> Found:
    run.tell("searching the index", None)
    found = await staff.retriever.search(call.query, call.collection, call.max_results, call.filters)
    index = found.index
    if index.pending or index.failed:
        lacks = f"The index is not complete: {index.pending} files pending, {index.failed} failed."
        run.mark("partial", f"{lacks} `rolecall index add FOLDER` reads the former and names the latter.")
    return found


def in_words(passages: Sequence[Passage]) -> str:
    """Passages as text: number, path and lines, then the quoted text, as data."""
    if not passages:
        return "Nothing was found in the index."
    return "\n\n".join(
        f"[{number}] {each.path}:{each.start_line}-{each.end_line}\n{each.text.strip()}"
        for number, each in enumerate(passages, 1)
    )


async def _cited(run: Run, staff: Staff, query: str, passages: Sequence[Passage]) -> str:
    role = choose(run, staff, query, TaskType.RETRIEVAL)
    room = info_of(staff.models, role).context_length // 2
    used = accumulate(staff.models.count_tokens(role, passage.text) for passage in passages)
    # The first one is shown in any case: if it is too long, `ask` says so.
    shown = [passage for passage, tokens in zip(passages, used, strict=True) if tokens <= room] or passages[:1]
    if len(shown) < len(passages):
        run.mark("ok", f"The answer rests on the best {len(shown)} of {len(passages)} passages; more do not fit.")
    texts = tuple(passage.text for passage in shown)
    base = checker(TaskType.RETRIEVAL, query, evidence=texts)

    def check(text: str, finish: str) -> tuple[Check, ...]:
        return (*base(_CITED.sub("", text), finish), _citations(attributed(text, texts), len(texts)))

    documents = "\n\n".join(document(text, f"[{number}]") for number, text in enumerate(texts, 1))
    values = {"documents": documents, "question": query}
    said = await ask(run, staff, Ask(role=role, name="cited", values=values, check=check, thinking_budget=0))
    settle(run, said)
    return attributed(said.text, texts)


def attributed(answer: str, texts: Sequence[str]) -> str:
    """The answer with its citations; where the model gave none, each sentence gets that of the passage it rests on."""
    if _CITED.search(answer) or _NOTHING in answer.lower():
        return answer
    sources = [_long_words(text) for text in texts]
    out = ""
    for sentence in _SENTENCE.findall(answer):
        words, bare = _long_words(sentence), sentence.rstrip()
        shared = [len(words & source) for source in sources]
        rests = words and max(shared) >= ATTRIBUTION * len(words)
        out += bare + (f" [{shared.index(max(shared)) + 1}]" if rests else "") + sentence[len(bare) :]
    return out


def _long_words(text: str) -> set[str]:
    return set(re.findall(r"\w{4,}|\d+", text.lower()))


def _citations(answer: str, count: int) -> Check:
    """Decisive: an answer from sources names at least one of those that it was given, and no other."""
    if _NOTHING in answer.lower():
        detail = "the sources were judged not to hold the answer"
        return Check(name="citations", verdict=Verdict.ABSTAIN, decisive=False, detail=detail)
    named = sorted({int(number) for number in _CITED.findall(answer)})
    cites = "".join(f"[{number}]" for number in named) or "nothing"
    right = bool(named) and named[0] >= 1 and named[-1] <= count
    return Check(
        name="citations", verdict=Verdict.SUPPORTED if right else Verdict.UNSUPPORTED, decisive=True,
        detail=f"the answer cites {cites}; the sources are [1] to [{count}]",
    )  # fmt: skip
