"""Search the index: passages with citations, or a short local answer that cites them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rolecall.config.prompts import document
from rolecall.retrieval.contract import Found, Passage
from rolecall.roles.contract import Role

from ..routing.contract import TaskType
from ..validation.contract import Check, Verdict
from .ask import Ask, ask, checker, info_of, settle
from .contract import Outcome, RetrieveCall
from .record import Run
from .staff import Staff, choose, fix
from .states import Event

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
        run.mark("partial", f"The index is not complete: {index.pending} files pending, {index.failed} failed.")
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
    shown = _that_fit(staff, role, passages)
    if len(shown) < len(passages):
        run.mark("ok", f"The answer rests on the best {len(shown)} of {len(passages)} passages; more do not fit.")
    texts = tuple(passage.text for passage in shown)
    base = checker(TaskType.RETRIEVAL, query, evidence=texts)

    def check(text: str, finish: str) -> tuple[Check, ...]:
        return (*base(_CITED.sub("", text), finish), _citations(attributed(text, texts), len(texts)))

    documents = "\n\n".join(document(text, f"[{number}]") for number, text in enumerate(texts, 1))
    values = {"documents": documents, "question": query}
    said = await ask(run, staff.models, Ask(role=role, name="cited", values=values, check=check, thinking_budget=0))
    settle(run, said)
    return attributed(said.text, texts)


def _that_fit(staff: Staff, role: Role, passages: Sequence[Passage]) -> list[Passage]:
    """The best passages that half of the role's context holds; one at least, which the length check then judges."""
    room = info_of(staff.models, role).context_length // 2
    shown: list[Passage] = []
    for passage in passages:
        room -= staff.models.count_tokens(role, passage.text)
        if room < 0 and shown:
            break
        shown.append(passage)
    return shown


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
    named = {int(number) for number in _CITED.findall(answer)}
    wrong = sorted(number for number in named if not 1 <= number <= count)
    if wrong:
        detail = f"the answer cites [{wrong[0]}], but the sources are [1] to [{count}]"
    elif not named:
        detail = "no source is cited, and none supports a sentence of the answer"
    else:
        detail = f"cites {', '.join(f'[{number}]' for number in sorted(named))}"
    verdict = Verdict.SUPPORTED if named and not wrong else Verdict.UNSUPPORTED
    return Check(name="citations", verdict=verdict, decisive=True, detail=detail)
