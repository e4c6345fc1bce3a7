"""What a worker and its parent say to each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.roles.contract import EngineResult, Generated, GenerationRequest, Loading, Message, Prefilling
from rolecall.roles.errors import PromptTooLong
from rolecall.roles.worker import wire

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
requests = st.builds(
    GenerationRequest,
    messages=st.lists(st.builds(Message, role=st.sampled_from(["system", "user"]), content=any_text), min_size=1).map(
        tuple
    ),
    stop=st.lists(any_text, max_size=2).map(tuple),
    json_schema=st.none() | st.dictionaries(any_text, st.integers() | any_text, max_size=2),
    timeout_s=st.none() | st.floats(0.1, 100),
)


@given(request=requests, id=st.integers(1, 2**40), thinks=st.booleans(), budget=st.none() | st.integers(0, 9))
def test_a_request_arrives_as_it_was_sent_in_one_line(
    request: GenerationRequest, id: int, thinks: bool, budget: int
) -> None:
    sent = wire.ToWorker(id, wire.Generate(request, thinks, budget, labels=request.stop))
    line = wire.to_worker.dump_json(sent)
    assert wire.to_worker.validate_json(line) == sent and b"\n" not in line


@pytest.mark.parametrize(
    "body",
    [
        wire.WorkerSpec("text", Path("/m"), "m", 1, 2, 3, kv_bytes=4, adapter=Path("/a"), leased=True),
        wire.Encode(("a",), True),
        wire.Encode((("true", "a"),), False, query=True),
        wire.Limit(5),
        "grant",
        None,
    ],
)
def test_whatever_a_worker_is_told_is_told_apart(body: Any) -> None:
    sent = wire.ToWorker(1, body)
    assert wire.to_worker.validate_json(wire.to_worker.dump_json(sent)) == sent


@pytest.mark.parametrize(
    "body",
    [
        7,
        Loading("m", 1, 2),
        Prefilling(1, 2),
        Generated("t", "answer", 1),
        wire.Loaded(1, 2),
        EngineResult(text="a", thinking="b", finish="stop", prompt_tokens=1, completion_tokens=2, cached_tokens=4),
        wire.Scored((-0.5, -1.0)),
        "want",
        "done",
        wire.Encoded(0, 384, ""),
        wire.failure(PromptTooLong("m", found="f")),
    ],
)
def test_whatever_a_worker_says_is_told_apart(body: Any) -> None:
    said = wire.FromWorker(1, body)
    assert wire.from_worker.validate_json(wire.from_worker.dump_json(said)) == said


def test_an_unforeseen_failure_names_its_type_and_place_and_none_of_its_text() -> None:
    try:
        {}["a secret of the document"]
    except KeyError as error:
        told = wire.failure(error).error
    assert told["found"].startswith("KeyError at test_worker_wire.py:") and "secret" not in str(told)
