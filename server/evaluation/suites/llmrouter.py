"""Which model for which question: a selector learned from a table of nine models' scores, against simpler ones.

The selector is for tables like this one: the product's own choice of a model is `routing.decide`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, FiniteFloat

from rolecall.config.home import Home
from rolecall.config.profile import Frozen
from rolecall.config.settings import Settings
from rolecall.roles.contract import Vectors
from rolecall.roles.manager import ModelManager

from ...errors import BadRequest
from ..intervals import difference, mean
from ..score import Control, OnStep, Score, evenly, items_of, parsed, rounded, verdict

Array = npt.NDArray[np.float64]

ADVICE = 'Use a folder with train.json and test.json, lists of {"question": "...", "scores": {"MODEL": 0 to 1, ...}}.'
SELECTOR, SINGLE, RANDOM, ORACLE = "selector", "best single", "random", "oracle"
LEAST_GAIN = 0.001
"""Over the best single model, for the verdict."""
WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))

_FOLDS = 5
_LEAST_TRAIN = 2 * _FOLDS
_NEIGHBOURS = 40
_AT_ONCE = 256
"""Questions that are embedded between two words of progress."""
_BUCKETS, _COMPONENTS, _TREES, _LEAF, _SHARE = 2**13, 24, 200, 8, 0.4
"""The selector's: the best of some twenty recipes by five folds of the train questions alone."""
_SHAPES = tuple(
    map(re.compile, (r"\n", r"\?\s*$", r"\.\s*$", r"^[A-Z]", r"\$", r"\\", r"\d", r"\w+", r"\w\(", r'"""|^>>>'))
)


class _Row(Frozen):
    model_config = ConfigDict(extra="ignore")

    question: str
    scores: dict[str, Annotated[FiniteFloat, Field(ge=0, le=1)]] = Field(min_length=1)


class _Price(Frozen):
    """Per million tokens."""

    model_config = ConfigDict(extra="ignore")

    input_price: FiniteFloat
    output_price: FiniteFloat


@dataclass(frozen=True, slots=True)
class Table:
    """`quality` has shape (questions, models) and is in [0, 1]."""

    questions: Sequence[str]
    models: tuple[str, ...]
    quality: Array

    def rows(self, kept: Sequence[int] | npt.NDArray[np.int64]) -> Table:
        return Table([self.questions[row] for row in kept], self.models, self.quality[kept])


def load(folder: Path, limit: int = 0) -> tuple[Table, Table, Array]:
    """Train, test (`limit` of its questions, evenly taken; 0: all) and each model's cost: its price over the dearest
    one's, 0 for all where `default_llm.json` is missing. Raises BadRequest for what is not in the table's form, NaN and
    a missing model included."""
    train = _table(folder / "train.json")
    test = _table(folder / "test.json", train.models)
    if len(train.questions) < _LEAST_TRAIN or len(test.questions) < 2:
        found, allowed = f"{len(train.questions)} and {len(test.questions)}", f"{_LEAST_TRAIN} and 2 at least"
        raise BadRequest("Too few train and test questions.", found=found, allowed=allowed, advice=ADVICE)
    test, prices = test.rows(evenly(range(len(test.questions)), limit)), folder / "default_llm.json"
    return train, test, _costs(train.models, prices) if prices.exists() else np.zeros(len(train.models))


def _table(file: Path, models: tuple[str, ...] = ()) -> Table:
    rows = parsed(file, json.loads, ADVICE)
    found = items_of(_Row, rows if isinstance(rows, list) else [rows], ADVICE)
    models = models or tuple(sorted(found[0].scores))
    for number, row in enumerate(found, 1):
        if odd := {*row.scores} ^ {*models}:
            failed = f"Item {number} of {file.name} lacks a model's score, or has one more."
            raise BadRequest(failed, found=", ".join(sorted(odd)), advice=ADVICE)
    quality = np.array([[row.scores[model] for model in models] for row in found])
    return Table([row.question for row in found], models, quality)


def _costs(models: Sequence[str], file: Path) -> Array:
    prices = parsed(file, json.loads, ADVICE)
    if missing := [model for model in models if not isinstance(prices, dict) or model not in prices]:
        raise BadRequest(f"{file.name} lacks the price of a model.", found=", ".join(missing), advice=ADVICE)
    rows = items_of(_Price, (prices[model] for model in models), ADVICE)
    sums = np.array([row.input_price + row.output_price for row in rows])
    costs: Array = sums / max(sums.max(), 1e-12)
    return costs


async def evaluate(
    data: tuple[Table, Table, Array], home: Home, settings: Settings, say: OnStep = lambda _: None
) -> tuple[Score, list[dict[str, Any]]]:
    """As `score`, by the embedder of a home."""
    train, test, costs = data
    questions, vectors = [*train.questions, *test.questions], list[Vectors]()
    async with ModelManager(home, settings) as models:
        for start in range(0, len(questions), _AT_ONCE):
            say({"done": start, "total": len(questions), "words": "embedding the questions"})
            vectors.append(await models.embed(questions[start : start + _AT_ONCE]))
    say({"words": "fitting the selectors"})
    return score(train, test, costs, np.vstack(vectors).astype(np.float64))


