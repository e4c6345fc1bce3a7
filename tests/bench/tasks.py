"""Twenty pieces of work over real files, each with a check of the answer that no model is asked for.

The files are this project's own pages and code, logs of programs run just now, and public texts from `../shared/data`,
which are read at run time only; without that folder there are twelve tasks.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
DATA = PROJECT.parent / "shared" / "data"
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")

Usable = Callable[[dict[str, Any], Path], bool]
"""Of a result's structured content and the folder of the files."""


@dataclass(frozen=True, slots=True)
class Task:
    """One call. `reads` is the one file a client without Rolecall would read; `facts` are what it would need from it,
    all of them or one (`any_fact`)."""

    kind: str
    name: str
    tool: str
    arguments: dict[str, Any]
    reads: str
    usable: Usable
    facts: tuple[str, ...]
    any_fact: bool = False


def tasks(folder: Path) -> list[Task]:
    """The tasks, whose files are written to `folder`; those of `library/` are there to be indexed."""
    for name in ("library", "code", "logs", "reports"):
        (folder / name).mkdir()
    for page in (PROJECT / "docs").glob("*.md"):
        shutil.copy(page, folder / "library")
    shutil.copy(PROJECT / "pyproject.toml", folder / "reports")
    found = [*_condense(folder), *_extract_own(folder), *_quote_own(folder), *_draft(folder), *_judge(folder)]
    if DATA.is_dir():
        found += [*_articles(folder), *_quote(folder)]
    return sorted(found, key=lambda task: task.kind)


def flat(text: str) -> str:
    return " ".join(text.split()).casefold()


def _condense(folder: Path) -> Iterator[Task]:
    imports = _said("-X", "importtime", "-c", "import asyncio")
    lines = [line.split("|") for line in imports.splitlines()[1:] if "asyncio" not in line]
    slowest = sorted(lines, key=lambda line: int(line[0].rpartition(":")[2]))[-3:]
    names = tuple(line[2].strip() for line in slowest)
    yield _summary(folder, "logs/imports.log", imports, "the modules that took longest to import", names)
    tests = _said("-m", "pytest", "-v", "-p", "no:cacheprovider", "tests/config", "tests/roles/test_manifest.py")
    passed = re.findall(r"(\d+) passed", tests) or ["failed"]
    yield _summary(folder, "logs/tests.log", tests, "how many tests passed or failed", (passed[-1],))
    for page, focus in (("troubleshooting.md", "the command to start with"), ("architecture.md", "host and shim")):
        facts = ("rolecall doctor",) if page == "troubleshooting.md" else ("host", "shim")
        yield _summary(folder, f"library/{page}", (folder / "library" / page).read_text(), focus, facts)


def _said(*arguments: str) -> str:
    """What a Python program says."""
    done = subprocess.run((sys.executable, *arguments), cwd=PROJECT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _summary(folder: Path, path: str, text: str, focus: str, facts: tuple[str, ...]) -> Task:
    (folder / path).write_text(text)
    numbers = set(_NUMBER.findall(text))

    def usable(result: dict[str, Any], _: Path) -> bool:
        answer = result["answer"]
        return _holds(answer, facts, any_fact=True) and set(_NUMBER.findall(answer)) <= numbers

    arguments = {"paths": [path], "focus": focus, "max_words": 60}
    return Task("condense", path, "summarize", arguments, path, usable, facts, any_fact=True)


def _extract_own(folder: Path) -> Iterator[Task]:
    project = tomllib.loads((folder / "reports" / "pyproject.toml").read_text())["project"]
    wanted = {name: ("", project[name]) for name in ("name", "license", "requires-python")}
    yield _extraction("reports/pyproject.toml", "Extract the project's fields.", wanted)


def _extraction(path: str, question: str, wanted: dict[str, tuple[str, str]]) -> Task:
    """Fields by name, each with its description and the text that its value must hold."""
    fields = {
        name: {"type": "string", "maxLength": 60} | ({"description": said} if said else {})
        for name, (said, _) in wanted.items()
    }
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}

    def usable(result: dict[str, Any], _: Path) -> bool:
        data = result.get("data") or {}
        return all(_holds(data.get(name, ""), (value,)) for name, (_, value) in wanted.items())

    facts = tuple(value for _, value in wanted.values())
    return Task(
        "extract", path, "reason", {"question": question, "paths": [path], "schema": schema}, path, usable, facts
    )


def _articles(folder: Path) -> Iterator[Task]:
    """Articles of five paragraphs from XQuAD, with the first question on each of the first three paragraphs."""
    texts = {line["_id"]: line["text"] for line in _lines(DATA / "xquad-en" / "corpus.jsonl")}
    asked = {line["_id"]: line for line in _lines(DATA / "xquad-en" / "queries.jsonl")}
    first: dict[str, dict[str, Any]] = {}
    for row in (DATA / "xquad-en" / "qrels.tsv").read_text().splitlines()[1:]:
        query, passage, _ = row.split("\t")
        first.setdefault(passage, asked[query])
    for article in (0, 1, 3):
        passages = list(texts)[article * 5 : article * 5 + 5]
        path = f"reports/article-{article}.txt"
        text = "\n\n".join(texts[each] for each in passages)
        (folder / path).write_text(text)
        questions = [first[each] for each in passages[:3]]
        wanted = {f"a{number}": (each["text"], each["answers"][0]["text"]) for number, each in enumerate(questions, 1)}
        yield _extraction(path, "Fill in the fields from the report.", wanted)
    answers = tuple(answer["text"] for each in passages for answer in first[each]["answers"])
    yield _summary(folder, path, text, "dates and names", answers)


