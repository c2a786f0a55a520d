"""reward models as recipes: trained, judged by people's own words, registered, and then graders"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_kinds import decisions, runs, store, write_jsonl

from melior.cycles.evaluations import Asked, evaluate_models
from melior.cycles.plan import dry_run
from melior.cycles.recipe import recipe_of
from melior.cycles.train import Outcome, run_recipe
from melior.errors import ConfigError, DataError
from melior.policies.reward_model import RewardModel
from melior.store import Store
from melior.types import Demonstration

Runs = Callable[..., Outcome]
FAST = {"learning_rate": 0.01}
MADE: dict[str, Any] = {"method": "reward_model", "model": {}, "fit": FAST, "save": {"name": "taste"}}
__all__ = ["runs", "store"]  # fixtures


def rows(tmp_path: Path, kind: str, count: int = 300, heldout: float = 0.25) -> dict[str, Any]:
    return {"train": write_jsonl(tmp_path / f"{kind}.jsonl", decisions(kind, count)), "heldout": heldout}


def test_pairs_make_a_reward_model_that_tells_others_apart(tmp_path: Path, runs: Runs, store: Store) -> None:
    outcome = runs(**MADE, data=rows(tmp_path, "preferences"), reward_model={"epochs": 12})
    assert outcome.after.grader == "pairs told apart" and outcome.after.reward.low > 0.7
    assert outcome.promoted and outcome.kind == "reward_model" and 0.2 < outcome.before.reward.estimate < 0.8
    told = json.loads((tmp_path / "run" / "reward_model.json").read_text())
    assert told["measures"]["accuracy"]["estimate"] == pytest.approx(outcome.after.reward.estimate)
    assert "accuracy" in (tmp_path / "run" / "report.html").read_text()
    fresh = write_jsonl(tmp_path / "fresh.jsonl", decisions("preferences", 100, seed=9))
    (measured,) = evaluate_models(["taste@prod"], Asked(data=fresh), store, lambda *told: None)
    assert measured.evaluation.reward.low > 0.7


def test_a_reward_model_of_the_registry_is_a_grader(tmp_path: Path, runs: Runs) -> None:
    runs("rewards", **MADE, data=rows(tmp_path, "preferences"), reward_model={"epochs": 12})
    heldout = write_jsonl(tmp_path / "heldout.jsonl", decisions("demonstrations", 60, seed=4))
    outcome = runs(
        "learner",
        method="rft",
        data={"train": write_jsonl(tmp_path / "tasks.jsonl", decisions("demonstrations", 300)), "heldout": heldout},
        grader={"type": "learned", "model": "taste@prod"},
        classifier={"labels": ["no", "yes"]},
        rft={"prompts": 32, "hopeless": "train", "divide_by_std": True},  # rewards of yes differ more than of no
        fit={"learning_rate": 0.003, "steps": 40},
    )
    assert outcome.after.grader == "learned" and outcome.after.reward.estimate > outcome.before.reward.estimate
    told = json.loads((tmp_path / "learner" / "classification.json").read_text())
    assert told["measures"]["accuracy"]["estimate"] > 0.7, "what people wanted, though no label was shown"


@pytest.mark.parametrize(
    ("scale", "make", "more"),
    [
        ("number", float, {}),
        ("yes_no", lambda rating: float(rating > 0), {}),
        ("grades", lambda rating: 1 + rating // 4, {"levels": {"reward": [1, 2]}}),
    ],
)
def test_ratings_of_every_scale_are_foretold(
    tmp_path: Path, runs: Runs, scale: str, make: Callable[[int], float], more: dict[str, Any]
) -> None:
    rated = [{**row, "rating": make(row["rating"])} for row in decisions("rated", 300)]
    data = {"train": write_jsonl(tmp_path / "rated.jsonl", rated), "heldout": 0.25}
    outcome = runs(**MADE, data=data, reward_model={"epochs": 12, **more})
    assert outcome.after.grader == "foretold ratings" and outcome.promoted
    assert outcome.after.reward.low > outcome.before.reward.estimate
    model = RewardModel.load(tmp_path / "run" / "model")
    good = Demonstration({"height": 2.0, "colour": "red"}, "yes")
    bad = Demonstration({"height": 2.0, "colour": "red"}, "no")
    better, worse = model.rewards([good, bad])[:, 0].tolist()
    middle = {"number": 2.0, "yes_no": 0.0, "grades": 1.5}[scale]
    assert better > middle > worse, "told in the units of the ratings"


def test_a_reward_model_on_a_language_model_goes_on_learning(
    tmp_path: Path, store: Store, folder_of: Callable[..., Path]
) -> None:
    pairs = [{"prompt": f"say {i}", "chosen": "the cat", "rejected": "a dog"} for i in range(60)]
    asked = {
        "method": "reward_model",
        "model": {"path": str(folder_of("llama")), "lora": {"r": 4}},
        "data": {"train": write_jsonl(tmp_path / "pairs.jsonl", pairs), "heldout": 0.25},
        "reward_model": {"epochs": 3},
        "fit": FAST,
        "save": {"name": "cats"},
    }
    first = run_recipe(recipe_of(asked), tmp_path / "first", store=store)
    assert first.after.reward.estimate == 1.0 and first.dropped == 0
    again = run_recipe(recipe_of({**asked, "model": {"path": first.version_id}}), tmp_path / "second", store=store)
    assert again.before.reward.estimate == 1.0, "it began as it was saved"
    plan = dry_run(recipe_of(asked), store)
    assert plan.method == "reward_model" and plan.steps > 0 and plan.activation_bytes


def test_what_a_reward_model_cannot_be_is_told(tmp_path: Path, runs: Runs, store: Store) -> None:
    data = rows(tmp_path, "preferences")
    first = runs("labels", method="dpo", data=data, dpo={"epochs": 1}, fit=FAST)
    with pytest.raises(ConfigError, match="A classifier's states do not know the label"):
        runs("on", **{**MADE, "model": {"path": first.version_id}}, data=data)
    with pytest.raises(DataError, match="reward_model learns from preferences or rated"):
        runs("logs", **MADE, data=rows(tmp_path, "logged"))
    with pytest.raises(ConfigError, match="no part of a hybrid"):
        recipe_of({"method": "hybrid", "model": {"path": "m"}, "data": {"train": "x"}, "hybrid": {
            "parts": {"a": {"method": "reward_model"}}}})  # fmt: skip
    with pytest.raises(ConfigError, match=r"did you mean 'reward_model\.centring'"):
        recipe_of({**MADE, "data": data, "reward_model": {"centering": 0.1}})
