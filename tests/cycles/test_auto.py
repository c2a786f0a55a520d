"""laws of automatic settings: three lines are enough, every choice has a reason, and going on changes none"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model

from melior.cycles.auto import FEW_EPOCHS, MOST, resolve
from melior.cycles.hyperparameters import sections_of, settled
from melior.cycles.lesson import load_trainable
from melior.cycles.models import find_model
from melior.cycles.plan import Plan, dry_run
from melior.cycles.recipe import Recipe, load_recipe, recipe_of
from melior.cycles.rows import load_rows
from melior.cycles.train import run_recipe
from melior.errors import CheckpointError, ConfigError
from melior.store import Store


@pytest.fixture
def beginner(folder_of: Callable[..., Path], cats: Path, tmp_path: Path) -> Path:
    """The least a person can write."""
    path = tmp_path / "run.yaml"
    path.write_text(f"method: sft\nmodel: {{path: {folder_of('llama')}}}\ndata: {{train: {cats.name}, heldout: 30}}\n")
    return path


def resolved(recipe: Recipe, store: Store, folder: Path | None = None) -> Any:
    policy = load_trainable(recipe, find_model(recipe.model.path, store), load_rows(recipe))
    return resolve(recipe, policy, load_rows(recipe), folder)


def test_three_lines_make_a_promoted_model(beginner: Path, tmp_path: Path, store: Store) -> None:
    plans: list[Plan] = []
    outcome = run_recipe(load_recipe(beginner), tmp_path / "run", store=store, announce=plans.append)
    assert outcome.promoted and outcome.verdict.interval.low > 0
    assert [choice.split(" =")[0] for choice in outcome.choices] == [
        "sft.batch_size",
        "sft.epochs",
        "fit.learning_rate",
    ]
    kept = json.loads((outcome.folder / "resolved.json").read_text())
    assert all(choice["reason"] for choice in kept["choices"]) and kept["range_test"]["rates"]
    assert plans[0].choices == outcome.choices and plans[0].rows + plans[0].validation_rows == 30
    rows = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    assert any({"heldout_loss", "probe_loss", "fitting_gap"} <= row.keys() for row in rows)


def test_going_on_does_not_choose_again(beginner: Path, tmp_path: Path, store: Store) -> None:
    recipe = load_recipe(beginner)
    first = resolved(recipe, store, tmp_path)
    path = tmp_path / "resolved.json"
    told = json.loads(path.read_text())
    told["recipe"]["fit"]["learning_rate"] = 0.00123  # what was chosen counts, not what would be chosen now
    path.write_text(json.dumps(told))
    again = resolved(recipe, store, tmp_path)
    assert again.recipe.fit.learning_rate == 0.00123 and again.choices == first.choices
    with pytest.raises(CheckpointError, match="another recipe"):
        resolved(recipe_of({**recipe.to_dict(), "seed": 3}), store, tmp_path)


def test_what_a_person_wrote_stays(beginner: Path, tmp_path: Path, store: Store) -> None:
    text = "sft: {batch_size: 5, epochs: 2}\nfit: {learning_rate: 3e-4}\n"
    beginner.write_text(beginner.read_text() + text)
    recipe = load_recipe(beginner)
    found = resolved(recipe, store)
    assert found.recipe == recipe and found.choices == () and not load_rows(recipe).validation


def test_rows_set_aside_are_in_nothing_else(beginner: Path) -> None:
    rows = load_rows(load_recipe(beginner))
    sides = [{row.inputs for row in side} for side in (rows.train, rows.validation, rows.heldout)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 60 and all(sides)


def test_what_chooses_weights_is_not_what_the_gate_measures(beginner: Path, store: Store) -> None:
    raw = load_recipe(beginner).to_dict()
    raw |= {"sft": {"batch_size": 4, "epochs": 2}, "evaluate": {"every": 2}}
    told = {}
    for metric, is_best in (("heldout_loss", "min"), ("heldout_reward", "max")):
        fit = {"learning_rate": 1e-3, "best_metric": metric, "best_is": is_best}
        plan = dry_run(recipe_of({**raw, "fit": fit}), store)
        assert (plan.rows, plan.validation_rows, plan.heldout_rows) == (20, 10, 30)
        told[metric] = [warning for warning in plan.warnings if "will look larger than it is" in warning]
    assert not told["heldout_loss"] and "the 30 held-out rows" in told["heldout_reward"][0]


def test_few_rows_train_for_a_few_epochs(tmp_path: Path, folder_of: Callable[..., Path], store: Store) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": "a cat"}) + "\n" for i in range(8)))
    raw = {"method": "sft", "model": {"path": str(folder_of("llama"))}, "data": {"train": str(path), "heldout": 2}}
    found = resolved(recipe_of(raw), store)
    assert found.recipe.sft.epochs == FEW_EPOCHS and not found.watched and found.recipe.sft.batch_size <= 6
    assert "too few" in str(found.choices[1])


def test_long_answers_make_small_steps(tmp_path: Path, folder_of: Callable[..., Path], store: Store) -> None:
    sizes = {}
    for words in (2, 150):
        path = tmp_path / f"{words}.jsonl"
        rows = [{"prompt": f"say {i}", "completion": "the cat " * words} for i in range(1200)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        fit = {"learning_rate": 1e-3}
        raw = {"method": "sft", "model": {"path": str(folder_of("llama"))}, "data": {"train": str(path)}, "fit": fit}
        sizes[words] = resolved(recipe_of(raw), store).recipe.sft.batch_size
    assert sizes[2] == MOST > sizes[150]


def test_rewards_have_a_rate_by_rule_and_see_every_task(recipe_for: Callable[..., Recipe], store: Store) -> None:
    raw = recipe_for("rft").to_dict()
    raw["fit"] = {}
    raw["sampling"].pop("n")
    recipe = recipe_of(raw)
    found = resolved(recipe, store)
    assert recipe.sampling.n == 8 and found.recipe.fit.steps == 20 and found.recipe.fit.learning_rate == 1e-4
    doubled = resolved(recipe_of({**raw, "fit": {"rate_multiplier": 2}}), store)
    assert doubled.recipe.fit.learning_rate == 2e-4 and "rate_multiplier 2" in str(doubled.choices[1])


def test_a_dry_run_counts_and_touches_nothing(beginner: Path, tmp_path: Path, store: Store) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = dry_run(load_recipe(beginner), store)
    assert sorted(tmp_path.rglob("*")) == before and not store.runs()
    assert (plan.rows, plan.validation_rows, plan.heldout_rows) == (20, 10, 30)
    assert plan.steps == plan.epochs * -(-plan.rows // plan.batch)  # type: ignore[operator]
    assert plan.decisions == 20 * 3 and 0 < plan.trainable < plan.parameters
    assert plan.seconds and plan.seconds > 0 and plan.peak_bytes and plan.peak_bytes > plan.weights_bytes


def test_a_dry_run_of_rewards(recipe_for: Callable[..., Recipe], store: Store) -> None:
    plan = dry_run(recipe_for("rft"), store)
    assert (plan.steps, plan.batch, plan.epochs) == (3, 3, None) and plan.decisions == 3 * 4 * 4
    assert plan.seconds and plan.evaluation_seconds and "fewer than the 30" in " ".join(plan.warnings)
    assert not dry_run(recipe_for("rft", gate={"minimum_items": 6}), store).warnings  # the gate's own number counts


def test_rows_that_are_cut_are_told(tmp_path: Path, folder_of: Callable[..., Path], store: Store) -> None:
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": f"say {i}", "completion": "cat " * (600 if i == 3 else 2)} for i in range(50)]
    rows += [{"prompt": f"{i} " + "the cat sat " * 300, "completion": "b"} for i in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "held.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    data = {"train": str(path), "heldout": str(tmp_path / "held.jsonl")}
    sft = {"batch_size": 8, "epochs": 1}
    plan = dry_run(
        recipe_of({"method": "sft", "model": {"path": str(folder_of("llama"))}, "data": data, "sft": sft}), store
    )
    assert (plan.dropped_rows, plan.truncated_rows) == (2, 1) and plan.longest > plan.context == 512
    assert len([warning for warning in plan.warnings if "context of 512" in warning]) == 2


def test_a_preset_of_the_recipe_trains_what_it_says(
    recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store
) -> None:
    model = {"path": recipe_for("sft").model.path, "lora": None, "train": "last-1"}
    plan = dry_run(recipe_for("sft", model=model), store)
    assert 0 < plan.trainable < plan.parameters / 2
    outcome = run_recipe(recipe_for("sft", model=model), tmp_path / "run", store=store)
    assert outcome.steps == 3


def test_the_range_test_trains_what_the_run_will_train(beginner: Path, store: Store) -> None:
    """At the rates it will have: patterns that freeze, and blocks that learn more slowly."""
    raw = load_recipe(beginner).to_dict()
    raw |= {"model": {**raw["model"], "lora": None}, "sft": {"batch_size": 4, "epochs": 1}}
    fits = [{"rates": {"embed_tokens": 0.0}, "layer_decay": decay} for decay in (1.0, 0.1)]
    sweeps = [resolved(recipe_of({**raw, "fit": fit}), store).test for fit in fits]
    assert sweeps[0].start == sweeps[1].start and sweeps[0].changes != sweeps[1].changes


def test_a_changed_base_does_not_go_on_in_silence(
    recipe_for: Callable[..., Recipe], folder_of: Callable[..., Path], tmp_path: Path, store: Store
) -> None:
    base = tmp_path / "base"
    shutil.copytree(folder_of("llama"), base)
    recipe = recipe_for("sft", model={"path": str(base), "lora": {"r": 4}}, sft={"batch_size": 2, "epochs": 1})

    def stop(what: str, done: int, total: int, note: str) -> None:
        if what == "training" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "run", store=store, report=stop)
    tiny_model("llama", seed=9).save_pretrained(str(tmp_path / "other"))
    shutil.copy(tmp_path / "other" / "model.safetensors", base)
    with pytest.raises(CheckpointError, match="starting_weights"):
        run_recipe(recipe, tmp_path / "run", store=store)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (
            {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}}},
            {"sft": {"epochs": 3, "batch_size": "auto"}},
        ),
        (
            {"type": "supervised", "supervised": {"hyperparameters": {"learning_rate_multiplier": 0.5}}},
            {"fit": {"learning_rate": "auto", "rate_multiplier": 0.5}},
        ),
        (
            {"type": "reinforcement", "reinforcement": {"hyperparameters": {"batch_size": 4, "eval_interval": 10}}},
            {"rft": {"prompts": 4}, "evaluate": {"every": 10}},
        ),
    ],
)
def test_names_of_the_openai_dialect(method: dict[str, Any], told: dict[str, Any]) -> None:
    assert sections_of(method) == told


@pytest.mark.parametrize("kind", ["supervised", "dpo", "reinforcement"])
def test_what_they_came_to_asks_for_the_same_again(kind: str) -> None:
    asked = {"type": kind, kind: {"grader": "g", "hyperparameters": {"batch_size": "auto"}}}
    recipe = {
        "sft": {"epochs": 7, "batch_size": 12}, "dpo": {"epochs": 2, "batch_size": 6, "beta": 0.3},
        "rft": {"prompts": 5}, "sampling": {"n": 4}, "fit": {"learning_rate": 0.01, "rate_multiplier": 0.5},
        "evaluate": {"every": 10, "n": 3},
    }  # fmt: skip
    told = settled(asked, recipe)
    assert told["type"] == kind and told[kind]["grader"] == "g" and asked[kind]["hyperparameters"] != told[kind]
    again = sections_of(told)
    assert again.pop("fit") == {"learning_rate": "auto", "rate_multiplier": 0.5}
    shown = {"supervised": ["sft"], "dpo": ["dpo"], "reinforcement": ["rft", "sampling", "evaluate"]}[kind]
    assert again == {name: recipe[name] for name in shown}
    assert settled(asked, {"sft": {"epochs": "auto"}})[kind]["hyperparameters"]["batch_size"] == "auto"


def test_hyperparameters_nobody_knows_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_epoch"):
        sections_of({"type": "supervised", "supervised": {"hyperparameters": {"n_epoch": 3}}})


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"n_epochs": 3}, "n_epochs is 3, but reinforcement sees every task once"),
        ({"compute_multiplier": "much"}, "compute_multiplier is 'much'"),
        ({"learning_rate_multiplier": float("nan")}, "learning_rate_multiplier is nan"),
    ],
)
def test_values_that_cannot_be_kept_are_refused(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        sections_of({"type": "reinforcement", "reinforcement": {"hyperparameters": asked}})
    assert sections_of({"type": "reinforcement", "reinforcement": {"hyperparameters": {"n_epochs": 1}}}) == {}
