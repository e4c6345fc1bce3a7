"""Whether an answer's sentences are borne out by the passages that they cite: each for itself, by rule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .contract import Check, Verdict, said
from .evidence import evidence_checks
from .text import content
from .verdict import combine

ATTRIBUTION = 0.6
"""Share of a sentence's content words that a passage must hold to be cited for it where the model cited nothing."""

UNCONFIRMED = "(unconfirmed)"
"""Stands after a sentence whose passage neither bears it out nor contradicts it, as far as words can tell."""

_CITED = re.compile(r"[ \t]*\[(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)\]")
_SENTENCE = re.compile(
    r".+?(?:[.!?]+[\"'\u201d\u2019)]*(?:[ \t]*\[[\d ,;]+\])*(?=\s)|[\u3002\uff01\uff1f]+(?:\[[\d ,;]+\])*|\n|\Z)",
    re.DOTALL,
)
_ABBREVIATED = re.compile(r"(?:^|[\s(])(?:\w|(?:\w\.)+\w|Dr|Mr|Mrs|Ms|Prof|St|Nr|No|vs|cf|ca|approx|bzw|usw)\.$")
_END = re.compile(r"[.!?\u3002\uff01\uff1f]*\Z")


@dataclass(frozen=True, slots=True)
class Cited:
    """A sentence without its citations, the numbers of the passages that it cites, and what their words say of it."""

    text: str
    numbers: tuple[int, ...]
    verdict: Verdict

    def shown(self, renumbered: Sequence[int]) -> str:
        """The sentence with its citations before its full stop; passage n is [k] where n is the k-th of these."""
        end = _END.search(self.text)
        assert end is not None
        cites = "".join(f"[{renumbered.index(number) + 1}]" for number in self.numbers)
        mark = f" {UNCONFIRMED}" if self.verdict is Verdict.ABSTAIN else ""
        return f"{self.text[: end.start()]} {cites}{mark}{end.group()}"


def cited_sentences(answer: str, texts: Sequence[str], question: str) -> tuple[Cited, ...]:
    """The answer's sentences, each checked against what it cites of `texts` ([1] is the first).

    One that cites nothing gets the passage that it rests on; one whose passage contradicts it gets another that bears
    it out, where there is one. What then still cites nothing, or a passage that is none, is unsupported.
    """
    return tuple(_checked(text, numbers, texts, question) for text, numbers in _sentences(answer))


def citations_check(sentences: Sequence[Cited], count: int) -> Check:
    """Decisive unless all that is left is undecided: an answer from passages has a sentence that they bear out."""
    kept = [each for each in sentences if each.verdict is not Verdict.UNSUPPORTED]
    verdict = Verdict.SUPPORTED if any(each.verdict is Verdict.SUPPORTED for each in kept) else Verdict.ABSTAIN
    detail = f"{len(kept)} of {len(sentences)} sentences rest on a passage that they cite, of [1] to [{count}]"
    return said("citations", verdict if kept else Verdict.UNSUPPORTED, detail)


def _sentences(answer: str) -> list[tuple[str, tuple[int, ...]]]:
    """Sentences with the numbers cited in each. What claims nothing ("Yes.", "In short:") belongs to the next one."""
    found = list[tuple[str, tuple[int, ...]]]()
    held = ""
    for match in _SENTENCE.finditer(answer):
        held += match.group()
        bare = " ".join(_CITED.sub("", held).split())
        if content(bare) and bare[-1] != ":" and not _ABBREVIATED.search(held):
            found.append((bare, _numbers(held)))
            held = ""
    if rest := " ".join(_CITED.sub("", held).split()):
        found.append((rest, _numbers(held)))
    elif found:  # citations alone, on a line of their own
        found[-1] = found[-1][0], tuple(dict.fromkeys((*found[-1][1], *_numbers(held))))
    return found


def _numbers(text: str) -> tuple[int, ...]:
    groups = (re.findall(r"\d+", group) for group in _CITED.findall(text))
    return tuple(dict.fromkeys(int(number) for group in groups for number in group))


def _checked(text: str, numbers: tuple[int, ...], texts: Sequence[str], question: str) -> Cited:
    numbers = numbers or _rests_on(text, texts)
    known = all(1 <= number <= len(texts) for number in numbers)
    first = _against(text, numbers, texts, question) if numbers and known else Cited(text, numbers, Verdict.UNSUPPORTED)
    if first.verdict is not Verdict.UNSUPPORTED:
        return first
    others = (_against(text, (number,), texts, question) for number in range(1, len(texts) + 1))
    return next((other for other in others if other.verdict is Verdict.SUPPORTED), first)


def _against(text: str, numbers: tuple[int, ...], texts: Sequence[str], question: str) -> Cited:
    evidence = tuple(texts[number - 1] for number in numbers)
    return Cited(text, numbers, combine(evidence_checks(text, evidence, question)).verdict)


def _rests_on(sentence: str, texts: Sequence[str]) -> tuple[int, ...]:
    words = set(content(sentence))
    shared = [len(words.intersection(content(text))) for text in texts]
    best = max(shared, default=0)
    return (shared.index(best) + 1,) if words and best >= ATTRIBUTION * len(words) else ()
