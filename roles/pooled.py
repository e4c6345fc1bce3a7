"""One model of the pool: its phase, who works with it and who waits."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio

from rolecall.config.errors import RolecallError
from rolecall.config.profile import RoleSpec

from .contract import Loading, OnEvent, Queued, tell
from .errors import QueueFull
from .plan import Reservation
from .residency import ResidentModel
from .worker.wire import Kind

if TYPE_CHECKING:
    from .worker.process import Worker

LOAD_BYTES_PER_S = 3_000_000_000  # Source: cold loads on Apple silicon, 3.0 to 3.75 GB/s; until one was measured
RATE_DECAY = 0.8  # of earlier requests in a model's decode rate, at each later one

End = Literal["evicted", "idle", "unloaded", "died"]


class Phase(Enum):
    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    ENDING = "ending"


@dataclass(slots=True)
class Turns:
    """Start-time fair queueing with requests of equal weight: a client's n-th request, running ones counted, comes
    after the other clients' (n-1)-th, and who comes anew starts at the turn that is being served.

    Source: Goyal, Vin, Cheng, Start-time Fair Queueing, SIGCOMM 1996.
    """

    _served: int = 0
    _next: dict[str, int] = field(default_factory=dict)

    def take(self, client: str) -> int:
        """The turn of a new request."""
        turn = max(self._served, self._next.get(client, 0))
        # a client that is not ahead of the others needs no line: the table holds who waits or lately did
        self._next = {name: after for name, after in self._next.items() if after > self._served} | {client: turn + 1}
        return turn

    def serve(self, turn: int) -> None:
        """A request of this turn begins."""
        self._served = max(self._served, turn)

    def give_back(self, client: str) -> None:
        """A request that waited has gone: the client's later ones come a turn earlier."""
        if client in self._next:
            self._next[client] -= 1


@dataclass(eq=False, slots=True)
class Ticket:
    """One caller's place. `role` "" only wants the model in memory. Granted once `settled` with a `worker`.

    `tokens` of prompt and answer together; None: as many as the role's context has. `deadline_s` from its arrival, or
    else after its role's time, it is due: the nearest goes first. At work it takes `need_tokens` of KV cache.
    """

    role: str = ""
    spec: RoleSpec | None = None
    on_event: OnEvent | None = None
    client: str = ""
    deadline_s: float | None = None
    tokens: int | None = None
    number: int = 0
    need_tokens: int = 0
    turn: int = 0
    position: int = 0
    cold: bool = False
    queued_at: float = field(default_factory=anyio.current_time)
    settled: anyio.Event = field(default_factory=anyio.Event)
    worker: Worker | None = None
    error: RolecallError | None = None

    @property
    def pinned(self) -> bool:
        return bool(self.spec and self.spec.pinned)

    @property
    def time_s(self) -> float:
        return self.deadline_s or (self.spec.timeout_s if self.spec else math.inf)

    @property
    def order(self) -> tuple[bool, int, float, int]:
        """Among those that wait: pinned roles, then clients in turns, then the nearest deadline, then the first."""
        return (not self.pinned, self.turn, self.queued_at + self.time_s, self.number)

    def tell(self, event: Queued | Loading) -> None:
        tell(self.on_event, event)


