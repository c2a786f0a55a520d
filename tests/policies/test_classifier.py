"""classifiers: what is refused, what is told, and what several kinds of inputs share"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import ROWS as TOKENS
from tiny import tiny_encoder, tiny_tokenizer

from melior.errors import CheckpointError, ConfigError, DataError, ModelError
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.policies.freezing import factors_of
from melior.policies.inputs import drop, uniforms
from melior.policies.kinds import kind_of, load_policy
from melior.policies.tables import Table
from melior.policies.texts import TextInputs, Texts
from melior.types import Demonstration, Preference, Rated, Record, Sampling, Task

TABLE = Classifier(table=Table(width=8, embedding=4, hidden=0.0, dropout=0.0))
ROWS = [Demonstration({"age": float(n), "sex": "fm"[n % 2]}, ("no", "yes")[n % 2], id=f"t.csv:{n}") for n in range(8)]


@pytest.fixture
def policy() -> ClassifierPolicy:
    return ClassifierPolicy.make(TABLE, ROWS, device="cpu")


# ---------------------------------------------------------------------- labels


def test_labels_are_those_of_the_rows_sorted_or_those_given(policy: ClassifierPolicy) -> None:
    assert policy.labels.names == ("no", "yes")
    given = ClassifierPolicy.make(Classifier(labels=("yes", "no", "perhaps")), ROWS, device="cpu")
    assert given.labels.names == ("yes", "no", "perhaps")
    assert given.noticed["label 'perhaps' has 0 rows"] == 1
    assert given.probabilities([ROWS[0].inputs]).shape == (1, 3)


def test_labels_come_from_preferences_and_ratings_too() -> None:
    rows = [Preference({"a": 1.0}, "x", "y"), Rated({"a": 2.0}, "z", 0.5)]
    assert ClassifierPolicy.make(TABLE, rows, device="cpu").labels.names == ("x", "y", "z")


def test_fewer_than_two_labels_are_no_choice() -> None:
    with pytest.raises(ConfigError, match="2 labels at least, got 1"):
        ClassifierPolicy.make(TABLE, [row for row in ROWS if row.output == "no"], device="cpu")
    with pytest.raises(ConfigError, match="got 0"):
        ClassifierPolicy.make(TABLE, [Task({"a": 1.0})], device="cpu")
    with pytest.raises(DataError, match="0 rows"):
        ClassifierPolicy.make(TABLE, [], device="cpu")


def test_a_label_of_one_row_is_told() -> None:
    rows = [*ROWS, Demonstration({"age": 3.0, "sex": "m"}, "rare")]
    assert ClassifierPolicy.make(TABLE, rows, device="cpu").noticed["label 'rare' has 1 rows"] == 1


def test_a_new_classifier_begins_as_the_shares_of_its_labels() -> None:
    rows = ROWS + [Demonstration({"age": 1.0, "sex": "m"}, "no")] * 32
    found = ClassifierPolicy.make(TABLE, rows, device="cpu").probabilities([ROWS[0].inputs])[0]
    assert float(found[0]) == pytest.approx(37 / 42, abs=0.02)


@pytest.mark.parametrize(
    ("output", "told"),
    [("ye", "did you mean 'yes'"), (None, "has None where a label"), (("yes",), "where a label is expected")],
)
def test_an_output_that_is_no_label_is_named_with_its_row(output: object, told: str, policy: ClassifierPolicy) -> None:
    with pytest.raises(DataError, match=told) as caught:
        policy.encode([Demonstration(ROWS[0].inputs, output, id="t.csv:9")])
    assert "t.csv:9" in str(caught.value)


def test_sides_of_a_preference_and_records_of_other_labels_are_refused(policy: ClassifierPolicy) -> None:
    with pytest.raises(DataError, match="two outputs"):
        policy.encode([Preference(ROWS[0].inputs, "yes", "no")])
    (record,) = policy.sample([ROWS[0].inputs], Sampling())
    other = ClassifierPolicy.make(Classifier(labels=("yes", "no")), ROWS, device="cpu")
    with pytest.raises(DataError, match="mean other labels"):
        other.encode([record])


def test_whole_numbers_are_read_as_their_text() -> None:
    rows = [Demonstration({"a": float(n)}, n % 2) for n in range(6)]
    policy = ClassifierPolicy.make(TABLE, rows, device="cpu")
    assert policy.labels.names == ("0", "1") and torch.isfinite(policy.log_probs(rows)[0]).all()


# ---------------------------------------------------------------------- inputs


def test_unknown_categories_are_counted_and_infinities_refused(policy: ClassifierPolicy) -> None:
    before = policy.probabilities([{"age": None, "sex": None}])
    assert torch.isfinite(policy.probabilities([{"age": 4.0, "sex": "x"}])).all()
    assert policy.noticed["unknown category in column sex"] == 1
    assert torch.equal(policy.probabilities([{"age": float("nan"), "sex": ""}]), before)
    with pytest.raises(DataError, match="infinite"):
        policy.probabilities([{"age": float("inf"), "sex": "m"}])


def test_inputs_of_another_kind_are_refused(policy: ClassifierPolicy) -> None:
    with pytest.raises(DataError, match="Row 1 is a str"):
        policy.probabilities(["a text"])
    with pytest.raises(DataError, match="got a int"):
        ClassifierPolicy.make(Classifier(), [Demonstration(3, "a"), Demonstration(4, "b")], device="cpu")


def test_outputs_of_one_input_are_read_once(policy: ClassifierPolicy) -> None:
    records = policy.sample([ROWS[0].inputs, ROWS[1].inputs], Sampling(n=5))
    policy.score(policy.encode(records))
    assert dict(policy.computed)["inputs"] == 2 and max(policy.computed.values()) == 10


def test_long_texts_are_cut_off_and_counted(folder_of: Callable[..., Path]) -> None:
    rows = [Demonstration("the cat", "a"), Demonstration("the hat", "b")]
    config = Classifier(backbone=str(tiny_encoder(folder_of)), text=Texts(max_length=5))
    policy = ClassifierPolicy.make(config, rows, device="cpu")
    long, longer = policy.probabilities(["the cat sat on the mat and the hat", "the cat sat on the mat of a man"])
    assert torch.equal(long, longer)
    assert policy.noticed["text longer than 5 tokens, cut off"] == 2
    with pytest.raises(DataError, match="no token to read"):
        policy.probabilities([""])


def test_a_text_encoder_that_is_not_there_is_told() -> None:
    with pytest.raises(ModelError, match="no model folder"):
        ClassifierPolicy.make(Classifier(backbone="./nowhere"), [Demonstration("x", "a"), Demonstration("y", "b")])


# ---------------------------------------------------------------------- sampling, keeping, freezing


def test_truncated_sampling_is_refused(policy: ClassifierPolicy) -> None:
    for how in (Sampling(top_k=1), Sampling(top_p=0.5)):
        with pytest.raises(ConfigError, match="samples from all its labels"):
            policy.sample([ROWS[0].inputs], how)


def test_choices_are_the_labels_or_refused(policy: ClassifierPolicy) -> None:
    assert policy.sample([ROWS[0].inputs], Sampling(choices=("no", "yes")))[0].output in ("no", "yes")
    with pytest.raises(ConfigError, match="its own 2 labels, got 3 other"):
        policy.sample([ROWS[0].inputs], Sampling(choices=("no", "yes", "perhaps")))


def test_greedy_is_the_most_probable_label(policy: ClassifierPolicy) -> None:
    inputs = [row.inputs for row in ROWS]
    best = policy.probabilities(inputs).argmax(1).tolist()
    records = policy.sample(inputs, Sampling(temperature=0))
    assert [record.output for record in records] == [policy.labels.names[place] for place in best]


def test_a_logged_record_without_ids_is_read_by_its_label(policy: ClassifierPolicy) -> None:
    logged = Record(inputs=ROWS[0].inputs, output="yes", behavior_log_probs=(-0.7,))
    assert torch.equal(policy.log_probs([logged])[0], policy.log_probs([Demonstration(ROWS[0].inputs, "yes")])[0])


def test_a_damaged_or_foreign_folder_is_refused(policy: ClassifierPolicy, tmp_path: Path) -> None:
    policy.save(tmp_path / "saved")
    assert kind_of(tmp_path / "saved") == "classifier"
    told = json.loads((tmp_path / "saved" / "policy.json").read_text())
    (tmp_path / "saved" / "policy.json").write_text(json.dumps({**told, "labels": ["yes", "no"]}))
    with pytest.raises(CheckpointError, match="damaged"):
        ClassifierPolicy.load(tmp_path / "saved")
    (tmp_path / "saved" / "policy.json").write_text(json.dumps({**told, "kind": "gaussian"}))
    with pytest.raises(ModelError, match="gaussian"):
        load_policy(tmp_path / "saved")
    (tmp_path / "saved" / "policy.json").write_text("{")
    with pytest.raises(ModelError, match="does not say"):
        load_policy(tmp_path / "saved")
    with pytest.raises(ModelError, match=r"holds no classifier"):
        ClassifierPolicy.load(tmp_path)


@pytest.mark.parametrize("train", ["head", "last-1"])
def test_presets_always_train_the_head(train: str, folder_of: Callable[..., Path]) -> None:
    rows = [Demonstration("the cat", "a"), Demonstration("the hat", "b")]
    policy = ClassifierPolicy.make(Classifier(backbone=str(tiny_encoder(folder_of))), rows, device="cpu")
    policy.freeze(factors_of([name for name, _ in policy.candidates()], train=train))
    trains = set(policy.state())
    assert {"head.weight", "head.bias"} <= trains
    blocks = {name.split(".layer.")[1][0] for name in trains if ".layer." in name}
    assert blocks == (set() if train == "head" else {"1"}) and not any("embeddings" in name for name in trains)


# ---------------------------------------------------------------------- noise


def test_uniform_numbers_are_uniform_and_depend_on_nothing_but_their_key() -> None:
    found = uniforms(torch.arange(4000), 8)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.01) and found.min() >= 0 and found.max() < 1
    assert float(torch.corrcoef(found.T).fill_diagonal_(0).abs().max()) < 0.08
    assert torch.equal(uniforms(torch.tensor([7]), 8), found[7:8])
    assert not torch.equal(uniforms(torch.arange(4000), 8, stream=1), found)


def test_dropout_keeps_the_mean_and_is_nothing_without_seeds() -> None:
    ones = torch.ones(500, 64)
    dropped = drop(ones, 0.3, torch.arange(500))
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
    assert float((dropped == 0).double().mean()) == pytest.approx(0.3, abs=0.01)
    assert drop(ones, 0.3, None) is ones


def test_encoders_that_call_dropout_themselves_are_read_without_it() -> None:
    """Not every dropout is a module, and a network that was made rather than loaded is in training mode."""
    from transformers import AutoModel, ModernBertConfig

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = ModernBertConfig(vocab_size=TOKENS, attention_dropout=0.5, **shape, **ends)
    inputs = TextInputs(AutoModel.from_config(config), tiny_tokenizer(None), Texts())
    rows = inputs.encode(["the cat sat on the mat"])
    assert torch.equal(inputs(rows), inputs(rows))


@pytest.mark.parametrize("decisions", [(0, 1), (2,), (-1,), ()])
def test_decisions_that_are_no_labels_are_refused(decisions: tuple[int, ...], policy: ClassifierPolicy) -> None:
    with pytest.raises(DataError, match="decides 1 of 0 to 1; leave the record out"):
        policy.encode([Record(inputs=ROWS[0].inputs, output="no", decisions=decisions)])


def test_nothing_asked_is_nothing_answered(policy: ClassifierPolicy) -> None:
    assert policy.sample([]) == [] and policy.log_probs([]) == []
