"""The search suites' figures by hand, and data that is not what it should be."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rolecall.server.errors import BadRequest
from rolecall.server.evaluation.score import Verdict
from rolecall.server.evaluation.suites import abstention, retrieval
from rolecall.server.evaluation.suites.retrieval import ndcg, recall, reciprocal_rank


def beir(folder: Path, documents: int = 8) -> Path:
    """As many documents as queries, each query's own the relevant one; the last query has none."""
    folder.mkdir()
    rows = [{"_id": f"d/{n}", "title": f"T {n}", "text": f"text {n}", "metadata": {}} for n in range(documents)]
    asked = [{"_id": n, "text": f"question {n}", "answers": []} for n in range(documents + 1)]
    for name, lines in {"corpus": rows, "queries": asked}.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    judged = [f"{n}\td/{n}\t2\n{n}\td/{(n + 1) % documents}\t0\n" for n in range(documents)]
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    return folder


def test_gain_counts_as_it_is_and_rank_by_its_logarithm() -> None:
    gains = {"a": 3, "b": 1}
    assert ndcg(["a", "b"], gains, 10) == 1.0
    assert ndcg(["x", "b", "a"], gains, 10) == pytest.approx((1 / math.log2(3) + 3 / 2) / (3 + 1 / math.log2(3)))
    assert ndcg(["x"] * 10 + ["a"], gains, 10) == ndcg([], gains, 10) == 0.0
    assert recall(["x", "b"], gains, 10) == 0.5
    assert recall(["x", "b"], gains, 1) == 0.0
    assert (reciprocal_rank(["x", "b"], gains, 10), reciprocal_rank(["x"], gains, 10)) == (0.5, 0.0)


def test_queries_without_a_relevant_document_are_left_out_and_a_limit_takes_evenly(tmp_path: Path) -> None:
    folder = beir(tmp_path / "set")
    data = retrieval.load(folder)
    assert [query.id for query in data.queries] == [str(n) for n in range(8)]
    assert data.gains["3"] == {"d/3": 2}
    assert [query.id for query in retrieval.load(folder, 4).queries] == ["0", "2", "4", "6"]


@pytest.mark.parametrize(
    ("file", "broken", "named"),
    [
        ("corpus.jsonl", "nonsense", "corpus.jsonl cannot be read"),
        ("corpus.jsonl", '{"_id": "1"}', "text"),
        ("corpus.jsonl", "", "no items"),
        ("queries.jsonl", '{"_id": "1", "text": "one"}', "Fewer than two"),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\n1\t2", "qrels.tsv cannot be read"),
    ],
)
def test_a_folder_of_another_form_is_refused(file: str, broken: str, named: str, tmp_path: Path) -> None:
    folder = beir(tmp_path / "set")
    (folder / file).write_text(broken)
    with pytest.raises(BadRequest, match=named):
        retrieval.load(folder)


def test_half_of_the_documents_go_the_same_at_each_run(tmp_path: Path) -> None:
    data = retrieval.load(beir(tmp_path / "set"))
    left, asked = abstention.halved(data)
    assert len(left) == 4 and abstention.halved(data) == (left, asked)
    assert [is_left for _, is_left in asked] == [f"d/{n}" in {each.id for each in left} for n in range(8)]


def test_both_errors_of_abstention_are_counted() -> None:
    said = [(True, 0.9), (True, 0.8), (True, 0.7), (True, 0.1), (False, 0.9), (False, 0.2)]
    score = abstention.score([{"id": n, "left": left, "answerable": p} for n, (left, p) in enumerate(said)], 0.5)
    assert (score.detail["left"]["abstained"], score.detail["gone"]["answered"]) == (0.25, 0.5)
    assert (score.score, score.control.score) == (0.625, 0.5)
    sure = [{"id": n, "left": n % 2 == 0, "answerable": float(n % 2 == 0)} for n in range(20)]
    assert abstention.score(sure).verdict is Verdict.MET
    with pytest.raises(BadRequest, match="Too few"):
        abstention.score([{"id": 0, "left": True, "answerable": 1.0}])
