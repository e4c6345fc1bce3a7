"""What the steps of every tool work with, and the decisions and readings they share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import anyio.to_thread

from rolecall.config.prompts import document
from rolecall.config.settings import Settings
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.contract import IndexState, Retriever, SourceText
from rolecall.retrieval.errors import RetrievalError
from rolecall.roles.contract import Role, RoleModels
from rolecall.roles.errors import ModelMissing

from ..routing.agents.claims import claim
from ..routing.agents.contract import AgentContext
from ..routing.contract import Agent, AgentAnswer, Claim, Decision, Features, Snapshot, State, TaskType
from ..routing.decide import decide
from ..routing.router import claimed_features, text_sha256
from .contract import Depth
from .record import Run
from .states import Event


class Decides(Protocol):
    """The router as the steps see it (`routing.router.Router`)."""

    def snapshot(self) -> Snapshot: ...

    async def decide(
        self, text: str, state: State | None = None, *, extra_tokens: int = 0, has_paths: bool = False
    ) -> tuple[Features, Snapshot, Decision]: ...

    async def compute(self, claim: Claim, context: AgentContext) -> AgentAnswer | None: ...


@dataclass(frozen=True, slots=True)
class Staff:
    """Everyone a request may need; `retriever` is None where nothing can be searched."""

    models: RoleModels
    retriever: Retriever | None
    router: Decides
    access: AllowedFolders
    settings: Settings

    def state(self, depth: Depth = "normal", budget_s: float | None = None) -> State:
        """What may differ from call to call, as the router is told."""
        resident = tuple(sorted(item.model for item in self.models.resident()))
        return State(resident=resident, depth=depth, budget_s=budget_s)

    async def read(self, paths: Sequence[str], cwd: Path) -> tuple[SourceText, ...]:
        """The files that the user's paths name, each in full."""
        if not paths:
            return ()
        files = await anyio.to_thread.run_sync(self.access.resolve, paths, cwd, abandon_on_cancel=True)
        return tuple([await self.read_file(file) for file in files])

    async def read_file(self, file: Path) -> SourceText:
        return await anyio.to_thread.run_sync(partial(self.access.read, file), abandon_on_cancel=True)


def as_data(sources: Sequence[SourceText], context: str | None) -> str:
    """Files and context as delimited data for a prompt; "" where there is none."""
    parts = [document(context, "context")] if context else []
    return "\n\n".join([*parts, *(document(source.text, source.path.name) for source in sources)])


def estimated_tokens(sources: Sequence[SourceText], context: str | None) -> int:
    return (sum(source.size_bytes for source in sources) + len(context or "")) // 4


def fix(
    run: Run,
    staff: Staff,
    text: str,
    task_type: TaskType,
    depth: Depth = "normal",
    *,
    extra_tokens: int = 0,
    by_model: bool = True,
) -> Role | None:
    """Decide for a tool that fixes the task type: only the role is open, so nothing is embedded or parsed.

    The role is None where an agent answers: retrieval, with `by_model` off.
    """
    features = Features(
        text_sha256=text_sha256(text), claim=None, type_scores={task_type: 1.0}, reasons=(),
        prompt_tokens=len(text) // 4 + extra_tokens, has_paths=by_model,
    )  # fmt: skip
    state = staff.state(depth).model_copy(update={"fixed_task_type": task_type})
    decision = decide(features, staff.router.snapshot(), state)
    run.decided(features, state, decision)
    return decision.role


def must(role: Role | None) -> Role:
    """The role that was decided on.

    Raises:
        ModelMissing: the profile has none for this.
    """
    if role is None:
        raise ModelMissing("The profile has no role for this request.", advice="Choose a profile that has one.")
    return role


async def claimed(run: Run, staff: Staff, text: str) -> Claim | None:
    """The deterministic agent's parse of the whole text, decided upon; None where no agent can take it."""
    parsed = await anyio.to_thread.run_sync(claim, text)
    if parsed is not None:
        features, state = claimed_features(text_sha256(text), parsed), staff.state()
        run.decided(features, state, decide(features, staff.router.snapshot(), state))
    return parsed


async def agent_answer(run: Run, staff: Staff, parsed: Claim) -> str | None:
    """What the deterministic agent that claimed the request computes, with its working; None leaves it to a model."""
    run.advance(Event.AGENT_CHOSEN)
    run.tell(f"{parsed.agent.value}: computing", None)
    context = AgentContext(
        now=datetime.now(UTC),
        timezone=local_zone(),
        resident=tuple(staff.models.resident()),
        index=await _index_state(staff) if parsed.agent is Agent.SYSTEM else None,
        allowed_folders=staff.access.list(),
    )
    found = await staff.router.compute(parsed, context)
    run.advance(Event.VALUE_FOUND if found else Event.NOTHING_FOUND)
    if found is None:
        return None
    return found.value if found.working in ("", found.value) else f"{found.value}\n\n{found.working}"


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
        states = [each.index for each in await staff.retriever.collections()] if staff.retriever else []
    except RetrievalError:
        return None
    ages = [state.age_s for state in states if state.age_s is not None]
    sums = {name: sum(getattr(state, name) for state in states) for name in ("indexed", "pending", "skipped", "failed")}
    return IndexState(**sums, age_s=max(ages, default=None)) if states else None
