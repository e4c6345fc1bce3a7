"""What the models may take now: the configured budget, less where other programs need the machine's memory."""

from __future__ import annotations

import psutil

LOW_SHARE = 0.05  # of the machine's memory is left available: below it macOS compresses and swaps
BAND_SHARE = 0.02  # so much more than a shrunken budget must be there before it grows: no flapping


class Machine:
    """The memory of this machine as psutil sees it. On macOS free plus inactive pages are available: what the file
    cache holds in active pages, and what the compressor could win, do not count, so it errs low."""

    @property
    def total_bytes(self) -> int:
        return psutil.virtual_memory().total

    def available_bytes(self) -> int:
        """What programs could take now without swapping."""
        return psutil.virtual_memory().available


def budget_now(
    configured_bytes: int, current_bytes: int, held_bytes: int, available_bytes: int, total_bytes: int
) -> int:
    """The budget that the machine bears now, between 0 and `configured_bytes`.

    What our processes hold and what is available, less a share that stays available, is what models can have. It
    shrinks to that at once, and grows from `current_bytes` only by what is there beyond a band.
    """
    room = held_bytes + available_bytes - int(LOW_SHARE * total_bytes)
    return max(0, min(configured_bytes, room, max(current_bytes, room - int(BAND_SHARE * total_bytes))))
