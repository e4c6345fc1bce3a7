"""The starter models, as `make setup` put them on this machine, and the product's commands and clients over them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from rolecall.config.home import Home
from rolecall.roles.manifest import write_manifest
from rolecall.roles.starter import STARTER_MODELS, TEXT_4BIT, TEXT_FP32, starter_missing
from tests.conftest import ROLECALL

Tell = Callable[[str], None]
BRISK = """\
profile: starter
host: {spare_worker: false}
roles: {reasoning: {max_tokens: 64}, coding: {max_tokens: 96}, summarization: {max_tokens: 64}}
"""


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    """Prints a measured figure, also of a test that passes."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}")

    return say


@pytest.fixture(scope="session")
def starter_models() -> Path:
    """The folder that holds `starter/...`: `$ROLECALL_TEST_MODELS`, else the user's own. Read-only for tests."""
    named = os.environ.get("ROLECALL_TEST_MODELS")
    models = Path(named) if named else Home.find().models
    missing = starter_missing(models)
    if missing:
        pytest.fail(f"{', '.join(missing)} not under {models}: run `make setup`, or set ROLECALL_TEST_MODELS.")
    return models


@pytest.fixture(scope="session")
def starter_copy(starter_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders of its own with hard links to the starter's files (copies on another disk), and with manifests."""
    models = tmp_path_factory.mktemp("starter") / "models"
    for model in STARTER_MODELS:
        shutil.copytree(starter_models / model, models / model, copy_function=_link)
        if not (models / model / "rolecall.json").exists():
            write_manifest(models / model, model, "test")
    yield models
    shutil.rmtree(models)


@pytest.fixture
def starter_home(starter_copy: Path, tmp_path: Path) -> Home:
    """A home of the test's own with the starter models in it."""
    home = Home(tmp_path / "home").create()
    home.models.rmdir()
    home.models.symlink_to(starter_copy)
    return home


@pytest.fixture
def staffed(home: Home, starter_models: Path) -> Home:
    """A home with the starter models, short answers and no spare worker, whose host is ended after the test."""
    return furnished(home, starter_models)


def furnished(home: Home, models: Path) -> Home:
    home.models.rmdir()
    home.models.symlink_to(models)
    home.settings_file.write_text(BRISK)
    return home


@pytest.fixture
def text_only(staffed: Home, starter_models: Path) -> Home:
    """`staffed` without the embedder, which takes seconds to start: the router decides by words alone."""
    staffed.models.unlink()
    (staffed.models / "starter").mkdir(parents=True)
    for model in (TEXT_FP32, TEXT_4BIT):
        (staffed.models / model).symlink_to(starter_models / model)
    return staffed


def command(*arguments: str, code: int = 0, input_: str | None = None, env: dict[str, str] | None = None) -> str:
    """What a command prints; it must end with this code."""
    environment = {**os.environ, **(env or {})}
    done = subprocess.run([ROLECALL, *arguments], capture_output=True, text=True, input=input_, env=environment)
    assert done.returncode == code, (done.stdout[-2000:], done.stderr)
    return done.stdout


@asynccontextmanager
async def connected(cwd: Path, **options: Any) -> AsyncIterator[Client]:
    """A client of `rolecall serve`."""
    server = StdioServerParameters(command=ROLECALL, args=["serve"], env=dict(os.environ), cwd=str(cwd))
    async with Client(server, **options) as client:
        yield client


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
