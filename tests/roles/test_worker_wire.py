"""Frames between a worker and its parent."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.roles.contract import GenerationRequest, Message
from rolecall.roles.errors import RoleError
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
def test_a_request_arrives_as_it_was_sent(request: GenerationRequest, id: int, thinks: bool, budget: int) -> None:
    sent = wire.Generate(id=id, request=request, thinks=thinks, thinking_budget=budget)
    body = wire.receive_blocking(io.BytesIO(wire.encode(sent)).read)
    assert body is not None and wire.to_worker.validate_json(body) == sent


@given(cut=st.integers(0, 200))
def test_a_pipe_that_ends_within_a_frame_is_the_end(cut: int) -> None:
    spec = wire.WorkerSpec("text", Path("/models/x"), "x", 4096, 1, 0)
    frame = wire.encode(wire.Load(id=1, spec=spec))
    assert wire.receive_blocking(io.BytesIO(frame[: min(cut, len(frame) - 1)]).read) is None


def test_text_that_is_not_unicode_is_a_typed_error() -> None:
    request = GenerationRequest(messages=(Message(role="user", content="\ud800"),))
    with pytest.raises(RoleError, match="surrogate"):
        wire.encode(wire.Generate(id=1, request=request, thinks=False, thinking_budget=None))
