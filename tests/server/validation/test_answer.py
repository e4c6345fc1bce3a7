from __future__ import annotations

from typing import Any

import pytest

from rolecall.server.validation.answer import checker, failed
from rolecall.server.validation.blocks import code_blocks, parses, schema_check
from rolecall.server.validation.contract import Verdict
from rolecall.server.validation.form import looping

OBJECT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
PROSE = "The weir was built by hand, and it still holds the river back in spring."


def failing(answer: str, task_type: str = "reasoning", finish: str = "stop", **how: Any) -> str | None:
    found = failed(checker(task_type, **{"question": "", **how})(answer, finish))
    return found.name if found else None


def test_a_plain_answer_passes() -> None:
    assert failing(PROSE) is None
    assert failing("I'm sorry for your loss, and I hope that the coming weeks are gentle with you.") is None


@pytest.mark.parametrize(
    ("answer", "changed", "name"),
    [
        ("", {}, "form"),
        ("and so on and so forth " * 40, {}, "form"),
        ("What is the height of the weir?", {"question": "What is the height of the weir?"}, "form"),
        (PROSE, {"finish": "length"}, "finished"),
        ("The weir was built by hand, and it still holds the river back in the", {}, "finished"),
        ("I'm sorry, but I cannot help with that.", {}, "refusal"),
        ("It is tall: 3 + 4 = 8 metres.", {}, "arithmetic"),
        ("one two three four", {"max_words": 3}, "word_limit"),
        ("It is 9 metres high.", {"task_type": "summarization", "evidence": ("It is 6 metres high.",)}, "numbers"),
        ("```python\ndef f(:\n```", {"task_type": "coding", "language": "python"}, "parses"),
        ("```python\ndef f(:\n```", {"task_type": "coding"}, "parses"),
        ("Just use a loop.", {"task_type": "coding"}, "code"),
        ("Just use a loop.", {"task_type": "coding", "language": "rust"}, "code"),
        ("```python\n```", {"task_type": "coding"}, "code"),
    ],
)
def test_each_fault_of_an_answer_is_found_by_its_check(answer: str, changed: dict[str, Any], name: str) -> None:
    assert failing(answer, **changed) == name


def test_code_and_data_are_not_judged_as_prose() -> None:
    rows = "[" + ", ".join(["[1, 2, 3]"] * 80) + "]"
    assert failing(rows, structured=True) is None
    assert (
        failing("```python\nx = 1\n```\nIt prints:\n```text\nx is 1!\n```", task_type="coding", language="python")
        is None
    )
    assert failing("```python\nx = [\n    1,\n]\n```\nSorry,", task_type="coding", language="python") is None


def test_fluent_text_does_not_loop_and_a_run_of_one_character_does() -> None:
    assert looping(" ".join(f"word{at} stands beside word{at + 1}." for at in range(80))) == ""
    assert looping("Then it said " + "ha" * 3 + "a" * 300) != ""


def test_json_is_found_bare_fenced_and_in_prose() -> None:
    for text in ('{"n": 1}', 'Here:\n```json\n{"n": 1}\n```\nDone.', 'Sure! {"n": 1} is it.', '```\n{"n": 1}'):
        assert schema_check(text, OBJECT).verdict is Verdict.SUPPORTED


def test_the_reason_for_no_value_says_where_the_fault_is() -> None:
    assert schema_check('{"n": "x"}', OBJECT).detail == "at $.n: 'x' is not of type 'integer'"
    assert schema_check("none", OBJECT).detail.startswith("the answer is not JSON")
    for text in ("none", '{"n": NaN}', "[" * 100_000):
        assert schema_check(text, {}).verdict is Verdict.UNSUPPORTED
    assert "recursion limit" in schema_check("[" * 100_000, {}).detail


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "https://example.com/remote.json"},
        {"$ref": "#"},
        {"properties": {"n": {"pattern": "^(a|a)*$"}}},
        {
            "$defs": {f"l{i}": {"allOf": [{"$ref": f"#/$defs/l{i + 1}"}] * 2} for i in range(40)} | {"l40": {}},
            "$ref": "#/$defs/l0",
        },
    ],
)
def test_a_schema_that_cannot_be_applied_is_an_abstention(schema: dict[str, Any]) -> None:
    found = schema_check('{"n": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"}', schema)
    assert (found.verdict, found.decisive) == (Verdict.ABSTAIN, False)


def test_a_value_is_checked_by_the_draft_that_its_schema_names() -> None:
    old = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}
    assert schema_check("1", old).verdict is Verdict.UNSUPPORTED
    assert schema_check("2", old).verdict is Verdict.SUPPORTED


@pytest.mark.parametrize(
    ("language", "good", "bad"),
    [
        ("python", "  x = 1\n  y = '\\d'", "def f(:"),
        ("json", '{"a": [1]}', '{"a": NaN}'),
        ("yaml", "a: 1\n---\nb: [2]", "a: [1"),
        ("toml", "a = 1", "a ="),
    ],
)
def test_each_parser_tells_good_code_from_bad(language: str, good: str, bad: str) -> None:
    assert parses(good, language) == (True, "")
    assert parses(bad, language)[0] is False


def test_shell_is_read_and_never_run(tmp_path: Any) -> None:
    assert parses(f"touch {tmp_path}/made", "sh")[0] is not False
    assert not parses("if true; then", "sh")[0]
    assert list(tmp_path.iterdir()) == []


def test_a_tower_of_brackets_is_a_fault_not_a_crash() -> None:
    for language in ("python", "json", "yaml", "toml"):
        assert parses("[" * 2_000, language)[0] is False


def test_blocks_are_found_in_order_and_an_unclosed_fence_runs_to_the_end() -> None:
    text = "First:\n```python\nx = 1\n```\nthen\n~~~sql\nselect 1\n~~~\nlast\n```py\ny = (\n"
    found = [(block.language, block.code, block.parses) for block in code_blocks(text)]
    assert found == [("python", "x = 1\n", True), ("sql", "select 1\n", None), ("py", "y = (\n", False)]


def test_an_answer_that_is_code_without_a_fence_is_one_block() -> None:
    assert [block.code for block in code_blocks("def f():\n    return 1", "python")] == ["def f():\n    return 1\n"]
    assert code_blocks("I would write a function for that.", "python") == ()


def test_a_fence_inside_a_longer_fence_belongs_to_the_code() -> None:
    (block,) = code_blocks("````markdown\n```python\nx\n```\n````")
    assert block.code == "```python\nx\n```\n"
