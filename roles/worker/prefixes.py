"""What a prompt shares with an earlier one is not prefilled again.

mlx-lm's `LRUPromptCache` does the same by a trie of single tokens, whose search takes long beside a cached prompt of
30,000 tokens while nothing decodes, and it drops what came first instead of what was used last.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

MIN_SHARED_TOKENS = 32  # less is prefilled sooner than copied
MIN_SNAPSHOT_TOKENS = 256
_SEEN_PROMPTS = 8

Layers = list[Any]  # one of mlx-lm's caches for each layer


@dataclass(eq=False, slots=True)
class _Entry:
    tokens: Any
    layers: Layers

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


class Prefixes:
    """KV caches of earlier requests, for the one model of a worker; the caller says how many bytes they may take.

    A cache that can be cut serves every prompt with the same beginning. One that cannot (a hybrid's state, a window
    that has rotated) serves only prompts that begin with the whole of it: for those, see `boundary`.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []  # what was used last comes last
        self._seen: deque[Any] = deque(maxlen=_SEEN_PROMPTS)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries)

    def fetch(self, prompt: Sequence[int], running: Iterable[tuple[Layers, list[int]]]) -> tuple[Layers | None, int]:
        """A cache of the longest beginning of `prompt` that is kept or in `running`, and how many tokens it holds.

        At least the last token of a prompt is always left to do. The caller may change the cache.
        """
        wanted = _array(prompt[:-1])
        found, most = None, MIN_SHARED_TOKENS - 1
        for entry in [*self._entries, *(_Entry(_array(tokens), layers) for layers, tokens in running)]:
            shared = _shared(entry.tokens, wanted)
            if shared > most and (shared == len(entry.tokens) or can_trim_prompt_cache(entry.layers)):
                found, most = entry, shared
        if found is None:
            return None, 0
        if found in self._entries:
            self._entries.remove(found)
            self._entries.append(found)
        layers = copy.deepcopy(found.layers)  # of the objects: arrays are shared until they change
        if len(found.tokens) > most:
            trim_prompt_cache(layers, len(found.tokens) - most)
        return layers, most

    def boundary(self, prompt: Sequence[int], cached_tokens: int) -> int:
        """Where a snapshot of a cache that cannot be cut will serve the prompts to come: at the end of what `prompt`
        shares with one of the last few, where much of that is not cached; else 0."""
        wanted = _array(prompt[:-1])
        shared = max((_shared(seen, wanted) for seen in self._seen), default=0)
        self._seen.append(wanted)
        return shared if shared - cached_tokens >= MIN_SNAPSHOT_TOKENS else 0

    def keep(self, layers: Layers, tokens: Sequence[int], room_bytes: int) -> None:
        """Keep a cache that holds `tokens`, in place of what is part of it and of what is over `room_bytes` then."""
        entry = _Entry(_array(tokens), layers)
        if len(tokens) < MIN_SHARED_TOKENS or entry.nbytes > room_bytes:
            return
        cut = can_trim_prompt_cache(layers)
        self._entries = [
            old
            for old in self._entries
            if _shared(old.tokens, entry.tokens) < len(old.tokens) or not (cut or len(old.tokens) == len(tokens))
        ]
        self.trim_to(room_bytes - entry.nbytes)
        mx.eval([layer.state for layer in layers])  # until then it holds on to the batch that it was part of
        self._entries.append(entry)

    def trim_to(self, room_bytes: int) -> None:
        """Drop what has not been used for longest until the rest fits."""
        while self._entries and self.nbytes > room_bytes:
            del self._entries[0]


def _array(tokens: Sequence[int]) -> Any:
    return np.array(tokens, np.int64)


def _shared(one: Any, other: Any) -> int:
    """How many tokens two sequences have in common from the start."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
