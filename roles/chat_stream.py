"""The events of one streamed chat completion, put together: text and thinking apart, counts, how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio

from .contract import Channel, EngineResult, Finish, Generated, OnEvent, tell

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(slots=True)
class ChatStream:
    """Give it each event with `take`; then ask for the `result`.

    Thinking is what the server calls so, or what stands in `<think>` tags. `thinks`: the prompt may have opened a
    section, so that only its end is seen. Tokens are counted as events until the server says its own `usage`.
    """

    on_event: OnEvent | None
    thinks: bool
    ended: str = ""
    tokens: int = 0
    usage: Any = None
    texts: dict[Channel, str] = field(default_factory=lambda: {"thinking": "", "answer": ""})
    _began: float = field(default_factory=anyio.current_time)
    _first: float = 0.0
    _thinking_tokens: int = 0
    _state: str = "start"  # start | thinking | assumed (thinking that nobody opened) | answer
    _held: str = ""

    def take(self, event: Any) -> None:
        """A `ChatCompletionChunk`, of which the openai package has checked nothing: TypeError, AttributeError."""
        self.usage = event.usage or self.usage
        for choice in event.choices or ():
            thought = getattr(choice.delta, "reasoning", None) or getattr(choice.delta, "reasoning_content", None)
            if thought:
                self._state = "answer"  # the server splits: what it calls content is the answer
                self.tokens += 1
                self._thinking_tokens += 1
                self._say("thinking", thought)
            if content := getattr(choice.delta, "content", None):
                self._split(content)
                self._thinking_tokens += self._state in ("thinking", "assumed")
            self.ended = choice.finish_reason or self.ended

    def result(self, prompt_tokens: int) -> EngineResult:
        """What came; `prompt_tokens` where the server gave no usage."""
        finish: Finish = "timeout" if self.ended == "timeout" else "length" if self.ended == "length" else "stop"
        self._say("thinking" if self._state in ("thinking", "assumed") else "answer", self._held)
        if self._state == "assumed" and finish == "stop":  # a whole answer without a closing tag: there was no thinking
            self.texts = {"thinking": "", "answer": self.texts["thinking"]}
            self._thinking_tokens = 0
        now, usage = anyio.current_time(), self.usage
        prompt, completion = (getattr(usage, f"{kind}_tokens_details", None) for kind in ("prompt", "completion"))
        return EngineResult(
            text=self.texts["answer"].strip("\n").rstrip(),
            thinking=self.texts["thinking"].strip(),
            finish=finish,
            prompt_tokens=getattr(usage, "prompt_tokens", None) or prompt_tokens,
            completion_tokens=getattr(usage, "completion_tokens", None) or self.tokens,
            thinking_tokens=getattr(completion, "reasoning_tokens", None) or self._thinking_tokens,
            prefill_s=(self._first or now) - self._began,
            decode_s=now - (self._first or now),
            cached_tokens=getattr(prompt, "cached_tokens", None) or 0,
        )

    def _split(self, text: str) -> None:
        self._held += text
        self.tokens += 1
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
            self._say("thinking", thought)
            self._held = answer
            if not closed:
                return
            self._state = "answer"
        self._say("answer", self._held)
        self._held = ""

    def _say(self, channel: Channel, text: str) -> None:
        if text:
            self._first = self._first or anyio.current_time()
            self.texts[channel] += text
            tell(self.on_event, Generated(text, channel, self.tokens))
