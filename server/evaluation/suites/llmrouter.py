"""Which model for which question: a selector learned from a table of nine models' scores, against simpler ones.

The selector is for tables like this one: the product's own choice of a model is `routing.decide`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, FiniteFloat

from rolecall.config.errors import ConfigError
from rolecall.config.profile import Frozen

from ...errors import BadRequest
from ..intervals import difference, mean
from ..score import Control, Score, items_of, rounded, verdict

Array = npt.NDArray[np.float64]
Embed = Callable[[list[str]], Array]
"""Texts to unit vectors, shape (n, dimensions)."""
OnStep = Callable[[str], None]

ADVICE = 'Use a folder with train.json and test.json, lists of {"question": "...", "scores": {"MODEL": 0 to 1, ...}}.'
SELECTOR, SINGLE, RANDOM, ORACLE = "selector", "best single", "random", "oracle"
LEAST_GAIN = 0.001
"""Over the best single model, for the verdict."""
WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))

_FOLDS = 5
_LEAST_TRAIN = 2 * _FOLDS
_NEIGHBOURS = 40
_BUCKETS, _COMPONENTS, _TREES, _LEAF, _SHARE = 2**13, 24, 200, 8, 0.4
"""The selector's: the best of some twenty recipes by five folds of the train questions alone."""
_SHAPES = tuple(
    map(re.compile, (r"\n", r"\?\s*$", r"\.\s*$", r"^[A-Z]", r"\$", r"\\", r"\d", r"\w+", r"\w\(", r'"""|^>>>'))
)


class _Row(Frozen):
    model_config = ConfigDict(extra="ignore")

    question: str
    scores: dict[str, FiniteFloat]


class _Price(Frozen):
    """Per million tokens."""

    model_config = ConfigDict(extra="ignore")

    input_price: FiniteFloat
    output_price: FiniteFloat


@dataclass(frozen=True, slots=True)
class Table:
    """`quality` has shape (questions, models) and is in [0, 1]."""

    questions: list[str]
    models: tuple[str, ...]
    quality: Array


def load(folder: Path) -> tuple[Table, Table, Array]:
    """Train, test and each model's cost: its price over the dearest one's, 0 for all where `default_llm.json` is
    missing. Raises BadRequest for what is not in the table's form, NaN and a missing model included."""
    train, test = (_table(f"{name}.json", _json(folder / f"{name}.json")) for name in ("train", "test"))
    if train.models != test.models:
        found = ", ".join(sorted({*train.models} ^ {*test.models}))
        raise BadRequest("train.json and test.json hold different models.", found=found, advice=ADVICE)
    if len(train.questions) < _LEAST_TRAIN or len(test.questions) < 2:
        found, allowed = f"{len(train.questions)} and {len(test.questions)}", f"{_LEAST_TRAIN} and 2 at least"
        raise BadRequest("Too few train and test questions.", found=found, allowed=allowed, advice=ADVICE)
    prices = folder / "default_llm.json"
    return train, test, _costs(train.models, _json(prices)) if prices.exists() else np.zeros(len(train.models))


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadRequest(f"{file.name} cannot be read.", found=f"{file}: {error}"[:300], advice=ADVICE) from None


def _table(name: str, rows: Any) -> Table:
    found = items_of(_Row, rows if isinstance(rows, list) else [rows], ADVICE)
    models = tuple(sorted(found[0].scores))
    for number, row in enumerate(found, 1):
        bad = [model for model, value in row.scores.items() if not 0 <= value <= 1] or {*row.scores} ^ {*models}
        if bad or not models:
            failed = f"Item {number} of {name} lacks a model's score, has one more, or one outside 0 to 1."
            raise BadRequest(failed, found=", ".join(sorted(bad)) or "no scores", advice=ADVICE)
    quality = np.array([[row.scores[model] for model in models] for row in found])
    return Table([row.question for row in found], models, quality)


def _costs(models: Sequence[str], prices: Any) -> Array:
    if missing := [model for model in models if not isinstance(prices, dict) or model not in prices]:
        raise BadRequest("default_llm.json lacks the price of a model.", found=", ".join(missing), advice=ADVICE)
    rows = items_of(_Price, (prices[model] for model in models), ADVICE)
    sums = np.array([row.input_price + row.output_price for row in rows])
    costs: Array = sums / max(sums.max(), 1e-12)
    return costs


