"""The MCP bundle says what the product is, starts it, and passes the official tool's validation."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from rolecall.config.home import Home
from rolecall.server.protocol import VERSION
from tests import bundle
from tests.conftest import Stdio


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle.build(tmp_path_factory.mktemp("bundle") / "rolecall.mcpb")


def test_the_manifest_agrees_with_the_server_that_the_bundle_starts(built: Path, home: Home, tmp_path: Path) -> None:
    with zipfile.ZipFile(built) as archive:
        archive.extractall(tmp_path / "unpacked")
        names = archive.namelist()
    manifest: dict[str, Any] = json.loads((tmp_path / "unpacked" / "manifest.json").read_bytes())
    server = manifest["server"]
    assert (manifest["manifest_version"], server["type"]) == ("0.4", "uv")
    assert {server["entry_point"], "pyproject.toml", f"rolecall-{VERSION}-py3-none-any.whl"} <= set(names)
    assert server["mcp_config"]["args"][-1].endswith("/" + server["entry_point"])

    entry = str(tmp_path / "unpacked" / server["entry_point"])
    client = Stdio([sys.executable, "-P", entry], tmp_path, {**os.environ, "ROLECALL_HOME": str(home.root)})
    said = client.initialize()["result"]["serverInfo"]
    tools = client.request("tools/list")["result"]["tools"]
    assert client.close()[0] == 0
    assert (said["name"], said["version"]) == (manifest["name"], manifest["version"])
    assert [(tool["name"], tool["description"]) for tool in tools] == [
        (tool["name"], tool["description"]) for tool in manifest["tools"]
    ]


def test_the_official_tool_finds_the_manifest_valid(built: Path, tmp_path: Path) -> None:
    if missing := bundle.install_checker(tmp_path):
        pytest.skip(missing)
    with zipfile.ZipFile(built) as archive:
        manifest = Path(archive.extract("manifest.json", tmp_path))
    verdict = bundle.check(manifest, tmp_path)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
    manifest.write_text(manifest.read_text().replace('"type": "uv"', '"type": "snake"'))
    assert bundle.check(manifest, tmp_path).returncode != 0
