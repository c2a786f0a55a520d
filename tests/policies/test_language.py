"""records become batches and back; weights save, load and freeze by name"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from melior.durable import MANIFEST
from melior.errors import CheckpointError, ConfigError, DataError, ModelError
from melior.policies.adapters import LoRA
from melior.policies.base import Rates
from melior.policies.language import LanguagePolicy
from melior.types import Demonstration, Preference, Rated, Record, Sampling

Make = Callable[..., Path]
Shared = Callable[..., LanguagePolicy]
CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "the cat"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "the hat, 12"},
]


# ---------------------------------------------------------------------- encoding


def test_rows_are_turns_and_the_mask_covers_text_and_stop(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    batch = policy.encode([Demonstration("hi", "yo"), Demonstration(CHAT), Rated("hi", "no", 0.5)])
    assert batch.columns["examples"].tolist() == [0, 1, 1, 2]
    for row, text in enumerate(["yo", "the cat", "the hat, 12", "no"]):
        decided = batch.outputs[row][0]
        assert policy.renderer.tokenizer.decode(decided) == f"{text}<|im_end|>"
        assert batch.mask[row].tolist() == [True] * len(decided) + [False] * (batch.mask.shape[1] - len(decided))
    assert batch.groups.tolist() == [0, 1, 1, 2]


def test_weights_are_the_examples_and_groups_the_records(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    batch = policy.encode([Demonstration("hi", "yo", weight=0.25), Demonstration("hi", "yo yo")])
    assert torch.equal(batch.weights, batch.mask * torch.tensor([[0.25], [1.0]]))
    records = policy.sample(["hi", "ho"], Sampling(n=2, max_tokens=4))
    assert policy.encode(records).groups.tolist() == [0, 0, 1, 1]


def test_sampled_ids_are_never_tokenised_again(shared_policy: Shared) -> None:
    policy = shared_policy("llama", dtype="float32")
    (record,) = policy.sample(["hi"], Sampling(max_tokens=6, seed=3))
    changed = replace(record, inputs="other", output="text")
    batch = policy.encode([changed])
    assert batch.inputs[0] == record.context and batch.outputs[0][0] == record.decisions


def test_select_cuts_what_no_row_uses(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    batch = policy.encode(
        [Demonstration("hi", "a much longer answer"), Demonstration("ho", "b"), Demonstration("ha", "c")]
    )
    batch = batch.with_columns(advantages=batch.weights * 2)
    part = batch.select([2, 1])
    assert part.mask.shape[1] == 2 and bool(part.mask.all())
    assert part.columns["advantages"].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert (policy.score(part).log_probs - policy.score(batch).log_probs[[2, 1], :2]).abs().max() <= 1e-6


def test_truncation_cuts_the_end_and_may_leave_nothing(folder_of: Make) -> None:
    policy = LanguagePolicy.load(folder_of("llama"), dtype="float64", device="cpu", max_length=30)
    whole = LanguagePolicy.load(folder_of("llama"), dtype="float64", device="cpu")
    examples = [
        Demonstration("hi", "the cat " * 20),
        Demonstration("long " * 40, "never seen"),
        Demonstration("hi", "ok"),
    ]
    batch, full = policy.encode(examples), whole.encode(examples)
    assert len(batch.inputs[0]) + len(batch.outputs[0][0]) == 30
    assert batch.outputs[0][0] == full.outputs[0][0][: len(batch.outputs[0][0])]
    assert batch.mask.any(1).tolist() == [True, False, True]
    log_probs = policy.score(batch).log_probs
    assert (log_probs - whole.score(full).log_probs[:, : log_probs.shape[1]])[[0, 2]][
        batch.mask[[0, 2]]
    ].abs().max() <= 1e-6
    assert not log_probs[1].any()
    assert max(len(row) + len(decided) for row, (decided, *_) in zip(batch.inputs, batch.outputs, strict=True)) <= 30


def test_a_context_beyond_the_model_scores_the_other_rows(folder_of: Make) -> None:
    """Learned positions end with the model; a row that long decides nothing and must not break its mates."""
    policy = LanguagePolicy.load(folder_of("gpt2"), dtype="float32", device="cpu")
    assert policy.max_length == 64
    found = policy.log_probs([Demonstration("word " * 100, "x"), Demonstration("hi", "yo")])
    assert len(found[0]) == 0 and len(found[1]) > 0


def test_log_probs_come_per_record_in_order(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    found = policy.log_probs([Demonstration(CHAT), Demonstration("hi", "yo"), Demonstration("zz", "a longer one")])
    alone = policy.log_probs([Demonstration("hi", "yo")])[0]
    batch = policy.encode([Demonstration(CHAT)])
    assert len(found[0]) == int(batch.mask.sum())
    assert (found[1] - alone).abs().max() <= 1e-6


@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_an_empty_input_has_nothing_to_decide_from(layout: str, folder_of: Make) -> None:
    policy = LanguagePolicy.load(folder_of("llama", template=None), device="cpu", layout=layout)  # type: ignore[arg-type]
    policy.renderer.tokenizer.bos_token = None
    with pytest.raises(DataError, match="empty input"):
        policy.encode([Demonstration("", "text")])
    with pytest.raises(DataError, match="empty input"):
        policy.sample([""], Sampling(max_tokens=2))


def test_an_empty_input_begins_with_the_begin_token(shared_policy: Shared) -> None:
    policy = shared_policy("llama", template=None)
    assert policy.renderer.context("") == (policy.renderer.tokenizer.bos_token_id,)
    assert len(policy.sample([""], Sampling(max_tokens=3))) == 1


def test_ids_of_another_tokenizer_are_refused(shared_policy: Shared) -> None:
    (record,) = shared_policy("llama", template=None).sample(["hi"], Sampling(max_tokens=2))
    with pytest.raises(DataError, match=f"{record.fingerprint}.*{shared_policy('llama').renderer.fingerprint}"):
        shared_policy("llama").encode([record])


def test_a_prompt_beyond_the_context_is_told_with_its_number(shared_policy: Shared) -> None:
    with pytest.raises(DataError, match=r"Prompt 1 has \d+ tokens; with max_tokens=20 .* context of 512"):
        shared_policy("llama").sample(["hi", "cat " * 600], Sampling(max_tokens=20))


def test_a_preference_has_to_be_taken_apart(shared_policy: Shared) -> None:
    with pytest.raises(DataError, match="two outputs"):
        shared_policy("llama").encode([Preference("hi", "a", "b")])  # type: ignore[list-item]


def test_records_tell_what_was_sampled(shared_policy: Shared) -> None:
    policy = shared_policy("llama", dtype="float32")
    how = Sampling(n=2, max_tokens=5, temperature=0.7)
    for place, record in enumerate(policy.sample(["hi", CHAT[:3]], how)):
        assert record.inputs == ["hi", CHAT[:3]][place // 2]
        assert record.sampling == how and record.fingerprint == policy.renderer.fingerprint
        assert record.behavior_log_probs is not None and record.decisions is not None
        assert len(record.behavior_log_probs) == len(record.decisions)
        assert record.output == policy.renderer.text(record.decisions)


# ---------------------------------------------------------------------- parameters


def names_of(policy: LanguagePolicy, rates: Rates) -> dict[float, list[str]]:
    found: dict[float, list[str]] = {}
    for group in policy.parameter_groups(rates):
        found.setdefault(group.learning_rate, []).extend(group.names)
    return found


def test_groups_hold_every_trainable_parameter_once(shared_policy: Shared) -> None:
    policy = shared_policy("qwen3")
    groups = policy.parameter_groups(Rates(1e-3, weight_decay=0.1))
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(name for name, _ in policy.backbone.trainable())
    for group in groups:
        assert len(group.names) == len(group.parameters) and group.learning_rate == 1e-3
        assert all((parameter.dim() > 1) == (group.weight_decay == 0.1) for parameter in group.parameters)


def test_rates_by_pattern_and_freezing(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    found = names_of(policy, Rates(1e-3, factors={r"layers\.0\.": 0.0, "norm": 0.5, "embed_tokens": 2.0}))
    assert set(found) == {5e-4, 1e-3, 2e-3}
    assert not [name for names in found.values() for name in names if "layers.0." in name]
    assert found[2e-3] == ["model.embed_tokens.weight"]
    assert all("norm" in name for name in found[5e-4])
    assert not any("norm" in name for name in found[1e-3])


def test_a_pattern_that_matches_nothing_is_refused(shared_policy: Shared) -> None:
    with pytest.raises(ConfigError, match="'layres'"):
        shared_policy("llama").parameter_groups(Rates(1e-3, factors={"layres": 0.1}))


def test_a_pattern_hidden_behind_another_is_not_called_unmatched(shared_policy: Shared) -> None:
    """The first pattern decides; a second one that matches the same names has still been found."""
    groups = shared_policy("llama").parameter_groups(Rates(1e-3, factors={"layers": 0.5, r"layers\.1\.": 0.1}))
    assert {group.learning_rate for group in groups} == {1e-3, 5e-4}


def test_a_pattern_that_is_no_expression_is_refused(shared_policy: Shared) -> None:
    with pytest.raises(ConfigError, match=r"'\(layers'"):
        shared_policy("llama").parameter_groups(Rates(1e-3, factors={"(layers": 0.1}))


def test_state_round_trip(folder_of: Make) -> None:
    policy = LanguagePolicy.load(folder_of("llama"), dtype="float32", device="cpu", adapter=LoRA(r=2))
    kept = {name: tensor.clone() for name, tensor in policy.state().items()}
    with torch.no_grad():
        for _, parameter in policy.backbone.trainable():
            parameter.add_(1.0)
    assert not any(torch.equal(tensor, kept[name]) for name, tensor in policy.state().items())
    addresses = [parameter.data_ptr() for _, parameter in policy.backbone.trainable()]
    policy.load_state(kept)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in policy.state().items())
    assert addresses == [parameter.data_ptr() for _, parameter in policy.backbone.trainable()]


def test_a_state_that_does_not_fit_changes_nothing(folder_of: Make) -> None:
    policy = LanguagePolicy.load(folder_of("llama"), dtype="float32", device="cpu", adapter=LoRA(r=2))
    kept = {name: tensor.clone() for name, tensor in policy.state().items()}
    first, last = min(kept), list(kept)[-1]
    with pytest.raises(ModelError, match="1 tensor names differ"):
        policy.load_state({name: tensor + 1 for name, tensor in kept.items() if name != first})
    with pytest.raises(ModelError, match="shape"):
        policy.load_state({name: tensor[:, :1] if name == last else tensor + 1 for name, tensor in kept.items()})
    assert all(torch.equal(tensor, kept[name]) for name, tensor in policy.state().items())


def test_fingerprints_tell_what_a_checkpoint_needs(folder_of: Make) -> None:
    def load(*args: str | None, **how: object) -> str:
        return LanguagePolicy.load(folder_of(*args), device="cpu", **how).fingerprint()  # type: ignore[arg-type]

    prints = [
        load("llama"),
        load("qwen3"),
        load("llama", None),
        load("llama", adapter=LoRA(r=2)),
        load("llama", adapter=LoRA(r=4)),
    ]
    assert len(set(prints)) == len(prints)
    assert load("llama") == prints[0]


# ---------------------------------------------------------------------- folders


@pytest.mark.parametrize("family", ["llama", "smollm", "gemma2", "qwen2"])
def test_a_whole_model_saves_and_loads_bitwise(family: str, folder_of: Make, tmp_path: Path) -> None:
    policy = LanguagePolicy.load(folder_of(family), dtype="float32", device="cpu")
    examples = [Demonstration("hi", "yo"), Demonstration(CHAT)]
    policy.score(policy.encode(examples)).log_probs.sum().backward()
    with torch.no_grad():
        for _, parameter in policy.backbone.trainable():
            parameter.sub_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad * 1e-3)
    policy.save(tmp_path / "saved")
    loaded = LanguagePolicy.load(tmp_path / "saved", dtype="float32", device="cpu")
    batch = policy.encode(examples)
    assert torch.equal(policy.score(batch).log_probs, loaded.score(loaded.encode(examples)).log_probs)
    assert loaded.fingerprint() == policy.fingerprint()
    assert loaded.renderer.stop_ids == policy.renderer.stop_ids
    assert loaded.backbone.layout == "forest"


def test_a_flipped_bit_does_not_load(folder_of: Make, tmp_path: Path) -> None:
    policy = LanguagePolicy.load(folder_of("llama"), device="cpu", adapter=LoRA(r=2))
    policy.save(tmp_path / "saved")
    files = [file for file in (tmp_path / "saved").iterdir() if file.name != MANIFEST]
    chance = random.Random(0)
    for file in files:
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(bytes(damaged))
        with pytest.raises(CheckpointError, match=file.name):
            LanguagePolicy.load(tmp_path / "saved", device="cpu")
        file.write_bytes(whole)
    LanguagePolicy.load(tmp_path / "saved", device="cpu")


def test_a_record_without_ids_is_rendered(shared_policy: Shared) -> None:
    policy = shared_policy("llama")
    bare = Record(inputs="hi", output="yo")
    assert policy.encode([bare]).outputs[0][0] == policy.encode([Demonstration("hi", "yo")]).outputs[0][0]