def evaluate(
    train: Table, test: Table, costs: Array, embed: Embed, limit: int = 0, say: OnStep = lambda _: None
) -> tuple[Score, list[dict[str, Any]]]:
    """The score over the test questions (`limit` of them, evenly taken; 0: all) and an outcome for each.

    The verdict is on the gain over the questions that are not in train too: those that are can be known by heart.
    """
    if limit:
        kept = np.linspace(0, len(test.questions) - 1, max(2, min(limit, len(test.questions)))).astype(int)
        test = Table([test.questions[i] for i in kept], test.models, test.quality[kept])
    say("embedding the questions")
    vectors = embed(train.questions + test.questions)
    known, new = vectors[: len(train.questions)], vectors[len(train.questions) :]
    say("fitting the selectors")
    predicted = {
        SELECTOR: forest(train, known, test, new),
        SINGLE: _best_single(train, test),
        "nearest neighbours": _neighbours(train, known, new),
        "logistic regression": _logistic(train, known, new),
        ORACLE: test.quality,
    }
    say("cross-validating")
    folds = _cross_validated(train, known)
    chosen = _chosen(predicted, costs, 0.0)
    seen = np.isin(test.questions, train.questions)
    given = _compared(chosen, test.quality)
    unseen = _compared(chosen, test.quality, ~seen) if (~seen).sum() > 1 else None
    single, gain = given["selectors"][SINGLE], (unseen or given)["gain"]
    detail = {
        "gain_target": LEAST_GAIN,
        "given": given,
        "unseen": unseen,
        "cross_validated": folds,
        "models": dict(zip(train.models, train.quality.mean(axis=0).tolist(), strict=True)),
        "costs": dict(zip(train.models, costs.tolist(), strict=True)),
        "curve": {"cost_weight": WEIGHTS, **_curve(predicted, test.quality, costs)},
    }
    found = Score(
        suite="llmrouter", n=given["n"], score=rounded(given["selectors"][SELECTOR]["quality"]),
        interval=rounded(given["selectors"][SELECTOR]["interval"]),
        control=Control(name=SINGLE, score=rounded(single["quality"])),
        verdict=verdict(gain["value"], gain["interval"], LEAST_GAIN), detail=rounded(detail),
    )  # fmt: skip
    got = {name: (picks * test.quality).sum(axis=1) for name, picks in chosen.items()}
    names = [train.models[pick] for pick in chosen[SELECTOR].argmax(axis=1)]
    items = [
        {"id": i, "in_train": bool(seen[i]), "picked": names[i]} | {k: rounded(float(v[i])) for k, v in got.items()}
        for i in range(len(names))
    ]
    return found, items


def forest(train: Table, known: Array, test: Table, new: Array) -> Array:
    """The selector: each model's predicted score over the question's mean, shape (test questions, models).

    Extremely randomised trees over three views of a question: its embedding and its words, both reduced, and its
    shape. What makes a question hard for all models is taken off first, since it moves no choice.
    """
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.pipeline import make_pipeline

    hashed = HashingVectorizer(n_features=_BUCKETS, ngram_range=(1, 2), alternate_sign=False)
    words = make_pipeline(hashed, TfidfTransformer(sublinear_tf=True)).fit(train.questions)
    views = (
        _reduced(known, new),
        _reduced(words.transform(train.questions), words.transform(test.questions)),
        (_shapes(train.questions), _shapes(test.questions)),
    )
    learned, asked = (np.hstack(view) for view in zip(*views, strict=True))
    centred = train.quality - train.quality.mean(axis=1, keepdims=True)
    trees = ExtraTreesRegressor(_TREES, min_samples_leaf=_LEAF, max_features=_SHARE, random_state=0)
    predicted: Array = trees.fit(learned, centred).predict(asked)
    return predicted.reshape(len(test.questions), -1)


def _reduced(known: Any, new: Any) -> tuple[Array, Array]:
    from sklearn.decomposition import TruncatedSVD

    svd = TruncatedSVD(min(_COMPONENTS, *(each - 1 for each in known.shape)), random_state=0).fit(known)
    return svd.transform(known), svd.transform(new)


def _shapes(questions: Sequence[str]) -> Array:
    return np.array([[np.log1p(len(q)), *(np.log1p(len(s.findall(q))) for s in _SHAPES)] for q in questions])


