"""Search the index: passages with citations, or a short local answer that cites them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from rolecall.config.prompts import document
from rolecall.retrieval.contract import ANSWERABLE, Filters, Found, Passage
from rolecall.roles.contract import Role
from rolecall.roles.errors import RoleError

from ..routing.contract import TaskType
from ..validation.answer import checker, failed
from ..validation.citations import Cited, citations_check, cited_sentences
from ..validation.contract import Check, Verdict, fault
from .ask import Ask, Said, ask, settle
from .contract import Outcome, RetrieveCall
from .privacy import for_client
from .record import Run
from .staff import Staff, choose, fix
from .states import Event, RunState
from .turn import info_of, is_small

NOTHING = "The sources do not say."
"""What the prompt `cited` has a model write, and what stands where no model needs to be asked."""

CLOSEST = 3
"""Passages that are shown with `NOTHING`, enough to see what the search took for near, and that a small model answers
from: it makes nothing of more, and where it runs on a CPU it reads some 100 tokens a second."""


async def retrieve(run: Run, staff: Staff, call: RetrieveCall) -> Outcome:
    """The tool. An answer that no passage supports is `unverified`. Raises IndexEmpty: nothing is indexed, or no such
    collection."""
    fix(run, staff, call.query, TaskType.RETRIEVAL, by_model=False)
    run.advance(Event.RETRIEVAL_CHOSEN)
    found = await search(run, staff, call.query, call.collection, call.max_results, call.filters)
    if call.mode == "passages" or not found.passages:
        return quoted(run, found)
    return await answered(run, staff, call.query, found)


async def search(
    run: Run, staff: Staff, query: str, collection: str | None = None, max_results: int = 8,
    filters: Filters | None = None,
) -> Found:  # fmt: skip
    """What the index holds, private passages with their texts: for local models, never for a client."""
    run.tell("searching the index", None)
    found = await staff.retriever.search(query, collection, max_results, filters)
    marked = (
        each.model_copy(update={"private": each.private or staff.access.is_private(Path(each.path))})
        for each in found.passages
    )
    found = found.model_copy(update={"passages": tuple(marked)})
    run.found(found.passages)
    index = found.index
    if index.pending or index.failed:
        lacks = f"The index is not complete: {index.pending} files pending, {index.failed} failed."
        run.mark("partial", f"{lacks} `rolecall index sync` reads the former, `index status` names the latter.")
    return found


def quoted(run: Run, found: Found) -> Outcome:
    """The passages themselves, as the client may have them. From RETRIEVAL_ONLY, or SYNTHESIS without an answer."""
    if run.machine.state is RunState.RETRIEVAL_ONLY:
        run.advance(Event.PASSAGES_FOUND)
    passages = tuple(map(for_client, found.passages))
    return run.outcome(in_words(passages), passages=passages, index=found.index)


async def answered(run: Run, staff: Staff, query: str, found: Found, *, routed: bool = False) -> Outcome:
    """A short answer with its sources below it; without a model where the passages hardly hold one. From
    RETRIEVAL_ONLY. `routed`: the decision that led here stays, and the sources are quoted in the answer, since `route`
    gives back no passages.

    Where the model fails, or no sentence of its is borne out, the passages are quoted instead.
    """
    if found.answerable is not None and found.answerable < ANSWERABLE:
        run.advance(Event.PASSAGES_FOUND)
        return _nothing(run, found, routed)
    run.advance(Event.ANSWER_WANTED)
    before = run.features, run.router_state, run.decision
    role = choose(run, staff, query, TaskType.RETRIEVAL)
    if routed:
        run.features, run.router_state, run.decision = before
    run.advance(Event.ROLE_SELECTED)
    try:
        shown = _shown(run, staff, role, found.passages)
        sentences = await _answer(run, staff, role, query, shown)
    except RoleError as error:
        run.advance(Event.FELL_BACK)
        run.advance(Event.GAVE_UP)
        run.mark("degraded", f"No model answered, so the passages are quoted: {error.message}")
        return quoted(run, found)
    if sentences is None:
        return _nothing(run, found, routed)
    kept = [each for each in sentences if each.verdict is not Verdict.UNSUPPORTED]
    if not kept:
        return quoted(run, found)
    if len(kept) < len(sentences):
        left_out = f"{len(sentences) - len(kept)} of {len(sentences)} sentences of the answer"
        run.mark("ok", f"{left_out} were left out: the passages that they cite do not bear them out.")
    order = list(dict.fromkeys(number for each in kept for number in each.numbers))
    sources = tuple(for_client(shown[number - 1]) for number in order)
    answer = " ".join(each.shown(order) for each in kept)
    listed = "\n".join(f"[{number}] {_where(each)}" for number, each in enumerate(sources, 1))
    answer += f"\n\n{in_words(sources) if routed else listed}"
    return run.outcome(answer, passages=sources, index=found.index)


def in_words(passages: Sequence[Passage]) -> str:
    """Passages as text: number, path and lines, then the quoted text, as data."""
    if not passages:
        return "Nothing was found in the index."
    return "\n\n".join(
        f"[{number}] {_where(each)}\n{each.text.strip()}".strip() for number, each in enumerate(passages, 1)
    )


def _nothing(run: Run, found: Found, routed: bool) -> Outcome:
    closest = tuple(map(for_client, found.passages[:CLOSEST]))
    answer = f"{NOTHING} The closest passages:\n\n{in_words(closest)}" if routed else NOTHING
    return run.outcome(answer, passages=closest, index=found.index)


def _where(passage: Passage) -> str:
    place = f" ({passage.place})" if passage.place else ""
    private = "" if passage.text else ", private: its text stays on this machine"
    return f"{passage.path}:{passage.start_line}-{passage.end_line}{place}{private}"


def _shown(run: Run, staff: Staff, role: Role, passages: Sequence[Passage]) -> Sequence[Passage]:
    """The best passages, as many as the role's model is good for: of a small one `CLOSEST`, of any those that fit half
    of the context. The first one does in any case: if it is too long, `ask` says so."""
    info = info_of(staff.models, role)
    best = passages[:CLOSEST] if is_small(info) else passages
    used = accumulate(staff.models.count_tokens(role, passage.text) for passage in best)
    room = info.context_length // 2
    shown = [passage for passage, tokens in zip(best, used, strict=True) if tokens <= room] or passages[:1]
    if len(shown) < len(passages):
        run.mark("ok", f"The answer rests on the best {len(shown)} of {len(passages)} passages.")
    return shown


async def _answer(
    run: Run, staff: Staff, role: Role, query: str, passages: Sequence[Passage]
) -> tuple[Cited, ...] | None:
    """The checked sentences of a model's answer; None where it says that the passages do not hold one."""
    texts = tuple(f"{each.heading}\n{each.text}".strip() for each in passages)
    base = checker(TaskType.RETRIEVAL, query, evidence=texts)

    def check(text: str, finish: str) -> tuple[Check, ...]:
        if _says_nothing(text):
            return base(text, finish)
        sentences = cited_sentences(text, texts, query)
        kept = " ".join(each.text for each in sentences if each.verdict is not Verdict.UNSUPPORTED)
        copied = "it repeats a private document word for word; say it briefly in other words"
        private = (fault("private", copied),) if run.private.copies(kept) else ()
        return (citations_check(sentences, len(texts)), *(base(kept, finish) if kept else ()), *private)

    documents = "\n\n".join(document(text, f"[{number}]") for number, text in enumerate(texts, 1))
    values = {"documents": documents, "question": query}
    wanted = Ask(role=role, name="cited", values=values, check=check, thinking_budget=0, mends=("private",))
    said = await ask(run, staff, wanted)
    checks = tuple(each for each in said.checks if each.name != "private")  # what is copied is withheld in any case
    settle(run, Said(said.text, checks, failed(checks)))
    return None if _says_nothing(said.text) else cited_sentences(said.text, texts, query)


def _says_nothing(answer: str) -> bool:
    return answer.strip().lower().startswith(NOTHING.lower().rstrip("."))
