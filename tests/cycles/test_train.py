"""laws of a run: it leaves a version with its whole story, and being stopped anywhere changes no number"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melior import durable
from melior.cycles.recipe import Recipe
from melior.cycles.train import Outcome, run_recipe
from melior.errors import CheckpointError, ConfigError, DataError, GraderError, MeliorError, TrainingError
from melior.registry import Registry
from melior.store import Store

GRADERS = Path(__file__).parent / "graders.py"


class Stop:
    """A report that raises at its n-th call."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.left, self.error = at, error

    def __call__(self, what: str, done: int, total: int, note: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]


def weights(outcome: Outcome) -> bytes:
    return (outcome.folder / "model" / "adapter_model.safetensors").read_bytes()


def test_demonstrations_make_a_promoted_version(
    recipe_for: Callable[..., Recipe], cats: Path, tmp_path: Path, store: Store
) -> None:
    data = {"train": str(cats), "heldout": 40}
    sft = {"batch_size": 4, "epochs": 3}
    recipe = recipe_for("sft", data=data, grader=None, sft=sft, save={"name": "cats"})
    outcome = run_recipe(recipe, tmp_path / "run", store=store)
    assert outcome.verdict.result == "promote" and outcome.promoted
    assert outcome.after.reward.low > outcome.before.reward.high
    link = Registry(store).lineage("cats@prod").chain[0]
    assert link.version.id == outcome.version_id and link.version.parent_id is None
    assert link.run is not None and link.run.status == "succeeded" and link.run.id == outcome.run_id
    assert link.dataset is not None and link.dataset.rows == 20
    assert [gate.verdict for gate in link.gates] == ["promote"]
    assert len(store.evaluations(base_model=recipe.model.path)) == len(link.evaluations) == 1
    assert 0 < outcome.nodes < outcome.padded_tokens and outcome.tokens > 0


def test_rewards_go_on_from_a_version(recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store) -> None:
    first = run_recipe(recipe_for("sft", save={"name": "sums"}), tmp_path / "sft", store=store)
    recipe = recipe_for("rft", model={"path": first.version_id})
    second = run_recipe(recipe, tmp_path / "rft", store=store)
    chain = Registry(store).lineage(second.version_id).chain
    assert [link.version.id for link in chain] == [second.version_id, first.version_id]
    assert chain[0].version.name == "sums" and chain[0].gates[0].baseline_id == first.version_id
    assert (second.before.grader == "even" and second.tokens == 3 * 3 * 4 * 4) or second.tokens > 0
    assert {"recipe.yaml", "run.json", "samples.jsonl", "result.json"} <= {f.name for f in second.folder.iterdir()}


def test_a_finished_run_is_read_back(recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store) -> None:
    recipe = recipe_for("rft")
    done = run_recipe(recipe, tmp_path / "run", store=store)
    assert run_recipe(recipe, tmp_path / "run", store=store) == done
    assert len(store.runs()) == len(store.versions()) == len(store.gates()) == 1


def test_a_finished_run_of_other_rows_is_not_taken_for_one_of_these(
    recipe_for: Callable[..., Recipe], cats: Path, tmp_path: Path, store: Store
) -> None:
    recipe = recipe_for("sft", data={"train": str(cats), "heldout": 6}, grader=None)
    done = run_recipe(recipe, tmp_path / "run", store=store)
    assert run_recipe(recipe, tmp_path / "run", store=store) == done
    with cats.open("a") as file:
        file.write(json.dumps({"prompt": "say something new", "completion": "the cat"}) + "\n")
    with pytest.raises(CheckpointError, match="other rows than the 55 there are"):
        run_recipe(recipe, tmp_path / "run", store=store)


@pytest.mark.parametrize("method", ["sft", "rft"])
def test_being_stopped_anywhere_changes_no_number(
    method: str, recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store
) -> None:
    recipe = recipe_for(method)
    whole = run_recipe(recipe, tmp_path / "whole", store=store)
    parts, stops = tmp_path / "parts", 0
    for at in range(1, 60):
        error: BaseException = KeyboardInterrupt() if at % 2 else TrainingError("the machine went away")
        try:
            resumed = run_recipe(recipe, parts, store=store, report=Stop(at, error))
            break
        except (KeyboardInterrupt, TrainingError):
            stops += 1
    assert stops >= 5
    assert metrics(parts) == metrics(whole.folder) and weights(resumed) == weights(whole)
    assert resumed.after.values == whole.after.values and resumed.verdict == whole.verdict
    assert (resumed.tokens, resumed.nodes, resumed.padded_tokens) == (whole.tokens, whole.nodes, whole.padded_tokens)
    assert len(store.runs()) == 2 and {run.status for run in store.runs()} == {"succeeded"}


