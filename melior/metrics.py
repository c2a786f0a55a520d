"""accuracy and pass@k"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from melior.errors import DataError


def accuracy(outputs: Sequence[Any], expected: Sequence[Any]) -> float:
    """The share of outputs that equal what was expected.

    Raises:
        DataError: if the two differ in length or are empty.
    """
    if len(outputs) != len(expected) or not outputs:
        raise DataError(f"{len(outputs)} outputs for {len(expected)} expected ones; give one each, at least one")
    return sum(output == want for output, want in zip(outputs, expected, strict=True)) / len(outputs)


def pass_at_k(samples: int, successes: int, k: int) -> float:
    """The probability that at least one of `k` outputs drawn from the samples without putting back is a success.

    Its expectation over samples is exactly 1 − (1 − p)^k.

    >>> pass_at_k(4, 1, 2)
    0.5

    Raises:
        DataError: unless 0 ≤ successes ≤ samples and 1 ≤ k ≤ samples.

    Source: Chen et al. 2021, arXiv:2107.03374, eq. 1.
    """
    if not (0 <= successes <= samples and 1 <= k <= samples):
        raise DataError(f"pass@{k} of {successes} successes in {samples} samples; needs 1 ≤ k ≤ samples")
    return 1.0 - math.comb(samples - successes, k) / math.comb(samples, k)
