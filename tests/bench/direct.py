"""mlx-lm called directly, in a process of its own, with the matrix library that workers get: the peer of `call`.

Reads one JSON request a line, answers with one JSON line: milliseconds per token, seconds to the first, and the text.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from rolecall.roles.worker.blas import load_fast_blas

load_fast_blas()  # before anything imports mlx

from mlx_lm import load, stream_generate  # noqa: E402
from mlx_lm.generate import BatchGenerator  # noqa: E402


def main() -> None:
    model, tokenizer = load(sys.argv[1])[:2]
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        start = time.perf_counter()
        prompt = tokenizer.apply_chat_template(asked["messages"], add_generation_prompt=True)
        tokens = (_stream if asked["engine"] == "stream" else _batch)(model, tokenizer, prompt, asked["max_tokens"])
        times, text = [], ""
        for piece in tokens:
            times.append(time.perf_counter() - start)
            text += piece
        answer = {
            "first_token_s": times[0],
            "per_token_s": (times[-1] - times[0]) / (len(times) - 1),
            "tokens": len(times),
            "text": text,
        }
        print(json.dumps(answer), flush=True)


def _stream(model: Any, tokenizer: Any, prompt: list[int], max_tokens: int) -> Any:
    for response in stream_generate(model, tokenizer, prompt, max_tokens=max_tokens):
        yield response.text


def _batch(model: Any, tokenizer: Any, prompt: list[int], max_tokens: int) -> Any:
    generator = BatchGenerator(model, stop_tokens=[(token,) for token in tokenizer.eos_token_ids])
    generator.insert([prompt], max_tokens=[max_tokens])
    detokenizer = tokenizer.detokenizer
    detokenizer.reset()
    finished = None
    while finished is None:
        for response in generator.next()[1]:
            finished = response.finish_reason
            if finished != "stop":
                detokenizer.add_token(response.token)
                yield detokenizer.last_segment
    detokenizer.finalize()
    yield detokenizer.last_segment


if __name__ == "__main__":
    main()
