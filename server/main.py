"""The `rolecall` command: `serve` over stdio becomes the shim before anything heavy is imported."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line in `sys.argv` and return its exit code."""
    named = {word.partition("=")[0] for word in sys.argv[2:]}
    if sys.argv[1:2] == ["serve"] and not named & {"--http", "--help", "-h"}:
        from rolecall.server.shim import serve

        return serve(sys.argv[2:])
    from rolecall.server.cli.app import main as command_line

    return command_line(sys.argv[1:])
