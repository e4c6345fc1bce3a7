"""Models that answer from a script: the same contract, no weights, for tests of everything above the models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import anyio.lowlevel
import numpy as np

from .contract import (
    EmbedderInfo,
    Generated,
    GenerationRequest,
    GenerationResult,
    OnEvent,
    Prefilling,
    Resident,
    Role,
    RoleInfo,
    Vectors,
)
from .errors import ModelMissing, ModelUnknown, PromptTooLong

Answer = str | GenerationResult | BaseException
Script = Callable[[Role, GenerationRequest], Answer]

DIMENSIONS = 384


def infos(context_length: int = 4096, **changes: Any) -> tuple[RoleInfo, ...]:
    """One `RoleInfo` per role, each on a model of its own; `changes` apply to all of them."""
    base = {"present": True, "resident": False, "context_length": context_length, "concurrency": 1, "timeout_s": 60.0}
    more = {"max_tokens": 256, "thinks": False, "size_bytes": 1, **changes}
    return tuple(RoleInfo(**{"role": role, "model": f"scripted/{role}", **base, **more}) for role in Role)


class ScriptedModels:
    """Answers from a list, in order, or from a function; `requests` records what was asked of whom.

    An answer that is an exception is raised. Tokens are words. Embeddings are hashed words of unit length, so equal
    texts have equal vectors and texts that share words are near; without `embeds` there is no embedder. After the
    list's end its last answer is repeated.
    """

    def __init__(
        self, script: Script | Sequence[Answer], roles: tuple[RoleInfo, ...] | None = None, *, embeds: bool = True
    ) -> None:
        self._embeds = embeds
        self._script: Script = script if callable(script) else _in_order(list(script))
        self._infos = {info.role: info for info in (infos() if roles is None else roles)}
        self._resident: dict[str, Resident] = {}
        self.requests: list[tuple[Role, GenerationRequest]] = []
        self.preloaded: list[Role] = []

    async def generate(
        self, role: Role, request: GenerationRequest, on_event: OnEvent | None = None
    ) -> GenerationResult:
        await anyio.lowlevel.checkpoint()
        info = self._infos.get(role)
        if info is None or not info.present:
            raise ModelMissing(f"No model for {role}.", advice=f"Run `rolecall models pull {role}`.")
        prompt_tokens = sum(self.count_tokens(role, message.content) for message in request.messages)
        if prompt_tokens + request.max_tokens > info.context_length:
            raise PromptTooLong(
                f"The prompt does not fit {role}.",
                found=f"{prompt_tokens} tokens and {request.max_tokens} for the answer",
                allowed=f"{info.context_length} tokens",
            )
        self.requests.append((role, request))
        self._resident[info.model] = _resident(info)
        answer = self._script(role, request)
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, str):
            tokens = self.count_tokens(role, answer)
            answer = GenerationResult(
                text=answer, finish="stop", role=role, model=info.model, prompt_tokens=prompt_tokens,
                completion_tokens=tokens,
            )  # fmt: skip
        if on_event is not None:
            on_event(Prefilling(prompt_tokens, prompt_tokens))
            on_event(Generated(answer.text, "answer", answer.completion_tokens))
        return answer

    async def embed(self, texts: Sequence[str], *, alone: bool = False) -> Vectors:
        vectors = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split() or [""]:
                digest = hashlib.sha256(word.encode("utf-8", "replace")).digest()
                vectors[row, int.from_bytes(digest[2:4]) % DIMENSIONS] += 1.0 if digest[1] & 1 else 0.5
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def embedder(self) -> EmbedderInfo | None:
        if not self._embeds:
            return None
        return EmbedderInfo(model="scripted/words", identity="scripted/words:1", dimensions=DIMENSIONS, max_tokens=256)

    def roles(self) -> tuple[RoleInfo, ...]:
        return tuple(self._infos.values())

    def resident(self) -> tuple[Resident, ...]:
        return tuple(self._resident.values())

    def count_tokens(self, role: Role, text: str) -> int:
        return len(text.split())

    def preload(self, role: Role) -> None:
        self.preloaded.append(role)

    async def load(self, name: str) -> Resident:
        for info in self._infos.values():
            if name in (info.role, info.model):
                return self._resident.setdefault(info.model, _resident(info))
        raise ModelUnknown(f"No model {name}.", allowed=", ".join(info.model for info in self._infos.values()))

    async def unload(self, name: str) -> bool:
        names = {name, *(info.model for info in self._infos.values() if info.role == name)}
        removed = {each: self._resident.pop(each, None) for each in names}
        return any(removed.values())

    async def aclose(self) -> None:
        self._resident.clear()


def _in_order(answers: list[Answer]) -> Script:
    def next_answer(role: Role, request: GenerationRequest) -> Answer:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    return next_answer


def _resident(info: RoleInfo) -> Resident:
    return Resident(
        model=info.model, roles=(str(info.role),), pid=0, pinned=False, in_use=0, reserved_bytes=info.size_bytes,
        measured_bytes=info.size_bytes,
    )  # fmt: skip
