"""A folder that is not allowed yet: asked for once, where the client can ask and the user could allow it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from mcp import Client, MCPError

from tests.server.desk import MakeDesk
from tests.server.surface.reading import ERAS, reading

pytestmark = pytest.mark.anyio


@dataclass
class User:
    """Answers every question in the same way."""

    answer: types.ElicitResult | types.ErrorData = field(
        default_factory=lambda: types.ElicitResult(action="accept", content={})
    )
    asked: list[types.ElicitRequestParams] = field(default_factory=list)

    async def __call__(self, context: Any, params: types.ElicitRequestParams) -> types.ElicitResult | types.ErrorData:
        self.asked.append(params)
        return self.answer


def file_in(folder: Path) -> Path:
    folder.mkdir()
    file = folder / "tea.txt"
    file.write_text("Green tea wants water of 70 degrees. " * 20)
    return file


async def summarized(client: Client, *paths: Path | str, **more: Any) -> str:
    result = await client.call_tool("summarize", {"paths": [str(path) for path in paths], **more})
    assert isinstance(result.content[0], types.TextContent)
    return result.content[0].text


@ERAS
async def test_a_folder_is_asked_for_by_its_absolute_path_and_the_call_goes_on(
    desk: MakeDesk, tmp_path: Path, era: str
) -> None:
    user, file = User(), file_in(tmp_path / "tea")
    async with reading(desk(["It wants 70 degrees."])) as here, here.client(era, elicitation_callback=user) as client:
        assert "70 degrees" in await summarized(client, "../tea/*.txt")
        assert "70 degrees" in await summarized(client, file)
        assert here.desk.access.list() == (tmp_path / "tea", here.desk.folder)

    (question,) = user.asked
    assert isinstance(question, types.ElicitRequestFormParams)
    assert f" {tmp_path / 'tea'}," in question.message and "Green tea" not in question.message


@ERAS
@pytest.mark.parametrize("action", ["decline", "cancel", "error"])
async def test_a_user_who_does_not_agree_is_not_asked_again_and_the_error_stays(
    desk: MakeDesk, tmp_path: Path, era: str, action: Any
) -> None:
    refusal = types.ErrorData(code=-32603, message="no window")
    user = User(refusal if action == "error" else types.ElicitResult(action=action))
    file = file_in(tmp_path / "tea")
    async with reading(desk()) as here, here.client(era, elicitation_callback=user) as client:
        if action == "error" and era != "legacy":
            with pytest.raises(MCPError, match="no window"):
                await summarized(client, file)
        else:
            assert (await summarized(client, file)).startswith("[path_not_allowed]")
        assert here.desk.access.list() == (here.desk.folder,)

    assert len(user.asked) == 1


@ERAS
async def test_one_question_a_call(desk: MakeDesk, tmp_path: Path, era: str) -> None:
    user, first, second = User(), file_in(tmp_path / "a"), file_in(tmp_path / "b")
    async with reading(desk(["Done."])) as here, here.client(era, elicitation_callback=user) as client:
        text = await summarized(client, first, second)
        assert text.startswith("[path_not_allowed]") and str(second) in text and len(user.asked) == 1
        assert "Done." in await summarized(client, first, second)

    assert len(user.asked) == 2


@ERAS
async def test_a_client_that_cannot_ask_gets_the_error(desk: MakeDesk, tmp_path: Path, era: str) -> None:
    file = file_in(tmp_path / "tea")
    async with reading(desk()) as here, here.client(era) as client:
        assert (await summarized(client, file)).startswith("[path_not_allowed]")


@ERAS
async def test_what_could_never_be_allowed_is_never_asked_for(desk: MakeDesk, tmp_path: Path, era: str) -> None:
    user, file = User(), file_in(tmp_path / "keys")
    file.rename(file.with_name("id_rsa"))
    (tmp_path / ".ssh").mkdir()
    paths: list[Path | str] = [
        Path.home() / "notes.txt", "/*.txt", "/", tmp_path / "home" / "settings.yaml", file.with_name("id_rsa"),
        tmp_path / ".ssh" / "config", tmp_path / "nowhere" / "x.txt",
    ]  # fmt: skip
    async with reading(desk()) as here, here.client(era, elicitation_callback=user) as client:
        for path in paths:
            text = await summarized(client, path)
            assert text.startswith(("[path_not_allowed]", "[path_missing]")), (path, text)
        saved = await summarized(client, text="a b c " * 30, save_to=str(tmp_path / ".ssh" / "out.txt"))
        assert saved.startswith("[path_not_allowed]")
        assert here.desk.access.list() == (here.desk.folder,)

    assert user.asked == []


async def test_an_answer_counts_only_with_the_sealed_question(desk: MakeDesk, tmp_path: Path) -> None:
    user, file = User(), file_in(tmp_path / "tea")
    accept: types.InputResponses = {"allow": types.ElicitResult(action="accept", content={})}
    arguments = {"paths": [str(file)]}
    async with reading(desk(["Done."])) as here, here.client("2026-07-28", elicitation_callback=user) as client:

        async def call(state: str | None, arguments: dict[str, Any] = arguments) -> Any:
            return await client.session.call_tool(
                "summarize", arguments, input_responses=accept, request_state=state, allow_input_required=True
            )

        asked = await call(None)
        assert isinstance(asked, types.InputRequiredResult) and asked.request_state
        assert str(tmp_path) not in asked.request_state
        other = {"paths": [str(file_in(tmp_path / "other"))]}
        for forged in (str(tmp_path), "v1.AAAA", asked.request_state[:-2]):
            with pytest.raises(MCPError, match="requestState"):
                await call(forged)
        with pytest.raises(MCPError, match="requestState"):
            await call(asked.request_state, other)
        assert here.desk.access.list() == (here.desk.folder,)
        assert not (await call(asked.request_state)).is_error
        assert here.desk.access.list() == (tmp_path / "tea", here.desk.folder)
