"""What was decided and done: `receipt show`, `receipt list`, `receipt verify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import typer
from rich.json import JSON

from rolecall.config.home import Home

from ..errors import BadRequest
from .output import CONFIG_OPTION, EXIT_FAILED, JSON_OPTION, Bar, ask_host, emit, note, show, show_rows

if TYPE_CHECKING:
    from rolecall.config.settings import Settings

    from ..host.control import ControlClient
    from ..routing.replay import Difference, Replay
    from ..routing.router import Router

receipt_app = typer.Typer(no_args_is_help=True, help="What was decided and done, request by request.")


@receipt_app.command("show")
def receipt_show(
    receipt_id: str = typer.Argument(help="The id that an answer carried."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """One receipt, whole."""
    receipt = ask_host("receipt", {"id": receipt_id}, config)
    show(receipt, as_json, JSON.from_data(receipt))


@receipt_app.command("list")
def receipt_list(
    count: int = typer.Option(20, "-n", min=1, max=1000, help="How many."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """The latest receipts."""
    columns = ("id", "tool", "who", "status", "seconds")
    receipts = ask_host("receipts", {"count": count}, config)
    show_rows(receipts, as_json, columns, lambda each: (*map(each.get, columns[:4]), f"{each['seconds']:.2f}"))


@receipt_app.command("verify")
def receipt_verify(
    receipt_ids: list[str] = typer.Argument(None, help="Ids; by default the latest.", show_default=False),
    last: int = typer.Option(100, "--last", min=1, help="How many of the latest, where no id is given."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Recompute past decisions with the policy, code and embedder of now, and look their citations up again; exit code
    1 where any differs."""
    with Bar("verifying") as bar:
        found = anyio.run(partial(_verify, receipt_ids or (), last, config, bar))
    for each in found if as_json else ():
        emit(each.model_dump(mode="json"))
    if not as_json:
        rows = [(each.id, part) for each in found for part in each.differences]
        show_rows(rows, False, ("id", "what", "recorded", "now"), _cells, "No difference.")
        notes = Counter(each.note for each in found if each.note)
        counts = (f"{count} {name.replace('_', ' ')}" for name, count in sorted(notes.items()))
        differing = sum(not each.same for each in found)
        note(" · ".join([f"{len(found)} receipts, {differing} with differences", *counts]))
    if not all(each.same for each in found):
        raise typer.Exit(EXIT_FAILED)


async def _verify(ids: Sequence[str], last: int, config: Path | None, bar: Bar) -> list[Replay]:
    """Replay receipts in this process, which has cached nothing and reads policy and code afresh; from the host come
    vectors, as it alone may load models, and what stands at citations, as it alone has the index."""
    from rolecall.config.settings import load_settings
    from rolecall.retrieval.contract import Checked, Passage

    from ..host.control import ControlClient
    from ..routing.replay import replay
    from ..telemetry.store import ReceiptStore

    home = Home.find()
    settings = load_settings(home, config)

    async def check(passages: Sequence[Passage]) -> list[Checked]:
        found = await client.call("check", {"passages": [each.model_dump(mode="json") for each in passages]})
        return [Checked.model_validate(each) for each in found]

    async with aclosing(ReceiptStore(home.create().receipts_db)) as store, ControlClient.open(home, config) as client:
        kept = await store.kept(ids) if ids else await store.latest(last)
        if missing := set(ids) - {each.id for each in kept}:
            advice = "`rolecall receipt list` shows the latest."
            raise BadRequest("There is no such receipt.", found=", ".join(sorted(missing))[:200], advice=advice)
        snapshots, router = await store.snapshots(), _router(home, settings, client)
        return [await replay(each, snapshots, router, check) for each in bar.over(kept)]


def _router(home: Home, settings: Settings, client: ControlClient) -> Router:
    """The router of these settings, in this process."""
    import numpy as np

    from rolecall.roles.contract import Vectors
    from rolecall.roles.manager import ModelManager

    from ..routing.router import Router

    class Elsewhere(ModelManager):
        """Models as they lie on the disk; none is loaded here."""

        async def embed(self, texts: Sequence[str], *, alone: bool = False, query: bool = False) -> Vectors:
            asked = {"texts": list(texts), "identity": self.embedder() or ""}
            return np.array(await client.call("embed", asked), dtype=np.float32)

    return Router(Elsewhere(home, settings), settings.profile.name, settings.routing)


def _cells(row: tuple[str, Difference]) -> tuple[str, ...]:
    """A difference for people: of a hash its beginning."""
    receipt_id, difference = row
    shown = (str(value)[: 12 if len(str(value)) == 64 else 200] for value in (difference.recorded, difference.now))
    return receipt_id, difference.what, *shown
