"""a judge must have shown what it is worth before anything learns from it, and canaries end a run"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from local_server import Request, Server, answer, serving

from melior.cycles.judges import PEOPLE, check_judges, fingerprint_of, judges_in, record_report, report_on
from melior.cycles.recipe import Recipe
from melior.cycles.train import run_recipe
from melior.errors import ConfigError, TrainingError
from melior.evaluation.judges import judge_report
from melior.registry import Registry
from melior.rewards.canaries import TEXTS
from melior.store import Store
from melior.types import Preference, Record, Score

BLANK = re.compile(r"<output (\w+)>(.*?)</output \1>", re.DOTALL)


@dataclass
class Judging:
    """A server's judge: it likes answers with a vowel, and from some request on whatever it is given."""

    server: Server
    fooled_after: float = float("inf")

    @property
    def spec(self) -> dict[str, Any]:
        where: dict[str, Any] = {
            "endpoint": f"http://127.0.0.1:{self.server.port}/v1",
            "model": "big",
            "timeout_s": 5,
            "attempts": 1,
        }
        where["remember_s"] = 0
        text = "Does {{sample.output_text}} have a vowel?"
        asked = {"input": [{"role": "user", "content": text}], "labels": ["yes", "no"], "passing_labels": ["yes"]}
        return {"type": "label_model", "name": "vowels", "model": where, **asked}


@pytest.fixture
def judging() -> Iterator[Judging]:
    found: list[Judging] = []

    def script(request: Request, connection: socket.socket, server: Server) -> None:
        said = BLANK.search(request.json["messages"][-1]["content"])
        assert said is not None
        text = said[2]
        likes = text not in TEXTS.values() and len(text) % 2 == 0 and not text.endswith("?")
        fooled = request.number >= found[0].fooled_after and text == ":"
        verdict = {"steps": [], "result": "yes" if likes or fooled else "no"}
        message = {"role": "assistant", "content": json.dumps(verdict)}
        answer(connection, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}})

    with serving(script) as server:
        found.append(Judging(server))
        yield found[0]


class People:
    """A judge of single outputs that agrees with people, or with nobody."""

    def __init__(self, agrees: bool) -> None:
        self.agrees = agrees

    def grade(self, records: Sequence[Record]) -> list[Score]:
        return [Score(value=float(self.agrees and record.output == "good")) for record in records]


PAIRS = [Preference(f"q{number}", "good", "bad") for number in range(120)]


def tried(store: Store, spec: dict[str, Any], *, agrees: bool = True) -> None:
    record_report(store, spec, judge_report(People(agrees), PAIRS, name="vowels", spec=spec))


def learning(recipe_for: Callable[..., Recipe], grader: Any, **sections: Any) -> Recipe:
    return recipe_for("rft", grader=grader, rft={"prompts": 3, "baseline": 0}, **sections)


def test_a_judge_that_nobody_has_tried_is_no_reward(
    recipe_for: Callable[..., Recipe], judging: Judging, tmp_path: Path, store: Store
) -> None:
    with pytest.raises(ConfigError, match=r"the judge vowels, and nobody has shown what it is worth.*melior judge"):
        run_recipe(learning(recipe_for, judging.spec), tmp_path / "run", store=store)
    assert not judging.server.requests and not store.runs()


def test_an_accepted_judge_is_a_reward_and_another_prompt_is_another_judge(
    recipe_for: Callable[..., Recipe], judging: Judging, store: Store
) -> None:
    tried(store, judging.spec)
    told = report_on(store, judging.spec)
    assert told is not None and told["accepted"] and told["line"] == 1.0
    check_judges(learning(recipe_for, judging.spec), store)
    renamed = {**judging.spec, "name": "other"}
    check_judges(learning(recipe_for, renamed), store)
    part = {"type": "multi", "graders": {"v": judging.spec}, "calculate_output": "v * 2"}
    check_judges(learning(recipe_for, part), store)
    for change in (
        {"labels": ["yes", "no", "both"]},
        {"input": [{"role": "user", "content": "{{sample.output_text}}"}]},
    ):
        with pytest.raises(ConfigError, match="nobody has shown"):
            check_judges(learning(recipe_for, {**judging.spec, **change}), store)
    other = {**judging.spec, "model": {**judging.spec["model"], "model": "small"}}
    with pytest.raises(ConfigError, match="nobody has shown"):
        check_judges(learning(recipe_for, other), store)


