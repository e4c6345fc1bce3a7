"""The classifier alone: registers, languages and typing errors, near neighbours, documents, cost, determinism."""

from __future__ import annotations

import time

import numpy as np
import pytest

from rolecall.server.routing.classify import BUCKETS, TYPES, classify, load_weights, ngrams
from rolecall.server.routing.contract import TaskType
from rolecall.server.routing.signals import load_rules, read

from .requests import examples

REPORT = (
    "The ferry to Stenby was taken out of service on Monday because of a broken shaft. Passengers were sent by bus. "
    "The operator expects the spare part within ten days and has asked the islanders for patience. " * 4
)


def best(text: str) -> TaskType:
    scores, _ = classify(read(text), None)
    return max(scores, key=lambda kind: scores[kind])


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("Please condense this for me:\n", "", TaskType.SUMMARIZATION),
        ("", "\n\nGive me the gist.", TaskType.SUMMARIZATION),
        ("", "\n\nTranslate this into Spanish.", TaskType.GENERAL),
        ("", "\n\nClaim: the ferry sank.\nDoes the report support the claim?", TaskType.VALIDATION),
        ("Write a Python function that counts the words of a text such as this: ", "", TaskType.CODING),
        ("Extract all names of places: ", "", TaskType.GENERAL),
    ],
)
def test_the_instruction_decides_and_not_the_document(before: str, after: str, kind: TaskType) -> None:
    assert best(f"{before}{REPORT}{after}") is kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("what is compound interest", TaskType.GENERAL),
        ("compound interest on 900 at 4% for 3 years", TaskType.TOOL),
        ("how do you convert feet to metres", TaskType.GENERAL),
        ("write a function to convert feet to metres", TaskType.CODING),
        ("is this function correct? def f(x): return x + 1", TaskType.CODING),
        ("is it true that feet are longer than metres", TaskType.VALIDATION),
        ("what does our handbook say about parental leave", TaskType.RETRIEVAL),
        ("summarise our handbook's chapter on parental leave", TaskType.SUMMARIZATION),
        ("Task: check whether the answer is right.\nQuestion: 3 times 4\nAnswer: 13", TaskType.VALIDATION),
        ("plaese sumarize the attached report in two sentences", TaskType.SUMMARIZATION),
        ("Wie viele Minuten haben 5 Stunden?", TaskType.TOOL),
        ("escribe un poema sobre el mar", TaskType.GENERAL),
        ("用Python写一个排序函数", TaskType.CODING),
        ("Prove that the product of two odd numbers is odd.", TaskType.REASONING),
    ],
)
def test_near_neighbours_registers_and_languages(text: str, kind: TaskType) -> None:
    assert best(text) is kind


def test_the_weights_know_every_rule() -> None:
    weights = load_weights()
    assert weights["full"].dense is not None
    assert weights["bare"].dense is None
    for model in weights.values():
        assert set(model.rules) == {rule.name for rule in load_rules()}
        assert model.lexical.shape == (BUCKETS, len(TYPES))


def test_scores_are_probabilities_and_do_not_move_with_an_embedders_last_bits() -> None:
    reading = read("find the clause on late fees")
    vector = np.full(384, 384**-0.5, dtype=np.float32)
    scores, reasons = classify(reading, vector)
    assert sum(scores.values()) == pytest.approx(1.0, abs=1e-3)
    assert len({tuple(classify(reading, vector + np.float32(nudge))[0]) for nudge in (0, 1e-8, -1e-8)}) == 1
    assert "without an embedding" not in " ".join(reasons)
    assert any("without an embedding" in reason for reason in classify(reading, None)[1])


def test_a_long_request_costs_what_a_page_costs() -> None:
    def seconds(text: str) -> float:
        started = time.perf_counter()
        for _ in range(20):
            classify(read(text), None)
        return (time.perf_counter() - started) / 20

    page, book = REPORT * 10, REPORT * 2000
    assert abs(len(ngrams(read(page))) - len(ngrams(read(book)))) < 60
    assert min(seconds(book) for _ in range(3)) < 3 * min(seconds(page) for _ in range(3))


def test_the_requests_are_the_same_every_time_and_none_has_two_types() -> None:
    first, again = ([(row.text, row.kind) for row in examples(2)] for _ in range(2))
    assert first == again
    plain = {row.text.lower(): row.kind for row in examples(1)}
    assert [row.text for row in examples(1) if plain[row.text.lower()] is not row.kind] == []
    assert {row.kind for row in examples(1)} == set(TaskType)
