"""Prompts as a client gets them, in both eras."""

from __future__ import annotations

from typing import Any

import pytest
from mcp import Client, MCPError

from tests.server.desk import MakeDesk
from tests.server.surface.reading import ERAS, reading

pytestmark = pytest.mark.anyio


async def text_of(client: Client, name: str, arguments: dict[str, Any] | None = None) -> str:
    (message,) = (await client.get_prompt(name, arguments)).messages
    assert message.role == "user"
    return str(message.content.text)  # type: ignore[union-attr]  # a prompt of ours is one text


@ERAS
async def test_three_prompts_are_listed_with_described_arguments(desk: MakeDesk, era: str) -> None:
    async with reading(desk()) as here, here.client(era) as client:
        prompts = (await client.list_prompts()).prompts

    assert [prompt.name for prompt in prompts] == ["delegate", "ask-my-docs", "review-with-validation"]
    for prompt in prompts:
        assert prompt.title and prompt.description and prompt.arguments
        assert all(argument.description for argument in prompt.arguments)
        assert [argument.required for argument in prompt.arguments] == [True] + [False] * (len(prompt.arguments) - 1)


@ERAS
async def test_a_prompt_holds_what_was_given_and_leaves_out_what_was_not(desk: MakeDesk, era: str) -> None:
    async with reading(desk()) as here, here.client(era) as client:
        whole = await text_of(client, "delegate", {"task": "Condense {{files}}", "files": "~/logs/*.log"})
        bare = await text_of(client, "ask-my-docs", {"question": "When does it open?"})
        review = await text_of(client, "review-with-validation", {"subject": "2 + 2 = 4", "evidence": "sums.md"})

    assert "Task: Condense {{files}}\n\nFiles: ~/logs/*.log\n\n- Give" in whole
    assert "Question: When does it open?\n\n- Search" in bare and "Collection" not in bare
    assert "Subject: 2 + 2 = 4\n\nEvidence: sums.md\n\n1." in review


@ERAS
@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("poetry", {}, "delegate, ask-my-docs, review-with-validation"),
        ("../settings", None, "no such prompt"),
        ("delegate", None, "'task'"),
        ("delegate", {"task": " "}, "'task'"),
        ("ask-my-docs", {"question": "x", "colour": "red"}, "'colour'"),
    ],
)
async def test_what_is_wrong_with_a_prompt_is_named_and_the_session_goes_on(
    desk: MakeDesk, era: str, name: str, arguments: dict[str, Any] | None, named: str
) -> None:
    async with reading(desk()) as here, here.client(era) as client:
        with pytest.raises(MCPError, match=named) as caught:
            await client.get_prompt(name, arguments)
        assert "x" in await text_of(client, "ask-my-docs", {"question": "x"})

    assert (caught.value.code, caught.value.error.data["code"]) == (-32602, "bad_request")
