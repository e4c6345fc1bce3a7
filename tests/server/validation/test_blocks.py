"""Python's parser from several threads at once, which `ast.parse` by itself does not stand."""

from __future__ import annotations

import ast
import gc
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from rolecall.server.validation.blocks import parse_python


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Threads change often, also within a parse, as they do where the collector runs somebody's code."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()

    def elsewhere(phase: str, info: dict[str, int]) -> None:
        time.sleep(1e-5)

    sys.setswitchinterval(1e-6)
    gc.set_threshold(50)
    gc.callbacks.append(elsewhere)
    yield
    gc.callbacks.remove(elsewhere)
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


def test_sources_are_parsed_from_many_threads_at_once(restless_threads: None) -> None:
    source, failed = "(a + b) * (c - (d / e)) + " * 20 + "f", list[BaseException]()

    def work() -> None:
        try:
            for _ in range(50):
                assert isinstance(parse_python(source, mode="eval"), ast.Expression)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
