"""`make bench`: Rolecall beside what it stands on. A table and one line of JSON per item; no bound fails it."""

from __future__ import annotations

import argparse
import sys

from . import call, clients, overhead, prefix, retrieval, routing, savings, startup, switch, trace
from .stage import quiet, workers

ROUNDS = {"startup": 7, "overhead": 5, "call": 6, "clients": 3, "switch": 5, "prefix": 3, "routing": 5, "savings": 20,
          "retrieval": 5}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = (*ROUNDS, "trace")
    parser.add_argument(
        "items", nargs="*", choices=[*names, []], help=f"of {', '.join(names)}; all where none is named"
    )
    parser.add_argument("-n", type=int, help="rounds, or tasks of savings")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the trace")
    options = parser.parse_args()
    quiet()
    modules = (startup, overhead, call, clients, switch, prefix, routing, savings, retrieval)
    items = {module.__name__.rpartition(".")[2]: module for module in modules}
    for name in options.items or names:
        print(f"\n== {name}", flush=True)
        if name == "trace":
            trace.main(["--minutes", str(options.minutes)])
        else:
            items[name].main(options.n or ROUNDS[name])
    if left := workers():
        print(f"worker processes are left: {[process.pid for process in left]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
