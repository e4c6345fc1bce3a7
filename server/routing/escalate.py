"""Where the classifier is unsure of the task type, the router model says: letters are scored, nothing is generated.

`config/routing/thresholds.yaml` says below which confidence of each type that is, and in which profiles it is done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import anyio
import structlog

from rolecall.config.models import packaged
from rolecall.config.prompts import document, prompt
from rolecall.roles.contract import Message, Role, RoleModels
from rolecall.roles.errors import RoleError

from .contract import TaskType

_log = structlog.get_logger(__name__)

LETTERS = "ABCDEFG"
MEANINGS = {
    TaskType.TOOL: "an exact value from a program: arithmetic, units, dates, the state of this computer or its files",
    TaskType.VALIDATION: "a check of a claim, answer, statement or text that it gives: is it true, right, supported",
    TaskType.SUMMARIZATION: "a shorter version of a text: a summary, key points, minutes, a headline",
    TaskType.CODING: "program code, a query, a script or a command, to write, explain, mend or test",
    TaskType.RETRIEVAL: "what the user's own documents, notes, mail, policies or reports say, not given here",
    TaskType.REASONING: "a problem solved in several steps: mathematics, logic, planning, diagnosis, analysis",
    TaskType.GENERAL: "talk, a known fact, a definition, advice, creative writing, rewriting or translation",
}
HEAD_CHARS, TAIL_CHARS = 1200, 600
"""What of a longer request is shown."""
_PATIENCE_S = 60.0
_SHARE = 0.25
"""How much of a call's deadline the vote may take, since the answer is still to come."""
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Thresholds:
    """`below`: the confidence of each type under which the classifier abstains; `profiles` in which a model is asked
    then, unless the caller says."""

    below: dict[TaskType, float]
    profiles: frozenset[str]


@cache
def load_thresholds() -> Thresholds:
    """The packaged `thresholds.yaml`; its figures on each line are there to be read."""
    held = packaged("routing/thresholds.yaml")
    below = {kind: float(held["types"][kind]["below"]) for kind in TaskType}
    return Thresholds(below, frozenset(name for name, each in held["escalates"].items() if each["helps"]))


async def vote(models: RoleModels, text: str, deadline_s: float | None = None) -> dict[TaskType, float] | str:
    """The router model's probabilities of the seven types, rounded to 4 digits; or in words why there are none.

    Seven prompts that begin alike are scored one after the other, so that each type has each letter once; the mean
    log-probability over them holds no preference for a letter or a place, nor what a request says of letters.
    `deadline_s` is the whole call's, of which a quarter is spent here at most (None: a minute).
    """
    patience_s = _PATIENCE_S if deadline_s is None else min(_PATIENCE_S, _SHARE * deadline_s)
    totals = dict.fromkeys(TaskType, 0.0)
    try:
        with anyio.fail_after(patience_s):
            for turn in range(len(LETTERS)):
                lettered = rotated(turn)
                scores = await models.score_labels(Role.ROUTER, ballot(text, lettered), LETTERS)
                for kind, score in zip(lettered, scores, strict=True):
                    totals[kind] += score / len(LETTERS)
    except TimeoutError:
        return f"the router model did not answer within {patience_s:.2g} s"
    except RoleError as error:
        _log.warning("escalation_failed", code=error.code)
        return f"the router model could not be asked ({error.code})"
    return normalised(totals)


def rotated(turn: int) -> tuple[TaskType, ...]:
    """The types in the order of their letters at the given turn."""
    kinds = tuple(TaskType)
    return kinds[turn:] + kinds[:turn]


def ballot(text: str, lettered: tuple[TaskType, ...]) -> tuple[Message, ...]:
    """What the types mean, the request as data, and last, where alone the turns differ, the letters."""
    if len(text) > HEAD_CHARS + TAIL_CHARS:
        text = f"{text[:HEAD_CHARS]}\n[...]\n{text[-TAIL_CHARS:]}"
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\x00", " ")
    system, user = prompt("task-type").render(
        kinds="\n".join(f"{kind}: {meaning}" for kind, meaning in MEANINGS.items()),
        request=document(text, "request"),
        letters="\n".join(f"{letter}. {kind}" for letter, kind in zip(LETTERS, lettered, strict=True)),
    )
    return Message(role="system", content=system), Message(role="user", content=user)


def normalised(logarithms: dict[TaskType, float]) -> dict[TaskType, float] | str:
    """Probabilities of log-probabilities that need not sum to one."""
    if not all(map(math.isfinite, logarithms.values())):
        return "the router model's scores are not finite"
    top = max(logarithms.values())
    raised = {kind: math.exp(value - top) for kind, value in logarithms.items()}
    return {kind: round(value / sum(raised.values()), _DIGITS) for kind, value in raised.items()}
