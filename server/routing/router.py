"""The router as the host uses it: reads a request, asks the embedder, decides."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import anyio.to_thread
import numpy as np
import numpy.typing as npt
import structlog

from rolecall.config.policy import RoutingSettings, check_rules
from rolecall.retrieval.tasks import together
from rolecall.roles.contract import RoleModels
from rolecall.roles.errors import RoleError

from .agents.claims import claim
from .choice import difficulty
from .classify import FITTED_WITH, Signals, classify, signals_of
from .contract import Claim, Decision, Features, RoleChoice, Snapshot, State, TaskType
from .decide import decide
from .escalate import load_thresholds, vote
from .policy import matched
from .signals import Reading, ends, read
from .snapshot import role_choice, snapshot_of

_log = structlog.get_logger(__name__)

_CACHED = 512
_BYTES_PER_TOKEN = 4


@dataclass
class Router:
    """Decides for one profile, under the user's rules. For one event loop."""

    models: RoleModels
    profile_name: str
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    _cache: dict[str, Features] = field(default_factory=dict, init=False)
    _snapshots: dict[str | None, Snapshot] = field(default_factory=dict, init=False)

    def with_policy(self, routing: RoutingSettings) -> Router:
        """This router under other rules and another quality weight; what was read of texts is shared. Raises
        ConfigError: a rule can do nothing in this profile, or two contradict each other."""
        check_rules(routing, [choice.role.value for choice in self._roles], "the policy")
        other = replace(self, routing=routing)
        other._cache = self._cache
        return other

    async def decide(
        self,
        text: str,
        state: State | None = None,
        *,
        extra_tokens: int = 0,
        has_paths: bool = False,
        escalate: bool | None = None,
    ) -> tuple[Features, Snapshot, Decision]:
        """Read and decide; the three together are what a receipt needs to recompute the decision.

        `escalate` whether the router model is asked where the type is unsure; None: where that helps in this profile.
        """
        state, identity = state or State(), self._identity()
        found = self._with_call(text, await self._read(text, identity), extra_tokens, has_paths)
        if state.fixed_task_type is None:
            found = await self._voted(text, found, escalate, state.budget_s)
        snapshot = self._snapshot(identity)
        return found, snapshot, decide(found, snapshot, state)

    async def features(self, text: str) -> Features:
        """Everything that is read of `text` itself, without a vote; never raises for its content."""
        return self._with_call(text, await self._read(text, self._identity()), 0, False)

    def given(
        self, text: str, settled: Claim | TaskType, *, extra_tokens: int = 0, has_paths: bool = False
    ) -> Features:
        """Features of a text whose type an agent's claim or the caller settles: nothing is embedded or classified."""
        found = _settled(text, text_sha256(text), settled)
        return self._with_call(text, found, extra_tokens, has_paths)

    def snapshot(self) -> Snapshot:
        """What decisions are made under now, with one hash over it."""
        return self._snapshot(self._identity())

    async def explain(self, text: str) -> dict[str, Any]:
        """The decision with every signal behind it, and what would have changed it; see `explain`."""
        from .explain import explain

        found, snapshot, _ = await self.decide(text)
        reading = read(text)
        vector = await self._vector(reading, found.claim is None and self._identity() is not None)
        return explain(reading, vector, found, snapshot)

    def _with_call(self, text: str, found: Features, extra_tokens: int, has_paths: bool) -> Features:
        """With what differs from call to call, and from policy to policy."""
        prompt_tokens = len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN + extra_tokens
        named = matched(self.routing.rules, text)
        return found.model_copy(update={"prompt_tokens": prompt_tokens, "has_paths": has_paths, "matched": named})

    async def _read(self, text: str, identity: str | None) -> Features:
        """Kept for the last 512 texts, except where the embedder should have answered and did not."""
        digest = text_sha256(text)
        key = f"{digest}:{identity}"
        if found := self._cache.get(key):
            return found
        parsed = await anyio.to_thread.run_sync(claim, text)
        if parsed is not None:
            # A whole parse settles the type: no embedding is spent on it.
            found, keep = _settled(text, digest, parsed), True
        else:
            reading = read(text)
            vector, signals = await self._vector_and_signals(reading, identity is not None)
            keep = vector is not None or not (identity and reading.instruction.strip())
            scores, reasons = classify(reading, vector, signals)
            found = Features(text_sha256=digest, claim=None, type_scores=scores, reasons=reasons, **_traits(reading))
        if keep:
            self._cache[key] = found
            if len(self._cache) > _CACHED:
                del self._cache[next(iter(self._cache))]
        return found

    async def _vector_and_signals(
        self, reading: Reading, embeds: bool
    ) -> tuple[npt.NDArray[np.float32] | None, Signals]:
        """Both at once: of a long request the rules take some milliseconds."""
        found: list[npt.NDArray[np.float32] | None] = []

        async def embed() -> None:
            found.append(await self._vector(reading, embeds))

        async with together() as tasks:
            tasks.start_soon(embed)
            signals = await anyio.to_thread.run_sync(signals_of, reading)
        return found[0], signals

    async def _vector(self, reading: Reading, embeds: bool) -> npt.NDArray[np.float32] | None:
        """The instruction's embedding, shape (dimensions,); None where there is nothing to embed, or nobody."""
        if not embeds or not reading.instruction.strip():
            return None
        try:
            return np.asarray((await self.models.embed([ends(reading.instruction)], alone=True))[0])
        except RoleError as error:
            _log.warning("embedding_failed", code=error.code)
            return None

    async def _voted(self, text: str, found: Features, escalate: bool | None, deadline_s: float | None) -> Features:
        """With what the router model says of the type, where the classifier is unsure and it is to be asked."""
        held = load_thresholds()
        if not (escalate if escalate is not None else self.profile_name in held.profiles) or found.claim is not None:
            return found
        best = max(TaskType, key=lambda kind: found.type_scores.get(kind, 0.0))
        if found.type_scores[best] >= held.below[best]:
            return found
        said = await vote(self.models, text, deadline_s)
        return found.model_copy(update={"unasked" if isinstance(said, str) else "vote": said})

    def _identity(self) -> str | None:
        """The embedder's, read from the disk: once for each decision. None for one that the weights do not know."""
        identity = self.models.embedder()
        return identity if identity and identity.startswith(f"{FITTED_WITH}:") else None

    @cached_property
    def _roles(self) -> tuple[RoleChoice, ...]:
        """Fixed by the profile, while sizes and presence, which are read from the disk, are no part of the policy."""
        return tuple(map(role_choice, self.models.roles()))

    def _snapshot(self, identity: str | None) -> Snapshot:
        if identity not in self._snapshots:
            made = snapshot_of(self.profile_name, self._roles, identity, self.routing, load_thresholds().below)
            self._snapshots[identity] = made
        return self._snapshots[identity]


def batch_line(request_id: str | int, decision: Decision) -> dict[str, Any]:
    """One line of `rolecall route --batch`, keys in their documented order; `tags` and `denied` only where set."""
    unset = {name for name in ("tags", "denied") if not getattr(decision, name)}
    shown = decision.model_dump(mode="json", exclude={"model", "snapshot_sha256", "sha256", *unset})
    return {"id": request_id, **shown, "decision_sha256": decision.sha256}


def text_sha256(text: str) -> str:
    """SHA-256 of a request's UTF-8 bytes; lone surrogates are hashed as they stand."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _settled(text: str, digest: str, by: Claim | TaskType) -> Features:
    parsed, kind = (by, TaskType.TOOL) if isinstance(by, Claim) else (None, by)
    return Features(
        text_sha256=digest,
        claim=parsed,
        type_scores={each: 1.0 if each is kind else 0.0 for each in TaskType},
        reasons=(f"the {parsed.agent} grammar accounts for the whole request",) if parsed else (),
        **_traits(read(text)),
    )


def _traits(reading: Reading) -> dict[str, Any]:
    return {"flags": tuple(sorted(reading.flags)), "difficulty": difficulty(reading)}
