"""Stage 2: which role's model answers. A pure choice between quality and cost, with the table that explains it.

Cost is the expected seconds (load, reload of what it displaces, prefill, decode) and the GB that would become
resident; both from `State` and the published or estimated figures of `RoleChoice`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from rolecall.roles.contract import Role

from .contract import Features, RoleChoice, Snapshot, State, TaskType
from .policy import Effect
from .signals import Reading

DEEP = 0.4
"""Difficulty from which reasoning is the reasoning role's alone; below it the router's own model competes."""
INERTIA = 0.05
"""Of value, for the role that the profile names for the task, and for the model that last answered this session."""
ANSWER_SHARE = 1 / 3
"""Expected answer, thinking included, as a share of the role's `max_tokens`, which is set for the longest."""
HALF_S = 20.0
"""Seconds that cost half of all that time can cost: s / (s + 20). Source: what a needless swap takes."""
_FOREVER_S = 1e9

_ORDER: dict[TaskType, tuple[Role, ...]] = {
    TaskType.REASONING: (Role.REASONING, Role.REASONING_HEAVY, Role.ROUTER),
    TaskType.CODING: (Role.CODING, Role.CODING_LARGE_CONTEXT, Role.REASONING),
    TaskType.SUMMARIZATION: (Role.SUMMARIZATION, Role.REASONING, Role.CODING_LARGE_CONTEXT),
    TaskType.VALIDATION: (Role.VALIDATION, Role.REASONING, Role.REASONING_HEAVY),
    TaskType.GENERAL: (Role.ROUTER, Role.REASONING, Role.CODING_LARGE_CONTEXT),
    # Over files that were given there is no index to search: the router's model reads them.
    TaskType.RETRIEVAL: (Role.ROUTER, Role.REASONING, Role.CODING_LARGE_CONTEXT),
    # A value that no grammar here can parse still needs exact steps, which is the reasoning role's work.
    TaskType.TOOL: (Role.REASONING, Role.ROUTER),
}
"""The role named for the task first; the others in turn where it cannot."""

_DEEP_WORDS = re.compile(
    r"\b(?:prove|proof|derive|compare|contrast|trade-?offs?|design|plan|optimi[sz]e|diagnos\w+|root cause|strateg\w+|"
    r"beweis\w*|vergleich\w*|prouve\w*|compare[rz]?|demuestr\w+|compara\w*|dimostr\w+|докаж\w+|сравни\w*)\b|证明|比较|証明"
)
_WHY_WORDS = re.compile(
    r"\b(?:why|how come|explain how|warum|wieso|pourquoi|por qu[eé]|perch[eé]|почему)\b|为什么|なぜ"
)
_CONDITIONS = re.compile(
    r"\b(?:if|unless|given that|assum\w+|such that|suppose|each|every|exactly|at (?:least|most)|wenn|falls|jede\w*|si|"
    r"chaque|cada|se|ogni|если|кажд\w+)\b|如果|每|もし"
)
_STEPS = re.compile(
    r"\b(?:then|after that|finally|step by step|steps?|dann|danach|ensuite|luego|poi|затем)\b|然后|次に"
)
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCES = re.compile(r"[.!?;](?:\s|$)|[\u3002\uff01\uff1f\uff1b]")


def difficulty(reading: Reading) -> float:
    """How many steps of thought the request seems to take, in [0, 1]; of its instruction and traits alone.

    0.4 for words that ask for argument (prove, compare, plan), 0.2 for reasons (why) and for formulas, 0.1 for answer
    options; 0.06 for each condition, number after the first, and step, 0.04 for each sentence after the first (six of
    each at most), and up to 0.1 for length.
    """
    text = reading.regions["edge"]
    sure = 0.4 * bool(_DEEP_WORDS.search(text)) + 0.2 * bool(_WHY_WORDS.search(text))
    sure += 0.2 * ("latex" in reading.flags) + 0.1 * ("options" in reading.flags)

    def count(pattern: re.Pattern[str], free: int = 0) -> int:
        return min(max(len(pattern.findall(text)) - free, 0), 6)

    steps = 0.06 * (count(_CONDITIONS) + count(_NUMBERS, 1) + count(_STEPS)) + 0.04 * count(_SENTENCES, 1)
    return round(min(1.0, sure + steps + min(len(text.split()) / 1000, 0.1)), 4)