def _best_single(train: Table, test: Table) -> Array:
    return np.broadcast_to(train.quality.mean(axis=0), test.quality.shape)


def _neighbours(train: Table, known: Array, new: Array) -> Array:
    count = min(_NEIGHBOURS, len(known))
    nearest = np.argsort(-(new @ known.T), axis=1, kind="stable")[:, :count]
    found: Array = train.quality[nearest].mean(axis=1)
    return found


def _logistic(train: Table, known: Array, new: Array) -> Array:
    """Each model's chance of a score of 0.5 or more."""
    from sklearn.linear_model import LogisticRegression

    def chance(good: npt.NDArray[np.bool_]) -> Any:
        if good.all() or not good.any():
            return np.full(len(new), float(good[0]))
        return LogisticRegression(max_iter=1000).fit(known, good).predict_proba(new)[:, 1]

    return np.stack([chance(column >= 0.5) for column in train.quality.T], axis=1)


def _cross_validated(train: Table, known: Array) -> dict[str, Any]:
    """The selector's gain where each fifth of the train questions is held out once."""
    fold = np.random.default_rng(0).permutation(len(train.questions)) % _FOLDS
    gains = np.zeros(len(fold))
    for number in range(_FOLDS):
        inner, outer = (
            Table([q for q, kept in zip(train.questions, mask, strict=True) if kept], train.models, train.quality[mask])
            for mask in (fold != number, fold == number)
        )
        picks = forest(inner, known[fold != number], outer, known[fold == number]).argmax(axis=1)
        best = _best_single(inner, outer).argmax(axis=1)
        rows = np.arange(len(picks))
        gains[fold == number] = outer.quality[rows, picks] - outer.quality[rows, best]
    return {"n": len(gains), "gain": float(gains.mean()), "interval": mean(gains.tolist())}


def _chosen(predicted: Mapping[str, Array], costs: Array, weight: float) -> dict[str, Array]:
    """Each selector's share of every model for every question: one model's is 1, at random all have the same."""
    models = len(costs)
    chosen = {name: np.eye(models)[(each - weight * costs).argmax(axis=1)] for name, each in predicted.items()}
    return chosen | {RANDOM: np.full_like(chosen[ORACLE], 1 / models)}


def _compared(
    chosen: Mapping[str, Array], quality: Array, kept: npt.NDArray[np.bool_] | slice = slice(None)
) -> dict[str, Any]:
    """Mean quality and the share of picks that no model beats (a tie with the best is right), by selector."""
    got = {name: (picks * quality).sum(axis=1)[kept].tolist() for name, picks in chosen.items()}
    best = quality == quality.max(axis=1, keepdims=True)
    selectors = {
        name: {
            "quality": float(np.mean(values)),
            "interval": mean(values),
            "right": float((chosen[name] * best).sum(axis=1)[kept].mean()),
        }
        for name, values in got.items()
    }
    ours, single, oracle = (float(np.mean(got[name])) for name in (SELECTOR, SINGLE, ORACLE))
    gain = {
        "value": ours - single,
        "interval": difference(got[SELECTOR], got[SINGLE]),
        "possible": oracle - single,
    }
    return {"n": len(got[SELECTOR]), "gain": gain, "selectors": selectors}


def _curve(predicted: Mapping[str, Array], quality: Array, costs: Array) -> dict[str, list[float]]:
    """Mean reward, quality - weight * cost, at each of WEIGHTS."""
    curve = dict[str, list[float]]()
    for weight in WEIGHTS:
        for name, picks in _chosen(predicted, costs, weight).items():
            curve.setdefault(name, []).append(float((picks * (quality - weight * costs)).sum(axis=1).mean()))
    return curve


def plot(curve: Mapping[str, Sequence[float]], file: Path) -> None:
    """The curve as SVG, the same bytes for the same figures. Raises ConfigError where matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        advice = "Get it with: pip install 'rolecall[dev]'"
        raise ConfigError("The plot needs matplotlib.", found="not installed", advice=advice) from None
    with matplotlib.rc_context({"svg.hashsalt": "rolecall", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name, values in curve.items():
            if name != "cost_weight":
                axes.plot(curve["cost_weight"], values, label=name, linewidth=2.2 if name == SELECTOR else 1.1)
        axes.set(xlabel="cost weight", ylabel="mean reward: quality - weight x cost")
        axes.legend(fontsize="small")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
