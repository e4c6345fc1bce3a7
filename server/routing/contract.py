"""What the router is given and what it decides. Everything here is data: no clock, no I/O."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from rolecall.config.profile import Frozen
from rolecall.roles.contract import Role


class TaskType(StrEnum):
    TOOL = "tool"
    RETRIEVAL = "retrieval"
    REASONING = "reasoning"
    CODING = "coding"
    SUMMARIZATION = "summarization"
    VALIDATION = "validation"
    GENERAL = "general"


class Agent(StrEnum):
    """A deterministic agent: answers without a model. `retrieval` searches the user's index."""

    CALCULATOR = "calculator"
    UNITS = "units"
    DATETIME = "datetime"
    SYSTEM = "system"
    FILES = "files"
    RETRIEVAL = "retrieval"


class Claim(Frozen):
    """An agent's parse of the *whole* request. `expression` is the parsed form, enough to compute the value from."""

    agent: Agent
    expression: str


class Features(Frozen):
    """What the decision is made from: everything the router reads of a request. Kept in the receipt.

    `type_scores` are the seven task types' probabilities; `prompt_tokens` is estimated from the text's length and the
    bytes of the files named in `paths`.
    """

    text_sha256: str
    claim: Claim | None
    type_scores: dict[TaskType, float]
    reasons: tuple[str, ...]
    prompt_tokens: int = 0
    has_paths: bool = False


class RoleChoice(Frozen):
    """A role as the router sees it (from `roles.contract.RoleInfo`; static for one profile)."""

    role: Role
    model: str
    context_length: int


class Snapshot(Frozen):
    """Policy, profile and learned tables under one content hash."""

    sha256: str
    profile: str
    roles: tuple[RoleChoice, ...]


class State(Frozen):
    """What may differ from call to call. A batch on the command line uses the empty state: `State()`."""

    resident: tuple[str, ...] = ()
    fixed_task_type: TaskType | None = None
    depth: Literal["quick", "normal", "deep"] = "normal"
    budget_s: float | None = None


class Decision(Frozen):
    """One routing decision. `agent` or `role` is set, never both; `sha256` covers all the rest of it."""

    task_type: TaskType
    agent: Agent | None
    role: Role | None
    model: str | None
    confidence: float
    escalated: bool
    reasons: tuple[str, ...]
    snapshot_sha256: str
    sha256: str
