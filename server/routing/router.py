"""The router as the host uses it: reads a request, asks the embedder, decides."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import anyio.to_thread
import numpy as np
import structlog

from rolecall.roles.contract import RoleModels
from rolecall.roles.errors import RoleError

from .agents.claims import claim
from .classify import classify, load_weights
from .contract import Claim, Decision, Features, RoleChoice, Snapshot, State, TaskType
from .decide import canonical_sha256, decide
from .signals import read

_log = structlog.get_logger(__name__)

_CACHED = 512
_BYTES_PER_TOKEN = 4


@dataclass
class Router:
    """Decides for one profile. For one event loop."""

    models: RoleModels
    profile_name: str
    _cache: OrderedDict[str, Features] = field(default_factory=OrderedDict, init=False)

    async def features(self, text: str, *, extra_tokens: int = 0, has_paths: bool = False) -> Features:
        """Everything the decision reads of `text`; never raises for its content.

        `extra_tokens` are those of files that go with the request. Kept for the last 512 texts by content hash, except
        where the embedder should have answered and did not.
        """
        digest = text_sha256(text)
        prompt_tokens = len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN + extra_tokens
        embedder = self.models.embedder()
        key = f"{digest}:{embedder.identity if embedder else ''}"
        if found := self._cache.get(key):
            self._cache.move_to_end(key)
        else:
            found = await self._read(text, digest, key, embedder is not None)
        return found.model_copy(update={"prompt_tokens": prompt_tokens, "has_paths": has_paths})

    async def _read(self, text: str, digest: str, key: str, embeds: bool) -> Features:
        parsed = await anyio.to_thread.run_sync(claim, text)
        if parsed is not None:
            # A whole parse settles the type: no embedding is spent on it.
            found, keep = claimed_features(digest, parsed), True
        else:
            reading = read(text)
            vector, keep = None, True
            if embeds and reading.instruction.strip():
                try:
                    vector = np.asarray((await self.models.embed([reading.instruction], alone=True))[0])
                except RoleError as error:
                    keep = False
                    _log.warning("embedding_failed", code=error.code)
            scores, reasons = classify(reading, vector)
            found = Features(text_sha256=digest, claim=None, type_scores=scores, reasons=reasons)
        if keep:
            self._cache[key] = found
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return found

    @cached_property
    def _roles(self) -> tuple[RoleChoice, ...]:
        """Fixed by the profile, while sizes and presence, which are read from the disk, are no part of the policy."""
        return tuple(
            RoleChoice(role=info.role, model=info.model, context_length=info.context_length)
            for info in self.models.roles()
        )

    def snapshot(self) -> Snapshot:
        """The policy under one hash: rules, weights, the profile's roles, the embedder's identity."""
        roles, embedder = self._roles, self.models.embedder()
        content = {
            "policy": load_weights().sha256,
            "profile": self.profile_name,
            "roles": [[choice.role.value, choice.model, choice.context_length] for choice in roles],
            "embedder": embedder.identity if embedder else None,
        }
        return Snapshot(sha256=canonical_sha256(content), profile=self.profile_name, roles=roles)

    async def decide(
        self, text: str, state: State | None = None, *, extra_tokens: int = 0, has_paths: bool = False
    ) -> tuple[Features, Snapshot, Decision]:
        """Read and decide; the three together are what a receipt needs to recompute the decision."""
        features = await self.features(text, extra_tokens=extra_tokens, has_paths=has_paths)
        snapshot = self.snapshot()
        return features, snapshot, decide(features, snapshot, state if state is not None else State())


def batch_line(request_id: str | int, decision: Decision) -> dict[str, Any]:
    """One line of `rolecall route --batch`, keys in their documented order."""
    shown = decision.model_dump(mode="json", exclude={"model", "snapshot_sha256", "sha256"})
    return {"id": request_id, **shown, "decision_sha256": decision.sha256}


def text_sha256(text: str) -> str:
    """SHA-256 of a request's UTF-8 bytes; lone surrogates are hashed as they stand."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def claimed_features(digest: str, parsed: Claim) -> Features:
    return Features(
        text_sha256=digest,
        claim=parsed,
        type_scores={kind: 1.0 if kind is TaskType.TOOL else 0.0 for kind in TaskType},
        reasons=(f"the {parsed.agent} grammar accounts for the whole request",),
    )
