"""Models that answer from a script: the same contract, no weights, for tests of everything above the models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio.lowlevel

from rolecall.roles.contract import (
    Generated,
    GenerationRequest,
    GenerationResult,
    MemoryState,
    Message,
    OnEvent,
    Prefilling,
    Resident,
    Role,
    RoleInfo,
    Vectors,
)
from rolecall.roles.errors import ModelMissing, ModelUnknown, PromptTooLong

Answer = str | GenerationResult | BaseException
Script = Callable[[Role, GenerationRequest], Answer]


def infos(context_length: int = 4096, **changes: Any) -> tuple[RoleInfo, ...]:
    """One `RoleInfo` per role, each on a model of its own; `changes` apply to all of them."""
    base = {"present": True, "resident": False, "context_length": context_length, "concurrency": 1, "timeout_s": 60.0}
    more = {"max_tokens": 256, "thinks": False, "size_bytes": 1, **changes}
    return tuple(RoleInfo(**{"role": role, "model": f"scripted/{role}", **base, **more}) for role in Role)


class ScriptedModels:
    """Answers from a list, in order, or from a function; `requests` records what was asked of whom.

    An answer that is an exception is raised. Tokens are words. There is no embedder. After the list's end its last
    answer is repeated.
    """

    def __init__(self, script: Script | Sequence[Answer], roles: tuple[RoleInfo, ...] | None = None) -> None:
        self._script = script
        self._infos = {info.role: info for info in roles or infos()}
        self._resident: dict[str, Resident] = {}
        self.requests: list[tuple[Role, GenerationRequest]] = []
        self.preloaded: list[Role] = []
        self.budget = MemoryState(
            budget_bytes=100, configured_bytes=100, reserved_bytes=0, measured_bytes=0, machine_bytes=200,
            available_bytes=150,
        )  # fmt: skip

    async def generate(
        self, role: Role, request: GenerationRequest, on_event: OnEvent | None = None
    ) -> GenerationResult:
        await anyio.lowlevel.checkpoint()
        prompt_tokens = sum(self.count_tokens(role, message.content) for message in request.messages)
        if prompt_tokens + request.max_tokens > self._infos[role].context_length:
            raise PromptTooLong(f"The prompt does not fit {role}.", found=f"{prompt_tokens} tokens")
        self.requests.append((role, request))
        model = (await self.load(role)).model
        if callable(self._script):
            answer = self._script(role, request)
        else:
            answer = self._script[min(len(self.requests), len(self._script)) - 1]
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, str):
            answer = GenerationResult(
                text=answer, finish="stop", role=role, model=model, prompt_tokens=prompt_tokens,
                completion_tokens=self.count_tokens(role, answer),
            )  # fmt: skip
        if on_event is not None:
            on_event(Prefilling(prompt_tokens, prompt_tokens))
            on_event(Generated(answer.text, "answer", answer.completion_tokens))
        return answer

    async def embed(self, texts: Sequence[str], *, alone: bool = False, query: bool = False) -> Vectors:
        raise ModelMissing("Scripted models embed nothing.")

    async def rerank(self, query: str, texts: Sequence[str]) -> list[float]:
        raise ModelMissing("Scripted models rank nothing.")

    async def score_labels(self, role: Role, messages: Sequence[Message], labels: Sequence[str]) -> tuple[float, ...]:
        return tuple(-float(self.count_tokens(role, label)) for label in labels)

    def embedder(self) -> str | None:
        return None

    def roles(self) -> tuple[RoleInfo, ...]:
        return tuple(self._infos.values())

    def resident(self) -> tuple[Resident, ...]:
        return tuple(self._resident.values())

    def count_tokens(self, role: Role, text: str) -> int:
        return len(text.split())

    def preload(self, role: Role) -> None:
        self.preloaded.append(role)

    async def load(self, name: str) -> Resident:
        info = next((info for info in self._infos.values() if name in (info.role, info.model)), None)
        if info is None:
            raise ModelUnknown(f"No model {name}.")
        resident = Resident(
            model=info.model, roles=(info.role.value,), pid=0, pinned=False, in_use=0, reserved_bytes=info.size_bytes,
            measured_bytes=info.size_bytes,
        )  # fmt: skip
        return self._resident.setdefault(info.model, resident)

    async def unload(self, name: str) -> bool:
        return self._resident.pop((await self.load(name)).model, None) is not None

    async def pin(self, name: str, pinned: bool) -> Resident:
        resident = (await self.load(name)).model_copy(update={"pinned": pinned})
        self._resident[resident.model] = resident
        return resident

    def memory(self) -> MemoryState:
        taken = sum(item.reserved_bytes for item in self._resident.values())
        return self.budget.model_copy(update={"reserved_bytes": taken, "measured_bytes": taken})

    async def aclose(self) -> None:
        self._resident.clear()
