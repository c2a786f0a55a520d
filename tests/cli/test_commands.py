"""each command does its work on a tiny model, and tells a mistake in one sentence"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from melior.cli.main import app

GRADER = "def cats(sample, item):\n    return float('cat' in sample['output_text'])\n"
SFT = """
method: sft
model: {{path: {model}, lora: {{r: 4}}}}
data: {{train: cats.jsonl, heldout: 40}}
sft: {{batch_size: 4, epochs: 3}}
fit: {{learning_rate: 1e-2}}
save: {{name: cats}}
"""


@pytest.fixture
def place(tmp_path: Path, folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows, a grader and a recipe; MELIOR_HOME inside it."""
    rows = [{"prompt": f"say {i}", "completion": "the cat"} for i in range(60)]
    (tmp_path / "cats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "graders.py").write_text(GRADER)
    (tmp_path / "sft.yaml").write_text(SFT.format(model=folder_of("llama")))
    monkeypatch.setenv("MELIOR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: Any, code: int = 0) -> Any:
    """The result of a command that must end with the given exit status."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    if code == 1:
        assert result.stderr.splitlines()[-1].startswith("melior: ") and "Traceback" not in result.stderr
    return result


def from_json(*arguments: Any) -> Any:
    return json.loads(call(*arguments, "--json").stdout)


def trained(place: Path) -> dict[str, Any]:
    return dict(from_json("train", place / "sft.yaml", "--folder", place / "run"))


def test_train_models_and_runs_tell_one_story(place: Path) -> None:
    outcome = trained(place)
    assert outcome["gate"]["result"] == "promote" and outcome["promoted"]
    version = outcome["version_id"]
    assert [row["id"] for row in from_json("models", "list")] == [version]
    assert from_json("models", "list")[0]["aliases"] == ["@prod"]
    assert from_json("models", "show", "cats@prod")["version"]["id"] == version
    assert from_json("models", "lineage", version[:9])["chain"][0]["run"]["id"] == outcome["run_id"]
    (run,) = from_json("runs", "list")
    assert run["status"] == "succeeded" and from_json("runs", "show", run["id"][:8]) == run
    for words in (["models", "list"], ["models", "show", version], ["models", "lineage", version]):
        assert version in call(*words).stdout
    assert run["id"] in call("runs", "list").stdout and "promote" in call("runs", "show", run["id"]).stdout.lower()


def test_train_again_reads_what_it_came_to(place: Path) -> None:
    assert trained(place) == trained(place)
    text = call("train", "sft.yaml", "--folder", "run")
    assert "gain" in text.stdout and " chat ver_" in text.stdout


def test_promote_needs_a_gate_or_a_reason(place: Path) -> None:
    first = trained(place)["version_id"]
    (place / "again.yaml").write_text((place / "sft.yaml").read_text() + "seed: 1\n")
    second = from_json("train", "again.yaml")
    assert second["gate"]["result"] == "promote" and not second["promoted"] and first in second["note"]
    assert "compared with" in call("models", "promote", second["version_id"], code=1).stderr
    assert "needs a reason" in call("models", "promote", second["version_id"], "--force", code=1).stderr
    moved = from_json("models", "promote", second["version_id"], "--force", "--reason", "a test")
    assert (moved["version_id"], moved["previous_id"], moved["forced"]) == (second["version_id"], first, True)
    assert from_json("models", "rollback", "cats")["id"] == first
    assert "before" in call("models", "rollback", "cats", code=1).stderr


def test_evaluate_and_compare(place: Path, folder_of: Callable[..., Path]) -> None:
    trained(place)
    asked = ["--data", "cats.jsonl", "--grader", "graders.py:cats", "--items", 32, "--max-tokens", 4]
    after = from_json("evaluate", "cats@prod", *asked, "--output", "after.json")
    before = from_json("evaluate", folder_of("llama"), *asked, "--output", "before.json")
    assert after["reward"]["estimate"] > before["reward"]["estimate"] and len(after["items"]) == 32
    by_file = from_json("compare", "before.json", "after.json")
    by_model = from_json("compare", folder_of("llama"), "cats@prod", *asked)
    assert by_file["gain"] == by_model["gain"] and by_file["gain"]["low"] > 0
    assert by_file["gate"]["result"] == by_model["gate"]["result"]
    assert "gate" in call("compare", "before.json", "after.json").stdout
    assert "pass" in call("evaluate", "cats@prod", *asked).stdout


def test_chat_answers_as_the_policy_samples(place: Path) -> None:
    version = trained(place)["version_id"]
    answer = from_json("chat", version, "--message", "say 3", "--max-tokens", 8)["answer"]
    assert "cat" in answer
    assert answer in call("chat", version, "-m", "say 3", "--max-tokens", 8).stdout
    talk = CliRunner().invoke(app, ["chat", version, "--max-tokens", "8"], input="say 3\n/new\nsay 3\n/exit\n")
    assert talk.exit_code == 0 and talk.stdout.count(answer) >= 2


def test_show_mask_marks_exactly_the_answer(place: Path) -> None:
    lines = call("train", "sft.yaml", "--show-mask", "--rows", 1).stdout.splitlines()
    learnt = [line.split(maxsplit=2)[2] for line in lines if line.lstrip().startswith("learn")]
    assert "".join(piece.strip("'\"") for piece in learnt) == "the cat<|im_end|>"
    assert not (place / "home" / "runs").exists()


def test_pull_verifies_what_is_there(place: Path, folder_of: Callable[..., Path]) -> None:
    from melior.durable import durable_folder

    with durable_folder(place / "home" / "models" / "smollm2-135m-instruct") as draft:
        (draft / "weights").write_bytes(b"whole")
    told = from_json("pull", "smollm2-135m-instruct")
    assert told["folder"] == str(place / "home" / "models" / "smollm2-135m-instruct")
    (Path(told["folder"]) / "weights").write_bytes(b"spoilt")
    assert "damaged" in call("pull", "smollm2-135m-instruct", code=1).stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "none.yaml"], "cannot be read"),
        (["train", "wrong.yaml"], "did you mean 'fit.learning_rate'"),
        (["evaluate", "cats@prod", "--data", "cats.jsonl", "--grader", "graders.py:cats"], "no model is called"),
        (["evaluate", "MODEL", "--data", "cats.jsonl"], "give --grader"),
        (["evaluate", "MODEL", "--grader", "graders.py:cats"], "give --data"),
        (["evaluate", "MODEL", "--data", "empty.jsonl", "--grader", "graders.py:cats"], "is empty"),
        (["evaluate", "MODEL", "--data", "cats.jsonl", "--grader", "graders.py:dogs"], "dogs"),
        (["evaluate", "MODEL", "--data", "cats.jsonl", "--grader", "{nonsense"], "--grader is not JSON"),
        (["compare", "cats.jsonl", "MODEL"], "give two of a kind"),
        (["compare", "cats.jsonl", "cats.jsonl"], "not an evaluation"),
        (["chat", "nobody"], "There is no model 'nobody'"),
        (["chat", "MODEL", "-m", "hi", "--max-tokens", 5000], "exceed the context"),
        (["models", "show", "nobody"], "no model is called"),
        (["models", "promote", "ver_00"], "ver_00"),
        (["models", "rollback", "nobody"], "no model is called"),
        (["models", "lineage", "nobody@prod"], "no model is called"),
        (["runs", "show", "run_00"], "no run"),
        (["runs", "resume", "run_00"], "no run"),
        (["pull", "nonsense"], "give a hub id"),
        (["pull", "nobody/nothing"], "Cannot fetch nobody/nothing"),
        (["demo", "--model", "nowhere"], "There is no model 'nowhere'"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[Any], told: str, place: Path, folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (place / "empty.jsonl").write_text("")
    (place / "wrong.yaml").write_text((place / "sft.yaml").read_text().replace("learning_rate", "learnin_rate"))
    result = call(*[folder_of("llama") if word == "MODEL" else word for word in words], code=1)
    assert told in result.stderr, result.stderr


@pytest.mark.parametrize("words", [["trian"], ["train"], ["models", "shwo"], ["chat", "x", "--max-tokens", "many"]])
def test_wrong_usage_is_exit_status_2(words: list[str], place: Path) -> None:
    call(*words, code=2)


@pytest.mark.parametrize("command", ["pull", "train", "evaluate", "compare", "chat", "demo"])
def test_help_has_an_example(command: str) -> None:
    assert f"melior {command}" in call(command, "--help").stdout


@pytest.mark.parametrize("command", ["list", "show", "promote", "rollback", "lineage"])
def test_help_of_models_has_an_example(command: str) -> None:
    assert f"melior models {command}" in call("models", command, "--help").stdout


@pytest.mark.parametrize("command", ["list", "show", "compare", "report", "resume"])
def test_help_of_runs_has_an_example(command: str) -> None:
    assert f"melior runs {command}" in call("runs", command, "--help").stdout


def melior(*arguments: str, **how: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "melior.cli.main", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom melior.cli import main\n"
        "print(sorted({'torch', 'transformers', 'sqlalchemy', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_traceback_only_where_it_is_asked_for(place: Path) -> None:
    _, quiet = melior("models", "show", "nobody").communicate()
    assert quiet.count("\n") == 1 and "Traceback" not in quiet
    _, loud = melior("models", "show", "nobody", "--debug").communicate()
    assert "Traceback" in loud and "no model is called" in loud


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_goes_on(place: Path) -> None:
    text = (place / "sft.yaml").read_text().replace("epochs: 3", "epochs: 40")  # too many to be over before the signal
    (place / "slow.yaml").write_text(text)
    whole = from_json("train", "slow.yaml", "--folder", "whole", "--store", "whole.db")
    command = ["train", "slow.yaml", "--folder", "slow", "--store", "slow.db"]
    process = melior(*command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 60
    metrics = place / "slow" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "goes on" in told.splitlines()[-1] and "Traceback" not in told
    assert from_json("runs", "list", "--store", "slow.db")[0]["status"] == "cancelled"
    run = from_json("runs", "list", "--store", "slow.db")[0]["id"]
    resumed = from_json("runs", "resume", run, "--store", "slow.db")
    assert resumed["after"]["reward"] == whole["after"]["reward"] and resumed["tokens"] == whole["tokens"]


def test_a_dry_run_starts_nothing(place: Path) -> None:
    text = call("train", "sft.yaml", "--dry-run").stdout
    for word in ("rows", "tokens", "steps", "trains", "memory", "time", "disk"):
        assert any(line.startswith(word) for line in text.splitlines())
    plan = from_json("train", "sft.yaml", "--dry-run")
    assert (plan["rows"], plan["heldout_rows"], plan["steps"], plan["epochs"]) == (20, 40, 15, 3)
    assert not (place / "home" / "runs").exists() and from_json("runs", "list") == []
    (place / "auto.yaml").write_text("method: sft\nmodel: {path: MODEL}\n".replace("MODEL", str(place / "none")))
    assert "data is missing" in call("train", "auto.yaml", "--dry-run", code=1).stderr


def test_tune_writes_a_recipe_that_trains(place: Path) -> None:
    pytest.importorskip("optuna")
    rows = [{"prompt": f"say {i}", "completion": "the cat"} for i in range(110)]
    (place / "cats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = (place / "sft.yaml").read_text().replace("heldout: 40", "heldout: 40, validation: 30")
    text = text.replace("learning_rate: 1e-2", "learning_rate: 1e-5").replace("epochs: 3", "epochs: 1")
    text += "tune: {seeds: 2, space: {fit.learning_rate: [1e-2, 2e-2]}}\n"
    (place / "tune.yaml").write_text(text)
    shown = call("tune", "tune.yaml", "--trials", 3, "--folder", "search").stdout
    assert "as it stands" in shown and "Better: trial" in shown
    told = from_json("tune", "tune.yaml", "--trials", 3, "--folder", "search")
    assert told["gain"]["low"] > 0 and len(told["trials"]) == 3
    assert from_json("train", told["recipe"], "--folder", "run")["gate"]["result"] == "promote"