@dataclass(slots=True)
class Candidate:
    """A role that was weighed. `note` says how it fared; `value` None: it was not compared."""

    role: Role
    model: str
    context_length: int
    quality: float | None
    seconds: float
    added_gb: float
    value: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The role that answers, or None where there is none; why; and the candidates in the order of precedence."""

    role: Candidate | None
    reason: str
    table: tuple[Candidate, ...] = ()


def choose(
    task_type: TaskType, features: Features, snapshot: Snapshot, state: State, policy: Effect | None = None
) -> Choice:
    """The role for a request of this type: of those that can take it, the best value on the Pareto front.

    Who competes: the role named for the task, with the router's own model beside it, but for code, exact values,
    difficult reasoning and a type that the caller fixed; `depth` "deep" brings in the heavy role and counts quality
    alone, "quick" counts cost alone. The next in order take what the first cannot: a context that is too long, or more
    seconds than `budget_s`. Roles on one model are one candidate.
    """
    candidates = {choice.role: _weighed(choice, task_type, features, state) for choice in snapshot.roles}
    wanted = _tiers(task_type, features, state, policy or Effect())
    tiers = [tier for roles in wanted if (tier := [candidates[role] for role in roles if role in candidates])]
    if not tiers:
        return Choice(None, "the profile has no role for this")
    table, named = dict[Role, Candidate](), tiers[0][0]
    for tier in tiers:
        table |= {each.role: each for each in tier}
        if able := [each for each in tier if not each.note]:
            chosen = _best(able, snapshot, state, named)
            reason = _reason(task_type, chosen, table.values(), named)
            break
    else:
        chosen, reason = _least_bad(table.values(), features, state)
    chosen.note = "chosen"
    return Choice(chosen, reason, tuple(table.values()))


def _tiers(task_type: TaskType, features: Features, state: State, policy: Effect) -> list[list[Role]]:
    """Roles that compete, tier after tier; a later one is asked where nobody in those before it can."""
    named, *others = _ORDER[task_type]
    if state.depth == "deep" and task_type in (TaskType.REASONING, TaskType.TOOL):
        first = [Role.REASONING_HEAVY, named]
    elif state.depth == "quick" and task_type is TaskType.REASONING:
        first = [Role.ROUTER, named]
    elif (
        state.fixed_task_type is not None
        or task_type in (TaskType.CODING, TaskType.TOOL)
        or (task_type is TaskType.REASONING and features.difficulty >= DEEP)
    ):
        first = [named]
    else:
        first = [named] if named is Role.ROUTER else [named, Role.ROUTER]
    last = [role for role in Role if role is not Role.REASONING_HEAVY]
    order = dict.fromkeys([*others, *last, Role.REASONING_HEAVY])
    tiers = [list(policy.prefer), first, *([role] for role in order if role not in first)]
    if policy.force is not None:
        tiers = [[policy.force]]
    return [[role for role in tier if role not in policy.forbid] for tier in tiers]


def _weighed(choice: RoleChoice, task_type: TaskType, features: Features, state: State) -> Candidate:
    loaded = choice.model in state.resident
    answer_tokens = choice.max_tokens * ANSWER_SHARE
    seconds = 0.0 if loaded else max(state.ready_s.get(choice.model, 0.0), 0.0)
    seconds += features.prompt_tokens / choice.prefill_tps + answer_tokens / choice.decode_tps
    seconds, unable = round(min(seconds, _FOREVER_S), 3), ""
    if features.prompt_tokens >= choice.context_length:
        unable = f"about {features.prompt_tokens} tokens exceed {choice.role}"
    elif state.budget_s is not None and seconds > state.budget_s:
        unable = f"{choice.role} would take about {seconds:.1f} s of a budget of {state.budget_s:g} s"
    return Candidate(
        role=choice.role, model=choice.model, context_length=choice.context_length,
        quality=choice.quality.get(task_type), seconds=seconds, added_gb=0.0 if loaded else choice.size_gb, note=unable,
    )  # fmt: skip


def _best(able: Sequence[Candidate], snapshot: Snapshot, state: State, named: Candidate) -> Candidate:
    """The best value of those that nobody dominates; of equals the first. The others' notes say how they fared."""
    total_gb = sum({choice.model: choice.size_gb for choice in snapshot.roles}.values())
    weight = {"quick": 0.0, "deep": 1.0}.get(state.depth, snapshot.quality_weight)
    first_on = {each.model: each for each in reversed(able)}
    distinct = [each for each in able if first_on[each.model] is each]
    unknown = next((each for each in distinct if each.quality is None), None)
    for each in able:
        each.note = f"nothing is known of {unknown.model}" if unknown else f"one model with {first_on[each.model].role}"
    if unknown:
        return distinct[0]  # no comparison: the usual role
    front = []
    for each in distinct:
        share = each.added_gb / total_gb if total_gb else 0.0
        cost = (each.seconds / (each.seconds + HALF_S) + share) / 2
        bonus = INERTIA * ((each is named) + (each.model == state.session_model))
        each.value = round(weight * (each.quality or 0.0) - (1 - weight) * cost + bonus, 6)
        better = next((other for other in distinct if _dominates(other, each)), None)
        each.note = f"no better than {better.role} in quality, seconds or GB" if better else "less value"
        front += [] if better else [each]
    return max(front, key=lambda each: each.value or 0.0)


def _dominates(one: Candidate, other: Candidate) -> bool:
    mine, theirs = ((-(c.quality or 0.0), c.seconds, c.added_gb) for c in (one, other))
    return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


def _reason(task_type: TaskType, chosen: Candidate, table: Iterable[Candidate], named: Candidate) -> str:
    """Why this one: the first could not, or how the value compares."""
    if chosen is not named and named.value is None:
        return f"{named.note}, so {chosen.role}"
    rivals = [each for each in table if each.value is not None and each is not chosen]
    shown = ", ".join(
        f"{each.role} {each.note}" if each.note != "less value" else f"{each.role} {each.value:.3f}" for each in rivals
    )
    return f"{task_type} goes to {chosen.role}" + (f" (value {chosen.value:.3f}; {shown})" if shown else "")


def _least_bad(table: Collection[Candidate], features: Features, state: State) -> tuple[Candidate, str]:
    """Who gets what nobody can take: the fastest where time is short, else the widest, which refuses with a figure."""
    fitting = [each for each in table if features.prompt_tokens < each.context_length]
    if fitting:
        fastest = min(fitting, key=lambda each: each.seconds)
        over = f"every role would exceed the budget of {state.budget_s:g} s"
        return fastest, f"{over}; {fastest.role} is the fastest, with about {fastest.seconds:.1f} s"
    widest = max(table, key=lambda each: each.context_length)
    tokens = f"about {features.prompt_tokens} tokens exceed every context"
    return widest, f"{tokens}; {widest.role} is the widest, with {widest.context_length}"
