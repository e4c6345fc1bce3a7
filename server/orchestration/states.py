"""The states of a request and the only way from one to another: by events, along `TABLE`."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from ..telemetry.store import Transition


class RunState(StrEnum):
    INIT = "INIT"
    ROUTING_DECISION = "ROUTING_DECISION"
    TOOL_ONLY_EXECUTION = "TOOL_ONLY_EXECUTION"
    RETRIEVAL_ONLY = "RETRIEVAL_ONLY"
    MODEL_SELECTION = "MODEL_SELECTION"
    LLM_CALL = "LLM_CALL"
    TOOL_EXECUTION = "TOOL_EXECUTION"
    VALIDATION = "VALIDATION"
    SYNTHESIS = "SYNTHESIS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


Event = StrEnum(
    "Event",
    "ACCEPTED AGENT_CHOSEN RETRIEVAL_CHOSEN MODEL_CHOSEN CHECKS_CHOSEN DECISION_WANTED VALUE_FOUND NOTHING_FOUND "
    "PASSAGES_FOUND ANSWER_WANTED ROLE_SELECTED TOOL_ASKED TOOL_ANSWERED GENERATED RETRY ESCALATE NEXT_PART PASSED "
    "GAVE_UP FELL_BACK PLANNED SYNTHESISED FAIL CANCEL",
)
"""What happened; the value is the name in small letters."""

FINAL = frozenset({RunState.COMPLETED, RunState.FAILED})

TABLE: dict[tuple[RunState, Event], RunState] = {
    (RunState.INIT, Event.ACCEPTED): RunState.ROUTING_DECISION,
    (RunState.ROUTING_DECISION, Event.AGENT_CHOSEN): RunState.TOOL_ONLY_EXECUTION,
    (RunState.ROUTING_DECISION, Event.RETRIEVAL_CHOSEN): RunState.RETRIEVAL_ONLY,
    (RunState.ROUTING_DECISION, Event.MODEL_CHOSEN): RunState.MODEL_SELECTION,
    (RunState.ROUTING_DECISION, Event.CHECKS_CHOSEN): RunState.VALIDATION,
    (RunState.ROUTING_DECISION, Event.DECISION_WANTED): RunState.SYNTHESIS,
    (RunState.TOOL_ONLY_EXECUTION, Event.VALUE_FOUND): RunState.SYNTHESIS,
    (RunState.TOOL_ONLY_EXECUTION, Event.NOTHING_FOUND): RunState.MODEL_SELECTION,
    (RunState.RETRIEVAL_ONLY, Event.PASSAGES_FOUND): RunState.SYNTHESIS,
    (RunState.RETRIEVAL_ONLY, Event.ANSWER_WANTED): RunState.MODEL_SELECTION,
    (RunState.RETRIEVAL_ONLY, Event.NOTHING_FOUND): RunState.MODEL_SELECTION,
    (RunState.MODEL_SELECTION, Event.ROLE_SELECTED): RunState.LLM_CALL,
    (RunState.LLM_CALL, Event.TOOL_ASKED): RunState.TOOL_EXECUTION,
    (RunState.TOOL_EXECUTION, Event.TOOL_ANSWERED): RunState.LLM_CALL,
    (RunState.LLM_CALL, Event.PLANNED): RunState.LLM_CALL,
    (RunState.LLM_CALL, Event.GENERATED): RunState.VALIDATION,
    (RunState.LLM_CALL, Event.FELL_BACK): RunState.VALIDATION,
    (RunState.VALIDATION, Event.RETRY): RunState.LLM_CALL,
    (RunState.VALIDATION, Event.NEXT_PART): RunState.MODEL_SELECTION,
    (RunState.VALIDATION, Event.ESCALATE): RunState.MODEL_SELECTION,
    (RunState.VALIDATION, Event.PASSED): RunState.SYNTHESIS,
    (RunState.VALIDATION, Event.GAVE_UP): RunState.SYNTHESIS,
    (RunState.SYNTHESIS, Event.SYNTHESISED): RunState.COMPLETED,
    **{(state, end): RunState.FAILED for state in set(RunState) - FINAL for end in (Event.FAIL, Event.CANCEL)},
}


class IllegalTransition(RuntimeError):
    """A defect in Rolecall, never the user's doing."""


class Machine:
    """One request's state and the steps it took; `clock` gives seconds since the request began.

    `advance` is the only writer: an event that the table does not know for the state raises and changes nothing.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.state = RunState.INIT
        self.transitions: tuple[Transition, ...] = ()

    def advance(self, event: Event) -> RunState:
        target = TABLE.get((self.state, event))
        if target is None:
            raise IllegalTransition(f"{event} is not possible in {self.state}")
        step = Transition(source=self.state, event=event, target=target, at_s=round(self._clock(), 4))
        self.state, self.transitions = target, (*self.transitions, step)
        return target
