"""What bends one request's logits: repetition penalty, thinking budget, JSON Schema; and how it is sampled."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from llguidance.numpy import fill_next_token_bitmask
from mlx_lm.sample_utils import apply_top_p, greedy_sampler, make_repetition_penalty

from rolecall.roles.contract import GenerationRequest
from rolecall.roles.errors import SchemaRefused

_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
"""One way to write each value: free white space invites a small model to loop in it."""

_COMBINED = {
    "allOf",
    "if",
    "not",
    "$ref",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "unevaluatedProperties",
}


def sampler(request: GenerationRequest) -> Callable[[mx.array], mx.array]:
    """Log-probabilities to tokens. Of a request with a temperature the same seed draws the same way."""
    if request.temperature == 0:
        return greedy_sampler  # type: ignore[no-any-return]
    key = mx.random.key(request.seed % 2**63)

    def draw(logprobs: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        if request.top_p < 1.0:
            logprobs = apply_top_p(logprobs, request.top_p)
        return mx.random.categorical(logprobs * (1.0 / request.temperature), key=now)

    return draw


class Grammars:
    """Requests to matchers for one tokenizer; its table is built at the first use (about 0.5 s)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._table: LLTokenizer | None = None

    def matcher(self, request: GenerationRequest) -> LLMatcher | None:
        """A matcher of its JSON Schema or regex at the start; None without one. Raises SchemaRefused: not one, or with
        a part that cannot be enforced."""
        if request.json_schema is None and request.regex is None:
            return None
        if self._table is None:
            eos = sorted(self._tokenizer.eos_token_ids)
            self._table = from_tokenizer(self._tokenizer._tokenizer, eos_token=eos)
        for form in (_closed, lambda schema: schema):
            try:
                if request.regex is not None:
                    grammar = LLMatcher.grammar_from_regex(request.regex)
                else:
                    schema = json.dumps(form(request.json_schema))
                    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_STYLE)
            except (ValueError, RecursionError):
                raise _refused(request, "nested too deeply") from None
            failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, self._table)
            if not failed:
                return LLMatcher(self._table, grammar, log_level=0)
        raise _refused(request, messages[0])


def _closed(schema: Any) -> Any:
    """The schema with only the named properties in objects that it says no more of: a small model goes on inventing
    others until it is cut off. What is valid under it is valid under the original."""
    if not isinstance(schema, dict) or _COMBINED & schema.keys():  # closing one part might contradict another
        return schema
    closed = dict(schema)
    for key in ("items", "prefixItems", "$defs", "properties", "anyOf", "oneOf"):
        match schema.get(key):
            case dict(one) if key == "items":
                closed[key] = _closed(one)
            case dict(named):
                closed[key] = {name: _closed(each) for name, each in named.items()}
            case list(several) if "properties" not in schema:
                closed[key] = [_closed(each) for each in several]
    names, required = schema.get("properties"), schema.get("required", [])
    known = isinstance(names, dict) and isinstance(required, list) and all(name in [*names] for name in required)
    if names and known and not {"anyOf", "oneOf"} & schema.keys():
        closed.setdefault("additionalProperties", False)
    return closed


def _refused(request: GenerationRequest, reason: str) -> SchemaRefused:
    schema = request.regex is None
    return SchemaRefused(
        f"This {'JSON Schema' if schema else 'regex'} cannot be enforced on the answer.",
        found=" ".join(reason.split())[:300],
        allowed="JSON Schema 2020-12 that llguidance compiles: types, properties, required, enum, const, bounds, "
        "arrays, anyOf, local $ref"
        if schema
        else "the syntax of Rust's regex crate, which has no look-around and no back-references",
        advice="Leave that part out and check it on the result yourself.",
    )


class Steering:
    """One request's logits processor. It never raises, since that would end the whole batch: see `failure`."""

    def __init__(
        self,
        tokenizer: Any,
        matcher: LLMatcher | None,
        penalty: float | None,
        thinking: bool,
        may_think: bool,
        budget: int | None,
    ) -> None:
        self._penalise = make_repetition_penalty(penalty, 64) if penalty and penalty != 1.0 else None
        self._matcher = matcher
        self._thinking, self._budget = thinking, budget
        self._start, self._end = tokenizer.think_start_tokens or (), tokenizer.think_end_tokens or ()
        self._may_open = may_think and not thinking and len(self._start) == 1
        self._eos = tokenizer.eos_token_ids
        self._closing = closing(tokenizer) if (thinking or may_think) and budget is not None else []
        self._forced: deque[int] = deque()
        self._was_forced = False
        self._thought: list[int] = []
        self._called = False
        self.failure: Exception | None = None
        # whether it has to see each token, which costs the overlap of one step with the next
        self._watches = matcher is not None or bool(self._closing)
        self.needed = self._penalise is not None or self._watches

    def __call__(self, context: mx.array, logits: mx.array) -> mx.array:
        if self.failure is not None:
            return logits
        try:
            if self._penalise is not None:
                logits = self._penalise(context, logits)
            return self._steer(context, logits) if self._watches else logits
        except Exception as error:
            self.failure = error
            return logits

    def _steer(self, context: mx.array, logits: mx.array) -> mx.array:
        first, self._called = not self._called, True
        if not first:
            token = int(context[-1].item())
            if token in self._eos:
                return logits  # the batch generator works one step ahead; this step is thrown away
            self._observe(token)
        if self._thinking and self._budget is not None and len(self._thought) >= self._budget and not self._forced:
            self._forced.extend(self._closing)
        if self._forced:
            self._was_forced = True
            only = mx.arange(logits.shape[-1])[None] == self._forced.popleft()
            return mx.where(only, mx.zeros_like(logits), -mx.inf)
        if self._thinking:  # it may not end before there is an answer
            return logits.at[:, mx.array(sorted(self._eos))].add(-mx.inf)
        if self._matcher is None:
            return logits
        return self._masked(self._matcher, logits, also=self._start if first and self._may_open else ())

    def _observe(self, token: int) -> None:
        if self._was_forced:
            self._was_forced = False
            self._thinking = bool(self._forced)
        elif self._thinking:
            self._thought.append(token)
            self._thinking = tuple(self._thought[-len(self._end) :]) != tuple(self._end)
        elif self._may_open and (token,) == tuple(self._start):
            self._thinking = True
        elif self._matcher is not None and not self._matcher.consume_token(token):
            raise RuntimeError(self._matcher.get_error())
        self._may_open = False

    def _masked(self, matcher: LLMatcher, logits: mx.array, also: tuple[int, ...]) -> mx.array:
        size = logits.shape[-1]
        bits = np.zeros((1, -(-size // 32)), np.int32)
        fill_next_token_bitmask(matcher, bits)
        if matcher.is_error():
            raise RuntimeError(matcher.get_error())
        allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[:size].astype(bool)
        allowed[list(also)] = True
        return mx.where(mx.array(allowed)[None], logits, -mx.inf)


def closing(tokenizer: Any) -> list[int]:
    """The tokens that end a thinking section, each side on its own line as the models were trained."""
    if not tokenizer.has_thinking:
        return []
    before, after = (list(tokenizer.encode(text, add_special_tokens=False)) for text in ("\n", "\n\n"))
    return [*before, *tokenizer.think_end_tokens, *after]
