"""laws of features of tables: each row alone, any leading dimensions, noise from seeds, and what they can learn"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from melior.errors import DataError
from melior.policies.columns import Columns
from melior.policies.tables import Table, TableFeatures, TableInputs

ROWS: list[dict[str, Any]] = [
    {
        "age": None if place % 7 == 0 else 20 + place,
        "amount": place**2,
        "purpose": "abc"[place % 3],
        "owner": place % 2 == 0,
    }
    for place in range(40)
]
SMALL = Table(width=16, blocks=2, embedding=4, bins=8, hidden=0.2, dropout=0.3)


def trained_looking(inputs: TableInputs) -> TableInputs:
    """The same reader with weights as far from their start as training takes them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in inputs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return inputs.double()


@pytest.fixture(scope="module")
def inputs() -> TableInputs:
    return trained_looking(TableInputs.of(ROWS, SMALL))


def seeds_of(count: int) -> Tensor:
    return torch.arange(count) * 7919 + 13


def test_a_row_has_the_same_features_alone_in_company_and_in_any_order(inputs: TableInputs) -> None:
    rows, seeds = inputs.encode(ROWS), seeds_of(len(ROWS))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    for noise in (None, seeds):
        together = inputs(rows, noise)
        alone = torch.cat([inputs([row], None if noise is None else noise[i : i + 1]) for i, row in enumerate(rows)])
        shuffled = inputs([rows[i] for i in order], None if noise is None else noise[order])
        torch.testing.assert_close(alone, together, rtol=0, atol=1e-12)
        torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-12)


def test_leading_dimensions_change_nothing(inputs: TableInputs) -> None:
    numbers, codes = inputs.features.columns.encode(ROWS)
    seeds = seeds_of(len(ROWS))
    for noise in (None, seeds):
        flat = inputs.features(numbers, codes, noise)
        folded = inputs.features(
            numbers.reshape(5, 4, 2, -1), codes.reshape(5, 4, 2, -1), None if noise is None else noise.reshape(5, 4, 2)
        )
        torch.testing.assert_close(folded.flatten(0, 2), flat, rtol=0, atol=1e-12)
        torch.testing.assert_close(inputs.features(numbers[0], codes[0], None if noise is None else noise[0]), flat[0])


def test_without_seeds_nothing_is_random_whatever_the_mode_and_with_seeds_it_is_their_function(
    inputs: TableInputs,
) -> None:
    rows, seeds = inputs.encode(ROWS), seeds_of(len(ROWS))
    for noise in (None, seeds):
        assert torch.equal(inputs.train()(rows, noise), inputs.eval()(rows, noise))
    assert not torch.equal(inputs(rows, seeds), inputs(rows, seeds + 1))
    assert not torch.equal(inputs(rows, seeds), inputs(rows))


def test_seeds_change_nothing_where_nothing_is_hidden_or_dropped() -> None:
    still = trained_looking(TableInputs.of(ROWS, Table(width=16, hidden=0, dropout=0)))
    rows = still.encode(ROWS)
    assert not still.random and TableInputs.of(ROWS, SMALL).random
    assert torch.equal(still(rows, seeds_of(len(ROWS))), still(rows))


def test_the_stated_shares_of_cells_are_hidden() -> None:
    features = TableFeatures(Columns.of(ROWS), Table(hidden=0.3))
    numbers, codes = torch.zeros(4000, 2), torch.ones(4000, 2, dtype=torch.long)
    hidden_numbers, hidden_codes = features._hide(numbers, codes, seeds_of(4000))
    shares = [*torch.isnan(hidden_numbers).double().mean(0), *(hidden_codes == 0).double().mean(0)]
    assert all(abs(share - 0.3) < 4 * (0.21 / 4000) ** 0.5 for share in shares)  # four standard errors


def test_missing_and_unknown_have_features_of_their_own(inputs: TableInputs) -> None:
    known = {"age": 30, "amount": 100, "purpose": "a", "owner": True}
    rows = inputs.encode([known, {**known, "age": None}, {**known, "purpose": "boat"}, {**known, "age": 20}])
    features = inputs(rows)
    assert torch.isfinite(features).all()
    assert (torch.cdist(features, features) + torch.eye(4) > 1e-3).all()


def test_a_number_is_embedded_piecewise_linearly_and_stays_at_the_ends_beyond_its_training_values() -> None:
    columns = Columns.of([{"x": float(x)} for x in (0, 1, 2, 4, 8)])
    features = TableFeatures(columns, Table(width=8, blocks=0, bins=4)).double()
    nn.init.normal_(features.numeric)

    def at(*values: float) -> Tensor:
        return features(torch.tensor(values, dtype=torch.float64)[:, None], torch.zeros(len(values), 0).long())

    low, middle, high = at(2, 3, 4)
    torch.testing.assert_close(middle, (low + high) / 2)
    torch.testing.assert_close(at(-5, 100), at(0, 8))
    assert not torch.allclose(at(1) - at(0), at(2) - at(1))  # a knee where a quantile lies


