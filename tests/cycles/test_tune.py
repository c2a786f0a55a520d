"""laws of a search: it finds a rate that was planted, calls noise noise, and being killed changes nothing"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from melior.cycles.recipe import Recipe, load_recipe, recipe_of
from melior.cycles.sections import Range
from melior.cycles.tune import Tuning, _is_count, check_space, search_rows, tune
from melior.errors import CheckpointError, ConfigError, DataError
from melior.store import Store

pytest.importorskip("optuna", reason="melior tune needs the tune extra")


@pytest.fixture
def searched(folder_of: Callable[..., Path], tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe whose own rate is far too small; `searched(space, trials=4)`."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": "the cat"}) + "\n" for i in range(110)))

    def make(space: Any, trials: int = 4, **sections: Any) -> Recipe:
        raw: dict[str, Any] = {
            "method": "sft",
            "model": {"path": str(folder_of("llama")), "lora": {"r": 4}},
            "data": {"train": str(rows), "heldout": 40, "validation": 30},
            "sft": {"batch_size": 8, "epochs": 1},
            "fit": {"learning_rate": 1e-6},
            "tune": {"trials": trials, "space": space, "seeds": 2, "looks": 2},
        }
        return recipe_of({**raw, **sections})

    return make


GAINS = {"fit.learning_rate": {"low": 5e-3, "high": 5e-2, "log": True}}
NOTHING = {"fit.keep_checkpoints": [2, 3, 4]}


class Stop(Exception):
    """What a kill looks like from inside."""


def test_a_planted_gain_is_found_confirmed_and_written_down(
    searched: Callable[..., Recipe], tmp_path: Path, store: Store
) -> None:
    recipe = searched(GAINS)
    found = tune(recipe, tmp_path / "search", store=store)
    assert found.best is not None and found.gain is not None and found.gain.low > 0
    assert found.sentence.startswith("Better: trial") and "2 fresh seeds" in found.sentence
    assert [trial.number for trial in found.trials] == [0, 1, 2, 3] and found.trials[0].settings == {}
    best = load_recipe(found.recipe)
    assert best.fit.learning_rate == found.trials[found.best].settings["fit.learning_rate"]
    assert replace(best, fit=recipe.fit, tune=recipe.tune) == recipe  # nothing else changed
    assert {"recipe.yaml", "run.json", "metrics.jsonl"} <= {file.name for file in found.trials[1].folder.iterdir()}
    assert not store.versions()  # trials are no candidates for promotion
    assert Tuning.read(found.folder) == found == tune(recipe, tmp_path / "search", store=store)


def test_settings_that_change_nothing_are_called_noise(
    searched: Callable[..., Recipe], tmp_path: Path, store: Store
) -> None:
    recipe = searched(NOTHING, fit={"learning_rate": 1e-2})
    found = tune(recipe, tmp_path / "search", store=store)
    assert found.best is None and "No setting was better than the default beyond noise" in found.sentence
    assert not (tmp_path / "search" / "confirm").exists()  # nothing was worth the cost
    assert replace(load_recipe(found.recipe), tune=recipe.tune) == recipe
    assert found.recipe.read_text().startswith("# No setting was better")
    with Path(recipe.data.train).open("a") as rows:  # type: ignore[arg-type]
        rows.write(json.dumps({"prompt": "say something new", "completion": "the cat"}) + "\n")
    with pytest.raises(CheckpointError, match="came of other rows"):
        tune(recipe, tmp_path / "search", store=store)


def test_being_killed_changes_nothing(searched: Callable[..., Recipe], tmp_path: Path, store: Store) -> None:
    recipe = searched(GAINS, trials=3)
    whole = tune(recipe, tmp_path / "whole", store=store)
    parts, left = tmp_path / "parts", [0]

    def report(what: str, done: int, total: int, note: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stop

    for allowed in range(1, 20):
        left[0] = allowed
        try:
            found = tune(recipe, parts, store=store, report=report)
            break
        except Stop:
            continue
    told = [(trial.settings, trial.state, trial.reward, trial.difference) for trial in found.trials]
    assert told == [(trial.settings, trial.state, trial.reward, trial.difference) for trial in whole.trials]
    assert (found.best, found.gain, found.sentence) == (whole.best, whole.gain, whole.sentence)


def test_a_trial_stopped_in_its_middle_goes_on(
    searched: Callable[..., Recipe], tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from melior.trainers import loop

    recipe = searched(GAINS, trials=3, fit={"learning_rate": 1e-6, "checkpoint_every": 1})
    whole = tune(recipe, tmp_path / "whole", store=store)
    calls, save = [0], loop.save_checkpoint

    def dying(*args: Any, **kwargs: Any) -> Path:
        calls[0] += 1
        if calls[0] == 8:  # the default takes five
            raise Stop
        return save(*args, **kwargs)

    monkeypatch.setattr(loop, "save_checkpoint", dying)
    with pytest.raises(Stop):
        tune(recipe, tmp_path / "parts", store=store)
    monkeypatch.undo()
    assert [trial.settings for trial in tune(recipe, tmp_path / "parts", store=store).trials] == [
        trial.settings for trial in whole.trials
    ]
    assert Tuning.read(tmp_path / "parts").gain == whole.gain


def test_no_row_of_the_search_trains_or_confirms(searched: Callable[..., Recipe]) -> None:
    from melior.cycles.rows import load_rows

    rows = search_rows(searched(GAINS))
    sides = [{row.inputs for row in side} for side in (rows.train, rows.heldout)]
    sides.append({row.inputs for row in load_rows(searched(GAINS)).heldout})
    assert [len(side) for side in sides] == [40, 30, 40] and len(set.union(*sides)) == 110


def test_another_recipe_is_refused_in_the_same_folder(
    searched: Callable[..., Recipe], tmp_path: Path, store: Store
) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "recipe.yaml").write_text(searched(GAINS).to_yaml())
    with pytest.raises(CheckpointError, match="another recipe"):
        tune(searched(NOTHING), tmp_path / "search", store=store)


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"fit.learnin_rate": [1e-3, 1e-4]}, "learning_rate"),
        ({"fit.learning_rate": {"low": 1e-3, "high": 1e-4}}, "low must be below high"),
        ({"fit.learning_rate": {"low": 0, "high": 1, "log": True}}, "begin above 0"),
        ({"sft.batch_size": [8]}, "needs 2 or more"),
        ({"sft.batch_size": {"low": 0, "high": 8}}, "greater than or equal to 1"),
        ({"sft.batch_size": {"low": 1.5, "high": 8}}, "fractional part"),
        ({"sft.batch_size": {"low": 1, "high": 8, "step": 0.5}}, "takes whole numbers"),
        ({"fit.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True, "step": 1e-4}}, "write one of the 2"),
        ({"gate.margin": [0, 0.1]}, "changes what is measured"),
        ({"model.path": ["one", "other"]}, "changes what is measured"),
        ({"model.max_length": {"low": 16, "high": 64}}, "changes what is measured"),
        ({"model.path.x": [0, 1]}, "no setting"),
        ({}, "0 settings"),
    ],
)
def test_a_wrong_space_is_told_before_anything_runs(
    space: dict[str, Any], told: str, searched: Callable[..., Recipe]
) -> None:
    with pytest.raises(ConfigError, match=told):
        recipe = searched(space)
        check_space(recipe, recipe.tune.space or {})


def test_adapters_and_epochs_can_be_searched(searched: Callable[..., Recipe]) -> None:
    check_space(searched(GAINS), {"model.lora.r": [2, 4], "sft.epochs": Range(low=1, high=3)})


def test_whole_numbers_are_drawn_whole(searched: Callable[..., Recipe]) -> None:
    """Whether the recipe has a number there, "auto" or nothing."""
    recipe = searched(GAINS, sft={})
    whole = ("sft.batch_size", "sft.epochs", "fit.patience", "fit.micro_batch", "fit.warmup", "model.lora.r")
    parts = ("fit.learning_rate", "fit.rate_multiplier", "model.lora.alpha", "rft.clip_high")
    told = {key: _is_count(recipe, key, Range(low=1, high=9)) for key in whole + parts}
    assert told == {key: key in whole for key in whole + parts}


def test_too_few_rows_are_told(searched: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = searched(GAINS)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": "cat"}) + "\n" for i in range(30)))
    raw = recipe.to_dict()
    with pytest.raises(DataError, match="too few"):
        search_rows(recipe_of({**raw, "data": {**raw["data"], "train": str(few), "heldout": 5}}))
    with pytest.raises(DataError, match=r"70 training rows are too few to set 50 .* at least 100, or a smaller"):
        search_rows(recipe_of({**raw, "data": {**raw["data"], "validation": 50}}))


def test_trials_that_lag_behind_are_given_up(searched: Callable[..., Recipe], tmp_path: Path, store: Store) -> None:
    space = {"fit.learning_rate": {"low": 1e-6, "high": 3e-2, "log": True}}
    tuned = {"trials": 9, "space": space, "seeds": 1, "looks": 3, "pruner": "halving"}
    found = tune(searched(space, tune=tuned), tmp_path / "search", store=store)
    states = [trial.state for trial in found.trials]
    assert "pruned" in states and states[0] == "finished" and states.count("finished") >= 2
    given_up = next(trial for trial in found.trials if trial.state == "pruned")
    assert given_up.reward is None and not (given_up.folder / "evaluation.json").exists()
    assert "lagged behind" in json.loads((given_up.folder / "status.json").read_text())["error"]
    levels = [trial.difference.level for trial in found.trials if trial.difference]
    assert levels == [pytest.approx(1 - 0.05 / 8)] * len(levels) != []  # corrected for those given up as well
    assert not list((tmp_path / "search").rglob("checkpoints"))  # nothing goes on from them


@pytest.mark.filterwarnings("error:.*already reported")
def test_a_recipe_that_looks_more_often_than_the_search_is_no_trouble(
    searched: Callable[..., Recipe], tmp_path: Path, store: Store
) -> None:
    recipe = searched(NOTHING, trials=2, sft={"batch_size": 8, "epochs": 3}, evaluate={"every": 1})
    assert [trial.state for trial in tune(recipe, tmp_path / "search", store=store).trials] == ["finished"] * 2
