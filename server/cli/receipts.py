"""What was decided and done: `status`, and `receipt show|list|verify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anyio
import typer
from rich.json import JSON
from rich.table import Table

from rolecall.config.home import Home

from ..errors import BadRequest, HostUnavailable
from .index import summary
from .output import EXIT_FAILED, Bar, Shell, command, from_store, note, readable, table

if TYPE_CHECKING:
    from rolecall.config.settings import Settings

    from ..host.control import ControlClient
    from ..routing.replay import Replay
    from ..routing.router import Router

receipt_app = typer.Typer(no_args_is_help=True, help="What was decided and done, request by request.")


@command(receipt_app)
def receipt_show(shell: Shell, receipt_id: str = typer.Argument(help="The id that an answer carried.")) -> None:
    """One receipt, whole."""
    receipt = shell.ask("receipt", id=receipt_id)
    shell.show(receipt, JSON.from_data(receipt))


@command(receipt_app)
def receipt_list(shell: Shell, count: int = typer.Option(20, "-n", min=1, max=1000, help="How many.")) -> None:
    """The latest receipts."""
    receipts = shell.ask("receipts", count=count)
    shell.show(receipts, table(receipts, "id", "tool", "who", "status", "seconds"))


@command(receipt_app)
def receipt_verify(
    shell: Shell,
    receipt_ids: list[str] = typer.Argument(None, help="Ids; by default the latest.", show_default=False),
    last: int = typer.Option(100, "--last", min=1, help="How many of the latest, where no id is given."),
) -> None:
    """Recompute past decisions with the policy, code and embedder of now, and look their citations up again; exit code
    1 where any differs."""
    with Bar("verifying") as bar:
        found = anyio.run(partial(_verify, receipt_ids or (), last, shell, bar))
    rows = [
        {"id": each.id, "what": part.what, "recorded": str(part.recorded)[:200], "now": str(part.now)[:200]}
        for each in found
        for part in each.differences
    ]
    shown = table(rows, "id", "what", "recorded", "now") if rows else "No difference."
    shell.lines((each.model_dump(mode="json") for each in found), shown)
    differing = sum(not each.same for each in found)
    if not shell.as_json:
        notes = Counter(each.note for each in found if each.note)
        counts = (f"{count} {name.replace('_', ' ')}" for name, count in sorted(notes.items()))
        note(" · ".join([f"{len(found)} receipts, {differing} with differences", *counts]))
    if differing:
        raise typer.Exit(EXIT_FAILED)


async def _verify(ids: Sequence[str], last: int, shell: Shell, bar: Bar) -> list[Replay]:
    """Replay receipts in this process, which has cached nothing and reads policy and code afresh; from the host come
    vectors, as it alone may load models, and what stands at citations, as it alone has the index."""
    from rolecall.retrieval.contract import Passage, Verdict

    from ..host.control import ControlClient
    from ..routing.replay import replay
    from ..telemetry.store import ReceiptStore

    home, settings = Home.find().create(), shell.settings()

    async def check(passages: Sequence[Passage]) -> list[Verdict]:
        cited = [each.model_dump(mode="json") for each in passages]
        return cast(list[Verdict], await client.call("check", {"passages": cited}))

    async with aclosing(ReceiptStore(home.receipts_db)) as store, ControlClient.open(home, shell.config) as client:
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


def status(shell: Shell) -> None:
    """Today's and this week's calls, the tokens they spared your clients, and what is running."""
    asked = {"host": "ping", "usage": "usage", "resident": "models_ps", "index": "index_list", "memory": "memory"}
    try:
        report = {name: shell.ask(op, start=False) for name, op in asked.items()}
    except HostUnavailable:  # none runs, or a standalone one, which answers its client only
        from ..telemetry.savings import usage

        report = {"host": None, "usage": from_store(usage), "resident": [], "index": [], "memory": None}
    host, said = report["host"], [_usage(report["usage"]) if report["usage"] else "No call was made yet."]
    said += [f"in memory: {item['model']} ({', '.join(item['roles'])})" for item in report["resident"]]
    said += [f"index {summary(item)}" for item in report["index"]]
    said.append(f"host: pid {host['pid']}, {host['sessions']} sessions" if host else "host: not running")
    past = ("average_bytes", "peak_bytes", "most_models", "loads")
    took = {key: report["memory"][key] for key in past} if report["memory"] else {}
    shell.show(report, *said, *readable({"models in memory, last 24 h": took}))


def _usage(usage: dict[str, Any]) -> Table:
    spans, made = [usage["today"], usage["week"]], table((), "", "today", "7 days")
    made.add_row("calls", *(f"{span['calls']:,}" for span in spans))
    for column in ("by_tool", "by_role", "by_status"):
        for name in spans[1][column]:  # the week's hold today's
            title = f"  {column.removeprefix('by_')} {name}"
            made.add_row(title, *(f"{span[column].get(name, 0):,}" for span in spans))
    shares = (span["without_model"] for span in spans)
    made.add_row("answered without a model", *("" if share is None else f"{share:.0%}" for share in shares))
    for what in ("read", "written"):
        spared = [(span["spared"][f"{what}_tokens"], span["spared"][f"{what}_bytes"] / 1000) for span in spans]
        cells = (f"~{tokens:,} ({size_kb:,.0f} kB)" for tokens, size_kb in spared)
        made.add_row(f"tokens not {what} by clients (estimate)", *cells)
    return made
