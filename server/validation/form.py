"""The form of an answer: empty, a refusal, cut off, looping, an echo of the question, or in another script."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from .contract import Check, Verdict
from .text import MAX_CHARS, words

LOOP_MIN_WORDS = 60
LOOP_DISTINCT = 0.35
"""Share of distinct four-word runs below which the end of a text is a loop; fluent prose has over 0.9."""
_REFUSAL = re.compile(
    r"\W{0,9}(?:i['\u2019]?m sorry|i am sorry|sorry,|i apologi[sz]e|unfortunately, i|as an ai"
    r"|i can(?:no|['\u2019])t (?:help|assist|answer|provide|comply)|i am unable|i['\u2019]m unable|i am not able"
    r"|i do not have (?:access|enough|the ability)|i don['\u2019]t have (?:access|enough))",
    re.IGNORECASE,
)
_OPEN_WORDS = "a an the and or but of to in on at by for with from as that which is are was were because if than"
_OPEN_END = frozenset(_OPEN_WORDS.split())
_TRANSLATION = re.compile(
    r"translat|\u00fcbersetz|traduc|traduis|in (?:english|german|french|spanish|chinese|japanese|russian)",
    re.IGNORECASE,
)


def form_checks(output: str, question: str | None, *, coded: bool = False) -> tuple[Check, ...]:
    """The check `form` (decisive: empty, looping, an echo) and, for prose, `refusal`, `cut_off`, `script`.

    `coded`: the output is code or data, whose repetitions and endings mean nothing.
    """
    said = words(output)
    fault = ""
    if not any(character.isalnum() for character in output[:MAX_CHARS]):
        fault = "the output is empty"
    elif not coded and (loop := looping(output)):
        fault = loop
    elif question and len(said) > 3 and said == words(question):
        fault = "the output only repeats the question"
    form = Check(
        name="form",
        verdict=Verdict.UNSUPPORTED if fault else Verdict.ABSTAIN,
        decisive=bool(fault),
        detail=fault or "no fault of form",
    )
    if fault or coded:
        return (form,)
    told = {"refusal": refusal(output), "cut_off": cut_off(output), "script": other_script(output, question or "")}
    seen = (Check(name=n, verdict=Verdict.UNSUPPORTED, decisive=False, detail=d) for n, d in told.items() if d)
    return (form, *seen)


def refusal(output: str) -> str:
    return "the output declines to answer" if _REFUSAL.match(output[:200]) else ""


def looping(output: str) -> str:
    """Where the last 400 words repeat themselves, or one character or line does, what repeats; else ""."""
    tail = words(output[-4000:])[-400:]
    if len(tail) >= LOOP_MIN_WORDS:
        runs = Counter(zip(tail, tail[1:], tail[2:], tail[3:], strict=False))
        run, count = runs.most_common(1)[0]
        if len(runs) < LOOP_DISTINCT * (len(tail) - 3):
            return f"the output repeats itself: {' '.join(run)!r} stands {count} times at its end"
    lines = [line.strip() for line in output[-8000:].splitlines() if line.strip()]
    if len(lines) >= 6 and len(set(lines[-6:])) == 1 and any(c.isalnum() for c in lines[-1]):
        return f"the output repeats one line: {lines[-1][:60]!r}"
    end = output.rstrip()[-200:]
    if len(end) == 200 and len(set(end)) == 1:
        return f"the output ends in a run of {end[-1]!r}"
    return ""


def cut_off(output: str) -> str:
    """Why prose seems to end in mid-sentence, or ""."""
    end = output.rstrip()[-400:]
    said = words(end)
    if len(said) >= 12 and (end.endswith((",", ";", "(", "-")) or (said[-1] in _OPEN_END and end[-1].isalpha())):
        return f"the output ends in mid-sentence: {end[-40:]!r}"
    return "a code fence is never closed" if output.count("```") % 2 else ""


def other_script(output: str, question: str) -> str:
    """Where question and output are mostly in different scripts (and no translation is asked for), which."""
    asked, said = _script(question), _script(output)
    if not asked or not said or asked == said or {asked, said} <= {"CJK", "HIRAGANA", "KATAKANA"}:
        return ""
    return (
        ""
        if _TRANSLATION.search(question[:2000])
        else f"the question is in {asked.title()} script, the output in {said.title()}"
    )


def _script(text: str) -> str:
    names = Counter(unicodedata.name(c, "?").split()[0] for c in text[:2000] if c.isalpha())
    script, count = names.most_common(1)[0] if names else ("", 0)
    return script if count >= 8 and count > 0.6 * names.total() else ""
