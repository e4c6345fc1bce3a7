"""The product's host; with `CONFORMANCE_FIXTURES=1` its server object has the conformance tool's fixtures as well."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rolecall.config.home import Home
from rolecall.server.host.__main__ import main
from rolecall.server.host.compose import open_services
from rolecall.server.host.host import Services
from tests.conformance.fixtures import lay_over


@asynccontextmanager
async def with_fixtures(home: Home, config: Path | None) -> AsyncIterator[Services]:
    async with open_services(home, config) as services:
        if os.environ.get("CONFORMANCE_FIXTURES"):
            lay_over(services.mcp)
        yield services


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], with_fixtures))
