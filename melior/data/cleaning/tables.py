"""lengths, labels, formats and languages of a file, and what is odd about them as a whole"""

from __future__ import annotations

import difflib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melior.data.cleaning.examine import UNUSABLE
from melior.data.cleaning.views import key_of

Facts = NDArray[Any]

PERCENTILES = (5, 50, 95, 99)
OUTLIER = 4  # times as long as all but one row in twenty: real files reach three times
ENOUGH_ROWS = 20  # to call anything a rule of the file
RULE = 0.95  # share of answers that end with a sign, above which one that ends in a letter was probably cut
MOST_LABELS = 2_000
ROWS_PER_LABEL = 5  # on average, from which short answers count as labels
RARE = 5  # rows
IMBALANCE = 20  # times
ALIKE, COMMONER = 0.9, 10  # a slip is that similar to a label that is so many times as common
LONGER, SURE_Z = 0.6, 3.0  # share of pairs with a longer chosen side, and its distance from a half in standard errors
FEW_PROMPTS = 0.1  # distinct prompts per row


def lengths(facts: Facts, with_tokens: bool) -> dict[str, dict[str, float]]:
    """Characters of prompts and answers, and tokens where they were counted: least, percentiles, greatest, mean."""
    columns = {"prompt characters": "prompt_size", "answer characters": "answer_size"}
    if with_tokens:
        columns["tokens"] = "tokens"
    table = {}
    for name, column in columns.items():
        values = facts[column][facts["format"] != UNUSABLE]
        if not len(values) or not values.any():
            continue
        parts = {f"p{p}": int(np.percentile(values, p, method="nearest")) for p in PERCENTILES}
        ends = {"min": int(values.min()), **parts, "max": int(values.max())}
        table[name] = {**ends, "mean": round(float(values.mean()), 1)}
    return table


def long_rows(facts: Facts) -> NDArray[np.int64]:
    """Rows far longer than the others."""
    usable = np.flatnonzero(facts["format"] != UNUSABLE)
    sizes = facts["prompt_size"][usable].astype(np.int64) + facts["answer_size"][usable]
    if len(sizes) < ENOUGH_ROWS:
        return np.zeros(0, np.int64)
    return usable[sizes > OUTLIER * np.percentile(sizes, 95, method="nearest")]


def unended(facts: Facts) -> NDArray[np.int64]:
    """Rows whose answer ends in a letter where nearly all others end with a sign."""
    counts = np.bincount(facts["ending"], minlength=3)
    if counts[1] + counts[2] < ENOUGH_ROWS or counts[1] < RULE * (counts[1] + counts[2]):
        return np.zeros(0, np.int64)
    return np.flatnonzero(facts["ending"] == 2)


def without_reference(facts: Facts, kind: str) -> NDArray[np.int64]:
    """Tasks without a reference answer where others have one."""
    usable = facts["format"] != UNUSABLE
    has = facts["reference"] == 1
    return np.flatnonzero(usable & ~has) if kind == "tasks" and has.any() else np.zeros(0, np.int64)


def length_bias(facts: Facts) -> str:
    """What to say of preferences whose chosen side is longer too often; nothing is an empty text."""
    longer, shorter = int((facts["longer"] == 1).sum()), int((facts["longer"] == -1).sum())
    pairs = longer + shorter
    if pairs < ENOUGH_ROWS:
        return ""
    share = longer / pairs
    if share < LONGER or (share - 0.5) * 2 * math.sqrt(pairs) < SURE_Z:
        return ""
    return f"chosen is longer in {share:.0%} of {pairs} pairs"


def few_prompts(facts: Facts, classes: bool) -> str:
    """What to say of a file with few distinct prompts; nothing is an empty text."""
    prompts = facts["prompt"][(facts["format"] != UNUSABLE) & (facts["prompt"] != 0)]
    distinct = len(np.unique(prompts))
    if classes or len(prompts) < ENOUGH_ROWS or distinct > FEW_PROMPTS * len(prompts):
        return ""
    return f"{distinct} distinct prompts in {len(prompts)} rows"


def classes_of(labels: Counter[str], rows: int, kind: str) -> bool:
    """Whether the short answers of a file are labels of classes."""
    numbers = sum(_is_number(label) for label in labels)
    counted = sum(labels.values())
    few = 0 < len(labels) <= min(MOST_LABELS, max(2, counted // ROWS_PER_LABEL))
    return few and counted >= max(ENOUGH_ROWS, RULE * rows) and (kind == "rated" or 2 * numbers < len(labels))


def variants(labels: Mapping[str, int]) -> dict[str, str]:
    """Labels that differ from a commoner one in case, spaces and underscores only, with that one."""
    alike: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        # All other signs may be what tells two labels apart: C and C#, or the vowels of Hindi, which are no letters.
        alike["".join(label.casefold().replace("_", " ").split()) or label].append(label)
    changed = {}
    for names in alike.values():
        names.sort(key=lambda name: (-labels[name], name))
        changed.update({name: names[0] for name in names[1:]})
    return changed


def misspelt(labels: Mapping[str, int]) -> dict[str, str]:
    """Rare labels that are nearly a much commoner one, with that one."""
    slips = {}
    for label, count in labels.items():
        common = [name for name in labels if labels[name] >= COMMONER * count and name != label]
        if count < RARE and not _is_number(label) and (near := difflib.get_close_matches(label, common, 1, ALIKE)):
            slips[label] = near[0]
    return slips


def rows_labelled(facts: Facts, labels: list[str]) -> NDArray[np.int64]:
    """Rows that have one of some labels."""
    return np.flatnonzero(np.isin(facts["label"], np.array([key_of(label) for label in labels], np.uint64)))


def imbalance(labels: Mapping[str, int]) -> str:
    """What to say of classes of very different size; nothing is an empty text."""
    most, least = max(labels, key=lambda name: labels[name]), min(labels, key=lambda name: labels[name])
    if len(labels) < 2 or labels[most] < IMBALANCE * labels[least]:
        return ""
    return f"{most!r} has {labels[most]} rows, {least!r} has {labels[least]}"


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True
