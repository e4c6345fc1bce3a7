"""From spawn to `tools/list`: the shim with and without a running host, a bare server on the same SDK, and fastmcp.

Each round starts them in turn, so that a drift of the machine's speed hits all alike; figures are medians, ratios.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from rolecall.config.home import Home

from .peers import SHIM, Peer, peers
from .stage import command, show, spread


def shim_modules() -> list[str]:
    """Every module of ours that the shim imports."""
    code = (
        "import sys; sys.argv = ['rolecall', 'serve']; sys.stdin.close(); import rolecall.server.main as m; "
        "import rolecall.server.shim; print(*sorted(n for n in sys.modules if n.startswith('rolecall')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return out.stdout.split()


def main(rounds: int) -> None:
    commands = {**peers(), "cold": SHIM, "warm": SHIM}  # in this order: the warm one finds the cold one's host
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    resident: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="rolecall-bench-") as folder:
        home = Home(Path(folder) / "home")
        for number in range(rounds + 1):
            command(home, "stop")
            for name, words in commands.items():
                with Peer(words, home.root) as peer:
                    taken_s = peer.listed_s()
                    resident[name] = psutil.Process(peer.process.pid).memory_info().rss
                if number:  # the first round fills the disk's cache
                    seconds[name].append(taken_s)
        command(home, "stop")
    bare = statistics.median(seconds["bare"])
    report: dict[str, Any] = {
        name: {
            "seconds": spread(values, 4),
            "over_bare": round(statistics.median(values) / bare, 3),
            "resident_mb": round(resident[name] / 1e6, 1),
        }
        for name, values in seconds.items()
    }
    report["shim_modules"] = shim_modules()
    lines = [f"spawn to tools/list, {rounds} rounds; bound: warm at most 0.1, cold at most 1.6 of the bare server"]
    for name in commands:
        row = report[name]
        took = row["seconds"]
        lines.append(
            f"{name:7} median {took['median']:.3f} s ({took['min']:.3f} to {took['max']:.3f}), "
            f"{row['over_bare']:.2f} of bare, {row['resident_mb']:.0f} MB in the client's process"
        )
    lines.append(f"the shim imports of ours: {', '.join(report['shim_modules'])}")
    show("startup", lines, report)
