"""Where a user's Rolecall keeps everything: settings, models, index, receipts, logs.

Standard library only: the shim reads it before anything heavy is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """The folders under one `ROLECALL_HOME`; nothing is created until `create()`."""

    root: Path

    @staticmethod
    def find(environ: Mapping[str, str] = os.environ) -> Home:
        """`ROLECALL_HOME`, else the platform's data folder for one user."""
        if named := environ.get("ROLECALL_HOME"):
            return Home(Path(named).expanduser().absolute())
        if sys.platform == "darwin":
            return Home(Path.home() / "Library" / "Application Support" / "rolecall")
        data = environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
        return Home(Path(data) / "rolecall")

    @property
    def settings_file(self) -> Path:
        return self.root / "config.yaml"

    @property
    def env_file(self) -> Path:
        """`KEY=value` lines: tokens, keys and proxies the host uses whatever client started it."""
        return self.root / "env"

    @property
    def allowed_file(self) -> Path:
        return self.root / "allowed.json"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def receipts_db(self) -> Path:
        return self.root / "receipts.sqlite3"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def lock_file(self) -> Path:
        return self.root / "host.lock"

    def create(self) -> Home:
        """Make the folders (0700) and return self."""
        for folder in (self.root, self.models, self.index, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self
