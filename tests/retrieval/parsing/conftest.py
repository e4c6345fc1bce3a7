"""One child that parses, for the tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rolecall.retrieval.parsing.child import Limits
from rolecall.retrieval.parsing.parser import Parser


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def parser(anyio_backend: str) -> AsyncIterator[Parser]:
    async with Parser(Limits(chunk_tokens=40)) as parser:
        yield parser