def test_blocks_begin_as_nothing() -> None:
    plain, deep = (TableInputs.of(ROWS, Table(width=16, blocks=blocks)) for blocks in (0, 3))
    deep.load_state_dict({**deep.state_dict(), **plain.state_dict()})
    assert torch.equal(deep(deep.encode(ROWS)), plain(plain.encode(ROWS)))


@pytest.mark.parametrize("names", [("age", "amount"), ("purpose", "owner")])
def test_tables_of_numbers_alone_and_of_categories_alone(names: Sequence[str]) -> None:
    rows = [{name: row[name] for name in names} for row in ROWS]
    inputs = TableInputs.of(rows, SMALL)
    features = inputs(inputs.encode(rows), seeds_of(len(rows)))
    assert features.shape == (len(rows), inputs.width) and torch.isfinite(features).all()


def test_json_and_weights_bring_the_same_reader_back(inputs: TableInputs) -> None:
    again = TableInputs.from_json(json.loads(json.dumps(inputs.to_json()))).double()
    again.load_state_dict(inputs.state_dict())
    assert torch.equal(again(again.encode(ROWS), seeds_of(40)), inputs(inputs.encode(ROWS), seeds_of(40)))


def test_what_was_unknown_is_counted_and_a_row_that_is_no_mapping_is_an_error() -> None:
    inputs = TableInputs.of(ROWS, SMALL)
    inputs.encode([{**ROWS[0], "purpose": "boat"}])
    assert inputs.noticed == {"unknown category in column purpose": 1}
    with pytest.raises(DataError, match="Row 2 is a str"):
        inputs.encode([ROWS[0], "a text"])


def fitted(rows: Sequence[dict[str, Any]], targets: Tensor, config: Table, steps: int) -> tuple[TableInputs, nn.Linear]:
    """A reader and a head, trained by plain gradient steps on all rows, with noise."""
    torch.manual_seed(0)
    inputs = TableInputs.of(rows, config)
    head = nn.Linear(inputs.width, 1)
    optimizer = torch.optim.AdamW([*inputs.parameters(), *head.parameters()], lr=1e-2)
    encoded = inputs.encode(rows)
    for step in range(steps):
        noise = seeds_of(len(rows)) + 1_000_003 * step
        loss = nn.functional.binary_cross_entropy_with_logits(head(inputs(encoded, noise))[:, 0], targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return inputs, head


def test_an_unknown_category_means_what_is_known_without_it() -> None:
    """The chance is .9 in category a, .1 in b; half are a, so an unknown category should be about one half."""
    rows = [{"kind": "a" if place % 2 else "b", "noise": place % 5} for place in range(400)]
    targets = torch.tensor([float((place % 20 < 18) == (place % 2 == 1)) for place in range(400)])
    inputs, head = fitted(rows, targets, Table(width=16, embedding=4, hidden=0.2, dropout=0.0), 150)
    chances = head(inputs(inputs.encode([{"kind": kind, "noise": 1} for kind in ("a", "b", "c")]))).detach().sigmoid()
    assert chances[0] > 0.8 and chances[1] < 0.2
    assert abs(float(chances[2]) - 0.5) < 0.15


def test_blocks_learn_what_no_sum_over_columns_can() -> None:
    rows = [{"left": place % 2, "right": str(place // 2 % 2)} for place in range(64)]
    targets = torch.tensor([float((place % 2) ^ (place // 2 % 2)) for place in range(64)])
    accuracies = []
    for blocks in (0, 1):
        inputs, head = fitted(rows, targets, Table(width=16, blocks=blocks, hidden=0.0, dropout=0.1), 150)
        decided = head(inputs(inputs.encode(rows)))[:, 0] > 0
        accuracies.append(float((decided == targets.bool()).double().mean()))
    assert accuracies[0] <= 0.75 and accuracies[1] == 1


def test_numbers_that_fp32_cannot_tell_apart_are_read() -> None:
    """Timestamps seconds apart: their bins have widths, no cell becomes NaN, and different cells stay different."""
    rows = [{"at": 1_700_000_000 + second} for second in range(40)]
    inputs = TableInputs.of(rows, SMALL)
    found = inputs(inputs.encode(rows))
    assert torch.isfinite(found).all()
    assert len(torch.unique(found, dim=0)) == 40
