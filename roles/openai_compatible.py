"""An OpenAI-compatible server as an engine of roles: asked what it can do, and refused what it cannot.

Nothing is believed that can be tried: that a server enforces JSON Schemas shows in an answer that no model gives by
chance. No request is repeated once its answer began, and no error or log holds its text or a key.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import anyio
import httpx2
import structlog

from rolecall.config.settings import EndpointSettings

from .chat_stream import ChatStream
from .contract import EngineResult, GenerationRequest, Message, OnEvent, Prefilling, tell
from .errors import EndpointUnavailable, PromptTooLong, QueueFull, RoleError, SchemaRefused, WorkerDied, WorkerTimeout

CONNECT_TIMEOUT_S = 5.0
RETRY_S = 5.0  # so long a server that was not there counts as away: a queue of requests need not find out one by one
RETRIES = 2  # made by the openai package, with jitter, before a response begins
PATIENCE_S = 600.0  # the longest that a request without a deadline waits for its place
QUEUE_LIMIT = 64
PROBE_TOKENS = 512  # enough for a model that thinks first
_LOGPROBS = {"logprobs": True, "top_logprobs": 10}  # Source: mlx_lm.server takes 11 at most, vLLM and OpenAI 20
_NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}  # vLLM, mlx_lm.server, llama.cpp
_NO_COMPLETION = (ValueError, TypeError, LookupError, AttributeError, RecursionError)  # what reading one then raises

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server was found to do; `context_length` in tokens, None where unknown.

    `schema`: it enforces JSON Schemas. `logprobs`: it gives the most probable tokens. `extras`: it takes a repetition
    penalty and template options, which OpenAI's API has not.
    """

    context_length: int | None
    schema: bool
    logprobs: bool
    extras: bool


