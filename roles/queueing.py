"""Whose turn it is among those that wait for one model.

First the pinned role; then clients in turns, so that one with many requests does not keep the others waiting; within a
turn the nearest deadline; then who came first.
"""

from __future__ import annotations

from dataclasses import dataclass, field


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


def order(pinned: bool, turn: int, deadline_at: float, number: int) -> tuple[bool, int, float, int]:
    """The key to sort waiting requests by."""
    return (not pinned, turn, deadline_at, number)
