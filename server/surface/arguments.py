"""The six tools' arguments, as a client sees them; each turns itself into a call for the orchestrator."""

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
    Field(description="Files or globs in allowed folders; the server reads them."),
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
    context: Text | None = Field(default=None, description="Facts the answer should use.")
    channel: Literal["chat", "code", "system_health"] | None = Field(
        default=None, description="Kind of session; guides which model is kept ready."
    )
    budget_s: float | None = Field(default=None, gt=0, le=3600, description="Most seconds the call may take.")
    execute: bool = Field(default=True, description="False: only decide who would answer.")


class ReasonArguments(Arguments):
    kind = ReasonCall
    question: Request = Field(description="The question or problem.")
    paths: Paths = Field(default=[])
    context: Text | None = Field(default=None, description="Facts the answer should use.")
    schema_: dict[str, Any] | None = Field(
        default=None, alias="schema", description="JSON Schema object that the result's `data` must satisfy."
    )
    depth: Literal["quick", "normal", "deep"] = Field(default="normal", description="How much thinking to spend.")


class CodeArguments(Arguments):
    kind = CodeCall
    task: Request = Field(description="What the code must do.")
    paths: Paths = Field(default=[])
    context: Text | None = Field(default=None, description="Interfaces, constraints or code to build on.")
    language: Name | None = Field(default=None, description="Programming language, such as python.")
    save_to: Name | None = Field(
        default=None, description="New file in an allowed folder for the code; a short report comes back instead."
    )


class SummarizeArguments(Arguments):
    kind = SummarizeCall
    text: Text | None = Field(default=None, description="Text to condense; prefer `paths` for files.")
    paths: Paths = Field(default=[])
    focus: Text | None = Field(default=None, description="What to attend to.")
    max_words: int = Field(default=200, ge=5, le=5000, description="Upper bound of the summary's length.")
    each: bool = Field(default=False, description="True: one summary per file, in `items`.")
    save_to: Name | None = Field(default=None, description="New file in an allowed folder for the summary.")


class FilterArguments(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    glob: Name | None = Field(default=None, description="Glob on the file's path, such as **/*.md.")
    kind: Literal["markdown", "text", "code"] | None = Field(default=None, description="Kind of file.")
    language: Name | None = Field(default=None, description="Language name, such as python.")
    since: Name | None = Field(default=None, description="ISO date: only files modified since then.")


class RetrieveArguments(Arguments):
    kind = RetrieveCall
    query: Request = Field(description="What to look for, in plain words or identifiers.")
    collection: Name | None = Field(default=None, description="Collection to search; all by default.")
    max_results: int = Field(default=8, ge=1, le=100, description="Most passages to return.")
    filters: FilterArguments | None = Field(default=None, description="Narrow by path, kind, language or date.")
    mode: Literal["passages", "answer"] = Field(
        default="passages", description="passages: quoted text with citations; answer: a short cited answer."
    )


class ValidateArguments(Arguments):
    kind = ValidateCall
    output: Text | None = Field(default=None, description="The text to check; else the files in `paths` are.")
    paths: Paths = Field(default=[])
    evidence: Annotated[Text | list[Text] | None, AfterValidator(_listed)] = Field(
        default=[], description="Text or texts the output must rest on."
    )
    question: Text | None = Field(default=None, description="The question that the output answers.")
    schema_: dict[str, Any] | None = Field(
        default=None, alias="schema", description="JSON Schema object the output must satisfy."
    )
    language: Name | None = Field(default=None, description="Language the output must parse as.")
