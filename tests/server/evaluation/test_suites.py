"""What suites say of data small enough to be checked by hand, and of data that is not what it should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rolecall.config.home import Home
from rolecall.server.cli.app import main
from rolecall.server.errors import BadRequest
from rolecall.server.evaluation.score import Verdict, evenly, verdict
from rolecall.server.evaluation.suites import llmrouter, routing

MODELS = ("a-code", "b-talk", "c-dear")
PRICES = {name: {"input_price": price, "output_price": price} for name, price in zip(MODELS, (1, 1, 4), strict=True)}


@pytest.mark.parametrize(
    ("score", "low", "target", "missed", "said"),
    [
        (0.95, 0.91, 0.9, (), Verdict.MET),
        (0.90, 0.90, 0.9, (), Verdict.MET),
        (0.95, 0.89, 0.9, (), Verdict.NOT_PROVEN),
        (0.89, 0.85, 0.9, (), Verdict.NOT_MET),
        (0.95, 0.91, 0.9, ("tool precision",), Verdict.NOT_MET),
    ],
)
def test_a_target_is_met_where_the_whole_interval_is(
    score: float, low: float, target: float, missed: tuple[str, ...], said: Verdict
) -> None:
    assert verdict(score, (low, 1.0), target, missed) is said


def line(kind: str, confidence: float) -> dict[str, Any]:
    return {"task_type": kind, "confidence": confidence, "agent": None, "role": "router", "escalated": False}


def outcomes(*answers: tuple[str, str, float]) -> list[dict[str, Any]]:
    """Items of (label, decided, confidence), from two sources in turn."""
    rows = [{"id": i, "text": "t", "label": each[0], "source": f"s{i % 2}:x"} for i, each in enumerate(answers)]
    return [routing.item(r, line(*each[1:])) for r, each in zip(routing.labelled(rows), answers, strict=True)]


def test_the_routing_figures_are_those_that_a_hand_count_gives() -> None:
    score = routing.score(
        outcomes(("tool", "tool", 0.9), ("tool", "coding", 0.6), ("coding", "coding", 0.9), ("general", "tool", 0.4))
    )
    assert (score.n, score.score, score.control.name, score.control.score) == (4, 0.5, "always tool", 0.5)
    detail = score.detail
    assert (detail["classes"]["tool"]["precision"], detail["classes"]["tool"]["recall"]) == (0.5, 0.5)
    assert detail["classes"]["summarization"]["recall"] is None
    assert detail["macro_f1"] == pytest.approx((0.5 + 2 / 3 + 0) / 3, abs=1e-4)
    assert detail["confusion"]["tool"]["coding"] == 1
    assert detail["at_confidence"]["0.7"] | {"interval": 0} == {"coverage": 0.5, "n": 2, "accuracy": 1.0, "interval": 0}
    assert detail["ece"] == pytest.approx((abs(2 - 1.8) + 0.6 + 0.4) / 4)
    assert {name: each["accuracy"] for name, each in detail["sources"].items()} == {"s0": 1.0, "s1": 0.0}
    assert score.verdict is Verdict.NOT_MET
    assert [why.split(" 0.")[0] for why in detail["missed"]] == ["accuracy", "tool precision", "least recall"]


def test_few_right_answers_prove_nothing_and_many_do() -> None:
    right = [("general", "general", 0.9), ("tool", "tool", 0.9)]
    assert routing.score(outcomes(*right)).verdict is Verdict.NOT_PROVEN
    assert routing.score(outcomes(*right * 30)).verdict is Verdict.MET


def test_a_limit_takes_items_evenly() -> None:
    assert evenly(range(10), 4) == [0, 2, 5, 7]
    assert evenly([1, 2], 9) == evenly([1, 2], 0) == [1, 2]


def table(folder: Path, count: int = 60) -> Path:
    """Code is for one model, talk for another; the dear one is second best at both. A tenth of test occurs in train."""
    folder.mkdir()

    def rows(name: str, numbers: range) -> list[dict[str, Any]]:
        kinds = {"code": (1.0, 0.0, 0.6), "talk": (0.0, 1.0, 0.6)}
        return [
            {"question": f"{kind} {name if i % 10 else 'train'} {i}", "scores": dict(zip(MODELS, scores, strict=True))}
            for i in numbers
            for kind, scores in kinds.items()
        ]

    for name, some in {"train": range(count), "test": range(count // 2)}.items():
        (folder / f"{name}.json").write_text(json.dumps(rows(name, some)))
    (folder / "default_llm.json").write_text(json.dumps(PRICES))
    return folder


def vectors(*tables: llmrouter.Table) -> llmrouter.Array:
    """One axis of talk, one of noise."""
    talk = np.array([float("talk" in question) for each in tables for question in each.questions])
    noise = np.random.default_rng(0).normal(0, 0.1, len(talk))
    return np.stack([talk - 0.5, noise, noise**2], axis=1)


def test_a_selector_that_can_tell_questions_apart_beats_the_best_single_model(tmp_path: Path) -> None:
    train, test, costs = llmrouter.load(table(tmp_path / "table"))
    score, items = llmrouter.score(train, test, costs, vectors(train, test))
    selectors = score.detail["given"]["selectors"]
    assert costs.tolist() == [0.25, 0.25, 1.0]
    assert (score.n, score.score, score.verdict) == (60, 1.0, Verdict.MET)
    assert (selectors["best single"]["quality"], score.control.score) == (0.6, 0.6)
    assert selectors["random"]["quality"] == pytest.approx(1.6 / 3, abs=1e-4)
    assert selectors["oracle"]["right"] == 1.0
    assert score.detail["unseen"]["n"] == 54 == sum(not item["in_train"] for item in items)
    assert score.detail["curve"]["selector"][-1] == pytest.approx(0.75)  # 1 - 1 x 0.25
    assert score.detail["cross_validated"]["gain"] == pytest.approx(0.4)


def test_a_tie_with_the_best_is_right(tmp_path: Path) -> None:
    train, test, costs = llmrouter.load(table(tmp_path / "table", 10), limit=7)
    test.quality[:] = [1.0, 1.0, 1.0]
    score, items = llmrouter.score(train, test, costs, vectors(train, test))
    selectors = score.detail["given"]["selectors"]
    assert score.n == len(items) == 7
    assert {each["right"] for each in selectors.values()} == {1.0}


@pytest.mark.parametrize(
    ("file", "broken", "named"),
    [
        ("train.json", '[{"question": "q", "scores": {"a": NaN}}]', "finite"),
        ("train.json", '[{"question": "q", "scores": {"a": 7}}]', "less than or equal to 1"),
        ("train.json", '[{"question": "q", "scores": {"a": 1}}, {"question": "q", "scores": {"b": 1}}]', "Item 2"),
        ("train.json", '[{"question": "q", "scores": {}}]', "at least 1 item"),
        ("train.json", '[{"question": "q", "scores": {"a": 1}}]', "Item 1 of test.json"),
        ("train.json", '{"question": "q"}', "scores"),
        ("train.json", "[]", "no items"),
        ("test.json", "nonsense", "test.json cannot be read"),
        ("test.json", "[" * 100_000, "test.json cannot be read"),
        ("default_llm.json", '{"a-code": {}}', "b-talk"),
        ("default_llm.json", json.dumps(PRICES | {"c-dear": {"input_price": "NaN", "output_price": 1}}), "item 3"),
    ],
)
def test_a_table_of_another_form_is_refused(file: str, broken: str, named: str, tmp_path: Path) -> None:
    folder = table(tmp_path / "table")
    (folder / file).write_text(broken)
    with pytest.raises(BadRequest, match=named):
        llmrouter.load(folder)


@pytest.mark.parametrize(
    ("argv", "code", "named"),
    [
        (["bogus", "--data", "x"], 2, "routing"),
        (["routing"], 2, "--data"),
        (["routing", "--data", "missing.jsonl"], 1, "missing.jsonl"),
        (["routing", "--data", "bad.jsonl"], 1, "item 2, label"),
        (["routing", "--data", "bad.jsonl", "--role", "coding"], 1, "--role"),
        (["llmrouter", "--data", "missing"], 1, "train.json"),
    ],
)
def test_what_cannot_be_measured_is_a_typed_error(
    argv: list[str], code: int, named: str, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    rows = [{"id": 1, "text": "t", "label": "tool", "source": "s"}, {"id": 2, "text": "t", "label": "tools"}]
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["eval", "run", *argv, "--json"]) == code
    out, errors = capsys.readouterr()
    assert (out, json.loads(errors)["error"]["code"]) == ("", "bad_request")
    assert named in errors
