"""labels that a classifier which never saw the row is confident are wrong

Source: Northcutt, Jiang & Chuang 2021, Confident Learning, arXiv:1911.00068, as the cleanlab package has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melior.data.cleaning.examine import UNUSABLE
from melior.data.cleaning.views import View
from melior.errors import ConfigError, DataError

MOST_ROWS = 50_000  # a matrix of rows × words stays within a few hundred MB
FOLDS = 5
MOST_WORDS = 50_000  # features
SEED = 0
CONFIDENT = 0.5  # probability of another label from which it is told


def label_errors(views: Iterable[tuple[int, View]], facts: NDArray[Any]) -> Iterator[tuple[int, str, str, float]]:
    """Row, its label, the likelier one and that one's probability, for each label that is probably wrong.

    Each row is judged by a logistic regression over TF-IDF of words and word pairs, trained on the other folds.

    Raises:
        ConfigError: if cleanlab or scikit-learn is not installed.
        DataError: if fewer than two labels have enough rows.
    """
    try:
        from cleanlab.filter import find_label_issues
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise ConfigError(f"label errors need a package ({error}); pip install 'melior[labels]'") from error
    rows, texts, labels = _chosen(views, facts)
    names = sorted(set(labels))
    if len(names) < 2:
        raise DataError(f"label errors need at least 2 labels with {FOLDS} rows, found {len(names)}; add rows")
    given = np.searchsorted(names, labels)
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=MOST_WORDS),
        LogisticRegression(C=10.0, max_iter=300),
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    probabilities = cross_val_predict(model, texts, given, cv=folds, method="predict_proba")
    issues = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    for index in issues.tolist():
        likely = int(probabilities[index].argmax())
        if probabilities[index, likely] >= CONFIDENT:
            yield rows[index], labels[index], names[likely], float(probabilities[index, likely])


def _chosen(views: Iterable[tuple[int, View]], facts: NDArray[Any]) -> tuple[list[int], list[str], list[str]]:
    """Rows, texts and labels, of labels with enough rows; of too many rows those whose content has the least hash."""
    usable = facts["format"] != UNUSABLE
    keys = np.sort(facts["content"][usable])
    limit = keys[MOST_ROWS - 1] if len(keys) > MOST_ROWS else np.uint64(2**64 - 1)
    found = [
        (int(facts["content"][row]), row, _judged(view), view.label)
        for row, view in views
        if usable[row] and facts["content"][row] <= limit and view.label
    ]
    found.sort()  # by content, so that the folds do not depend on the order of rows
    counts = Counter(label for *_, label in found)
    kept = [entry for entry in found if counts[entry[3]] >= FOLDS]
    return [row for _, row, _, _ in kept], [text for *_, text, _ in kept], [str(label) for *_, label in kept]


def _judged(view: View) -> str:
    return view.prompt if view.kind == "demonstrations" else "\n".join([view.prompt, *view.answers])
