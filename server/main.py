"""The `rolecall` command: `serve` over stdio becomes the shim before anything heavy is imported."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line in `sys.argv` and return its exit code."""
    if sys.argv[1:2] == ["serve"] and not any(word.partition("=")[0] == "--http" for word in sys.argv[2:]):
        from rolecall.server.shim import serve

        return serve(sys.argv[2:])
    from rolecall.server.cli.app import main as command_line

    return command_line(sys.argv[1:])
