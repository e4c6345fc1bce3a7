"""The store of receipts: one SQLite file, one writer."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import anyio.to_thread

from ..errors import StoreNewer, StoreUnusable
from .receipt import Receipt

MIGRATIONS = ("CREATE TABLE receipts (id TEXT PRIMARY KEY, tool TEXT, started_at TEXT, state TEXT, body TEXT) STRICT",)
"""Statement i takes the file from schema i to i + 1; the schema number is SQLite's `user_version`."""

_LATEST = "SELECT body FROM receipts ORDER BY id DESC LIMIT ?"
_PRUNE = "DELETE FROM receipts WHERE id <= (SELECT id FROM receipts ORDER BY id DESC LIMIT 1 OFFSET ?)"


class ReceiptStore:
    """Receipts on disk, readable by id. Calls run in a thread; the file is opened at the first of them.

    Raises (every method):
        StoreNewer: a newer Rolecall wrote the file.
        StoreUnusable: locked, full disk, damaged, no permission.
    """

    def __init__(self, path: Path, busy_s: float = 2.0) -> None:
        self._path, self._busy_s = path, busy_s
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    async def add(self, receipt: Receipt, max_receipts: int) -> None:
        """Keep a receipt, and of all of them the latest `max_receipts`."""
        row = (receipt.id, receipt.tool, receipt.started_at, receipt.state, receipt.model_dump_json())
        await self._run(("INSERT INTO receipts VALUES (?, ?, ?, ?, ?)", row), (_PRUNE, (max_receipts,)))

    async def get(self, receipt_id: str) -> Receipt | None:
        rows = await self._run(("SELECT body FROM receipts WHERE id = ?", (receipt_id,)))
        return Receipt.model_validate_json(rows[0][0]) if rows else None

    async def recent(self, n: int = 20) -> tuple[Receipt, ...]:
        """The last `n`, newest first."""
        return tuple(Receipt.model_validate_json(row[0]) for row in await self._run((_LATEST, (n,))))

    async def aclose(self) -> None:
        await anyio.to_thread.run_sync(self._close)

    async def _run(self, *statements: tuple[str, Sequence[object]]) -> list[tuple[str, ...]]:
        """The rows of the last statement; all of them take effect or none."""
        return await anyio.to_thread.run_sync(self._execute, statements)

    def _execute(self, statements: Sequence[tuple[str, Sequence[object]]]) -> list[tuple[str, ...]]:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = connect(self._path, busy_s=self._busy_s)
                with self._connection as connection:
                    return [connection.execute(*each).fetchall() for each in statements][-1]
            except (sqlite3.Error, OSError) as error:
                raise StoreUnusable(
                    f"The receipts in {self._path} cannot be read or written.",
                    found=str(error),
                    advice="Free disk space, or move the file away: the next request starts a new one.",
                ) from None

    def _close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def connect(path: Path, migrations: Sequence[str] = MIGRATIONS, busy_s: float = 2.0) -> sqlite3.Connection:
    """Open the file at this release's schema; an older one is migrated after a copy beside it."""
    connection = sqlite3.connect(path, timeout=busy_s, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        found = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if found > len(migrations):
            raise StoreNewer(
                f"{path} was written by a newer Rolecall.",
                found=f"schema {found}",
                allowed=f"schema up to {len(migrations)}",
                advice="Update Rolecall, or move the file away.",
            )
        if 0 < found < len(migrations):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            shutil.copy2(path, path.with_name(f"{path.name}.schema{found}"))
        for number, statement in enumerate(migrations[found:], found + 1):
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(statement)
                connection.execute(f"PRAGMA user_version={number}")
    except BaseException:
        connection.close()
        raise
    path.chmod(0o600)
    return connection
