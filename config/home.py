"""Where a user's Rolecall keeps everything: settings, models, index, receipts, logs.

Standard library only: the shim reads it before anything heavy is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


class Home:
    """The folders under one `ROLECALL_HOME`; nothing is created until `create()`.

    `env_file` has `KEY=value` lines: tokens, keys and proxies the host uses whatever client started it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings_file = root / "config.yaml"
        self.env_file = root / "env"
        self.allowed_file = root / "allowed.json"
        self.models = root / "models"
        self.index = root / "index"
        self.receipts_db = root / "receipts.sqlite3"
        self.logs = root / "logs"
        self.lock_file = root / "host.lock"
        self.http_token_file = root / "http-token"

    @staticmethod
    def find(environ: Mapping[str, str] = os.environ) -> Home:
        """`ROLECALL_HOME`, else the platform's data folder for one user."""
        if named := environ.get("ROLECALL_HOME"):
            return Home(Path(named).expanduser().absolute())
        if sys.platform == "darwin":
            return Home(Path.home() / "Library" / "Application Support" / "rolecall")
        data = environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
        return Home(Path(data) / "rolecall")

    def create(self) -> Home:
        """Make the folders (0700) and return self."""
        for folder in (self.root, self.models, self.index, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self
