"""The tools' arguments, as a client sees them; those of the six turn themselves into calls for the orchestrator."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rolecall.retrieval.contract import Filters

from ..orchestration.contract import Call, CodeCall, ReasonCall, RetrieveCall, RouteCall, SummarizeCall, ValidateCall
from ..session import SessionInfo

MAX_TEXT_CHARS = 2_000_000
MAX_REQUEST_CHARS = 100_000


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is empty; say what is wanted")
    return text


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []


Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
Request = Annotated[str, Field(max_length=MAX_REQUEST_CHARS), AfterValidator(_not_blank)]
Name = Annotated[str, Field(min_length=1, max_length=4096)]
Paths = Annotated[
    Annotated[list[Name], Field(max_length=1000)] | None,
    AfterValidator(_listed),
    Field(description="Files or globs in allowed folders."),
]


class Arguments(BaseModel):
    """The arguments of one tool; `kind` is the call they make."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=False)
    kind: ClassVar[type[Call]]

    def call(self, session: SessionInfo) -> Call:
        """The orchestrator's call, for the session that asks."""
        given = {info.alias or name: _frozen(getattr(self, name)) for name, info in type(self).model_fields.items()}
        return self.kind(**given, cwd=session.cwd, session=session.id)


def _frozen(value: Any) -> Any:
    if isinstance(value, FilterArguments):
        return Filters(**value.model_dump())
    return tuple(value) if isinstance(value, list) else value


class RouteArguments(Arguments):
    kind = RouteCall
    request: Request = Field(description="The request in plain words.")
    paths: Paths = Field(default=[])
    context: Text | None = Field(default=None, description="Facts to use.")
    channel: Literal["chat", "code", "system_health"] | None = Field(default=None, description="Kind of session.")
    budget_s: float | None = Field(default=None, gt=0, le=3600, description="Most seconds to take.")
    execute: bool = Field(default=True, description="False: only decide.")


class ReasonArguments(Arguments):
    kind = ReasonCall
    question: Request = Field(description="The question or problem.")
    paths: Paths = Field(default=[])
    context: Text | None = Field(default=None, description="Facts to use.")
    schema_: dict[str, Any] | None = Field(
        default=None, alias="schema", description="JSON Schema for the result's `data`."
    )
    depth: Literal["quick", "normal", "deep"] = Field(default="normal", description="How much thinking to spend.")


class CodeArguments(Arguments):
    kind = CodeCall
    task: Request = Field(description="What the code must do.")
    paths: Paths = Field(default=[])
    context: Text | None = Field(default=None, description="Interfaces, constraints or code to build on.")
    language: Name | None = Field(default=None, description="Programming language.")
    save_to: Name | None = Field(default=None, description="New file in an allowed folder.")


class SummarizeArguments(Arguments):
    kind = SummarizeCall
    text: Text | None = Field(default=None, description="Text; prefer `paths` for files.")
    paths: Paths = Field(default=[])
    focus: Text | None = Field(default=None, description="What to attend to.")
    max_words: int = Field(default=200, ge=5, le=5000, description="Most words.")
    each: bool = Field(default=False, description="True: one summary per file, in `items`.")
    save_to: Name | None = Field(default=None, description="New file in an allowed folder.")


class FilterArguments(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    glob: Name | None = Field(default=None, description="Glob, such as **/*.md.")
    kind: Literal["markdown", "text", "code"] | None = Field(default=None, description="Kind of file.")
    language: Name | None = Field(default=None, description="Programming language.")
    since: Name | None = Field(default=None, description="ISO date; files changed since.")


class RetrieveArguments(Arguments):
    kind = RetrieveCall
    query: Request = Field(description="What to look for: words or identifiers.")
    collection: Name | None = Field(default=None, description="Collection; all by default.")
    max_results: int = Field(default=8, ge=1, le=100, description="Most passages.")
    filters: FilterArguments | None = Field(default=None, description="Narrows the search.")
    mode: Literal["passages", "answer"] = Field(
        default="passages", description="Quoted passages, or a short cited answer."
    )


class ValidateArguments(Arguments):
    kind = ValidateCall
    output: Text | None = Field(default=None, description="Text to check, else `paths`.")
    paths: Paths = Field(default=[])
    evidence: Annotated[Text | list[Text] | None, AfterValidator(_listed)] = Field(
        default=[], description="Texts it must rest on."
    )
    question: Text | None = Field(default=None, description="Question that it answers.")
    schema_: dict[str, Any] | None = Field(default=None, alias="schema", description="JSON Schema it must satisfy.")
    language: Name | None = Field(default=None, description="Language it must parse as.")


class JobArguments(BaseModel):
    """The arguments of `job`, which makes no call but follows one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Name = Field(description="The `job_id` of a result.")
    action: Literal["status", "result", "cancel"] = Field(default="status", description="`result` waits for the end.")
