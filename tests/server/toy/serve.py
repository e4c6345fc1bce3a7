"""`rolecall serve`, whose hosts are the toy's."""

from __future__ import annotations

import sys
from pathlib import Path

from rolecall.config.home import Home
from rolecall.server.shim import Shim

if __name__ == "__main__":
    config = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    command = (sys.executable, "-P", str(Path(__file__).with_name("host.py")))
    sys.exit(Shim(Home.find(), config, command).run())
