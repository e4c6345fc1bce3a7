"""The events of one streamed chat completion, put together: text and thinking apart, counts, how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import anyio

from .contract import Generated, OnEvent
from .worker.wire import Channel, Finish, WorkerResult

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(slots=True)
class ChatStream:
    """Give it each event's JSON with `take`; then ask for the `result`.

    Thinking is what the server calls so, or what stands in `<think>` tags. `thinks`: the prompt may have opened a
    section, so that only its end is seen. Tokens are counted as events until the server says its own `usage`.
    """

    on_event: OnEvent | None
    thinks: bool
    ended: str = ""
    tokens: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    _began: float = field(default_factory=anyio.current_time)
    _first: float = 0.0
    _thinking_tokens: int = 0
    _state: str = "start"  # start | thinking | assumed (thinking that nobody opened) | answer
    _held: str = ""
    _texts: dict[Channel, str] = field(default_factory=lambda: {"thinking": "", "answer": ""})

    def take(self, data: bytes) -> None:
        """Raises ValueError where it is no chat completion's event, or reports an error."""
        try:
            event = json.loads(data)
            if event.get("error"):
                raise ValueError("an error instead of an answer")
            self.usage = event.get("usage") or self.usage
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                if thought := delta.get("reasoning") or delta.get("reasoning_content"):
                    self._state = "answer"  # the server splits: what it calls content is the answer
                    self._say("thinking", thought, 1)
                if content := delta.get("content"):
                    self._split(content)
                self.ended = choice.get("finish_reason") or self.ended
        except (AttributeError, TypeError, RecursionError, json.JSONDecodeError):
            raise ValueError("something that is no chat completion") from None

    def result(self, timed_out: bool, prompt_tokens: int) -> WorkerResult:
        """What came; `prompt_tokens` where the server gave no usage."""
        finish: Finish = "timeout" if timed_out else "length" if self.ended == "length" else "stop"
        self._say("thinking" if self._state in ("thinking", "assumed") else "answer", self._held, 0)
        if self._state == "assumed" and finish == "stop":  # a whole answer without a closing tag: there was no thinking
            self._texts = {"thinking": "", "answer": self._texts["thinking"]}
            self._thinking_tokens = 0
        now = anyio.current_time()
        prompt, completion = (self.usage.get(f"{kind}_tokens_details") or {} for kind in ("prompt", "completion"))
        return WorkerResult(
            text=self._texts["answer"].strip("\n").rstrip(),
            thinking=self._texts["thinking"].strip(),
            finish=finish,
            prompt_tokens=self.usage.get("prompt_tokens", prompt_tokens),
            completion_tokens=self.usage.get("completion_tokens", self.tokens),
            thinking_tokens=completion.get("reasoning_tokens") or self._thinking_tokens,
            prefill_s=(self._first or now) - self._began,
            decode_s=now - (self._first or now),
            cached_tokens=prompt.get("cached_tokens") or 0,
        )

    def _split(self, text: str) -> None:
        self._held += text
        if self._state == "start":
            start = self._held.lstrip()
            if len(start) < len(_OPEN) and _OPEN.startswith(start):
                return
            self._state = "thinking" if start.startswith(_OPEN) else "assumed" if self.thinks else "answer"
            self._held = start.removeprefix(_OPEN)
        if self._state != "answer":
            thought, closed, answer = self._held.partition(_CLOSE)
            if not closed:
                kept = next((n for n in range(len(_CLOSE) - 1, 0, -1) if thought.endswith(_CLOSE[:n])), 0)
                thought, answer = thought[: len(thought) - kept], thought[len(thought) - kept :]
            self._say("thinking", thought, 1)
            self._held = answer
            if not closed:
                return
            self._state = "answer"
        self._say("answer", self._held, 1)
        self._held = ""

    def _say(self, channel: Channel, text: str, tokens: int) -> None:
        if text:
            self._first = self._first or anyio.current_time()
            self.tokens += tokens
            self._thinking_tokens += tokens * (channel == "thinking")
            self._texts[channel] += text
            if self.on_event:
                self.on_event(Generated(text, channel, self.tokens))
