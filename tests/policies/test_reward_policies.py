"""reward models: where they read, what they do not see, and that what is saved is what was trained"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_encoder
from torch import Tensor

from melior.errors import ConfigError, DataError, ModelError
from melior.policies.adapters import LoRA
from melior.policies.base import Batch, Want
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.policies.kinds import load_policy
from melior.policies.language import LanguagePolicy
from melior.policies.reward_heads import Heads
from melior.policies.reward_model import Reward, RewardModel
from melior.policies.reward_segments import Segments
from melior.policies.reward_tables import joined
from melior.policies.reward_texts import PairedTexts, hashed, text_of
from melior.policies.slate import SlatePolicy
from melior.policies.slate_network import Slate
from melior.policies.tables import Table
from melior.policies.texts import Texts
from melior.types import Demonstration, Item, Rated, Record, SlateRequest

CHAT = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "and what is that"},
]
ROWS = [
    Demonstration("hi", "the cat sat on the mat"),
    Demonstration("what is the answer to that", "a"),
    Demonstration(CHAT, "the mat and the hat of the man"),
    Demonstration("hi", "the cat sat on a man"),
]
NUMBERS = [Demonstration({"age": n * 1.5, "kind": "ab"[n % 2]}, {"dose": n / 3, "way": "xy"[n % 2]}) for n in range(8)]


def segment(steps: int, seed: int, columns: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(2.0, 3.0, (steps, columns))


SEGMENTS = [Demonstration(None, segment(4 + n, n)) for n in range(6)]


def scattered(model: RewardModel) -> RewardModel:
    """The model with weights as after some training, so that every part of it matters."""
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, tensor in model.candidates():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=source, dtype=torch.float64).to(tensor))
        model.heads.weight.add_(torch.randn(model.heads.weight.shape, generator=source).to(model.heads.weight))
    return model


def on_language(policy: LanguagePolicy, heads: tuple[str, ...] = ("helpfulness", "safety")) -> RewardModel:
    model = RewardModel.on(policy, heads)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.heads.weight.copy_(torch.randn(model.heads.weight.shape, generator=source))
    return model


# ---------------------------------------------------------------------- the last attended token


def own_states(policy: LanguagePolicy, ids: tuple[int, ...]) -> Tensor:  # [T, D]
    """Final states of one sequence by transformers alone, without padding."""
    inner = policy.backbone.inner
    with torch.no_grad():
        found: Tensor = inner.get_decoder()(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    return found


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_reward_is_read_at_the_last_token_whatever_the_layout_and_whoever_stands_beside(
    shared_policy: Callable[..., LanguagePolicy], folder_of: Callable[..., Path], family: str
) -> None:
    padded = LanguagePolicy.load(folder_of(family), dtype="float64", device="cpu", layout="padded")
    plain = on_language(padded)
    expected = []
    for row in ROWS:
        turn = padded.renderer.turn(row.inputs, row.output)
        state = own_states(padded, turn.context + turn.decisions)[-1]
        expected.append(plain.heads(state[None])[0])
    told = torch.stack(expected).detach()
    for side in ("right", "left"):
        padded.backbone.side = side
        torch.testing.assert_close(plain.rewards(ROWS), told, rtol=0, atol=1e-6)  # of families that compute in fp32
    forest = on_language(shared_policy(family))
    torch.testing.assert_close(forest.rewards(ROWS), told, rtol=0, atol=1e-6)
    alone = torch.cat([forest.rewards([row]) for row in ROWS])
    torch.testing.assert_close(forest.rewards(ROWS), alone, rtol=0, atol=1e-9)
    turned = forest.rewards(ROWS[::-1]).flip(0)
    torch.testing.assert_close(turned, alone, rtol=0, atol=1e-9)


def test_ids_of_padding_within_an_output_do_not_move_the_place(folder_of: Callable[..., Path]) -> None:
    """Padding is the end token here: a place found from ids would be the first of them."""
    policy = LanguagePolicy.load(folder_of("llama"), dtype="float64", device="cpu", layout="padded")
    model = on_language(policy)
    end = int(policy.renderer.tokenizer.pad_token_id)
    assert end == policy.renderer.tokenizer.eos_token_id
    context = tuple(policy.renderer.context("hi"))
    decisions = (40, end, end, 51, end)
    record = Record(inputs="hi", output="", context=context, decisions=decisions)
    expected = model.heads(own_states(policy, context + decisions)[-1][None])
    torch.testing.assert_close(model.rewards([record, ROWS[0]])[:1], expected.detach(), rtol=0, atol=1e-6)


def test_of_several_turns_the_last_is_read(shared_policy: Callable[..., LanguagePolicy]) -> None:
    model = on_language(shared_policy("llama"))
    whole = Demonstration([*CHAT, {"role": "assistant", "content": "a hat"}])
    batch = model.encode([whole, ROWS[0]])
    assert len(batch) == 2 and batch.columns["examples"].tolist() == [0, 1]
    torch.testing.assert_close(model.rewards([whole]), model.rewards([Demonstration(CHAT, "a hat")]))


def test_what_does_not_fit_has_no_reward(folder_of: Callable[..., Path]) -> None:
    policy = LanguagePolicy.load(folder_of("llama"), device="cpu", max_length=30)
    model = on_language(policy)
    found = model.rewards([ROWS[0], Demonstration("the cat sat " * 40, "a")])
    assert bool(torch.isfinite(found[0]).all()) and bool(torch.isnan(found[1]).all())


# ---------------------------------------------------------------------- what is saved


def test_heads_survive_lora_save_load_and_merge(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    policy = LanguagePolicy.load(folder_of("llama"), adapter=LoRA(r=2), device="cpu")
    model = scattered(RewardModel.on(policy, ("helpfulness", "safety"), levels={"safety": (1, 2, 5)}))
    model.rescale("helpfulness", location=0.5, spread=2.0)
    told = model.rewards(ROWS)
    model.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/policy.json").read_text())["kind"] == "reward_model"
    assert (tmp_path / "saved/trunk/adapter_config.json").is_file() and (tmp_path / "saved/heads.safetensors").is_file()
    loaded = RewardModel.load(tmp_path / "saved", device="cpu")
    torch.testing.assert_close(loaded.rewards(ROWS), told, rtol=1e-6, atol=1e-6)
    assert loaded.adapted and loaded.fingerprint() == model.fingerprint()
    assert {name: tensor.tolist() for name, tensor in loaded.state().items()} == {
        name: tensor.tolist() for name, tensor in model.state().items()
    }
    loaded.merged(tmp_path / "merged")
    merged = RewardModel.load(tmp_path / "merged", device="cpu")
    assert not merged.adapted and not (tmp_path / "merged/trunk/adapter_config.json").exists()
    torch.testing.assert_close(merged.rewards(ROWS), told, rtol=1e-5, atol=1e-5)  # fp32, of values around 10
    torch.testing.assert_close(loaded.rewards(ROWS), told, rtol=1e-6, atol=1e-6)  # merging left it as it was


def feature_models(folder_of: Callable[..., Path]) -> dict[str, tuple[RewardModel, list[Demonstration]]]:
    texts = PairedTexts(backbone=str(tiny_encoder(folder_of)), hidden=5, text=Texts(max_length=24))
    loose = PairedTexts(backbone=str(tiny_encoder(folder_of)), frozen=False, words=16, text=Texts(max_length=24))
    table = Table(width=8, blocks=1, embedding=2, bins=3)
    levels = {"reward": (0.0, 1.0, 3.0)}
    return {
        "table": (RewardModel.make(Reward(table=table, levels=levels), NUMBERS, device="cpu"), NUMBERS),
        "segment": (RewardModel.make(Reward(segment=Segments(hidden=(6,))), SEGMENTS, device="cpu"), SEGMENTS),
        "linear": (RewardModel.make(Reward(segment=Segments(hidden=())), SEGMENTS, device="cpu"), SEGMENTS),
        "text": (RewardModel.make(Reward(text=texts), ROWS, device="cpu"), ROWS),
        "loose": (RewardModel.make(Reward(text=loose), ROWS, device="cpu"), ROWS),
    }


@pytest.mark.parametrize("name", ["table", "segment", "linear", "text", "loose"])
def test_feature_models_see_no_batch_mates_and_are_saved_whole(
    folder_of: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    model, rows = feature_models(folder_of)[name]
    scattered(model)
    told = model.rewards(rows)
    assert told.shape == (len(rows), 1) and float(told.std()) > 0.01
    torch.testing.assert_close(torch.cat([model.rewards([row]) for row in rows]), told, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.rewards(rows[::-1]).flip(0), told, rtol=0, atol=1e-5)
    model.save(tmp_path / "m")
    loaded = RewardModel.load(tmp_path / "m", device="cpu")
    assert loaded.fingerprint() == model.fingerprint() and loaded.trunk.kind == model.trunk.kind
    torch.testing.assert_close(loaded.rewards(rows), told, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["table", "segment", "text"])
def test_noise_is_of_the_key_and_scoring_has_none(folder_of: Callable[..., Path], name: str) -> None:
    model, rows = feature_models(folder_of)[name]
    scattered(model)
    batch = model.encode(rows)

    def values(given: Batch) -> Tensor:
        found = model.score(given).values
        assert found is not None
        return found.detach()

    noisy = [values(model.perturb(batch, (1, step))) for step in (0, 0, 1)]
    torch.testing.assert_close(noisy[0], noisy[1], rtol=0, atol=0)
    assert float((noisy[0] - noisy[2]).abs().max()) > 0
    torch.testing.assert_close(values(batch), values(batch), rtol=0, atol=0)


# ---------------------------------------------------------------------- each trunk


def test_a_frozen_encoder_says_what_it_says_while_it_trains(folder_of: Callable[..., Path]) -> None:
    """Vectors that are kept are those a forward pass would compute; of long texts the end is read."""
    config = {"backbone": str(tiny_encoder(folder_of)), "text": Texts(max_length=24)}
    frozen = RewardModel.make(Reward(text=PairedTexts(**config)), ROWS, device="cpu")  # type: ignore[arg-type]
    loose = RewardModel.make(Reward(text=PairedTexts(frozen=False, **config)), ROWS, device="cpu")  # type: ignore[arg-type]
    loose.heads.load_state_dict(frozen.heads.state_dict())
    torch.testing.assert_close(frozen.rewards(ROWS), loose.rewards(ROWS), rtol=0, atol=1e-5)
    assert not any(name.startswith("trunk.texts") for name in frozen.state())
    assert any(name.startswith("trunk.texts") for name in loose.state())
    ends = [Demonstration("hi", "the cat sat " * 20 + last) for last in ("on the mat", "of the man")]
    assert float(frozen.rewards(ends).diff(dim=0).abs()) > 1e-6


def test_conversations_become_lines_of_roles() -> None:
    assert text_of(CHAT[:2]) == "user: the cat\nassistant: sat" == text_of({"messages": CHAT[:2]})
    assert text_of("as it is") == "as it is" and text_of({"dose": 3}) == '{"dose": 3}'


def test_a_segment_is_the_sum_of_its_steps_whatever_its_length(folder_of: Callable[..., Path]) -> None:
    for name in ("segment", "linear"):
        model = scattered(feature_models(folder_of)[name][0])
        first, second = segment(3, 1), segment(9, 2)
        parts = [Demonstration(None, part) for part in (first, second, np.concatenate([first, second]))]
        one, other, both = model.rewards(parts)[:, 0].tolist()
        bias = float(model.heads.bias.detach())
        assert both == pytest.approx(one + other - bias, abs=1e-4)
    sides = {"observations": segment(4, 3)[:, :2], "actions": segment(4, 3)[:, 2:]}
    torch.testing.assert_close(
        model.rewards([Demonstration(None, sides)]), model.rewards([Demonstration(None, segment(4, 3))])
    )


def test_hashed_words_know_words_neighbours_and_sides_and_nothing_else() -> None:
    one = hashed(["where is it", "on its way"], 512)
    assert float(one.norm()) == pytest.approx(8.0)
    assert one.equal(hashed(["Where IS it?", "on its way!"], 512))
    assert not one.equal(hashed(["on its way", "where is it"], 512)), "who said it"
    assert not one.equal(hashed(["is where it", "on its way"], 512)), "what stands beside what"
    assert hashed(["", "..."], 512).count_nonzero() == 0 and hashed(["a", "b"], 0).shape == (0,)


def test_a_text_s_words_and_last_messages_are_kept_in_a_folder(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    told = [{"role": "user", "content": "first"}, {"role": "user", "content": "where is it"}]
    rows = [Demonstration(told, answer) for answer in ("on its way", "its on way")]
    config = PairedTexts(backbone=str(tiny_encoder(folder_of)), words=64, messages=1, text=Texts(max_length=24))
    model = scattered(RewardModel.make(Reward(text=config), rows, device="cpu"))
    one, other = model.rewards(rows)[:, 0].tolist()
    assert one != other and model.trunk.width == 3 * 32 + 64
    short = [Demonstration(told[1:], row.output) for row in rows]
    torch.testing.assert_close(model.rewards(short), model.rewards(rows))
    model.save(tmp_path / "m")
    again = RewardModel.load(tmp_path / "m", device="cpu")
    torch.testing.assert_close(again.rewards(rows), model.rewards(rows))


def test_a_table_s_row_holds_inputs_and_output() -> None:
    assert joined({"age": 3}, "yes") == {"age": 3, "output": "yes"}
    assert joined({"age": 3}, {"dose": 1.0}) == {"age": 3, "output.dose": 1.0}
    assert joined(None, ("a", "b")) == {"output: a": True, "output: b": True}
    with pytest.raises(DataError, match="column 'output'"):
        joined({"output": 3}, "yes")
    with pytest.raises(DataError, match="type int"):
        joined(3, "yes")


def test_a_slate_s_reward_knows_every_item_in_it() -> None:
    items = [Item(f"item {n}", {"price": float(n)}) for n in range(5)]
    requests = [SlateRequest(context={"hour": float(n)}) for n in range(3)]
    policy = SlatePolicy.make(Slate(positions=2, width=8), items, requests, seed=1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model = on_language(policy, ("reward",))  # type: ignore[arg-type]
    slates = [["item 0", "item 1"], ["item 0", "item 2"], ["item 3", "item 1"], ["item 0"]]
    found = model.rewards([Demonstration(requests[0], slate) for slate in slates])[:, 0]
    assert len({round(value, 5) for value in found.tolist()}) == len(slates)


def test_a_classifier_s_states_are_refused() -> None:
    rows = [Demonstration({"age": float(n)}, "ab"[n % 2]) for n in range(4)]
    with pytest.raises(ConfigError, match="do not know the label"):
        RewardModel.on(ClassifierPolicy.make(Classifier(), rows, device="cpu"))


# ---------------------------------------------------------------------- heads and units


def test_grades_rise_with_the_value_and_are_told_as_the_expected_grade() -> None:
    heads = Heads(("reward", "stars"), 4, {"stars": (1, 2, 5)})
    values = torch.tensor([[0.3, -9.0], [0.3, 0.0], [0.3, 9.0]])
    table = heads.grades(values)
    assert table.shape == (3, 2, 3) and bool(torch.isneginf(table[:, 0]).all())
    torch.testing.assert_close(table[:, 1].exp().sum(-1), torch.ones(3))
    assert table[1, 1].exp().tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)
    told = heads.rewards(values)
    assert told[:, 0].tolist() == pytest.approx([0.3] * 3)
    assert told[:, 1].tolist() == pytest.approx([1.0, 8 / 3, 5.0], abs=0.01)


def test_units_of_ratings_and_of_rewards(folder_of: Callable[..., Path]) -> None:
    model, rows = feature_models(folder_of)["segment"]
    scattered(model)
    raw = model.rewards(rows)
    model.standardise([Rated(None, row.output, rating=float(n)) for n, row in enumerate(rows)])
    torch.testing.assert_close(model.rewards(rows), 2.5 + raw * np.std(range(6)), rtol=0, atol=1e-5)
    model.rescale("reward", location=1.0, spread=2.0)
    torch.testing.assert_close(model.rewards(rows), 1 + 2 * (2.5 + raw * np.std(range(6))), rtol=0, atol=1e-5)
    with pytest.raises(ModelError, match="spread above 0"):
        model.rescale("reward", location=0.0, spread=0.0)


def test_presets_freeze_the_trunk_and_leave_the_heads(folder_of: Callable[..., Path]) -> None:
    model, _ = feature_models(folder_of)["segment"]
    model.freeze({"^trunk": 0.0})
    assert set(model.state()) == {"head.weight", "head.bias"}
    assert model.share.trainable == model.heads.weight.numel() + 1


def test_only_what_is_wanted_is_answered(folder_of: Callable[..., Path]) -> None:
    model, rows = feature_models(folder_of)["table"]
    batch = model.encode(rows)
    found = model.score(batch)
    assert found.values is not None and found.values.shape == (8, 1) and found.candidates is None
    asked = model.score(batch, frozenset({Want.VALUES, Want.CANDIDATES}))
    assert asked.candidates is not None and asked.candidates.shape == (8, 1, 3)
    assert model.rewards([]).shape == (0, 1)


def test_one_seed_gives_one_model(folder_of: Callable[..., Path]) -> None:
    def made(seed: int) -> Any:
        return RewardModel.make(Reward(segment=Segments(hidden=(6,))), SEGMENTS, seed=seed, device="cpu")

    torch.testing.assert_close(made(1).rewards(SEGMENTS), made(1).rewards(SEGMENTS), rtol=0, atol=0)
    assert made(1).origin == made(1).origin != made(2).origin and made(1).fingerprint() == made(2).fingerprint()


def test_what_cannot_be_is_refused(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="different names"):
        Heads(("a", "a"), 3)
    with pytest.raises(ConfigError, match="none of a"):
        Heads(("a",), 3, {"b": (1, 2)})
    with pytest.raises(ConfigError, match="rising"):
        Heads(("a",), 3, {"a": (2, 1)})
    with pytest.raises(DataError, match="0 rows"):
        RewardModel.make(Reward(), [])
    model, _ = feature_models(folder_of)["segment"]
    for odd, told in ((segment(3, 0, 4), "4 numbers a step"), (np.zeros((0, 3)), "shape"), ("text", "no array")):
        with pytest.raises(DataError, match=told):
            model.encode([Demonstration(None, odd)])
    with pytest.raises(DataError, match="'help'"):
        Heads(("a", "b"), 3).of([Demonstration("", "", item={"head": "help"})])
    with pytest.raises(DataError, match="no 'head'"):
        Heads(("a", "b"), 3).of([Demonstration("", "")])
    with pytest.raises(ModelError, match="not a reward model"):
        RewardModel.load(folder_of("llama"))
    model.save(tmp_path / "m")
    with pytest.raises(ModelError, match="decides nothing"):
        load_policy(tmp_path / "m")
