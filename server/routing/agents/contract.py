"""What the deterministic agents are given, and the shape of a parse."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from rolecall.retrieval.contract import IndexState
from rolecall.roles.contract import Resident

Parse: TypeAlias = list["Parse | str"]
"""A parsed request: an operation's name, then its operands, each a string or a parse. Claims hold it as JSON."""


@dataclass(frozen=True, slots=True)
class AgentContext:
    """What agents may look at when they compute.

    `now` is aware, in the user's time zone. `index` is None where nothing is indexed. Files are counted only under
    `allowed_folders`.
    """

    now: datetime
    resident: tuple[Resident, ...] = ()
    index: IndexState | None = None
    allowed_folders: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Value:
    """A computed value and how it came about, both plain text."""

    text: str
    working: str
