"""What the steps of every tool work with, and the decisions and readings they share."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from functools import partial
from itertools import combinations
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import anyio.to_thread

from rolecall.config.prompts import document
from rolecall.config.settings import Settings
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.contract import IndexState, Retriever, SourceText
from rolecall.retrieval.errors import RetrievalError
from rolecall.roles.contract import Role, RoleModels

from ..errors import PolicyDenied
from ..routing.agents.claims import claim, compute
from ..routing.agents.contract import AgentContext
from ..routing.contract import Agent, Claim, Decision, State, TaskType
from ..routing.decide import decide
from ..routing.router import Router
from .contract import Depth
from .record import Run
from .states import Event, RunState

LOAD_BYTES_PER_S = 3e9
"""Source: 3.0 GB/s cold from disk on an M1 Max, 3.75 on an M4 Max (reported for mlx-lm)."""

_SESSIONS = 256
"""How many sessions' last models are remembered."""


@dataclass(frozen=True, slots=True)
class Staff:
    """Everyone a request may need. `sessions`: the model that last answered each session."""

    models: RoleModels
    retriever: Retriever
    router: Router
    access: AllowedFolders
    settings: Settings
    sessions: OrderedDict[str, str] = field(default_factory=OrderedDict)

    def state(self, session: str, depth: Depth = "normal", budget_s: float | None = None) -> State:
        """What may differ from call to call, as the router is told."""
        resident = tuple(sorted(item.model for item in self.models.resident()))
        return State(
            resident=resident, depth=depth, budget_s=budget_s, ready_s=self._ready_s(resident),
            session_model=self.sessions.get(session),
        )  # fmt: skip

    def answered(self, run: Run) -> None:
        """Remember which model answered this session, for the next decision in it."""
        if run.answered is not None:
            self.sessions[run.call.session] = run.answered.model
            self.sessions.move_to_end(run.call.session)
            if len(self.sessions) > _SESSIONS:
                self.sessions.popitem(last=False)

    def _ready_s(self, resident: Sequence[str]) -> dict[str, float]:
        """Estimated seconds until each model that is not in memory could begin: its load, and where it does not fit
        what is free the later reload of the least that has to go for it."""
        if all(spec.model in resident for spec in self.settings.profile.roles.values()):
            return {}  # without a look at the disk
        missing = {info.model: info.size_bytes for info in self.models.roles() if info.model not in resident}
        evictable = [each.reserved_bytes for each in self.models.resident() if not each.pinned]
        if not any(missing.values()):
            return {}
        memory = self.models.memory() if evictable else None
        free = memory.budget_bytes - memory.reserved_bytes if memory else 0
        return {
            model: round((size + displaced_bytes(size - free, evictable)) / LOAD_BYTES_PER_S, 3)
            for model, size in missing.items()
            if size
        }

    async def read_any(
        self, run: Run, paths: Sequence[str], cwd: Path
    ) -> tuple[list[SourceText], dict[Path, RetrievalError]]:
        """What can be read of the files that the user's paths name, each in full, and why the others cannot."""
        sources, refused = list[SourceText](), dict[Path, RetrievalError]()
        resolve = partial(self.access.resolve, paths, cwd)
        for file in await anyio.to_thread.run_sync(resolve, abandon_on_cancel=True) if paths else ():
            try:
                source = await anyio.to_thread.run_sync(self.access.read, file, abandon_on_cancel=True)
            except RetrievalError as error:
                refused[file] = error
                run.mark("partial", f"{file} was left out: {error.message}")
            else:
                sources.append(source)
                if self.access.is_private(source.path):
                    run.private.saw(source.text)
                run.handled(source.text, read_bytes=source.size_bytes)
        return sources, refused

    async def read(self, run: Run, paths: Sequence[str], cwd: Path) -> list[SourceText]:
        """The files that the user's paths name; where some can be read, the others are left out."""
        sources, refused = await self.read_any(run, paths, cwd)
        if refused and not sources:
            raise refused.popitem()[1]
        return sources

    async def target(self, save_to: str | None, cwd: Path) -> Path | None:
        """Where a result may be saved, refused before a model is asked; None where the client wants it itself."""
        return None if save_to is None else await anyio.to_thread.run_sync(self.access.writable, save_to, cwd)

    async def save(self, run: Run, target: Path, text: str, cwd: Path) -> str:
        text = run.private.cleared(text)  # a new file may be where clients can read it
        saved = await anyio.to_thread.run_sync(self.access.write_new, target, text, cwd)
        run.handled(text, written_bytes=len(text.encode("utf-8", "replace")))
        return str(saved)


