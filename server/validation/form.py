"""The form of an answer: empty, a refusal, cut off, looping, or an echo of the question."""

from __future__ import annotations

import re
from collections import Counter

from .contract import Check, fault
from .text import MAX_CHARS, words

LOOP_MIN_WORDS = 60
LOOP_DISTINCT = 0.35
"""Share of distinct four-word runs below which the end of a text is a loop; fluent prose has over 0.9."""
_REFUSAL = re.compile(
    r"\W{0,9}(?:(?:i['\u2019]?m sorry|i am sorry|sorry|i apologi[sz]e)\b[^.!?\n]{0,60}?"
    r"\b(?:but|as an ai|i (?:can(?:no|['\u2019])t|could not|am unable|am not|do not|don['\u2019]t))\b"
    r"|unfortunately, i|as an ai"
    r"|i can(?:no|['\u2019])t (?:help|assist|answer|provide|comply)|i am unable|i['\u2019]m unable|i am not able"
    r"|i do not have (?:access|enough|the ability)|i don['\u2019]t have (?:access|enough))",
    re.IGNORECASE,
)
_OPEN_WORDS = "a an the and or but of to in on at by for with from as that which is are was were because if than"
_OPEN_END = frozenset(_OPEN_WORDS.split())


def form_checks(output: str, question: str | None, *, coded: bool = False) -> tuple[Check, ...]:
    """The check `form` (decisive: empty, looping, an echo) and, for prose, `refusal` and `cut_off`.

    `coded`: the output is code or data, whose repetitions and endings mean nothing.
    """
    spoken = words(output)
    found = "" if coded else looping(output)
    if not any(not c.isspace() if coded else c.isalnum() for c in output[:MAX_CHARS]):
        found = "the output is empty"
    elif question and len(spoken) > 3 and spoken == words(question):
        found = "the output only repeats the question"
    form = fault("form", found)
    if found or coded:
        return (form,)
    told = {"refusal": refusal(output), "cut_off": cut_off(output)}
    return (form, *(fault(name, why, decisive=False) for name, why in told.items() if why))


def refusal(output: str) -> str:
    return "the output declines to answer" if _REFUSAL.match(output[:200]) else ""


def looping(output: str) -> str:
    """Where the last 400 words repeat themselves, or one character does, what repeats; else ""."""
    tail = words(output[-4000:])[-400:]
    if len(tail) >= LOOP_MIN_WORDS:
        runs = Counter(zip(tail, tail[1:], tail[2:], tail[3:], strict=False))
        run, count = runs.most_common(1)[0]
        if len(runs) < LOOP_DISTINCT * (len(tail) - 3):
            return f"the output repeats itself: {' '.join(run)!r} stands {count} times at its end"
    end = output.rstrip()[-200:]
    if len(end) == 200 and len(set(end)) == 1:
        return f"the output ends in a run of {end[-1]!r}"
    return ""


def cut_off(output: str) -> str:
    """Why prose seems to end in mid-sentence, or ""."""
    end = output.rstrip()[-400:]
    spoken = words(end)
    if len(spoken) >= 12 and (end.endswith((",", ";", "(", "-")) or (spoken[-1] in _OPEN_END and end[-1].isalpha())):
        return f"the output ends in mid-sentence: {end[-40:]!r}"
    return "a code fence is never closed" if output.count("```") % 2 else ""
