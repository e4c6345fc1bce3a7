"""Memory as `rolecall models ps` and `doctor` show it: a bar of the machine, and figures."""

from __future__ import annotations

from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.text import Text

from .output import gb, table_of

_PARTS = (
    ("models", "█", "#", "green"),
    ("reserved for them", "▒", "=", "yellow"),
    ("left of the budget", "░", "-", "cyan"),
    ("other programs", "x", "x", "red"),
    ("free beyond the budget", "·", ".", "dim"),
)
"""What, its sign, the sign where the terminal has ASCII only, its colour: told apart without colours too."""


def shares(memory: dict[str, Any]) -> list[int]:
    """The machine's memory as `_PARTS` names it, in bytes; adds up to the whole.

    `available` counts as the system does: what other programs could be made to give back is not theirs.
    """
    models, available = memory["measured_bytes"], memory["available_bytes"]
    others = max(0, memory["machine_bytes"] - available - models)
    reserved = max(0, min(memory["reserved_bytes"] - models, available))
    left = max(0, min(memory["budget_bytes"] - models, available) - reserved)
    known = [models, reserved, left, others]
    return [*known, max(0, memory["machine_bytes"] - sum(known))]


def bar(memory: dict[str, Any], out: Console) -> Group:
    """One bar of the machine's memory and one line of figures."""
    cells, drawn, done = max(10, min(out.width, 100) - 2), Text("["), 0
    sizes, legend = shares(memory), list[Text]()
    for (what, sign, plain, style), size in zip(_PARTS, sizes, strict=True):
        shown = plain if out.options.ascii_only else sign
        upto = round(cells * (done + size) / sum(sizes))
        drawn.append(shown * (upto - round(cells * done / sum(sizes))), style)
        done += size
        legend.append(Text(f"{shown} ", style).append(f"{what} {gb(size)}", "none"))
    legend.append(Text(f"budget {gb(memory['budget_bytes'])} of {gb(memory['machine_bytes'])}"))
    return Group(drawn.append("]"), Columns(legend, padding=(0, 2)))


def pressure(memory: dict[str, Any]) -> str:
    """Why the budget is smaller than it was set to, "" where it is not."""
    if memory["budget_bytes"] >= memory["configured_bytes"]:
        return ""
    now, full = gb(memory["budget_bytes"]), gb(memory["configured_bytes"])
    return f"The budget is {now} instead of {full} while other programs hold {gb(shares(memory)[3])}; it grows back."


def resident_table(resident: list[dict[str, Any]]) -> Any:
    """Models in memory, one a row."""
    table = table_of("model\nroles", "pid\nstate", "reserved\nmeasured", "tokens/s")
    for item in resident:
        counts = [f"{item[key]} {words}" for key, words in (("in_use", "in use"), ("queued", "queued")) if item[key]]
        state = ", ".join(["pinned"] * item["pinned"] + counts) or "idle"
        rate = f"{item['tokens_per_s']:.1f}" if item["tokens_per_s"] else ""
        sizes = f"{gb(item['reserved_bytes'])}\n{gb(item['measured_bytes'])}"
        table.add_row(f"{item['model']}\n{', '.join(item['roles'])}", f"{item['pid']}\n{state}", sizes, rate)
    return table if resident else "No model is in memory."


def day_in_words(memory: dict[str, Any]) -> str:
    """The last 24 hours in two lines, "" where nothing was loaded."""
    loads = memory["loads"]
    if not loads["loads"] and memory["average_bytes"] is None:
        return ""
    said = f"last 24 h: loads {loads['loads']} (cold {loads['cold_starts']})"
    if loads["loads"]:
        said += f", {loads['mean_load_s']:.1f} s on average, {loads['max_load_s']:.1f} s at most"
    said += f", evictions {loads['evictions']}, deaths {loads['deaths']}"
    if memory["average_bytes"] is not None:
        said += f"\nmemory while models were loaded: {gb(memory['average_bytes'])} on average, "
        said += f"{gb(memory['peak_bytes'])} at most, models at once {memory['most_models']} at most"
    return said
