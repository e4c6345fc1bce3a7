"""Task types: the shipped router's decision for each labelled request, against the label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rolecall.config.profile import Frozen

from ...routing.contract import TaskType
from ..intervals import wilson
from ..score import Control, Score, evenly, items_of, verdict

SHAPE = '{"id": ..., "text": "...", "label": one of the seven task types, "source": "..."}'
TARGET = 0.90
TOOL_PRECISION = 0.98
LEAST_RECALL = 0.80
_ECE_BINS = 15
_CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


class Labelled(Frozen):
    """A request and what it is; what `source` has before its first colon names where it is from."""

    id: str | int
    text: str
    label: TaskType
    source: str = ""


def labelled(rows: Iterable[Any], limit: int = 0) -> list[Labelled]:
    """`limit` of the rows, evenly taken; 0: all. Raises BadRequest for one of another shape."""
    return evenly(items_of(Labelled, rows, f"Write lines like {SHAPE}."), limit)


def item(request: Labelled, line: dict[str, Any]) -> dict[str, Any]:
    """One item's outcome; `line` is the host's answer to `route`. The text is left out."""
    kept = {key: line[key] for key in ("task_type", "confidence", "agent", "role", "escalated")}
    source = request.source.split(":")[0]
    right = line["task_type"] == request.label
    return {"id": request.id, "source": source, "label": str(request.label), **kept, "right": right}


def score(items: Sequence[dict[str, Any]]) -> Score:
    """Accuracy over all items. The router has learned from none of these sources, so each one's accuracy is that of a
    source left out, and `left_out_macro` is their plain mean."""
    n, right = len(items), sum(each["right"] for each in items)
    classes = _classes(items)
    tool, recalls = classes["tool"]["precision"], [each["recall"] for each in classes.values() if each["n"]]
    missed = [f"tool precision {tool:.4f} < {TOOL_PRECISION}"] if tool is not None and tool < TOOL_PRECISION else []
    if min(recalls) < LEAST_RECALL:
        missed.append(f"least recall {min(recalls):.4f} < {LEAST_RECALL}")
    sources = {name: _share([i for i in items if i["source"] == name]) for name in sorted({i["source"] for i in items})}
    majority, most = Counter(each["label"] for each in items).most_common(1)[0]
    interval = wilson(right, n)
    detail = {
        "target": TARGET,
        "missed": [f"accuracy {right / n:.4f} < {TARGET}"] * (right / n < TARGET) + missed,
        "macro_f1": sum(each["f1"] for each in classes.values() if each["n"]) / len(recalls),
        "left_out_macro": sum(each["accuracy"] for each in sources.values()) / len(sources),
        "ece": _ece(items),
        "escalated": sum(each["escalated"] for each in items),
        "classes": classes,
        "confusion": _confusion(items),
        "at_confidence": {str(least): _covered(items, least) for least in _CONFIDENCES},
        "sources": sources,
    }
    return Score(
        suite="routing", n=n, score=right / n, interval=interval,
        control=Control(name=f"always {majority}", score=most / n),
        verdict=verdict(right / n, interval, TARGET, missed), detail=detail,
    )  # fmt: skip


def _share(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    n, right = len(items), sum(each["right"] for each in items)
    return {"n": n, "accuracy": right / n if n else None, "interval": wilson(right, n)}


def _classes(items: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per class its share of right answers among those given it (None where none was) and among those that are it."""
    found = dict[str, dict[str, Any]]()
    for kind in map(str, TaskType):
        said, is_it = [i["right"] for i in items if i["task_type"] == kind], [i for i in items if i["label"] == kind]
        right = sum(said)
        found[kind] = {
            "n": len(is_it),
            "precision": right / len(said) if said else None,
            "precision_interval": wilson(right, len(said)),
            "recall": right / len(is_it) if is_it else None,
            "recall_interval": wilson(right, len(is_it)),
            "f1": 2 * right / (len(said) + len(is_it)) if said or is_it else None,
        }
    return found


def _confusion(items: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Rows are labels, columns what was decided."""
    pairs = Counter((each["label"], each["task_type"]) for each in items)
    return {str(label): {str(said): pairs[label, said] for said in TaskType} for label in TaskType}


def _covered(items: Sequence[dict[str, Any]], least: float) -> dict[str, Any]:
    kept = [each for each in items if each["confidence"] >= least]
    return {"coverage": len(kept) / len(items), **_share(kept)}


def _ece(items: Sequence[dict[str, Any]]) -> float:
    """Expected calibration error over 15 equally wide bins.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017).
    """
    bins = dict[int, list[float]]()
    for each in items:
        number = min(int(each["confidence"] * _ECE_BINS), _ECE_BINS - 1)
        bins.setdefault(number, []).append(each["right"] - each["confidence"])
    return sum(abs(sum(gaps)) for gaps in bins.values()) / len(items)