def as_data(sources: Sequence[SourceText], context: str | None) -> str:
    """Files and context as delimited data for a prompt; "" where there is none.

    Files first: what several questions to the same files share is then one prefix, which is read once.
    """
    parts = [document(source.text, source.path.name) for source in sources]
    return "\n\n".join([*parts, document(context, "context")] if context else parts)


def estimated_tokens(sources: Sequence[SourceText], context: str | None) -> int:
    return (sum(source.size_bytes for source in sources) + len(context or "")) // 4


def fix(
    run: Run, staff: Staff, text: str, kind: TaskType, depth: Depth = "normal", extra: int = 0, by_model: bool = True
) -> Role | None:
    """Decide for a tool that fixes the task type: only the role is open (None: the retrieval agent, `by_model` off)."""
    features = staff.router.given(text, kind, extra_tokens=extra, has_paths=by_model)
    state = staff.state(run.call.session, depth).model_copy(update={"fixed_task_type": kind})
    decision = decide(features, staff.router.snapshot(), state)
    run.decided(features, state, decision)
    allow(decision)
    return decision.role


def allow(decision: Decision) -> None:
    """Raises PolicyDenied where one of the user's rules refuses the request."""
    if decision.denied:
        rules = "; ".join(reason for reason in decision.reasons if reason.startswith("the rule "))
        raise PolicyDenied(decision.denied, found=rules, advice="The rules stand under `routing:` in config.yaml.")


def choose(run: Run, staff: Staff, text: str, kind: TaskType, depth: Depth = "normal", extra: int = 0) -> Role:
    """The role for a task of this kind, with `extra` tokens of files. To MODEL_SELECTION, where no agent led there."""
    role = fix(run, staff, text, kind, depth, extra)
    assert role is not None  # a profile with any role has one for every kind
    if run.machine.state is RunState.ROUTING_DECISION:
        run.advance(Event.MODEL_CHOSEN)
    return role


async def claimed(run: Run, staff: Staff, text: str) -> Claim | None:
    """The deterministic agent's parse of the whole text, decided upon; None where no agent can take it."""
    if (parsed := await anyio.to_thread.run_sync(claim, text)) is None:
        return None
    features, state = staff.router.given(text, parsed), staff.state(run.call.session)
    decision = decide(features, staff.router.snapshot(), state)
    run.decided(features, state, decision)
    allow(decision)
    return parsed if decision.agent else None


async def agent_answer(run: Run, staff: Staff, parsed: Claim) -> str | None:
    """What the deterministic agent that claimed the request computes, with its working; None leaves it to a model."""
    run.advance(Event.AGENT_CHOSEN)
    run.tell(f"{parsed.agent.value}: computing", None)
    context = AgentContext(
        now=datetime.now(local_zone()), resident=staff.models.resident(),
        index=await _index_state(staff) if parsed.agent is Agent.SYSTEM else None, allowed_folders=staff.access.list(),
    )  # fmt: skip
    found = await anyio.to_thread.run_sync(compute, parsed, context)
    run.advance(Event.VALUE_FOUND if found else Event.NOTHING_FOUND)
    if found is None:
        run.mark("ok", f"The agent {parsed.agent.value!r} found no value, so a model answers.")
        return None
    return found.text if found.working in ("", found.text) else f"{found.text}\n\n{found.working}"


def displaced_bytes(wanted_bytes: int, evictable: Sequence[int]) -> int:
    """The fewest bytes of models that give so much free when they go; all, where even they would not do."""
    if wanted_bytes <= 0:
        return 0
    sums = (sum(group) for count in range(1, len(evictable) + 1) for group in combinations(evictable, count))
    return min((total for total in sums if total >= wanted_bytes), default=sum(evictable))


def local_zone() -> tzinfo:
    """This machine's time zone, with its rules for other dates where the system names it."""
    name = os.environ.get("TZ") or os.path.realpath("/etc/localtime").partition("zoneinfo/")[2]
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        return datetime.now().astimezone().tzinfo or UTC


async def _index_state(staff: Staff) -> IndexState | None:
    """All collections as one; None where nothing is indexed."""
    try:
        return (await staff.retriever.search("")).index
    except RetrievalError:
        return None
