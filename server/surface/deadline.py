"""How long a call may take before it goes on as a job: less than the client waits. docs/surface.md has the table."""

from __future__ import annotations

SHORT_S = 50.0
"""Under the 60 s of the TypeScript SDK's clients, which most are."""

LONG_S = 600.0
RESET_BY_PROGRESS = frozenset({"claude-code", "opencode"})
"""Clients whose clock starts anew at each progress message that they ask for.

Source: https://github.com/vfarcic/dot-ai/pull/708, https://github.com/anomalyco/opencode/pull/21701.
"""

OWN_LIMIT_S = {"Visual Studio Code": 240.0, "Visual Studio Code - Insiders": 240.0}
"""Clients with a longer limit of their own, progress or not.

Source: https://github.com/microsoft/vscode/issues/261734 (five minutes).
"""


def call_deadline_s(client: str, progress: bool) -> float:
    """Seconds for a call of the client of this name, which wants progress messages or not."""
    if progress and client in RESET_BY_PROGRESS:
        return LONG_S
    return OWN_LIMIT_S.get(client, SHORT_S)