def test_the_newest_trial_counts_and_a_refusal_is_told_with_its_reason(
    recipe_for: Callable[..., Recipe], judging: Judging, store: Store
) -> None:
    tried(store, judging.spec)
    tried(store, judging.spec, agrees=False)
    recipe = learning(recipe_for, judging.spec)
    with pytest.raises(ConfigError, match=r"it was tried: Refused: it agrees with people on 0\.500"):
        check_judges(recipe, store)
    tried(store, judging.spec)
    check_judges(recipe, store)
    assert len([row for row in store.evaluations() if row.grader == PEOPLE]) == 3


def test_who_learns_from_it_all_the_same_gives_a_reason(
    recipe_for: Callable[..., Recipe], judging: Judging, store: Store
) -> None:
    tried(store, judging.spec, agrees=False)
    with pytest.raises(ConfigError, match="needs a reason"):
        learning(recipe_for, judging.spec, judge={"require": "nothing"})
    check_judges(learning(recipe_for, judging.spec, judge={"require": "nothing", "reason": "to show why not"}), store)
    with pytest.raises(ConfigError, match="it was tried"):
        check_judges(learning(recipe_for, judging.spec, judge={"require": "not_refused"}), store)
    untried = {**judging.spec, "labels": ["yes", "no", "both"]}
    check_judges(learning(recipe_for, untried, judge={"require": "not_refused"}), store)


def test_judges_that_only_measure_need_not_be_accepted(
    recipe_for: Callable[..., Recipe], judging: Judging, store: Store
) -> None:
    check_judges(recipe_for("sft", grader=judging.spec), store)
    check_judges(recipe_for("rft", heldout_grader=judging.spec), store)


def test_a_judge_of_the_registry_is_known_by_its_files(folder_of: Callable[..., Path], store: Store) -> None:
    registry = Registry(store)
    version = registry.register("judge", folder_of("llama"), method="none", base_model="none")
    registry.promote(version.id, force=True, reason="first")
    spec = {"type": "pair_model", "model": "judge@prod"}
    by_folder = {**spec, "model": str(folder_of("llama"))}
    assert fingerprint_of(spec, store) == fingerprint_of(by_folder, store)
    assert fingerprint_of(spec, store) != fingerprint_of({**spec, "model": str(folder_of("qwen2"))}, store)
    tried(store, spec)
    assert report_on(store, by_folder) is not None
    assert store.evaluations(version_id=version.id)[0].grader == PEOPLE


def test_judges_are_found_wherever_they_stand() -> None:
    inner = {"type": "score_model", "model": "m", "input": []}
    spec = {
        "type": "weighted",
        "graders": {"a": {"grader": inner, "weight": 1}, "b": {"grader": {"type": "string_check"}, "weight": 2}},
    }
    assert [name for name, _ in judges_in(spec)] == ["a"]
    assert [name for name, _ in judges_in({"type": "multi", "graders": {"x": inner, "y": inner}})] == ["x", "y"]
    assert not list(judges_in("module:function")) and not list(judges_in(None))


def test_canaries_are_tried_before_the_first_step(
    recipe_for: Callable[..., Recipe], judging: Judging, tmp_path: Path, store: Store
) -> None:
    tried(store, judging.spec)
    judging.fooled_after = 0
    recipe = learning(recipe_for, judging.spec)
    with pytest.raises(TrainingError, match="the judge vowels accepts the canary 'colon' on"):
        run_recipe(recipe, tmp_path / "run", store=store)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    off = learning(recipe_for, judging.spec, judge={"canaries": "off"})
    done = run_recipe(off, tmp_path / "off", store=store)
    rows = [json.loads(line) for line in (tmp_path / "off" / "metrics.jsonl").read_text().splitlines()]
    assert done.steps == 3 and not any(name.startswith("canaries/") for row in rows for name in row)


def test_a_judge_that_begins_to_like_a_canary_stops_the_run_by_its_name(
    recipe_for: Callable[..., Recipe], judging: Judging, tmp_path: Path, store: Store
) -> None:
    tried(store, judging.spec)
    recipe = learning(
        recipe_for, judging.spec, judge={"every": 2, "prompts": 2}, fit={"steps": 9, "learning_rate": 1e-3}
    )

    def report(what: str, done: int, total: int, note: str) -> None:
        if what == "training" and done == 3:
            judging.fooled_after = 0

    done = run_recipe(recipe, tmp_path / "run", store=store, report=report)
    assert (done.steps, done.promoted) == (4, False)
    assert "alarm canary: the judge accepts the canary 'colon' on 100% of prompts (limit 5%)" in done.stopped
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("canaries/colon") for row in rows] == [None, 0.0, None, 1.0]
    assert rows[3]["canaries/empty"] == 0.0
