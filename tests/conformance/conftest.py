"""The pinned npm packages, and a host of the product's for each test."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.live.conftest import staffed, starter_models, tell

__all__ = ["staffed", "starter_models", "tell"]

HERE = Path(__file__).parent
MODULES = HERE.parent.parent / ".conformance"
INSTALL_S = 600


class Node:
    """The pinned Node and npm packages; `run` starts a script of theirs or of ours with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self, script: str, *arguments: str, preload: str = "", env: dict[str, str] | None = None, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """What came of a script (a path under the folder) once it has ended."""
        node = self.folder / "node_modules" / "node" / "bin" / "node"
        first = ["--import", str(self.folder / preload)] if preload else []
        command = [str(node), *first, str(self.folder / script), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout_s, check=False)


@pytest.fixture(scope="session")
def node() -> Node:
    """Installed once, in an ignored folder; where npm cannot, the tests that need it are skipped and say why."""
    wanted = (HERE / "package.json").read_bytes()
    installed = MODULES / "package.json"
    if not (MODULES / "node_modules").exists() or installed.read_bytes() != wanted:
        if (npm := shutil.which("npm")) is None:
            pytest.skip("npm is not on this machine's PATH: nothing was checked")
        MODULES.mkdir(exist_ok=True)
        installed.write_bytes(wanted)
        command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
        done = subprocess.run(command, cwd=MODULES, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        if done.returncode:
            shutil.rmtree(MODULES)
            pytest.skip(f"npm cannot install the pinned packages, so nothing was checked: {done.stderr[-300:]}")
    for script in HERE.glob("*.mjs"):  # beside the packages, which a script finds from where it lies
        shutil.copy(script, MODULES)
    return Node(MODULES)
