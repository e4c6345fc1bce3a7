"""`models ps` shows who holds the machine's memory, on any terminal."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rolecall.config.home import Home
from rolecall.server.cli.app import main
from rolecall.server.cli.models import memory_bar, memory_shares, resident_table, shrunken

GB = 1_000_000_000
MEMORY = {
    "budget_bytes": 70 * GB, "configured_bytes": 96 * GB, "reserved_bytes": 45 * GB, "measured_bytes": 38 * GB,
    "machine_bytes": 128 * GB, "available_bytes": 40 * GB,
}  # fmt: skip
RESIDENT = {
    "model": "mlx-community/Qwen3-4B-Instruct-2507-8bit", "roles": ["router", "summarization"], "pid": 1234,
    "pinned": True, "in_use": 1, "queued": 2, "reserved_bytes": 6 * GB, "measured_bytes": 5 * GB, "tokens_per_s": 61.3,
}  # fmt: skip


def printed(*parts: Any, width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    out = Console(file=file, highlight=False, soft_wrap=True, width=width)
    for part in parts:
        out.print(memory_bar(part, out) if part is MEMORY else part, markup=False)
    file.seek(0)
    return file.read()


def test_the_machines_memory_is_split_among_models_budget_and_others() -> None:
    assert [size // GB for size in memory_shares(MEMORY)] == [38, 7, 25, 50, 8]


@given(st.fixed_dictionaries({name: st.integers(1, 1 << 40) for name in MEMORY}))
def test_the_shares_are_never_negative_nor_less_than_the_machine(memory: dict[str, int]) -> None:
    assert min(memory_shares(memory)) >= 0
    assert sum(memory_shares(memory)) >= memory["machine_bytes"]


@pytest.mark.parametrize(("width", "encoding", "signs"), [(120, "utf-8", "█▒░x·"), (40, "ascii", "#=-x.")])
def test_the_bar_fits_the_terminal_and_its_signs_differ_without_colours(width: int, encoding: str, signs: str) -> None:
    drawn, *figures = printed(MEMORY, width=width, encoding=encoding).splitlines()

    assert len(drawn) == min(width, 100) and "\x1b" not in drawn
    runs = [drawn.count(sign) for sign in signs]
    assert sum(runs) == len(drawn) - 2 and min(runs) > 0
    assert runs[0] / sum(runs) == pytest.approx(38 / 128, abs=0.03)
    legend = "\n".join(figures)
    assert max(map(len, figures)) <= width
    assert all(figure in legend for figure in ("38.00 GB", "7.00 GB", "25.00 GB", "50.00 GB", "70.00 GB of 128.00 GB"))


@pytest.mark.parametrize("width", [120, 60])
def test_a_model_shows_its_state_and_can_be_copied_whole(width: int) -> None:
    text = printed(resident_table([RESIDENT]), width=width)

    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert {"router,", "1234", "pinned,", "in", "use,", "queued", "6.00", "5.00", "61.3"} <= set(text.split())
    assert resident_table([]) == "No model is in memory."


def test_a_shrunken_budget_says_so_with_figures() -> None:
    (said,) = shrunken(MEMORY)
    assert "70.00 GB instead of 96.00 GB" in said and "50.00 GB" in said
    assert list(shrunken(MEMORY | {"budget_bytes": 96 * GB})) == []


def test_ps_asks_the_host(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "ps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["models", "ps"]) == 0
    text = capsys.readouterr().out
    assert "No model is in memory." in text and "other programs" in text
    assert main(["models", "pin", "reasoning"]) == 1
    assert "(model_missing)" in capsys.readouterr().err
