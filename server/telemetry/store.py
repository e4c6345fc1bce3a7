"""Receipts: what one request was, what was decided, who answered, what it cost and how it ended; and their store."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread
from pydantic import Field, ValidationError

from rolecall.config.profile import Frozen
from rolecall.retrieval.contract import Passage

from ..errors import StoreNewer, StoreUnusable

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

MIGRATIONS = (
    "CREATE TABLE receipts (id TEXT PRIMARY KEY, tool TEXT, started_at TEXT, state TEXT, body TEXT) STRICT",
    "CREATE TABLE model_events (at REAL, kind TEXT, model TEXT, seconds REAL, size_bytes INTEGER, cold INTEGER) STRICT",
    "CREATE TABLE memory_hours (hour INTEGER PRIMARY KEY, samples INTEGER, measured_sum INTEGER, "
    "measured_peak INTEGER, reserved_sum INTEGER, reserved_peak INTEGER, models_peak INTEGER) STRICT",
    "CREATE TABLE results (id TEXT PRIMARY KEY, at REAL, tool TEXT, state TEXT, seconds REAL, body TEXT) STRICT",
    "CREATE TABLE usage_days (day TEXT, tool TEXT, role TEXT, status TEXT, calls INTEGER, read_bytes INTEGER, "
    "written_bytes INTEGER, read_tokens INTEGER, written_tokens INTEGER, PRIMARY KEY (day, tool, role, status)) STRICT",
    "CREATE TABLE snapshots (sha256 TEXT PRIMARY KEY, body TEXT) STRICT",
    "ALTER TABLE receipts ADD COLUMN body_sha256 TEXT",
)
"""Statement i takes the file from schema i to i + 1; the schema number is SQLite's `user_version`."""

SPARED = ("read_bytes", "written_bytes", "read_tokens", "written_tokens")
"""What a client did not have to do: bytes of files read and written in its place, and both in tokens (estimates)."""

_COUNT = """
INSERT INTO usage_days VALUES (date(?, 'localtime'), ?, ?, ?, 1, ?, ?, ?, ?)
ON CONFLICT (day, tool, role, status) DO UPDATE SET calls = calls + 1, read_bytes = read_bytes + excluded.read_bytes,
written_bytes = written_bytes + excluded.written_bytes, read_tokens = read_tokens + excluded.read_tokens,
written_tokens = written_tokens + excluded.written_tokens
"""

# As bytes: a damaged text that is no UTF-8 would fail the whole query.
_BODIES = "SELECT id, CAST(body AS BLOB), COALESCE(body_sha256, '') FROM receipts"
_SNAPSHOTS = "SELECT sha256, CAST(body AS BLOB) FROM snapshots"
_REMEMBER = "INSERT OR IGNORE INTO snapshots SELECT ?1, ?2 WHERE ?2 <> ''"
_PRUNE = "DELETE FROM receipts WHERE id <= (SELECT id FROM receipts ORDER BY id DESC LIMIT 1 OFFSET ?)"


class Content(Frozen):
    """The texts of a request, each cut at the settings' bound; `cut` names the fields that were."""

    request: str = ""
    answer: str = ""
    thinking: str = ""
    cut: tuple[str, ...] = ()

    @staticmethod
    def bounded(max_bytes: int, **texts: str) -> Content:
        """Cut each text to `max_bytes` of UTF-8, at a character."""
        data = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
        kept = {name: each[:max_bytes].decode("utf-8", "ignore") for name, each in data.items()}
        return Content(**kept, cut=tuple(name for name, each in data.items() if len(each) > max_bytes))


class Transition(Frozen):
    """One step of the state machine, `at_s` after the request began."""

    source: str
    event: str
    target: str
    at_s: float


class Receipt(Frozen):
    """One request. `features`, `router_state` and `snapshot_sha256` let the decision be recomputed without the text.

    `started_at` is ISO 8601 in UTC. `role` and `model` are the last that answered; `calls` are all generations, each
    with the name of its prompt, whose hash is in `prompts`. `spared` has the keys `SPARED`; what failed, or the client
    is told to do itself, spares nothing. `cost` is `seconds` of the whole call, `resident_gb` of the model that
    answered, and the `reload_s` that it was expected to take first. `trail` has each round's number, role and reason.
    `error` is the wire form of a `RolecallError`, with code `cancelled` where the client gave up. Where
    `telemetry.keep_content` is off, `content` is None, and what could quote it is empty: warnings, the checks' and the
    rounds' details and what an error found. `citations` are the passages that the index gave, without their texts;
    `private` tells that the request read text that no client may have.
    """

    id: str
    tool: str
    started_at: str
    session: str
    state: str
    status: str | None
    transitions: tuple[Transition, ...]
    decision: dict[str, Any] | None
    features: dict[str, Any] | None
    router_state: dict[str, Any] | None
    snapshot_sha256: str | None
    role: str | None
    model: str | None
    prompts: dict[str, str]
    calls: tuple[dict[str, Any], ...]
    tokens: dict[str, int]
    timings: dict[str, float]
    spared: dict[str, int] = Field(default_factory=dict)
    cost: dict[str, float] = Field(default_factory=dict)
    checks: tuple[dict[str, Any], ...]
    rounds: int
    trail: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...]
    error: dict[str, Any] | None
    content: Content | None
    private: bool = False
    citations: tuple[Passage, ...] = ()

    def without_content(self) -> Receipt:
        """The receipt without its texts and what could quote them."""
        bare = {
            "checks": tuple({**check, "detail": ""} for check in self.checks),
            "trail": tuple({**step, "detail": ""} for step in self.trail),
            "error": {**self.error, "found": ""} if self.error else None,
        }
        return self.model_copy(update={**bare, "warnings": (), "content": None})

    def for_client(self) -> Receipt:
        """The receipt as its session's client may read it: of private text neither words nor hashes."""
        if not self.private:
            return self
        bare = {"sha256": "", "extracted_sha256": ""}
        citations = tuple(each.model_copy(update=bare) if each.private else each for each in self.citations)
        return self.without_content().model_copy(update={"citations": citations})

    @property
    def who(self) -> str:
        """The role, agent or checks that answered, or who was to; "" where nobody was chosen."""
        decision = self.decision or {}
        return self.role or decision.get("agent") or decision.get("role") or ("checks" if self.checks else "")


