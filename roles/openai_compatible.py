"""An OpenAI-compatible server as an engine of roles: asked what it can do, and refused what it cannot.

Nothing is believed that can be tried: that a server enforces JSON Schemas shows in an answer that no model gives by
chance. No request is repeated once its answer began, and no error or log holds its text or a key.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import anyio
import httpx2
import structlog

from rolecall.config.settings import EndpointSettings

from .chat_stream import ChatStream
from .contract import Event, Generated, GenerationRequest, Message, OnEvent, Prefilling
from .errors import EndpointUnavailable, PromptTooLong, QueueFull, RoleError, SchemaRefused, WorkerDied, WorkerTimeout
from .worker.wire import WorkerResult

CONNECT_TIMEOUT_S = 5.0
ATTEMPTS = 3  # made by the openai package, with jitter, before a response begins
RESPONSE_LIMIT_BYTES = 64 << 20  # 131k tokens at 400 bytes of event each, and some
EVENT_LIMIT_BYTES = 1 << 20
_LOGPROBS = {"logprobs": True, "top_logprobs": 10}  # Source: mlx_lm.server takes 11 at most, vLLM and OpenAI 20
PROBE_TOKENS = 512  # enough for a model that thinks first
_NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}  # vLLM, mlx_lm.server, llama.cpp

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
        self._slots = anyio.Semaphore(settings.concurrency)
        self._probing = anyio.Lock()
        self._known: Capabilities | None = None
        self._client: Any = None
        self._http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),  # silence is watched here, in `_answered`
            follow_redirects=False,
            trust_env=not settings.loopback,  # a proxy has no business with a server on this machine
            event_hooks={"request": [self._strip], "response": [_bound]},
        )

    async def capabilities(self) -> Capabilities:
        """What the server can do: tried at the first call, and again after it failed.

        Raises:
            EndpointUnavailable: not there, no such model, a key it does not take, or the `openai` package is missing.
        """
        async with self._probing:
            if self._known is None:
                self._connect()
                self._known = await self._probe()
                _log.info("endpoint_probed", endpoint=self.name, model=self.model, **asdict(self._known))
            return self._known

    async def generate(
        self, request: GenerationRequest, thinks: bool, thinking_budget: int | None, on_event: OnEvent | None = None
    ) -> WorkerResult:
        """One generation; cancelling the awaiting task closes the connection.

        `request.timeout_s` counts from when the request is sent. A thinking budget of 0 switches thinking off where the
        server can; others are not enforced. Token counts are the server's, or estimates where it gives none.

        Raises:
            EndpointUnavailable: before the first token; another engine may do it.
            SchemaRefused: a schema where none is enforced, a regex, or a request that the server calls invalid. Whether
                the answer kept to a schema is not checked here.
            PromptTooLong, QueueFull, WorkerTimeout (no token in time), WorkerDied (cut off in the answer).
        """
        async with self._slot(request.deadline_s):
            can = await self.capabilities()
            estimate = sum(len(message.content.encode("utf-8", "replace")) for message in request.messages) // 4
            if request.regex is not None:
                raise self._refused("a regex cannot be enforced", "the API has no place for one")
            if request.json_schema is not None and not can.schema:
                raise self._refused("JSON Schemas are not enforced", "prose in answer to a schema, when it was tried")
            self._check_length(request, can, estimate)
            stream = ChatStream(on_event, thinks and thinking_budget != 0)
            if on_event:
                on_event(Prefilling(0, estimate))
            timed_out = await self._answered(_body(request, can, thinking_budget), stream, request.timeout_s)
        if not stream.usage:
            _log.info("endpoint_tokens_estimated", endpoint=self.name)
        result = stream.result(timed_out, estimate)
        self._check_length(request, can, result.prompt_tokens)  # a server may have cut the prompt without a word
        return result

    async def score(self, messages: Sequence[Message], labels: Sequence[str]) -> tuple[float, ...]:
        """Natural log-probability of each label as the first token of the answer.

        A label that is not among the most probable tokens gets the most that it can have.

        Raises:
            EndpointUnavailable.
            SchemaRefused: no log-probabilities, or a label of several tokens that could be the best.
        """
        async with self._slot(None):
            can = await self.capabilities()
            if not can.logprobs:
                raise self._refused("labels cannot be scored", "no log-probabilities in its answers")
            body = _body(GenerationRequest(messages=tuple(messages), max_tokens=1), can, thinking_budget=0)
            top = _top(await self._whole(body | _LOGPROBS))
        best = max((value for text, value in top if text in labels), default=-math.inf)
        least = min((value for _, value in top), default=0.0)
        scores = []
        for label in labels:
            score = max((value for text, value in top if text == label), default=-math.inf)
            if score == -math.inf:  # its first token is not in the list, or one there that begins it
                score = max([least, *(value for text, value in top if text and label.startswith(text))])
                if score >= best:
                    raise self._refused(f"the label {label!r} cannot be scored", "it is none of the likely tokens")
            scores.append(score)
        return tuple(scores)

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
            api_key="none", base_url=self._settings.url, max_retries=ATTEMPTS - 1, http_client=self._http
        )

    @property
    def _key(self) -> str:
        return os.environ.get(self._settings.api_key_env or "", "")

    async def _strip(self, request: httpx2.Request) -> None:
        """The openai package adds headers about this machine and from OPENAI_* variables: not the server's business."""
        for name in set(request.headers) - {"host", "content-type", "content-length", "connection"}:
            del request.headers[name]
        request.headers["Accept-Encoding"] = "identity"
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"

    async def _probe(self) -> Capabilities:
        context = await self._context()
        question = {"role": "user", "content": "Name the capital of France in one word of plain text, without JSON."}
        body: dict[str, Any] = {"messages": [question], "temperature": 0}
        for extras in (_penalty(1.1) | _NO_THINKING, {}):
            for logprobs in (_LOGPROBS, {}):
                try:
                    reply = await self._whole(body | extras | logprobs | {"max_tokens": 1})
                except SchemaRefused:
                    continue
                return Capabilities(context, await self._enforces(body | extras), bool(_top(reply)), bool(extras))
        raise self._error(f"refuses a plain request to the model {self.model!r}", "status 400")

    async def _enforces(self, body: dict[str, Any]) -> bool:
        """Whether an answer is what a schema demands and the question does not."""
        word = secrets.token_hex(4)
        of_word = {"type": "string", "enum": [word]}
        schema = {
            "type": "object",
            "properties": {"word": of_word},
            "required": ["word"],
            "additionalProperties": False,
        }
        answer = ""

        def no_prose(event: Event) -> None:
            nonlocal answer
            answer += event.text if isinstance(event, Generated) and event.channel == "answer" else ""
            if answer.lstrip()[:1] not in ("", "{"):
                raise LookupError("prose")  # which ends the stream: it may be a long one

        try:
            await self._answered(
                body | _format(schema) | {"max_tokens": PROBE_TOKENS}, ChatStream(no_prose, False), None
            )
            return bool(json.loads(answer) == {"word": word})
        except (SchemaRefused, ValueError, LookupError):
            return False

    async def _context(self) -> int | None:
        """The context length, where one of the known places says it."""
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
            except (httpx2.RequestError, ValueError, AttributeError, TypeError):
                continue  # not this kind of server
            context = context or next((length for length in mine if isinstance(length, int)), None)
        return context

    # Sending.

    @asynccontextmanager
    async def _slot(self, deadline_s: float | None) -> AsyncIterator[None]:
        with anyio.move_on_after(deadline_s) as patience:
            await self._slots.acquire()
        if patience.cancelled_caught:
            advice = f"{self._settings.concurrency} requests at once are allowed. Try again later."
            raise self._error("has no free place", f"none in {deadline_s} s", advice, QueueFull)
        try:
            yield
        finally:
            self._slots.release()

    async def _answered(self, body: dict[str, Any], stream: ChatStream, timeout_s: float | None) -> bool:
        """Fill the stream; True where the time ran out in the answer."""
        end_s = anyio.current_time() + (timeout_s or math.inf)
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        held = b""
        with anyio.CancelScope() as scope:
            scope.deadline = min(end_s, anyio.current_time() + self._settings.timeout_s)
            async with self._sent(body, stream) as response:
                async for chunk in response.aiter_bytes():
                    scope.deadline = min(end_s, anyio.current_time() + self._settings.timeout_s)
                    *lines, held = (held + chunk).split(b"\n")
                    if len(held) > EVENT_LIMIT_BYTES:
                        raise ValueError(f"an event of more than {EVENT_LIMIT_BYTES >> 20} MiB")
                    for line in lines:
                        if line.strip() == b"data: [DONE]":
                            stream.ended = stream.ended or "stop"
                            return False
                        if line.startswith(b"data:"):
                            stream.take(line[5:])
                if not stream.ended:
                    raise ValueError("an answer without an end")
        if scope.cancelled_caught and not stream.tokens:
            raise self._error("made no token in time", "nothing yet", "Raise timeout_s or ask for less.", WorkerTimeout)
        return scope.cancelled_caught

    async def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """The one choice of an answer that is not streamed."""
        try:
            with anyio.fail_after(self._settings.timeout_s):
                async with self._sent(body) as response:
                    return dict(json.loads(await response.aread())["choices"][0])
        except TimeoutError:
            raise self._error("did not answer in time", f"nothing in {self._settings.timeout_s} s") from None
        except (TypeError, LookupError):
            raise self._error("does not speak the OpenAI API", "JSON that is no chat completion") from None

    @asynccontextmanager
    async def _sent(self, body: dict[str, Any], stream: ChatStream | None = None) -> AsyncIterator[Any]:
        """The response, while it is read. All that can go wrong there comes out as one of ours."""
        import openai

        fields = {"model": self.model, "messages": body["messages"], "extra_body": {"stream": False, **body}}
        try:  # of the package's stream only the response is used: its parser holds lines of any length
            async with await self._client.chat.completions.create(**fields, stream=True) as answer:
                yield answer.response
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except (openai.APIConnectionError, httpx2.RequestError, ValueError) as error:
            self._known = None
            cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
            found = str(cause) if isinstance(cause, ValueError) else f"the connection broke ({type(cause).__name__})"
            if stream is not None and stream.tokens:
                raise self._error("broke off in its answer", found, kind=WorkerDied) from None
            raise self._error("did not answer", found) from None

    # What is said when it fails.

    def _refusal(self, error: Any) -> RoleError:
        """What a status other than 2xx means; of its body only names are shown, since it may quote the request."""
        status, text = int(error.status_code), f"{error.code} {error.message}".lower()
        names = [
            name for name in (error.code, error.type, error.param) if isinstance(name, str) and name.isidentifier()
        ]
        found = " ".join([f"status {status}", *names])
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
            raise PromptTooLong(
                f"The prompt is too long for the endpoint {self.name!r}.",
                found=f"about {prompt_tokens} tokens and {request.max_tokens} for the answer",
                allowed=f"{can.context_length} tokens together",
                advice="Send less text, summarize it first, or use a role with a larger context.",
            )


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


def _top(choice: dict[str, Any]) -> list[tuple[str, float]]:
    """The most probable first tokens; mlx_lm.server writes their spaces as the vocabulary does. Empty without."""
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        return [(str(t["token"]).replace("Ġ", " ").replace("▁", " ").strip(), float(t["logprob"])) for t in top]
    except (TypeError, LookupError, ValueError):
        return []


async def _bound(response: httpx2.Response) -> None:
    if "content-encoding" in response.headers:  # not asked for, and without a bound once it is unpacked
        raise ValueError("a compressed answer")
    response.stream = _Bounded(response.stream)


class _Bounded(httpx2.AsyncByteStream):
    """A body of at most RESPONSE_LIMIT_BYTES."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = RESPONSE_LIMIT_BYTES
        async for chunk in self._stream:
            left -= len(chunk)
            if left < 0:
                raise ValueError(f"an answer of more than {RESPONSE_LIMIT_BYTES >> 20} MiB")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