@dataclass(eq=False, slots=True)
class PooledModel:
    """One model and what goes on with it; an encoder has no `specs`, and reads `input_tokens` of one input.

    `model` is the key: the model's id, and the adapter's where it has one. `kept` pins it beyond what its roles say.
    `reservation` is what a load taught to be right; `kv_tokens` of its KV cache are reserved now.
    """

    model: str
    folder: Path
    specs: tuple[RoleSpec, ...]
    reservation: Reservation
    adapter: Path | None = None
    kind: Kind = "text"
    input_tokens: int = 0
    kept: bool = False
    phase: Phase = Phase.ABSENT
    kv_tokens: int = 0
    worker: Worker | None = None
    weights_sha256: str = ""
    reload_s: float = 0.0
    loaded_bytes: int = 0  # of the weights, while it loads
    service_s: float = 1.0
    made_tokens: float = 0.0
    made_s: float = 0.0
    last_used: float = field(default_factory=anyio.current_time)
    waiting: list[Ticket] = field(default_factory=list)
    active: list[Ticket] = field(default_factory=list)
    turns: Turns = field(default_factory=Turns)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    gone: anyio.Event = field(default_factory=anyio.Event)
    ended_as: End = "died"

    @property
    def pinned(self) -> bool:
        return self.kept or any(spec.pinned for spec in self.specs)

    @property
    def reserved_bytes(self) -> int:
        return self.reservation.bytes_at(self.kv_tokens)

    @property
    def base_bytes(self) -> int:
        """What it reserves while nobody uses it and others need the room."""
        return self.reservation.bytes_at(self.reservation.base_tokens)

    @property
    def needed_tokens(self) -> int:
        """Of the KV tokens reserved now those that are no surplus."""
        ready = self.phase is Phase.READY
        return max(self.reservation.base_tokens, self.tokens_at_work()) if ready else self.kv_tokens

    @property
    def oldest(self) -> int:
        return min(ticket.number for ticket in self.waiting)

    @property
    def tokens_per_s(self) -> float:
        return self.made_tokens / self.made_s if self.made_s else 0.0

    @property
    def held_bytes(self) -> int:
        """What its process is known to hold."""
        return max(self.worker.measured_bytes if self.worker else 0, self.loaded_bytes)

    def made(self, tokens: int, seconds: float) -> None:
        """A request decoded so much."""
        self.made_tokens = RATE_DECAY * self.made_tokens + tokens
        self.made_s = RATE_DECAY * self.made_s + seconds

    def enqueue(self, ticket: Ticket, limit: int) -> None:
        """Raises QueueFull where `limit` callers wait already."""
        if len(self.waiting) >= limit:
            retry_s = max(1.0, self.service_s * len(self.waiting) / max(1, self.reservation.slots))
            raise QueueFull(
                f"Too many requests wait for model {self.model!r}.",
                found=f"{len(self.waiting)} waiting",
                allowed=f"{limit} (host.queue_limit)",
                advice=f"Try again in about {retry_s:.0f} s.",
            )
        ticket.turn = self.turns.take(ticket.client)
        self.waiting.append(ticket)
        self.waiting.sort(key=lambda waiting: waiting.order)

    def grant(self, before: int | None) -> bool:
        """Give places to who may have one; where `before` is given, only to who came before that number, and unless it
        is 0 to pinned roles, whose part of the memory is theirs. Whether anyone got one."""
        waited = len(self.waiting)
        for ticket in self.waiting[:]:
            held = before is not None and ticket.number >= before and not (before and ticket.pinned)
            if held or self._is_busy(ticket):
                continue
            if not self._has_room_for(ticket):
                break  # nobody later overtakes it, or a long context would wait for ever
            self.waiting.remove(ticket)
            self.active.append(ticket)
            self.turns.serve(ticket.turn)
            ticket.worker = self.worker
            ticket.settled.set()
        for position, ticket in enumerate(self.waiting, 1):
            if position != ticket.position:
                ticket.position = position
                ticket.tell(Queued(position))
        return len(self.waiting) < waited

    def short_of_memory(self) -> Ticket | None:
        """Who would be given the next place if more of the KV cache were reserved."""
        ticket = next((ticket for ticket in self.waiting if not self._is_busy(ticket)), None)
        if self.phase is not Phase.READY or ticket is None or self._has_room_for(ticket):
            return None
        return ticket if self.tokens_at_work(ticket) <= self.reservation.kv_tokens else None

    def tokens_at_work(self, *more: Ticket) -> int:
        """KV cache of the requests at work and `more`, each padded to the longest; more than there is without slots."""
        needs = [ticket.need_tokens for ticket in (*more, *self.active) if ticket.role]
        slots, most_tokens = self.reservation.slots, self.reservation.kv_tokens
        return len(needs) * max(needs, default=0) if len(needs) <= slots else most_tokens + 1

    def leave(self, ticket: Ticket) -> None:
        if ticket in self.waiting:
            self.waiting.remove(ticket)
            self.turns.give_back(ticket.client)
        if ticket in self.active:
            self.active.remove(ticket)
            self.last_used = anyio.current_time()

    def fail(self, error: RolecallError, from_tokens: int = 0) -> None:
        """Give everyone who waits, and needs so much of the KV cache, the error."""
        failed = [ticket for ticket in self.waiting if ticket.need_tokens >= from_tokens]
        for ticket in failed:
            ticket.error = copy.copy(error)  # one exception object per caller: a traceback belongs to one of them
            ticket.settled.set()
            self.turns.give_back(ticket.client)
        self.waiting = [ticket for ticket in self.waiting if ticket not in failed]

    def idle_for(self, limit_s: float | None) -> bool:
        """Whether nobody has used it for longer than `limit_s`, or than its roles allow."""
        limits = [spec.idle_ttl_s for spec in self.specs] or [0.0]  # 0 keeps it: one such role is enough
        allowed = limit_s if limit_s is not None else max(limits) if min(limits) > 0 else math.inf
        idle = self.phase is Phase.READY and not (self.active or self.waiting or self.pinned)
        return idle and anyio.current_time() - self.last_used > allowed

    def resident(self, next_use: float) -> ResidentModel:
        """As admission sees it. A load that nobody waits for is in nobody's use, and the first to give way."""
        ahead = self.phase is Phase.LOADING and not self.waiting
        needed_bytes = self.reservation.bytes_at(self.needed_tokens)
        return ResidentModel(
            key=self.model,
            reserved_bytes=needed_bytes,
            grown_bytes=needed_bytes - self.base_bytes,
            pinned=self.pinned,
            in_use=max(len(self.active), int(self.phase is Phase.LOADING and not ahead)),
            ending=self.phase is Phase.ENDING,
            reload_s=self.reload_s or 1.0 + self.reservation.weights_bytes / LOAD_BYTES_PER_S,
            next_use=0.0 if ahead else next_use,
            last_used=self.last_used,
        )

    def _is_busy(self, ticket: Ticket) -> bool:
        """Whether its role is at work as often at once as it may be."""
        concurrency = ticket.spec.concurrency if ticket.spec else self.reservation.slots
        return bool(ticket.role) and sum(other.role == ticket.role for other in self.active) >= concurrency

    def _has_room_for(self, ticket: Ticket) -> bool:
        """Whether slots and what is reserved for the KV cache allow one more."""
        return not ticket.role or self.tokens_at_work(ticket) <= self.kv_tokens
