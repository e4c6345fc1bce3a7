"""What a call spared its client: files that were read or written in its place, where it need not do that itself."""

from __future__ import annotations

import pytest

from rolecall.roles.contract import GenerationResult, Role
from rolecall.roles.errors import ModelCorrupt, WorkerDied
from rolecall.server.orchestration.contract import CodeCall, ReasonCall, SummarizeCall, ValidateCall

from ..desk import MakeDesk
from ..scripted import ScriptedModels

NONE = {"read_bytes": 0, "written_bytes": 0, "read_tokens": 0, "written_tokens": 0}


def test_files_that_were_read_count_in_bytes_and_in_tokens_of_the_model_that_answered(desk: MakeDesk) -> None:
    at = desk(["The crane lifts loads."])  # its tokens are words
    (at.folder / "a.txt").write_text("the crane lifts loads " * 50)
    (at.folder / "b.txt").write_text("the crane lifts loads " * 50)

    outcome = at.run(SummarizeCall, paths=("*.txt",))

    assert outcome.meta["spared"] == NONE | {"read_bytes": 2200, "read_tokens": 400}
    assert at.receipt().spared == outcome.meta["spared"]


def test_without_a_model_four_bytes_count_as_a_token(desk: MakeDesk) -> None:
    at = desk()
    (at.folder / "a.txt").write_text("x" * 400)

    outcome = at.run(ValidateCall, output="It is so.", paths=("a.txt",))

    assert outcome.meta["spared"] == NONE | {"read_bytes": 400, "read_tokens": 100}


def test_a_count_that_fails_at_the_end_does_not_cost_the_answer(desk: MakeDesk) -> None:
    class Forgetful(ScriptedModels):
        def count_tokens(self, role: Role, text: str) -> int:
            if text == "ab " * 8:  # the file alone, as it is counted for what it spared
                raise ModelCorrupt("The tokenizer is gone.")
            return super().count_tokens(role, text)

    at = desk(models=Forgetful(["It is so."]))
    (at.folder / "a.txt").write_text("ab " * 8)

    outcome = at.run(ReasonCall, question="What is it?", paths=("a.txt",))

    assert (outcome.answer, outcome.meta["spared"]["read_tokens"]) == ("It is so.", 24 // 4)
    assert at.receipt().state == "COMPLETED"


def test_a_file_that_was_written_counts(desk: MakeDesk) -> None:
    at = desk(["```python\nx = 1 + 1\n```"])

    outcome = at.run(CodeCall, task="Add.", language="python", save_to="new.py")

    written = (at.folder / "new.py").stat().st_size
    assert outcome.meta["spared"] == NONE | {"written_bytes": written, "written_tokens": 5}


def test_an_answer_to_check_a_failure_and_a_text_in_the_arguments_spare_nothing(desk: MakeDesk) -> None:
    cut = GenerationResult(
        text="It lifts 99", finish="length", role=Role.REASONING, model="m", prompt_tokens=1, completion_tokens=1
    )
    at = desk(lambda role, request: WorkerDied("Gone.") if "fail" in request.messages[-1].content else cut)
    (at.folder / "a.txt").write_text("It lifts 43 tonnes.")

    assert at.run(ReasonCall, question="How much?", paths=("a.txt",)).status == "unverified"
    assert at.receipt().spared == NONE
    with pytest.raises(WorkerDied):
        at.run(ReasonCall, question="Please fail.", paths=("a.txt",))
    assert at.receipt().spared == NONE
    at.run(ValidateCall, output="1 + 1 = 2")
    assert at.receipt().spared == NONE
