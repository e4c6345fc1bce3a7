"""What the router is given and what it decides. Everything here is data: no clock, no I/O."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from rolecall.config.policy import Depth, RoutingRule
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


class Features(Frozen, allow_inf_nan=False):
    """What the decision is made from: everything the router reads of a request. Kept in the receipt.

    `type_scores` are the seven task types' probabilities; `prompt_tokens` is estimated from the text's length and the
    bytes of the files named in `paths`. `flags` are the request's traits (sorted), `difficulty` in [0, 1] how many
    steps of thought it seems to take, `matched` the names of the user's rules whose `contains` is in it. `vote` is what
    the router model said of the types where it was asked; `unasked` why it was not, where it should have been.
    """

    text_sha256: str
    claim: Claim | None
    type_scores: dict[TaskType, float]
    reasons: tuple[str, ...]
    prompt_tokens: int = Field(default=0, ge=0, lt=1 << 53)
    has_paths: bool = False
    flags: tuple[str, ...] = ()
    difficulty: float = 0.0
    matched: tuple[str, ...] = ()
    vote: dict[TaskType, float] = Field(default_factory=dict)
    unasked: str = ""


class RoleChoice(Frozen, allow_inf_nan=False):
    """A role as the router sees it; static for one profile.

    `quality` in [0, 1] by task type, rates in tokens/s and `size_gb` (decimal, on disk) are published or estimated
    figures of its model, never measurements of this machine. No `quality`: nothing is known of the model.
    """

    role: Role
    model: str
    context_length: int
    max_tokens: int = 512
    quality: dict[TaskType, float] = Field(default_factory=dict)
    prefill_tps: float = Field(default=1000.0, gt=0)
    decode_tps: float = Field(default=50.0, gt=0)
    size_gb: float = Field(default=0.0, ge=0, le=1e6)


class Snapshot(Frozen, allow_inf_nan=False):
    """Policy, profile and learned tables under one content hash.

    `parts` names what the hash covers, each with its own: `code`, `rules`, `weights`, `grammars`, `prompts`, `roles`,
    `embedder`, `policy` (the user's rules and weights), `thresholds`; so that a difference can be named.
    """

    sha256: str
    profile: str
    roles: tuple[RoleChoice, ...]
    parts: dict[str, str] = Field(default_factory=dict)
    rules: tuple[RoutingRule, ...] = ()
    quality_weight: float = Field(default=0.5, ge=0, le=1)
    thresholds: dict[TaskType, float] = Field(default_factory=dict)


class State(Frozen, allow_inf_nan=False):
    """What may differ from call to call. A batch on the command line uses the empty state: `State()`.

    `ready_s` is the estimated seconds until each model that is not resident could begin, its load and the later reload
    of what it would displace; `session_model` is the model that last answered this session.
    """

    resident: tuple[str, ...] = ()
    fixed_task_type: TaskType | None = None
    depth: Depth = "normal"
    budget_s: float | None = None
    ready_s: dict[str, float] = Field(default_factory=dict)
    session_model: str | None = None


class Decision(Frozen):
    """One routing decision. `agent` or `role` is set, never both; `sha256` covers all the rest of it.

    `denied` is the user's own words where one of the user's rules refuses the request; then neither is set.
    """

    task_type: TaskType
    agent: Agent | None
    role: Role | None
    model: str | None
    confidence: float
    escalated: bool
    reasons: tuple[str, ...]
    tags: tuple[str, ...] = ()
    denied: str = ""
    snapshot_sha256: str
    sha256: str
