"""`rolecall serve`, whose hosts are the toy's."""

from __future__ import annotations

import sys
from pathlib import Path

from rolecall.config.home import Home
from rolecall.server.shim import Shim

if __name__ == "__main__":
    files = [Path(word) for word in sys.argv[1:] if word != "--standalone"]
    command = (sys.executable, "-P", str(Path(__file__).with_name("host.py")))
    sys.exit(Shim(Home.find(), files[0] if files else None, command, alone="--standalone" in sys.argv).run())
