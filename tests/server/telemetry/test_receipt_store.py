"""Receipts on disk: kept whole, bounded, refused where newer, copied before a migration."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path

import anyio
import pytest

from rolecall.server.errors import StoreNewer, StoreUnusable
from rolecall.server.telemetry.store import MIGRATIONS, Content, Receipt, ReceiptStore, connect, receipt_id


def receipt(**changes: object) -> Receipt:
    plain = dict.fromkeys(Receipt.model_fields)
    tuples = dict.fromkeys(("transitions", "calls", "checks", "warnings", "trail", "citations"), ())
    filled = {"id": receipt_id(), "tool": "reason", "started_at": "2026-01-01T00:00:00.000+00:00", "session": "s1"}
    maps: dict[str, object] = {"prompts": {}, "tokens": {}, "timings": {}, "spared": {}, "cost": {}}
    return Receipt.model_validate(
        plain | tuples | maps | filled | {"state": "COMPLETED", "rounds": 1, "private": False} | changes
    )


def test_a_receipt_is_read_back_as_it_was_written(store: ReceiptStore) -> None:
    kept = receipt(content=Content(request="17 x 3 \u00e9?", answer="51"), decision={"agent": "calculator"})

    anyio.run(store.add, kept, 10)

    assert anyio.run(store.get, kept.id) == kept
    assert kept.who == "calculator"


def test_an_unknown_id_is_no_error(store: ReceiptStore) -> None:
    assert anyio.run(store.get, "01JUNKNOWN") is None


def test_the_latest_receipts_come_newest_first_and_survive_a_restart(store: ReceiptStore, tmp_path: Path) -> None:
    kept = [receipt(id=f"0{number}") for number in range(5)]
    for each in kept:
        anyio.run(store.add, each, 10)
    anyio.run(store.aclose)

    assert anyio.run(ReceiptStore(tmp_path / "receipts.sqlite3").recent, 2) == (kept[4], kept[3])


def test_the_oldest_beyond_the_bound_are_dropped(store: ReceiptStore) -> None:
    kept = [receipt(id=f"0{number}") for number in range(5)]
    for each in kept:
        anyio.run(store.add, each, 3)

    assert anyio.run(store.recent, 9) == (kept[4], kept[3], kept[2])


def test_a_snapshot_is_kept_once_and_comes_back_by_its_hash(store: ReceiptStore) -> None:
    for _ in range(3):
        anyio.run(store.add, receipt(snapshot_sha256="ab"), 10, '{"sha256":"ab"}')

    assert anyio.run(store.snapshots) == {"ab": b'{"sha256":"ab"}'}


@pytest.mark.parametrize(("was", "now"), [("reason", "treason"), ('"reason"', "\xff"), ("{", "[")])
def test_a_damaged_receipt_is_named_and_costs_no_other(was: str, now: str, store: ReceiptStore, tmp_path: Path) -> None:
    kept = [receipt(id=f"0{number}") for number in range(3)]
    for each in kept:
        anyio.run(store.add, each, 10)
    with sqlite3.connect(tmp_path / "receipts.sqlite3") as other:
        damaged = kept[1].model_dump_json().encode().replace(was.encode(), now.encode("latin-1"), 1)
        other.execute("UPDATE receipts SET body = CAST(? AS TEXT) WHERE id = '01'", (damaged,))
    other.close()

    assert [(each.id, each.altered) for each in anyio.run(store.latest, 3)] == [
        ("02", False),
        ("01", True),
        ("00", False),
    ]
    readable = anyio.run(store.kept, ("01",))[0].receipt() is not None
    assert [each.id for each in anyio.run(store.recent, 3)] == (["02", "01", "00"] if readable else ["02", "00"])
    if not readable:
        with pytest.raises(StoreUnusable, match="is damaged"):
            anyio.run(store.get, "01")


def test_ids_sort_by_time_and_do_not_repeat() -> None:
    ids = [receipt_id() for _ in range(2000)]

    assert len(set(ids)) == 2000
    assert [made[:10] for made in ids] == sorted(made[:10] for made in ids)
    assert {len(made) for made in ids} == {26}


def test_long_content_is_cut_at_a_character_and_says_so() -> None:
    content = Content.bounded(7, request="ééééé", answer="short", thinking="")

    assert (content.request, content.answer, content.cut) == ("ééé", "short", ("request",))


def test_a_newer_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "receipts.sqlite3"
    connect(path, (*MIGRATIONS, "CREATE TABLE later (x INT)")).close()
    before = path.read_bytes()

    with pytest.raises(StoreNewer) as caught:
        anyio.run(ReceiptStore(path).recent)

    assert caught.value.found == f"schema {len(MIGRATIONS) + 1}"
    assert path.read_bytes() == before


def test_an_older_file_is_copied_and_then_migrated_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "receipts.sqlite3"
    store, kept = ReceiptStore(path), receipt()
    anyio.run(store.add, kept, 10)
    anyio.run(store.aclose)

    migrated = connect(path, (*MIGRATIONS, "ALTER TABLE receipts ADD COLUMN note TEXT"))

    assert migrated.execute("SELECT id, note FROM receipts").fetchall() == [(kept.id, None)]
    migrated.close()
    copy = sqlite3.connect(tmp_path / f"receipts.sqlite3.schema{len(MIGRATIONS)}")
    assert copy.execute("SELECT id FROM receipts").fetchall() == [(kept.id,)]
    copy.close()


def test_a_failed_migration_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "receipts.sqlite3"
    connect(path).close()

    with pytest.raises(sqlite3.Error):
        connect(path, (*MIGRATIONS, "NOT SQL"))

    connection = connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    connection.close()


@pytest.mark.parametrize("what", ["damaged", "locked", "folder"])
def test_a_file_that_cannot_be_written_is_a_typed_error(what: str, tmp_path: Path) -> None:
    path = tmp_path / "receipts.sqlite3"
    holder = None
    if what == "damaged":
        path.write_bytes(b"not a database" * 100)
    elif what == "folder":
        path.mkdir()
    else:
        holder = connect(path)
        holder.execute("BEGIN EXCLUSIVE")
    store = ReceiptStore(path, busy_s=0.05)

    with pytest.raises(StoreUnusable) as caught:
        anyio.run(partial(store.add, receipt(), 10))

    assert caught.value.advice
    anyio.run(store.aclose)
    if holder is not None:
        holder.close()
