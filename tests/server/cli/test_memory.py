"""`models ps` and `doctor` show who holds the machine's memory, on any terminal; the first starts a host."""

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
from rolecall.server.cli.memory import bar, day_in_words, pressure, resident_table, shares

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
        out.print(bar(part, out) if part is MEMORY else part, markup=False)
    file.seek(0)
    return file.read()


def test_the_machines_memory_is_split_among_models_budget_and_others() -> None:
    assert [size // GB for size in shares(MEMORY)] == [38, 7, 25, 50, 8]


@given(st.fixed_dictionaries({name: st.integers(1, 1 << 40) for name in MEMORY}))
def test_the_shares_are_never_negative_nor_less_than_the_machine(memory: dict[str, int]) -> None:
    assert min(shares(memory)) >= 0
    assert sum(shares(memory)) >= memory["machine_bytes"]


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
    assert "70.00 GB instead of 96.00 GB" in pressure(MEMORY) and "50.00 GB" in pressure(MEMORY)
    assert pressure(MEMORY | {"budget_bytes": 96 * GB}) == ""


def test_a_day_without_loads_says_nothing() -> None:
    loads = dict.fromkeys(("loads", "cold_starts", "evictions", "deaths"), 0)
    day = {"average_bytes": None, "peak_bytes": None, "most_models": None, "loads": loads}
    assert day_in_words(day) == ""
    kept = day | {"average_bytes": 2 * GB, "peak_bytes": 3 * GB, "most_models": 2}
    assert "2.00 GB on average" in day_in_words(kept)
    assert "loads 1 (cold 1), 2.5 s" in day_in_words(
        day | {"loads": loads | {"loads": 1, "cold_starts": 1, "mean_load_s": 2.5, "max_load_s": 2.5}}
    )


def test_ps_and_doctor_ask_the_host(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.settings_file.write_text("profile: starter\nmemory: {budget_gb: 1.5}\n")
    assert main(["models", "ps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["models", "ps"]) == 0
    text = capsys.readouterr().out
    assert "No model is in memory." in text and "other programs" in text
    assert main(["models", "pin", "reasoning"]) == 1
    assert "(model_missing)" in capsys.readouterr().err

    main(["doctor", "--json"])
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert 0 < memory["budget_bytes"] <= memory["configured_bytes"] == 1.5 * GB
    assert 0 < memory["available_bytes"] <= memory["machine_bytes"]
    assert (memory["average_bytes"], memory["loads"]["loads"]) == (None, 0)
    main(["doctor"])
    assert "nothing was loaded in the last 24 h" in capsys.readouterr().out
    main(["stop"])
    capsys.readouterr()
    main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["host"] is None
    assert {**report["memory"], "available_bytes": 0, "budget_bytes": 0} == {
        **memory, "available_bytes": 0, "budget_bytes": 0
    }  # fmt: skip