def score(train: Table, test: Table, costs: Array, vectors: Array) -> tuple[Score, list[dict[str, Any]]]:
    """The score over the test questions, and an outcome for each. `vectors` are of train's questions, then test's.

    The verdict is on the gain over the questions that are not in train too: those that are can be known by heart.
    """
    known, new = vectors[: len(train.questions)], vectors[len(train.questions) :]
    predicted = {
        SELECTOR: forest(train, known, test.questions, new),
        SINGLE: np.broadcast_to(train.quality.mean(axis=0), test.quality.shape),
        "nearest neighbours": _neighbours(train, known, new),
        "logistic regression": _logistic(train, known, new),
        ORACLE: test.quality,
    }
    chosen = _chosen(predicted, costs, 0.0)
    got = {name: (picks * test.quality).sum(axis=1) for name, picks in chosen.items()}
    seen = np.isin(test.questions, train.questions)
    given = _compared(chosen, test.quality, np.ones_like(seen))
    unseen = _compared(chosen, test.quality, ~seen) if (~seen).sum() > 1 else None
    ours, single, gain = given["selectors"][SELECTOR], given["selectors"][SINGLE], (unseen or given)["gain"]
    detail = {
        "gain_target": LEAST_GAIN,
        "given": given,
        "unseen": unseen,
        "cross_validated": _cross_validated(train, known),
        "models": dict(zip(train.models, train.quality.mean(axis=0).tolist(), strict=True)),
        "costs": dict(zip(train.models, costs.tolist(), strict=True)),
        "curve": {"cost_weight": WEIGHTS, **_curve(predicted, test.quality, costs)},
    }
    found = Score(
        suite="llmrouter", n=given["n"], score=ours["quality"], interval=ours["interval"],
        control=Control(name=SINGLE, score=single["quality"]),
        verdict=verdict(gain["value"], gain["interval"], LEAST_GAIN), detail=detail,
    )  # fmt: skip
    names = [train.models[pick] for pick in chosen[SELECTOR].argmax(axis=1)]
    items = [
        {"id": i, "in_train": bool(seen[i]), "picked": names[i]} | {k: rounded(float(v[i])) for k, v in got.items()}
        for i in range(len(names))
    ]
    return found, items


def forest(train: Table, known: Array, questions: Sequence[str], new: Array) -> Array:
    """The selector: each model's predicted score over the question's mean, shape (questions, models).

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
        _reduced(words.transform(train.questions), words.transform(questions)),
        (_shapes(train.questions), _shapes(questions)),
    )
    learned, asked = (np.hstack(view) for view in zip(*views, strict=True))
    centred = train.quality - train.quality.mean(axis=1, keepdims=True)
    trees = ExtraTreesRegressor(_TREES, min_samples_leaf=_LEAF, max_features=_SHARE, random_state=0)
    predicted: Array = trees.fit(learned, centred).predict(asked)
    return predicted.reshape(len(questions), -1)


def _reduced(known: Any, new: Any) -> tuple[Array, Array]:
    from sklearn.decomposition import TruncatedSVD

    svd = TruncatedSVD(min(_COMPONENTS, *(each - 1 for each in known.shape)), random_state=0).fit(known)
    return svd.transform(known), svd.transform(new)


def _shapes(questions: Sequence[str]) -> Array:
    return np.array([[np.log1p(len(q)), *(np.log1p(len(s.findall(q))) for s in _SHAPES)] for q in questions])


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
        fitted, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        inner, outer = train.rows(fitted), train.rows(held)
        picks = forest(inner, known[fitted], outer.questions, known[held]).argmax(axis=1)
        best = inner.quality.mean(axis=0).argmax()
        gains[held] = outer.quality[np.arange(len(picks)), picks] - outer.quality[:, best]
    return {"n": len(gains), "gain": float(gains.mean()), "interval": mean(gains.tolist())}


def _chosen(predicted: Mapping[str, Array], costs: Array, weight: float) -> dict[str, Array]:
    """Each selector's share of every model for every question: one model's is 1, at random all have the same."""
    models = len(costs)
    chosen = {name: np.eye(models)[(each - weight * costs).argmax(axis=1)] for name, each in predicted.items()}
    return chosen | {RANDOM: np.full_like(chosen[ORACLE], 1 / models)}


def _compared(chosen: Mapping[str, Array], quality: Array, kept: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Mean quality and the share of picks that no model beats (a tie with the best is right), by selector."""
    quality = quality[kept]
    best = quality == quality.max(axis=1, keepdims=True)
    got = {name: (picks[kept] * quality).sum(axis=1) for name, picks in chosen.items()}
    selectors = {
        name: {
            "quality": float(values.mean()),
            "interval": mean(values.tolist()),
            "right": float((chosen[name][kept] * best).sum(axis=1).mean()),
        }
        for name, values in got.items()
    }
    gain = {
        "value": float((got[SELECTOR] - got[SINGLE]).mean()),
        "interval": difference(got[SELECTOR].tolist(), got[SINGLE].tolist()),
        "possible": float((got[ORACLE] - got[SINGLE]).mean()),
    }
    return {"n": len(quality), "gain": gain, "selectors": selectors}


def _curve(predicted: Mapping[str, Array], quality: Array, costs: Array) -> dict[str, list[float]]:
    """Mean reward, quality - weight * cost, at each of WEIGHTS."""
    curve = dict[str, list[float]]()
    for weight in WEIGHTS:
        for name, picks in _chosen(predicted, costs, weight).items():
            curve.setdefault(name, []).append(float((picks * (quality - weight * costs)).sum(axis=1).mean()))
    return curve