class Endpoint:
    """One server and its model; `name` is its key in the settings' `endpoints`. Close it with `aclose`.

    For one event loop. Nothing is sent before the first call.
    """

    def __init__(self, name: str, settings: EndpointSettings) -> None:
        self.name = name
        self.model = settings.model
        self._settings = settings
        self._key = os.environ.get(settings.api_key_env or "", "")
        self._slots = anyio.Semaphore(settings.concurrency)
        self._probing = anyio.Lock()
        self._known: Capabilities | None = None
        self._away: EndpointUnavailable | None = None
        self._away_until = 0.0
        self._client: Any = None
        self._http = httpx2.AsyncClient(
            trust_env=not settings.loopback,  # a proxy has no business with a server on this machine
            event_hooks={"request": [self._strip]},
        )

    async def capabilities(self) -> Capabilities:
        """What the server can do: tried at the first call, and again after it failed. Raises EndpointUnavailable: not
        there, no such model, a key it does not take, or the `openai` package is missing."""
        async with self._probing:
            if self._known:
                return self._known
            if self._away and anyio.current_time() < self._away_until:
                raise self._away.with_traceback(None)
            try:
                self._connect()
                self._known = await self._probe()
            except (EndpointUnavailable, WorkerTimeout) as error:
                self._away = EndpointUnavailable(error.message, found=error.found, advice=error.advice)
                self._away_until = anyio.current_time() + RETRY_S
                raise self._away from None
            _log.info("endpoint_probed", endpoint=self.name, model=self.model, **asdict(self._known))
            return self._known

    async def generate(
        self, request: GenerationRequest, thinks: bool, thinking_budget: int | None, on_event: OnEvent | None = None
    ) -> EngineResult:
        """One generation; cancelling the awaiting task closes the connection.

        `request.timeout_s` counts from when the request is sent. A thinking budget of 0 switches thinking off where the
        server can; others are not enforced. Token counts are the server's, or estimates where it gives none.

        Raises:
            EndpointUnavailable: before the first token; another engine may do it.
            SchemaRefused: a schema where none is enforced, a regex, or a request that the server calls invalid. Whether
                the answer kept to a schema is not checked here.
            PromptTooLong, QueueFull, WorkerTimeout (no token in time), WorkerDied (cut off in the answer).
        """
        if request.regex is not None:
            raise self._refused("a regex cannot be enforced", "the API has no place for one")
        async with self._slot(request.deadline_s):
            can = await self.capabilities()
            if request.json_schema is not None and not can.schema:
                raise self._refused("JSON Schemas are not enforced", "prose in answer to a schema, when it was tried")
            estimate = sum(len(message.content.encode("utf-8", "replace")) for message in request.messages) // 4
            self._check_length(request, can, estimate)
            stream = ChatStream(on_event, thinks and thinking_budget != 0)
            tell(on_event, Prefilling(0, estimate))
            async with self._sent(_body(request, can, thinking_budget), stream, request.timeout_s) as events:
                async for event in events:
                    stream.take(event)
                if not stream.ended:
                    raise EOFError
        if not stream.usage:
            _log.info("endpoint_tokens_estimated", endpoint=self.name)
        result = stream.result(estimate)
        self._check_length(request, can, result.prompt_tokens)  # a server may have cut the prompt without a word
        return result

    async def score(self, messages: Sequence[Message], labels: Sequence[str]) -> tuple[float, ...]:
        """Natural log-probability of each label as the first token of the answer. Raises EndpointUnavailable,
        QueueFull, WorkerTimeout; SchemaRefused: no log-probabilities, or a label that is not among the most probable
        tokens: of no other is the probability known, and of none with several tokens."""
        async with self._slot(None):
            can = await self.capabilities()
            if not can.logprobs:
                raise self._refused("labels cannot be scored", "no log-probabilities in its answers")
            body = _body(GenerationRequest(messages=tuple(messages)), can, thinking_budget=0)
            likely = await self._likely(body | _LOGPROBS)
        for label in labels:
            if label not in likely:
                found = f"it is none of the {len(likely)} most probable tokens"
                raise self._refused(f"the label {label!r} cannot be scored", found)
        return tuple(likely[label] for label in labels)

    async def aclose(self) -> None:
        await self._http.aclose()

    # What is found out before the first request.

    def _connect(self) -> None:
        try:
            import openai
        except ImportError:
            raise self._error("needs the openai package", "not installed", "pip install 'rolecall[openai]'") from None
        if self._settings.api_key_env and not self._key:
            missing = f"no environment variable {self._settings.api_key_env}"
            raise self._error("has no key", missing, "Add it to ROLECALL_HOME/env, then: rolecall stop")
        logging.getLogger("openai").setLevel(logging.WARNING)  # OPENAI_LOG=debug would write requests to stderr
        self._client = openai.AsyncOpenAI(
            api_key="none",
            base_url=self._settings.url,
            max_retries=RETRIES,
            timeout=httpx2.Timeout(self._settings.timeout_s, connect=CONNECT_TIMEOUT_S),
            http_client=self._http,
        )

    async def _strip(self, request: httpx2.Request) -> None:
        """The openai package adds headers about this machine and from OPENAI_* variables: not the server's business."""
        for name in set(request.headers) - {"host", "content-type", "content-length", "connection"}:
            del request.headers[name]
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"

    async def _probe(self) -> Capabilities:
        context = await self._context()
        question = {"role": "user", "content": "Name the capital of France in one word of plain text, without JSON."}
        body: dict[str, Any] = {"messages": [question], "temperature": 0}
        for extras in (_penalty(1.1) | _NO_THINKING, {}):
            for logprobs in (_LOGPROBS, {}):
                try:
                    likely = await self._likely(body | extras | logprobs)
                except SchemaRefused:
                    continue
                return Capabilities(context, await self._enforces(body | extras), bool(likely), bool(extras))
        raise self._error(f"refuses a plain request to the model {self.model!r}", "status 400")

    async def _enforces(self, body: dict[str, Any]) -> bool:
        """Whether an answer is what a schema demands and the question does not."""
        answer = {"word": secrets.token_hex(4)}
        word = {"type": "string", "enum": [answer["word"]]}
        schema = {"type": "object", "properties": {"word": word}, "required": ["word"], "additionalProperties": False}
        stream = ChatStream(None, thinks=False)
        try:
            async with self._sent(body | _format(schema) | {"max_tokens": PROBE_TOKENS}, stream) as events:
                async for event in events:
                    stream.take(event)
                    if stream.texts["answer"].lstrip()[:1] not in ("", "{"):
                        return False  # prose, which may be long
            return bool(json.loads(stream.texts["answer"]) == answer)
        except (SchemaRefused, ValueError):
            return False

    async def _likely(self, body: dict[str, Any]) -> dict[str, float]:
        """The log-probabilities of the most probable first tokens, where the server gives them."""
        async with self._sent(body | {"max_tokens": 1}) as completion:
            choice = completion.choices[0]
        try:
            top = sorted((float(token.logprob), str(token.token)) for token in choice.logprobs.content[0].top_logprobs)
        except _NO_COMPLETION:
            return {}
        # mlx_lm.server writes their spaces as the vocabulary does
        return {token.replace("Ġ", " ").replace("▁", " ").strip(): logprob for logprob, token in top}

    async def _context(self) -> int | None:
        """The context length, where the settings or one of the known places say it."""
        context, root = self._settings.context_length, self._settings.url.removesuffix("/v1")
        for url, key in (
            (f"{self._settings.url}/models", "max_model_len"),  # vLLM
            (f"{root}/api/v0/models", "loaded_context_length"),  # LM Studio
            (f"{root}/api/ps", "context_length"),  # Ollama, of what is loaded
        ):
            try:
                found = (await self._http.get(url, timeout=CONNECT_TIMEOUT_S)).json()
                models = found.get("data") or found.get("models") or []
                mine = [model.get(key) for model in models if self.model in (model.get("id"), model.get("name"))]
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                raise self._error("is not there", "no connection") from None
            except (httpx2.RequestError, *_NO_COMPLETION):
                mine = []  # not this kind of server
            if context := context or next((length for length in mine if isinstance(length, int)), None):
                break
        return context

    # Sending.

    @asynccontextmanager
    async def _slot(self, deadline_s: float | None) -> AsyncIterator[None]:
        waiting = self._slots.statistics().tasks_waiting
        with anyio.move_on_after(deadline_s or PATIENCE_S if waiting < QUEUE_LIMIT else 0) as patience:
            await self._slots.acquire()
        if patience.cancelled_caught:
            advice = f"{self._settings.concurrency} requests at once are allowed. Try again later."
            raise self._error("has no free place", f"{waiting} requests before it", advice, QueueFull)
        try:
            yield
        finally:
            self._slots.release()

    @asynccontextmanager
    async def _sent(
        self, body: dict[str, Any], stream: ChatStream | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[Any]:
        """The completion, or for a `stream` its events, while they are read. All that can go wrong there comes out as
        one of ours; once the time is over, what the stream has by then is the answer."""
        import openai

        fields = {"model": self.model, "messages": body["messages"], "stream": stream is not None, "extra_body": body}
        if stream is not None:
            fields["stream_options"] = {"include_usage": True}
        try:
            with anyio.fail_after(timeout_s):
                with anyio.fail_after(self._settings.timeout_s):  # httpx2's own would be followed by a repetition
                    answer = await self._client.chat.completions.create(**fields)
                async with nullcontext(answer) if stream is None else answer as reply:
                    yield reply
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except (TimeoutError, EOFError, openai.APIError, *_NO_COMPLETION) as error:
            cause = error.__cause__ or error
            if isinstance(cause, (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout)):
                if stream and stream.tokens:
                    stream.ended = stream.ended or "timeout"
                    return
                advice = "Raise timeout_s or ask for less."
                raise self._error("made no token in time", "nothing yet", advice, WorkerTimeout) from None
            self._known, found = None, "an error, or something that is no chat completion"
            if isinstance(error, openai.APIConnectionError):
                found = f"the connection broke ({type(cause).__name__})"
            elif isinstance(error, EOFError):
                found = "an answer without an end"
            if stream and stream.tokens:
                raise self._error("broke off in its answer", found, kind=WorkerDied) from None
            raise self._error("did not answer", found) from None

    # What is said when it fails.

    def _refusal(self, error: Any) -> RoleError:
        """What a status other than 2xx means; of its body only a name is shown, since it may quote the request."""
        status, text = int(error.status_code), f"{error.code} {error.message}".lower()
        name = f" {error.code}" if isinstance(error.code, str) and error.code.isidentifier() else ""
        found = f"status {status}{name}"
        if status == 413 or (status == 400 and "context" in text and any(w in text for w in ("length", "exceed"))):
            return self._error("finds the prompt too long", found, "Send less text.", PromptTooLong)
        if status in (400, 422):
            return self._refused("this request is refused", found)
        self._known = None
        advice = "Check its key." if status in (401, 403) else "Check its model and url." if status == 404 else ""
        return self._error("did not answer", found, advice)

    def _error(self, what: str, found: str, advice: str = "", kind: type[RoleError] = EndpointUnavailable) -> RoleError:
        where = f"See the server at {self._settings.url} and endpoints.{self.name} in the settings."
        return kind(f"The endpoint {self.name!r} {what}.", found=found, advice=advice or where)

    def _refused(self, what: str, found: str) -> SchemaRefused:
        advice = "Give the role an engine that can (mlx), or do without."
        return SchemaRefused(f"At the endpoint {self.name!r} {what}.", found=found, advice=advice)

    def _check_length(self, request: GenerationRequest, can: Capabilities, prompt_tokens: int) -> None:
        if can.context_length and prompt_tokens + request.max_tokens > can.context_length:
            found = f"about {prompt_tokens} tokens and {request.max_tokens} for the answer, of {can.context_length}"
            advice = "Send less text, summarize it first, or use a role with a larger context."
            raise self._error("cannot hold the prompt", found, advice, PromptTooLong)


def _body(request: GenerationRequest, can: Capabilities, thinking_budget: int | None) -> dict[str, Any]:
    """The request in OpenAI's form; what the server does not take is left out, but never a constraint."""
    return {
        "messages": [message.model_dump() for message in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        **({"top_p": request.top_p, "seed": request.seed % 2**31} if request.temperature > 0 else {}),
        **({"stop": list(request.stop)} if request.stop else {}),
        **(_format(request.json_schema) if request.json_schema is not None else {}),
        **(_penalty(request.repetition_penalty) if can.extras and request.repetition_penalty else {}),
        **(_NO_THINKING if can.extras and thinking_budget == 0 else {}),
    }


def _penalty(value: float) -> dict[str, float]:
    """As vLLM and mlx_lm.server call it, and as LM Studio and llama.cpp do."""
    return {"repetition_penalty": value, "repeat_penalty": value}


def _format(schema: dict[str, Any]) -> dict[str, Any]:
    named = {"name": "answer", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}
