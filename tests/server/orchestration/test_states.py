"""The transition table, exhaustively: every state times every event."""

from __future__ import annotations

from itertools import count, product

import pytest

from rolecall.server.orchestration.states import FINAL, TABLE, Event, IllegalTransition, Machine, RunState


def machine_in(state: RunState) -> Machine:
    """A machine led to `state` along the table, by the shortest way."""
    ways: dict[RunState, tuple[Event, ...]] = {RunState.INIT: ()}
    queue = [RunState.INIT]
    while queue:
        at = queue.pop(0)
        for (source, event), target in TABLE.items():
            if source is at and target not in ways:
                ways[target] = (*ways[at], event)
                queue.append(target)
    machine = Machine(lambda: 0.0)
    for event in ways[state]:
        machine.advance(event)
    return machine


@pytest.mark.parametrize(("state", "event"), list(product(RunState, Event)))
def test_an_event_leads_where_the_table_says_or_raises_and_changes_nothing(state: RunState, event: Event) -> None:
    machine = machine_in(state)
    before = machine.transitions

    if (state, event) in TABLE:
        assert machine.advance(event) is machine.state is TABLE[state, event]
        last = machine.transitions[-1]
        assert (last.source, last.event, last.target) == (state, event, machine.state)
        assert machine.transitions[:-1] == before
    else:
        with pytest.raises(IllegalTransition):
            machine.advance(event)
        assert machine.state is state
        assert machine.transitions == before


def test_the_states_are_the_specifications() -> None:
    assert " ".join(RunState) == (
        "INIT ROUTING_DECISION TOOL_ONLY_EXECUTION RETRIEVAL_ONLY MODEL_SELECTION LLM_CALL TOOL_EXECUTION VALIDATION "
        "SYNTHESIS COMPLETED FAILED"
    )


def test_nothing_leaves_a_final_state_and_everything_else_can_fail_or_be_cancelled() -> None:
    for state in RunState:
        leaving = {event for source, event in TABLE if source is state}
        assert leaving == set() if state in FINAL else {Event.FAIL, Event.CANCEL} < leaving


def test_every_event_is_used_and_completion_can_be_reached_from_every_state_that_is_not_final() -> None:
    reaches = {RunState.COMPLETED}
    while new := {source for (source, _), target in TABLE.items() if target in reaches} - reaches:
        reaches |= new

    assert {event for _, event in TABLE} == set(Event)
    assert reaches == set(RunState) - {RunState.FAILED}


def test_steps_carry_the_time_since_the_request_began() -> None:
    ticks = count(1)
    machine = Machine(lambda: next(ticks) / 2)

    machine.advance(Event.ACCEPTED)
    machine.advance(Event.MODEL_CHOSEN)

    assert [step.at_s for step in machine.transitions] == [0.5, 1.0]