@dataclass(frozen=True, slots=True)
class Kept:
    """A receipt as it lies in the file; `recorded_sha256` is of its bytes as they were written, "" if unknown."""

    id: str
    body: bytes
    recorded_sha256: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    @property
    def altered(self) -> bool:
        return self.recorded_sha256 not in ("", self.sha256)

    def receipt(self) -> Receipt | None:
        """The receipt; None where the bytes make none."""
        try:
            return Receipt.model_validate_json(self.body)
        except ValidationError:
            return None


def receipt_id() -> str:
    """26 characters that sort by time and cannot be guessed (80 random bits).

    Source: the ULID specification, https://github.com/ulid/spec.
    """
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


class ReceiptStore:
    """The file of receipts, readable by id, and of the models' history. Calls run in a thread; the first opens it.

    Raises (every method):
        StoreNewer: a newer Rolecall wrote the file.
        StoreUnusable: locked, full disk, damaged, no permission.
    """

    def __init__(self, path: Path, busy_s: float = 2.0) -> None:
        self._path, self._busy_s = path, busy_s
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    async def add(self, receipt: Receipt, max_receipts: int, snapshot: str = "") -> None:
        """Keep a receipt, and of all of them the latest `max_receipts`; what it counts towards its day stays.

        `snapshot` is the JSON of what its `snapshot_sha256` is the hash of; it is kept once.
        """
        body = receipt.model_dump_json()
        body_sha256 = hashlib.sha256(body.encode()).hexdigest()
        row = (receipt.id, receipt.tool, receipt.started_at, receipt.state, body, body_sha256)
        gave_up = (receipt.error or {}).get("code") == "cancelled"
        ended = receipt.status or ("cancelled" if gave_up else "failed")
        spared = (receipt.spared.get(name, 0) for name in SPARED)
        await self.run(
            ("INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?)", row),
            (_REMEMBER, (receipt.snapshot_sha256, snapshot)),
            (_PRUNE, (max_receipts,)),
            (_COUNT, (receipt.started_at, receipt.tool, receipt.role or "", ended, *spared)),
        )

    async def get(self, receipt_id: str) -> Receipt | None:
        found = await self.kept((receipt_id,))
        if found and (receipt := found[0].receipt()) is None:
            advice = f"`rolecall receipt verify {receipt_id}` says more."
            raise StoreUnusable(f"The receipt {receipt_id} in {self._path} is damaged.", advice=advice)
        return receipt if found else None

    async def recent(self, n: int = 20) -> tuple[Receipt, ...]:
        """The last `n`, newest first, without those that are damaged."""
        return tuple(receipt for each in await self.latest(n) if (receipt := each.receipt()))

    async def latest(self, n: int) -> list[Kept]:
        return [Kept(*row) for row in await self.run((f"{_BODIES} ORDER BY id DESC LIMIT ?", (n,)))]

    async def kept(self, ids: Sequence[str]) -> list[Kept]:
        """Those of the receipts that there are, in the order asked."""
        return [Kept(*row) for each in ids for row in await self.run((f"{_BODIES} WHERE id = ?", (each,)))]

    async def snapshots(self) -> dict[str, bytes]:
        """What decisions were made under, as JSON, by hash."""
        return {row[0]: row[1] for row in await self.run((_SNAPSHOTS, ()))}

    async def aclose(self) -> None:
        await anyio.to_thread.run_sync(self._close)

    async def run(self, *statements: tuple[str, Sequence[object]]) -> list[sqlite3.Row]:
        """The rows of the last statement; all of them take effect or none."""
        return await anyio.to_thread.run_sync(self._execute, statements)

    def _execute(self, statements: Sequence[tuple[str, Sequence[object]]]) -> list[sqlite3.Row]:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = connect(self._path, busy_s=self._busy_s)
                    self._connection.row_factory = sqlite3.Row
                with self._connection as connection:
                    return [connection.execute(*each).fetchall() for each in statements][-1]
            except (sqlite3.Error, OSError) as error:
                failed = f"The receipts in {self._path} cannot be read or written."
                advice = "Free disk space, or move the file away: the next request starts a new one."
                raise StoreUnusable(failed, found=str(error), advice=advice) from None

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
            failed, allowed = f"{path} was written by a newer Rolecall.", f"schema up to {len(migrations)}"
            advice = "Update Rolecall, or move the file away."
            raise StoreNewer(failed, found=f"schema {found}", allowed=allowed, advice=advice)
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
