"""Python's own parser, for code and for sums."""

from __future__ import annotations

import ast
import threading
import warnings

_one_at_a_time = threading.Lock()
"""CPython 3.11 and 3.12 count the depth of what `ast.parse` builds for all threads together, and may raise SystemError.
Source: https://github.com/python/cpython/issues/106905. `catch_warnings` is for one thread as well."""


def parse_python(source: str, mode: str = "exec") -> ast.AST:
    """The tree of a source text, from any thread.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: as `ast.parse`.
    """
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source, mode=mode)
