from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rolecall.server.telemetry.store import ReceiptStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ReceiptStore]:
    made = ReceiptStore(tmp_path / "receipts.sqlite3")
    yield made
    made._close()
