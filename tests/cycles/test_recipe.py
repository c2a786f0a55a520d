"""laws of recipes: what is written comes back, what is wrong is told with its place and the nearest key"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from melior.cycles.recipe import Recipe, difference, load_recipe, recipe_of
from melior.errors import ConfigError

GOOD = """
method: rft
model: {path: owner/name}
data: {train: tasks.jsonl, heldout: 0.2}
grader: graders.py:even
sampling: {n: 4}
fit: {steps: 5, learning_rate: 1e-3}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_a_resolved_recipe_is_the_recipe(tmp_path: Path, recipe_for: Callable[..., Recipe]) -> None:
    first = load_recipe(written(tmp_path, GOOD))
    again = load_recipe(written(tmp_path, first.to_yaml()))
    assert again == first and again.digest == first.digest and difference(first, again) == ""
    other = recipe_of({**first.to_dict(), "seed": 1})
    assert other.digest != first.digest and "seed is 0 there, 1 here" in difference(first, other)


def test_numbers_people_write_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 as a word."""
    assert load_recipe(written(tmp_path, GOOD)).fit.learning_rate == 1e-3


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD))
    assert recipe.data.train == str(tmp_path / "tasks.jsonl")
    assert recipe.grader == f"{tmp_path / 'graders.py'}:even"
    assert recipe.model.path == "owner/name"


@pytest.mark.parametrize(
    ("change", "line", "told"),
    [
        (("n: 4", "n: 4, max_token: 3"), 6, "did you mean 'sampling.max_tokens'?"),
        (("steps: 5", "stps: 5"), 7, "did you mean 'fit.steps'?"),
        (("n: 4", "learning_rate: 1"), 6, "did you mean 'fit.learning_rate'?"),
        (("method", "metod"), 2, "did you mean 'method'?"),
        (("owner/name", "owner/name, lora: {rank: 3}"), 3, "the keys here are r, alpha, targets"),
        (("heldout", "held_out"), 4, "did you mean 'data.heldout'?"),
        (("steps: 5", "steps: 5, folder: x"), 7, "--folder"),
        (("steps: 5", "steps: 5, evaluate_every: 2"), 7, "write evaluate.every"),
        (("n: 4", "n: 4, seed: 1"), 6, "write seed"),
        (("steps: 5", "steps: 0"), 7, "greater than or equal to 1"),
        (("method: rft", "method: ppx"), 2, "'sft', 'rft'"),
        (("steps: 5", "steps: 5, steps: 6"), 7, "was written in line 7 already"),
        (("{path: owner/name}", "{path: owner/name"), 4, "is not YAML"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, change: tuple[str, str], line: int, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe(written(tmp_path, GOOD.replace(*change)))
    assert f"run.yaml:{line}" in str(error.value) and told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("n: 4", "n: 1"), "sampling.n must be 2 or more, got 1"),
        (("grader: graders.py:even", ""), "write grader:"),
        (("owner/name", "owner/name, train: heads"), "last-4"),
        (("heldout: 0.2", "heldout: 0.2, validation: 0.9"), "up to half"),
        (("1e-3", "fast"), 'or be "auto"'),
        (("steps: 5", "steps: 5, best_metric: heldout_reward"), "write evaluate.every"),
        (("n: 4", "n: 4, temperature: -1"), "temperature"),
        (("path: owner/name", ""), "model.path is missing"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml") as error:
        load_recipe(written(tmp_path, GOOD.replace(*change)))
    assert told in str(error.value)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("method: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    for text in ("", "- a\n- b\n", "sft"):
        with pytest.raises(ConfigError, match="must hold sections"):
            load_recipe(written(tmp_path, text))
