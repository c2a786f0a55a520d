"""reward models as graders: what they say, with how much caution, and what happens to what they cannot read"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_encoder

from melior.errors import GraderError
from melior.policies.language import LanguagePolicy
from melior.policies.reward_ensemble import RewardEnsemble
from melior.policies.reward_model import Reward, RewardModel
from melior.policies.reward_segments import Segments
from melior.policies.reward_texts import PairedTexts
from melior.policies.texts import Texts
from melior.rewards.base import BatchGrader
from melior.rewards.graders import load_grader
from melior.rewards.workers import GraderPool
from melior.types import Demonstration, Record

OUTPUTS = [np.random.default_rng(seed).normal(size=(3 + seed, 2)) for seed in range(4)]
RECORDS = [Record(inputs=None, output=output) for output in OUTPUTS]
EXAMPLES = [Demonstration(None, output) for output in OUTPUTS]


def model(seed: int = 0, heads: tuple[str, ...] = ("reward",)) -> RewardModel:
    made = RewardModel.make(Reward(segment=Segments(hidden=()), heads=heads), EXAMPLES, seed=seed, device="cpu")
    with torch.no_grad():
        made.heads.weight.copy_(torch.randn(made.heads.weight.shape, generator=torch.Generator().manual_seed(seed)))
    return made


def values(grader: object, records: list[Record] = RECORDS) -> list[float]:
    assert isinstance(grader, BatchGrader)
    found = [score.value for score in grader.grade_many(records)]
    assert None not in found
    return [value for value in found if value is not None]


def test_a_folder_and_the_model_in_it_say_the_same(tmp_path: Path) -> None:
    made = model()
    made.save(tmp_path / "m")
    told = made.rewards(EXAMPLES)[:, 0].tolist()
    by_folder = load_grader({"type": "learned", "model": str(tmp_path / "m")})
    by_object = load_grader({"type": "learned", "model": made})
    by_folder.load()
    assert values(by_folder) == pytest.approx(told) == values(by_object)
    assert by_object.spec is None and by_folder.spec is not None
    assert values(load_grader(by_folder.spec)) == pytest.approx(told)
    assert by_folder.grade(RECORDS[1]).value == pytest.approx(told[1])
    named = load_grader({"type": "learned", "model": str(tmp_path / "m"), "name": "kind"})
    assert named.name == "kind" == named.grade(RECORDS[0]).name


def test_heads_are_chosen_or_weighed_and_all_of_them_are_told() -> None:
    made = model(heads=("help", "safety"))
    told = made.rewards(EXAMPLES)
    one = load_grader({"type": "learned", "model": made, "head": "safety"})
    assert values(one) == pytest.approx(told[:, 1].tolist())
    both = load_grader({"type": "learned", "model": made, "head": {"help": 1, "safety": -0.5}})
    assert values(both) == pytest.approx((told[:, 0] - 0.5 * told[:, 1]).tolist())
    parts = both.grade(RECORDS[2]).parts
    assert parts == {"help": pytest.approx(float(told[2, 0])), "safety": pytest.approx(float(told[2, 1]))}
    with pytest.raises(GraderError, match="2 heads, help, safety"):
        load_grader({"type": "learned", "model": made}).load()
    with pytest.raises(GraderError, match="did you mean 'help'"):
        load_grader({"type": "learned", "model": made, "head": "helpp"}).load()


def test_pessimism_takes_off_what_members_disagree_about() -> None:
    found = RewardEnsemble([model(seed) for seed in range(3)])
    each = found.member_rewards(EXAMPLES)[:, :, 0]
    careful = load_grader({"type": "learned", "model": found, "pessimism": 1.5})
    expected = each.mean(0) - 1.5 * each.std(0, correction=0)
    assert values(careful) == pytest.approx(expected.tolist())
    assert careful.grade(RECORDS[0]).parts["disagreement"] == pytest.approx(float(each.std(0, correction=0)[0]))
    assert values(load_grader({"type": "learned", "model": found})) == pytest.approx(each.mean(0).tolist())


def test_log_odds_may_be_told_as_probabilities() -> None:
    made = model()
    told = [1 / (1 + math.exp(-value)) for value in made.rewards(EXAMPLES)[:, 0].tolist()]
    assert values(load_grader({"type": "learned", "model": made, "probability": True})) == pytest.approx(told)


def test_what_cannot_be_read_fails_alone(folder_of: Callable[..., Path]) -> None:
    found = load_grader({"type": "learned", "model": model()})
    scores = found.grade_many([RECORDS[0], Record(inputs=None, output="no segment"), RECORDS[1]])  # type: ignore[attr-defined]
    assert [score.value is None for score in scores] == [False, True, False]
    assert "no array of numbers" in scores[1].error
    policy = LanguagePolicy.load(folder_of("llama"), device="cpu", max_length=30)
    short = load_grader({"type": "learned", "model": RewardModel.on(policy)})
    scores = short.grade_many([Record(inputs="hi", output="a"), Record(inputs="the cat " * 60, output="a")])  # type: ignore[attr-defined]
    assert scores[0].value is not None and scores[1].value is None and "context" in scores[1].error


def test_text_of_another_tokenizer_is_read_as_text(folder_of: Callable[..., Path]) -> None:
    """Samples of a policy with other ids are graded, and a pool runs the model here."""
    policy = LanguagePolicy.load(folder_of("llama", "gemma"), device="cpu")
    on_policy = RewardModel.on(LanguagePolicy.load(folder_of("llama", "chatml"), device="cpu"))
    config = PairedTexts(backbone=str(tiny_encoder(folder_of)), text=Texts(max_length=32))
    records = policy.sample(["hi", "the cat"])
    rows = [Demonstration(record.inputs, record.output) for record in records]
    for made in (on_policy, RewardModel.make(Reward(text=config), rows, device="cpu")):
        with GraderPool({"type": "learned", "model": made}) as pool:
            scores = pool.grade(records)
        expected = made.rewards(rows)[:, 0].tolist()
        assert [score.value for score in scores] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"model": ""}, "folder of a reward model"),
        ({"model": "m", "pessimism": -1}, "0 or more"),
        ({"model": "m", "pessimism": True}, "0 or more"),
        ({"model": "m", "head": {}}, "a head's name"),
        ({"model": "m", "head": {"a": "b"}}, "a head's name"),
        ({"model": "m", "probability": 1}, "true or false"),
        ({"model": "m", "heads": "a"}, "did you mean 'head'"),
        ({}, "needs the key 'model'"),
    ],
)
def test_what_no_setting_can_be_is_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(GraderError, match=told):
        load_grader({"type": "learned", **wrong})


def test_a_folder_without_a_reward_model_is_named(folder_of: Callable[..., Path]) -> None:
    grader = load_grader({"type": "learned", "model": str(folder_of("llama"))})
    with pytest.raises(GraderError, match="holds a policy of kind language, not a reward model"):
        grader.load()
