"""JSON-Schema requests on the starter: valid, or refused with the reason."""

from __future__ import annotations

import json
import statistics
from collections import Counter

import jsonschema
import pytest

from rolecall.config.home import Home
from rolecall.roles.contract import GenerationRequest, GenerationResult, Message, Role
from rolecall.roles.errors import SchemaRefused
from rolecall.roles.manager import ModelManager
from tests.bench.stage import starter_settings

from .conftest import Tell
from .schema_requests import SchemaRequest, schema_requests

pytestmark = [pytest.mark.live, pytest.mark.anyio]

MAX_TOKENS = 128
FREE_TOKENS = 48
REFUSED_SHARE = 0.15
FREE_REQUESTS = 5  # so many are asked without their schema too, to compare


COUNT = 200


@pytest.mark.soak
async def test_an_answer_to_a_schema_is_valid_or_refused_with_the_reason(starter_home: Home, tell: Tell) -> None:
    refused: list[tuple[SchemaRequest, str]] = []
    steered: list[float] = []
    free: list[float] = []
    async with ModelManager(starter_home, starter_settings(starter_home, concurrency=1)) as manager:
        for number, request in enumerate(schema_requests(COUNT, seed=8)):
            try:
                result = await manager.generate(Role.REASONING, _asked(request, request.schema))
            except SchemaRefused as error:
                assert error.found, error
                refused.append((request, error.found))
                continue
            jsonschema.validate(json.loads(result.text), request.schema)
            steered += _per_token(result)
            if number % (COUNT // FREE_REQUESTS) == 0:
                free += _per_token(await manager.generate(Role.REASONING, _asked(request, None)))
    kinds = Counter(request.kind for request, _ in refused)
    extra_ms = 1e3 * (statistics.median(steered) - statistics.median(free))
    tell(
        f"{COUNT} schemas: {COUNT - len(refused)} valid, {len(refused)} refused {dict(kinds)}; "
        f"{extra_ms:+.2f} ms per token over {1e3 * statistics.median(free):.1f} ms unconstrained"
    )
    assert len(refused) <= REFUSED_SHARE * COUNT, refused


def _asked(request: SchemaRequest, schema: dict[str, object] | None) -> GenerationRequest:
    message = Message(role="user", content=request.prompt)
    return GenerationRequest(
        messages=(message,),
        max_tokens=MAX_TOKENS if schema else FREE_TOKENS,
        json_schema=schema,
        repetition_penalty=1.1,
    )


def _per_token(result: GenerationResult) -> list[float]:
    """Seconds of each token decoded; of a handful the first one's share would tell."""
    return [result.decode_s / result.completion_tokens] if result.completion_tokens >= 8 else []