def test_a_full_disk_loses_nothing(
    recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for("sft")
    whole = run_recipe(recipe, tmp_path / "whole", store=store)

    def full(moment: str) -> None:
        if moment == "files written" and (tmp_path / "run" / "evaluation.json").exists():
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "failpoint", full)
    with pytest.raises(CheckpointError, match="No space left"):
        run_recipe(recipe, tmp_path / "run", store=store)
    assert store.runs()[-1].status == "failed" and "No space left" in store.runs()[-1].error
    monkeypatch.undo()
    assert weights(run_recipe(recipe, tmp_path / "run", store=store)) == weights(whole)


def test_another_recipe_is_refused_in_the_same_folder(
    recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store
) -> None:
    run_recipe(recipe_for("sft"), tmp_path / "run", store=store)
    with pytest.raises(CheckpointError, match=r"sft.batch_size is 4 there, 2 here"):
        run_recipe(recipe_for("sft", sft={"batch_size": 2}), tmp_path / "run", store=store)


def test_two_processes_do_not_share_a_folder(recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store) -> None:
    recipe, folder = recipe_for("sft"), tmp_path / "run"

    def intrude(what: str, done: int, total: int, note: str) -> None:
        with pytest.raises(TrainingError, match="Another process"):
            run_recipe(recipe, folder, store=store)

    run_recipe(recipe, folder, store=store, report=intrude)


def test_no_heldout_row_trains(recipe_for: Callable[..., Recipe], cats: Path, tmp_path: Path, store: Store) -> None:
    shared = tmp_path / "heldout.jsonl"
    shared.write_text(cats.read_text().splitlines()[3] + "\n")
    with pytest.raises(DataError, match="share 1 inputs"):
        run_recipe(recipe_for("sft", data={"train": str(cats), "heldout": str(shared)}), tmp_path / "run", store=store)


def test_a_grader_of_its_own_for_heldout_rows(recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store) -> None:
    verifier = {"type": "reasoning_gym", "dataset": "chain_sum"}
    recipe = recipe_for("rft", heldout_grader=verifier, evaluate={"every": 2})
    outcome = run_recipe(recipe, tmp_path / "run", store=store)
    assert outcome.after.grader == "chain_sum"
    rows = metrics(outcome.folder)
    assert [("heldout_reward" in row) for row in rows] == [False, True, True]
    assert max(row["reward"] for row in rows) > 0 == outcome.after.reward.estimate


def test_a_grader_that_always_fails_stops_the_run_by_name(
    recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store
) -> None:
    recipe = recipe_for("rft", grader=f"{GRADERS}:broken")
    with pytest.raises(GraderError, match="no verdict today"):
        run_recipe(recipe, tmp_path / "run", store=store)
    assert store.runs()[-1].status == "failed" and "no verdict today" in store.runs()[-1].error


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        ('{"prompt": "é", "completion": "a"}\n'.encode("latin-1"), "not UTF-8"),
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": "c", "compl', "line 2|jsonl:2"),
        (b'{"question": "a", "answer": "b"}\n', "expected one of"),
        (b'{"prompt": "a", "completion": "b"}\n', "cannot be held out"),
    ],
)
def test_bad_files_are_told_before_anything_is_computed(
    content: bytes, told: str, recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        run_recipe(recipe_for("sft", data={"train": str(path), "heldout": 0.5}), tmp_path / "run", store=store)
    assert store.runs() == []


def test_a_prompt_too_long_names_its_row(recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store) -> None:
    path = tmp_path / "tasks.jsonl"
    rows = [{"prompt": f"say {i}"} for i in range(6)] + [{"prompt": "cat " * 600}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_for("rft", data={"train": str(path), "heldout": 2})
    with pytest.raises(DataError, match=r"tasks\.jsonl:7"):
        run_recipe(recipe, tmp_path / "run", store=store)


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ({"path": "no-such-model"}, "There is no model 'no-such-model'"),
        ({"path": "ver_00"}, "ver_00"),
        ({"path": "x@prod"}, "x"),
    ],
)
def test_a_model_that_is_not_there(
    model: dict[str, str], error: str, recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store
) -> None:
    with pytest.raises(MeliorError, match=error):
        run_recipe(recipe_for("sft", model=model), tmp_path / "run", store=store)


def test_an_adapter_cannot_train_every_weight(recipe_for: Callable[..., Recipe], tmp_path: Path, store: Store) -> None:
    first = run_recipe(recipe_for("sft"), tmp_path / "first", store=store)
    with pytest.raises(ConfigError, match="merge it first"):
        run_recipe(recipe_for("sft", model={"path": first.version_id, "lora": None}), tmp_path / "run", store=store)