def _quote_own(folder: Path) -> Iterator[Task]:
    for page, query, span in (
        ("troubleshooting.md", "What can I do about path_not_allowed?", "`rolecall allow FOLDER`"),
        ("configuration.md", "How long are the models' memory figures kept in the history?", "memory by the hour for"),
    ):
        yield _quotation(folder, f"library/{page}", query, span)


def _quote(folder: Path) -> Iterator[Task]:
    """The first questions of the chunking evaluation's speech and chats whose answer is one span."""
    texts = {line["_id"]: line["text"] for line in _lines(DATA / "chroma-chunking" / "corpus.jsonl")}
    asked = [each for each in _lines(DATA / "chroma-chunking" / "queries.jsonl") if len(each["spans"]) == 1]
    for document, number in (("state_of_the_union", 3), ("chatlogs", 1)):
        path = f"library/{document}.txt"
        (folder / path).write_text(texts[document])
        for nth, each in enumerate([one for one in asked if one["corpus_id"] == document][:number], 1):
            start, end = each["spans"][0]
            yield _quotation(folder, path, each["text"], texts[document][start:end], f" {nth}")


def _quotation(folder: Path, path: str, query: str, span: str, nth: str = "") -> Task:
    if flat(span) not in flat((folder / path).read_text()):
        raise SystemExit(f"{path} no longer holds {span!r}: name another passage in {__file__}.")

    def usable(result: dict[str, Any], _: Path) -> bool:
        passages = result["passages"]
        exact = all(
            Path(each["path"]).read_bytes()[each["start_byte"] : each["end_byte"]] == each["text"].encode()
            for each in passages
        )
        return exact and any(flat(span) in flat(each["text"]) for each in passages)

    return Task("quote", path + nth, "retrieve", {"query": query, "max_results": 2}, path, usable, (span,))


def _draft(folder: Path) -> Iterator[Task]:
    for source, function in (
        ("server/validation/form.py", "refusal"),
        ("roles/memory.py", "budget_now"),
        ("server/validation/blocks.py", "schema_check"),
    ):
        path = f"code/{Path(source).name}"
        shutil.copy(PROJECT / source, folder / path)
        saved = f"code/test_{function}.py"
        task = f"Write one pytest test of the function {function}."
        arguments = {"task": task, "paths": [path], "language": "python", "save_to": saved}
        usable = _is_test(saved, function)
        yield Task("draft", f"{path} {function}", "code", arguments, path, usable, (f"def {function}",))


def _is_test(saved: str, function: str) -> Usable:
    """Whether the file holds a test that calls the function and asserts something. It is read, never run."""

    def usable(_: dict[str, Any], folder: Path) -> bool:
        path = folder / saved
        tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
        return any(
            isinstance(each, ast.FunctionDef) and each.name.startswith("test") and _calls_and_asserts(each, function)
            for each in ast.walk(tree)
        )

    return usable


def _calls_and_asserts(test: ast.FunctionDef, function: str) -> bool:
    nodes = list(ast.walk(test))
    called = (ast.unparse(node.func).rpartition(".")[2] for node in nodes if isinstance(node, ast.Call))
    return function in called and any(isinstance(node, ast.Assert) for node in nodes)


def _judge(folder: Path) -> Iterator[Task]:
    path = "library/configuration.md"
    true = "rotated at 3 x 10 MB"
    if true not in (folder / path).read_text():
        raise SystemExit(f"{path} no longer says {true!r}: name another figure in {__file__}.")
    for number, verdict in (("10", "supported"), ("40", "unsupported")):
        claim = f"The host's log is rotated at 3 x {number} MB."

        def usable(result: dict[str, Any], _: Path, wanted: str = verdict) -> bool:
            return bool(result["verdict"] == wanted)

        yield Task("judge", verdict, "validate", {"output": claim, "paths": [path]}, path, usable, (true,))


def _holds(text: str, facts: Sequence[str], *, any_fact: bool = False) -> bool:
    """Whether the facts stand in the text as whole words."""
    found = [re.search(rf"(?<!\w){re.escape(flat(fact))}(?!\w)", flat(text)) is not None for fact in facts]
    return any(found) if any_fact else all(found)


def in_the_first(size_bytes: int, task: Task, folder: Path) -> bool:
    """The control: whether as many bytes from the start of the file hold what the task needs."""
    head = (folder / task.reads).read_bytes()[:size_bytes].decode(errors="ignore")
    return _holds(head, task.facts, any_fact=task.any_fact)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
