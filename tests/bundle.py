"""`make bundle`: dist/rolecall.mcpb, an MCP bundle around the project's own wheel, checked by the official tool.

The bundle holds no dependencies: with the server type `uv` the client's program installs what `pyproject.toml` names,
at the versions this project is tested with. Format: manifest 0.4 of github.com/modelcontextprotocol/mcpb.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from rolecall.server.protocol import VERSION
from rolecall.server.surface.tools import tool_list

PROJECT = Path(__file__).resolve().parent.parent
ENTRY_POINT = "main.py"
CHECKER = "@anthropic-ai/mcpb@2.1.2"

MAIN = '''\
"""`rolecall serve` from the wheel beside this file."""

import sys

from rolecall.server.shim import serve

sys.exit(serve([]))
'''


def build(bundle: Path) -> Path:
    """Write the bundle and return its path."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "build", "--wheel", "--outdir", folder, str(PROJECT)]
        subprocess.run(command, check=True, capture_output=True)
        wheel = next(Path(folder).glob("*.whl"))
        bundle.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("manifest.json", json.dumps(manifest(), indent=2) + "\n")
            archive.writestr("pyproject.toml", _pyproject(wheel.name))
            archive.writestr(ENTRY_POINT, MAIN)
            archive.write(PROJECT / "LICENSE", "LICENSE")
            archive.write(wheel, wheel.name)
    return bundle


def manifest() -> dict[str, Any]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    # --project rather than --directory: the files that a call names count from where the client started the server.
    arguments = ["run", "--project", "${__dirname}", f"${{__dirname}}/{ENTRY_POINT}"]
    return {
        "manifest_version": "0.4",
        "name": project["name"],
        "display_name": "Rolecall",
        "version": VERSION,
        "description": project["description"],
        "author": {"name": "Rolecall"},
        "license": project["license"],
        "keywords": project["keywords"],
        "server": {
            "type": "uv",
            "entry_point": ENTRY_POINT,
            "mcp_config": {"command": "uv", "args": arguments},
        },
        "tools": [{"name": tool.name, "description": tool.description} for tool in tool_list().tools],
        "prompts_generated": True,
        "compatibility": {"platforms": ["darwin", "linux"], "runtimes": {"python": project["requires-python"]}},
    }


def _pyproject(wheel: str) -> str:
    lines = (PROJECT / "constraints.txt").read_text("utf-8").splitlines()
    constraints = json.dumps([line for line in lines if line and not line.startswith("#")], indent=4)
    return f"""\
[project]
name = "rolecall-bundle"
version = "{VERSION}"
requires-python = ">=3.11"
dependencies = ["rolecall"]

[tool.uv]
package = false
environments = ["sys_platform == 'darwin'", "sys_platform == 'linux'"]
constraint-dependencies = {constraints}

[tool.uv.sources]
rolecall = {{ path = "{wheel}" }}
"""


def install_checker(folder: Path) -> str:
    """Put the official tool into `folder`; returns why it cannot be had, "" where it is there."""
    if not (npm := shutil.which("npm")):
        return "npm is not installed"
    command = [npm, "install", "--no-save", "--prefix", str(folder), CHECKER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"npm cannot get {CHECKER}: {done.stderr.strip()[-200:]}" if done.returncode else ""


def check(manifest_file: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """The official tool's verdict; `install_checker(folder)` went before."""
    command = [str(folder / "node_modules" / ".bin" / "mcpb"), "validate", str(manifest_file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> int:
    bundle = build(PROJECT / "dist" / "rolecall.mcpb")
    print(f"{bundle} ({bundle.stat().st_size / 1000:.0f} kB)")
    with tempfile.TemporaryDirectory() as folder:
        if missing := install_checker(Path(folder)):
            print(f"Not validated: {missing}. Get Node 20 or newer with npm, then run this again.")
            return 1
        with zipfile.ZipFile(bundle) as archive:
            verdict = check(Path(archive.extract("manifest.json", folder)), Path(folder))
    print((verdict.stdout + verdict.stderr).strip())
    return verdict.returncode


if __name__ == "__main__":
    sys.exit(main())
