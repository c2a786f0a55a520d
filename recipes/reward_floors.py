"""what reward models are measured against: scikit-learn's linear models on the same folds, and rules of thumb"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melior.policies.reward_texts import text_of
from melior.types import Demonstration, Preference, Segment

Floats = NDArray[np.float64]
Rows = Sequence[Any]  # preferences or rated outputs
Told = Callable[[Sequence[Any]], Floats]  # outputs → their rewards
Learner = Callable[[Rows], Callable[[float], Told]]  # rows, then a strength: words are counted once for all strengths

STRENGTHS = (0.03, 0.3, 3.0, 30.0)  # inverse of the ridge penalty: what the inner folds choose from


def compared(rows: Sequence[Preference]) -> list[Preference]:
    """Pairs that have a winner: a linear model without soft labels learns nothing from ties."""
    return [row for row in rows if row.probability != 0.5]


def bradley_terry(differences: Any, strength: float) -> Floats:
    """Weights whose products with differences [P, D], chosen less rejected, are log-odds of preferring."""
    from scipy.sparse import issparse, vstack
    from sklearn.linear_model import LogisticRegression

    both = vstack([differences, -differences]) if issparse(differences) else np.concatenate([differences, -differences])
    won = np.repeat([1, 0], differences.shape[0])
    fitted = LogisticRegression(C=strength, fit_intercept=False, max_iter=2000).fit(both, won)
    return np.asarray(fitted.coef_[0])


def tfidf_pairs(rows: Rows) -> Callable[[float], Told]:
    """Bradley–Terry on TF-IDF weights of an answer's words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    chosen, rejected = ([text_of(getattr(row, side)) for row in rows] for side in ("chosen", "rejected"))
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2).fit([*chosen, *rejected])
    differences = words.transform(chosen) - words.transform(rejected)

    def learn(strength: float) -> Told:
        weights = bradley_terry(differences, strength)
        return lambda examples: words.transform([text_of(each.output) for each in examples]) @ weights

    return learn


def tfidf_ratings(rows: Rows) -> Callable[[float], Told]:
    """Logistic regression on TF-IDF weights of a turn's words, and of those of the message before it."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import FunctionTransformer

    def last(examples: Sequence[Any]) -> list[str]:
        return [text_of(each.inputs[-1:]) for each in examples]

    def answers(examples: Sequence[Any]) -> list[str]:
        return [text_of(each.output) for each in examples]

    parts = [
        make_pipeline(FunctionTransformer(of), TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2))
        for of in (last, answers)
    ]
    words = make_union(*parts).fit(rows)
    counted, good = words.transform(rows), [row.rating > 0 for row in rows]

    def learn(strength: float) -> Told:
        fitted = LogisticRegression(C=strength, max_iter=2000).fit(counted, good)
        return lambda examples: np.asarray(fitted.decision_function(words.transform(examples)))

    return learn


def linear_segments(rows: Rows) -> Callable[[float], Told]:
    """Bradley–Terry on the mean of a segment's observations and actions, standardised."""
    means = [np.stack([mean_step(getattr(row, side)) for row in rows]) for side in ("chosen", "rejected")]
    spread = np.concatenate(means).std(0)
    unit = np.where(spread > 0, spread, 1.0)

    def learn(strength: float) -> Told:
        weights = bradley_terry((means[0] - means[1]) / unit, strength)
        return lambda examples: np.stack([mean_step(each.output) for each in examples]) / unit @ weights

    return learn


def mean_step(segment: Segment) -> Floats:  # [D]
    return np.asarray(segment, dtype=np.float64).mean(0)


def column_rule(column: int) -> Callable[[Sequence[Any]], Floats]:
    """The mean of one observed number as reward: for robots that walk, their speed."""
    return lambda examples: np.array([mean_step(each.output)[column] for each in examples])


def is_call(examples: Sequence[Any]) -> Floats:
    """1 where a turn calls the shop's interface, 0 where it says something."""

    def call(text: str) -> float:
        try:
            return float(isinstance(json.loads(text), dict))
        except ValueError:
            return 0.0

    return np.array([call(text_of(each.output)) for each in examples])


def longest(examples: Sequence[Demonstration]) -> Floats:
    """Characters of an answer."""
    return np.array([float(len(text_of(each.output))) for each in examples])
