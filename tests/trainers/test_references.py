"""log-probs under the reference: computed once, kept by content, and no digit of a run depends on it"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tabular import Tabular

from melior.errors import ModelError
from melior.policies.adapters import LoRA
from melior.policies.language import LanguagePolicy
from melior.trainers.loop import FitConfig, fit
from melior.trainers.pairs import Pairs
from melior.trainers.preference import Dpo, SimPo
from melior.trainers.references import References, contents_of, fingerprint_of
from melior.types import Demonstration, Preference

ROWS = [
    Preference("hi", "a cat", "the hat"),
    Preference("and", "b", "the mat the mat"),
    Preference("the", "man", "cat"),
]
TABLE = [Preference("a", (n % 4, 1), (3 - n % 4, 2, 0)) for n in range(8)]


class Counting(Tabular):
    """Counts the rows that its reference was asked for."""

    asked = 0

    def reference_log_probs(self, batch: Any, budget: int | None = None) -> torch.Tensor:
        self.asked += len(batch)
        return super().reference_log_probs(batch, budget)


def test_every_row_is_computed_once_however_often_it_comes() -> None:
    policy = Counting()
    fit(policy, Pairs(policy, TABLE, batch_size=3, epochs=4), Dpo(), FitConfig())
    assert policy.asked == 2 * 4  # rows 4 … 7 are rows 0 … 3 again: four different pairs
    fit(policy, Pairs(policy, TABLE, batch_size=3), SimPo(), FitConfig())
    assert policy.asked == 2 * 4  # who needs no reference computes none


def test_a_kept_reference_is_found_again_by_another_process(tmp_path: Path) -> None:
    policy = Counting()
    first = Pairs(policy, TABLE, batch_size=3, references=References(policy, folder=tmp_path))
    fit(policy, first, Dpo(), FitConfig(folder=tmp_path / "one"))
    other = Counting()
    again = Pairs(other, TABLE, batch_size=2, seed=7, epochs=2, references=References(other, folder=tmp_path))
    fit(other, again, Dpo(), FitConfig())
    assert other.asked == 0 and again.references.computed == 0
    assert torch.equal(again(0).reference(again(0).batch), Tabular().reference_log_probs(again(0).batch))  # type: ignore[misc]


def test_other_weights_have_other_references(tmp_path: Path) -> None:
    one, other = Counting(seed=0), Counting(seed=1)
    for policy in (one, other):
        fit(policy, Pairs(policy, TABLE, references=References(policy, folder=tmp_path)), Dpo(), FitConfig())
    assert one.asked == other.asked == 8
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_file_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = Counting()
    batch = Pairs(policy, TABLE, batch_size=8)(0).batch
    kept = References(policy, folder=tmp_path)
    expected = kept(batch)
    (file,) = tmp_path.rglob("*.safetensors")
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(bytes(damaged))
    again = References(policy, folder=tmp_path)
    assert torch.equal(again(batch), expected)
    assert again.computed == 4 and "damaged" in caplog.text


def test_what_is_kept_does_not_depend_on_the_rows_beside_it(learner: Callable[..., LanguagePolicy]) -> None:
    policy = learner("float32")
    batch = Pairs(policy, ROWS, batch_size=3)(0).batch
    together = References(policy)(batch)
    for pair in range(3):
        rows = (batch.groups == pair).nonzero()[:, 0].tolist()
        alone = References(policy)(batch.select(rows))
        assert torch.equal(alone, together[rows][:, : alone.shape[1]])


def test_with_the_adapter_off_it_is_the_base_bitwise_whatever_the_adapter(
    folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = folder_of("llama", "chatml")
    base = LanguagePolicy.load(folder, dtype="float32", device="cpu")
    adapted = [LanguagePolicy.load(folder, adapter=LoRA(r=r), dtype="float32", device="cpu") for r in (2, 4)]
    for policy in adapted:
        with torch.no_grad():
            for tensor in policy.state().values():
                tensor.add_(0.1)
    batch = Pairs(base, ROWS, batch_size=3)(0).batch
    expected = References(adapted[0], reference=base)(batch)
    first, second = References(adapted[0], folder=tmp_path), References(adapted[1], folder=tmp_path)
    assert torch.equal(first(batch), expected)
    assert torch.equal(second(batch), expected) and second.computed == 0  # adapters of any rank share what is kept
    with pytest.raises(ModelError, match="no reference inside"):
        References(base)(batch)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_with_kept_references_is_bitwise_the_run_without(
    learner: Callable[..., LanguagePolicy], tmp_path: Path, resumed: bool
) -> None:
    """Also where it was stopped in between, and its second half finds in a fresh memory what the first had computed."""

    def trained(name: str, *, keep: bool, stop: int | None = None) -> dict[str, torch.Tensor]:
        for until in [stop, None] if stop else [None]:
            policy = learner("float32")
            references = References(policy, folder=tmp_path / "kept" if keep else None)
            pairs = Pairs(policy, ROWS, batch_size=2, epochs=2, references=references)
            config = FitConfig(folder=tmp_path / name, learning_rate=1e-2, checkpoint_every=1, schedule="constant")
            try:
                fit(policy, pairs, Dpo(), config, on_step=partial(_stop, until))
            except InterruptedError:
                continue
        return {key: tensor.clone() for key, tensor in policy.state().items()}

    plain = trained("plain", keep=False)
    if resumed:
        found = trained("resumed", keep=False, stop=3)
    else:
        trained("first", keep=True)
        found = trained("second", keep=True)
        shutil.rmtree(tmp_path / "kept")
    assert all(torch.equal(found[key], plain[key]) for key in plain)


def _stop(at: int | None, done: int, total: int, metrics: Any) -> None:
    if done == at:
        raise InterruptedError


def test_contents_are_of_inputs_and_decisions_alone() -> None:
    policy = Tabular()
    sides = [
        (Demonstration("a", (1, 2)), Demonstration("a", (3,))),
        (Demonstration("a", (1, 2)), Demonstration("a", (4,))),
    ]
    batch = Pairs(policy, [Preference("a", (1, 2), (3,)), Preference("a", (1, 2), (4,))])(0).batch
    batch = batch.select(sorted(range(4), key=lambda row: int(batch.groups[row])))
    found = contents_of(sides, batch)
    assert found.tolist() == batch.columns["content"].tolist()
    assert len(set(found.tolist())) == 2 and int(found.min()) >= 0
    weighed = Pairs(policy, [Preference("a", (1, 2), (3,), 0.7, 0.5, weight=3.0, id="x", item={"by": "me"})])
    assert set(weighed(0).batch.columns["content"].tolist()) <= set(found.tolist())


def test_a_fingerprint_is_of_the_weights_as_they_are() -> None:
    policy = Tabular()
    before = fingerprint_of(policy)
    assert fingerprint_of(Tabular()) == before
    with torch.no_grad():
        policy.logits[0, 0, 0] += 1e-9
    assert fingerprint_of(policy) != before
