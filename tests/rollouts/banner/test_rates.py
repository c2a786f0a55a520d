"""the committed rates are those the data gives"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from melior.rollouts.banner.rates import BRANDS, RATES, estimate, otto_sample, printed

DATA = Path(os.environ.get("MELIOR_DATA", Path(__file__).parents[4] / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "obd_small").exists(), reason=f"no data in {DATA}; set MELIOR_DATA")


@needs_data
def test_the_data_gives_the_committed_rates() -> None:
    found = json.loads(printed(estimate(DATA)))
    for name, committed in asdict(RATES).items():
        assert found.pop(name) == pytest.approx(
            committed if isinstance(committed, float) else list(committed), rel=1e-3
        )
    assert not found


@needs_data
def test_the_sample_of_sessions_does_not_contradict_the_published_ratios() -> None:
    found = otto_sample(DATA)
    expected = RATES.carts_per_click * found["clicks"]
    assert abs(found["carts"] - expected) < 4 * expected**0.5
    expected = RATES.orders_per_cart * found["carts"]
    assert abs(found["orders"] - expected) < 4 * expected**0.5


def test_prices_repel_and_ads_attract() -> None:
    assert RATES.price < 0 < min(RATES.display, RATES.feature, RATES.loyalty)
    assert len(RATES.brand) == len(RATES.brand_price) == len(BRANDS)
    assert sum(RATES.items_by_clicks) == 80 and RATES.items_by_clicks[1] + 2 * RATES.items_by_clicks[2] + 3 == 38
