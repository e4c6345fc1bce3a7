"""The prompts that a user picks in a client: each teaches the client's model one way of working with the tools."""

from __future__ import annotations

import mcp_types as types
from mcp.server.context import ServerRequestContext

from rolecall.config.prompts import prompt

from ..errors import BadRequest


def _prompt(name: str, title: str, description: str, **arguments: str) -> types.Prompt:
    """The first argument is required, the others are not."""
    listed = [
        types.PromptArgument(name=key, title=key.capitalize(), description=text, required=not i)
        for i, (key, text) in enumerate(arguments.items())
    ]
    return types.Prompt(name=name, title=title, description=description, arguments=listed)


PROMPTS = {
    each.name: each
    for each in (
        _prompt(
            "delegate", "Delegate to local models", "Have local models do a task over files that are not read here.",
            task="What is to be done.", files="Files, folders or globs it is about.", output="New file for the result.",
        ),
        _prompt(
            "ask-my-docs", "Ask my documents", "Answer a question from the indexed documents, with citations.",
            question="What you want to know.", collection="Collection to search; all by default.",
        ),
        _prompt(
            "review-with-validation", "Review with validation", "Check a text, mend it, and say what stays unproven.",
            subject="The text, or the path of its file.", evidence="What it must rest on: text or paths.",
        ),
    )
}  # fmt: skip


async def list_prompts(
    _: ServerRequestContext, _params: types.PaginatedRequestParams | None
) -> types.ListPromptsResult:
    return types.ListPromptsResult(prompts=[*PROMPTS.values()])


async def get_prompt(_: ServerRequestContext, params: types.GetPromptRequestParams) -> types.GetPromptResult:
    """
    Raises:
        BadRequest: no such prompt, or an argument is unknown or missing.
    """
    if (chosen := PROMPTS.get(params.name)) is None:
        raise BadRequest("There is no such prompt.", allowed=", ".join(PROMPTS), advice="Name one of these.")
    given, arguments = params.arguments or {}, chosen.arguments or []
    values = {each.name: given.get(each.name, "").strip() for each in arguments}
    missing = [f"no {each.name!r}" for each in arguments if each.required and not values[each.name]]
    if wrong := [*missing, *(ascii(name[:50]) for name in sorted(given.keys() - values.keys()))]:
        failed, advice = f"The arguments of {chosen.name} are not valid.", "Correct them and ask again."
        raise BadRequest(failed, found=", ".join(wrong[:5]), allowed=", ".join(values), advice=advice)
    values = {each.name: (text := values[each.name]) and f"{each.title}: {text}" for each in arguments}
    content = types.TextContent(type="text", text=prompt(chosen.name).render(**values)[1])
    message = types.PromptMessage(role="user", content=content)
    return types.GetPromptResult(description=chosen.description, messages=[message])
