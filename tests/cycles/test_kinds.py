"""recipes for classifiers and slates: every method runs from YAML to a version that has met the gate"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from melior.cycles.decisions import decide_rows
from melior.cycles.evaluations import Asked, evaluate_models
from melior.cycles.plan import dry_run
from melior.cycles.recipe import load_recipe, recipe_of
from melior.cycles.rows import load_rows
from melior.cycles.train import Outcome, run_recipe
from melior.data.formats import read_examples
from melior.errors import ConfigError, DataError, MissingLogProbs
from melior.policies.kinds import load_policy
from melior.rollouts.banner import Banner, logging_policy
from melior.store import Store
from melior.types import Sampling

COSTS = {"type": "cost_matrix", "costs": {"no": {"yes": 1}, "yes": {"no": 5}}}
CLICKS = {"type": "events", "points": {"click": 1, "cart": 3, "purchase": 10}}
Runs = Callable[..., Outcome]


def people(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a table in which height and colour decide, a little noisily."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        height, colour, sex = chance.gauss(0, 1), chance.choice(["red", "green", "blue"]), chance.choice(["f", "m"])
        right = height + (colour == "red") > 0.4
        rows.append({"height": f"{height:.4f}", "colour": colour, "sex": sex, "bought": "yes" if right else "no"})
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def decisions(kind: str, count: int = 200, seed: int = 3) -> list[dict[str, Any]]:
    """The same people as rows of other kinds: a log by a fair coin, pairs, ratings."""
    chance, made = random.Random(1), []
    for row in people(count, seed):
        inputs, right = {"height": float(row["height"]), "colour": row["colour"]}, row["bought"]
        wrong = "no" if right == "yes" else "yes"
        shown = chance.choice(["no", "yes"])
        made.append(
            {
                "logged": {"inputs": inputs, "output": shown, "propensity": 0.5, "reward": float(shown == right)},
                "preferences": {"inputs": inputs, "chosen": right, "rejected": wrong},
                "rated": {"inputs": inputs, "output": shown, "rating": 4 * (shown == right)},
                "demonstrations": {"inputs": inputs, "output": right},
            }[kind]
        )
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "melior.db") as opened:
        yield opened


@pytest.fixture
def runs(tmp_path: Path, store: Store) -> Runs:
    def run(folder: str = "run", **recipe: Any) -> Outcome:
        return run_recipe(recipe_of({"model": {"kind": "classifier"}, **recipe}), tmp_path / folder, store=store)

    return run


def table(tmp_path: Path, count: int = 240) -> dict[str, Any]:
    return {"train": write_csv(tmp_path / "people.csv", people(count)), "heldout": 0.25, "label": "bought"}


# ---------------------------------------------------------------------- classifiers


def test_demonstrations_make_a_classifier_that_is_promoted_and_evaluated(
    tmp_path: Path, store: Store, runs: Runs
) -> None:
    data = {**table(tmp_path), "audit": ["sex"], "drop": ["sex"]}
    outcome = runs(method="sft", data=data, save={"name": "buyers"})
    assert outcome.promoted and outcome.after.grader == "accuracy" and outcome.after.reward.low > 0.75
    told = json.loads((tmp_path / "run" / "classification.json").read_text())
    assert [group["attribute"] for group in told["groups"]] == ["sex"] and told["rows"] == 60
    # A version knows how its rows are read; labels alone judge it.
    fresh = write_csv(tmp_path / "fresh.csv", people(80, seed=9))
    (measured,) = evaluate_models(["buyers@prod"], Asked(data=fresh), store, lambda *told: None)
    assert measured.classification is not None and measured.evaluation.reward.estimate > 0.8
    assert {row.attribute for row in measured.classification.groups} == {"sex"}


def test_a_cost_matrix_moves_decisions_to_what_costs_less(tmp_path: Path, runs: Runs) -> None:
    noisy = [
        {**row, "bought": random.Random(i).choice([row["bought"], "no", "yes"])} for i, row in enumerate(people(400))
    ]
    data = {"train": write_csv(tmp_path / "noisy.csv", noisy), "heldout": 0.25, "label": "bought"}
    rft = {"prompts": 64, "hopeless": "train"}
    outcome = runs(method="rft", data=data, grader=COSTS, rft=rft, fit={"steps": 60, "learning_rate": 0.01})
    told = json.loads((tmp_path / "run" / "classification.json").read_text())
    (_, no_yes), (yes_no, yes_yes) = told["confusion"]
    assert outcome.after.reward.estimate >= outcome.before.reward.estimate
    assert yes_no < no_yes and yes_yes > yes_no, "it says yes where no would be dear"
    assert told["measures"]["cost"]["estimate"] == pytest.approx(-outcome.after.reward.estimate)


@pytest.mark.parametrize(
    ("method", "kind", "more"),
    [
        ("off_policy", "logged", {"off_policy": {"batch_size": 32, "epochs": 20}}),
        ("dpo", "preferences", {"dpo": {"epochs": 5}}),
        ("ipo", "preferences", {"ipo": {"epochs": 5}}),
        ("simpo", "preferences", {"simpo": {"epochs": 5}}),
        ("orpo", "preferences", {"orpo": {"epochs": 5}}),
        ("awr", "rated", {"awr": {"epochs": 10}}),
    ],
)
def test_logs_pairs_and_ratings_teach_what_demonstrations_judge(
    tmp_path: Path, runs: Runs, method: str, kind: str, more: dict[str, Any]
) -> None:
    heldout = write_jsonl(tmp_path / "heldout.jsonl", decisions("demonstrations", 60, seed=4))
    data = {"train": write_jsonl(tmp_path / "rows.jsonl", decisions(kind)), "heldout": heldout}
    outcome = runs(method=method, data=data, fit={"learning_rate": 0.005}, **more)
    assert outcome.after.grader == "accuracy" and outcome.after.reward.estimate > 0.8 and outcome.promoted


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("sft", "demonstrations"),
        ("off_policy", "logged"),
        ("dpo", "preferences"),
        ("orpo", "preferences"),
        ("awr", "rated"),
    ],
)
def test_every_method_can_be_planned(tmp_path: Path, store: Store, method: str, kind: str) -> None:
    asked: dict[str, Any] = {"train": write_jsonl(tmp_path / "rows.jsonl", decisions(kind, 60))}
    if kind == "rated":
        asked["heldout"] = write_jsonl(tmp_path / "heldout.jsonl", decisions("demonstrations", 40, seed=4))
    plan = dry_run(recipe_of({"method": method, "model": {"kind": "classifier"}, "data": asked}), store)
    assert plan.steps > 0 and plan.seconds is not None and plan.seconds > 0 and plan.activation_bytes


def test_a_version_that_was_not_compared_with_the_one_that_serves_says_so(tmp_path: Path, runs: Runs) -> None:
    same: dict[str, Any] = {"method": "sft", "data": table(tmp_path, 400), "save": {"name": "buyers"}}
    same |= {"sft": {"epochs": 10, "batch_size": 16}, "fit": {"learning_rate": 0.005}}
    first, second = runs("first", **same), runs("second", **same, seed=1)
    assert first.promoted and second.verdict.result == "promote" and not second.promoted
    assert "compared with the base model" in second.note and f"buyers@prod is {first.version_id}" in second.note


def test_held_out_logs_judge_against_the_policy_that_wrote_them(tmp_path: Path, runs: Runs) -> None:
    data = {"train": write_jsonl(tmp_path / "log.jsonl", decisions("logged", 600)), "heldout": 0.3}
    settings = {"batch_size": 64, "epochs": 20}
    outcome = runs(method="off_policy", data=data, off_policy=settings, fit={"learning_rate": 0.005})
    assert abs(outcome.before.reward.estimate - 0.5) < 0.1, "a fair coin wrote the log"
    assert outcome.after.reward.low > outcome.before.reward.high and outcome.promoted


def test_held_out_pairs_say_whether_the_policy_moved_their_way(tmp_path: Path, runs: Runs) -> None:
    data = {"train": write_jsonl(tmp_path / "pairs.jsonl", decisions("preferences", 300)), "heldout": 0.25}
    outcome = runs(method="dpo", data=data, dpo={"epochs": 5}, fit={"learning_rate": 0.005})
    assert outcome.before.reward.estimate == 0.5 and outcome.after.reward.low > 0.7


def test_a_version_goes_on_learning_where_it_stopped(tmp_path: Path, runs: Runs) -> None:
    first = runs("first", method="sft", data=table(tmp_path), save={"name": "buyers"})
    rft = {"prompts": 16, "hopeless": "train"}
    second = runs(
        "second",
        method="rft",
        model={"kind": "classifier", "path": first.version_id},
        data=table(tmp_path),
        grader=COSTS,
        rft=rft,
        fit={"steps": 2},
    )
    assert second.before.reward.estimate == pytest.approx(-sum_of_costs(first, tmp_path), abs=0.4)


def sum_of_costs(outcome: Outcome, tmp_path: Path) -> float:
    told = json.loads((tmp_path / "first" / "classification.json").read_text())
    (no_no, no_yes), (yes_no, yes_yes) = told["confusion"]
    return float((no_yes + 5 * yes_no) / (no_no + no_yes + yes_no + yes_yes))


def test_balanced_classes_have_the_same_say(tmp_path: Path) -> None:
    from melior.cycles.taught import by_class

    rows = load_rows(recipe_of({"method": "sft", "model": {"kind": "classifier"}, "data": table(tmp_path)})).train
    weighted = by_class(rows, "balanced")
    sums = {label: sum(row.weight for row in weighted if row.output == label) for label in ("no", "yes")}
    assert sums["no"] == pytest.approx(sums["yes"]) and sum(sums.values()) == pytest.approx(len(rows))
    with pytest.raises(DataError, match="no weight for 'yes'"):
        by_class(rows, {"no": 2.0})


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path, store: Store) -> None:
    recipe = recipe_of({"method": "sft", "model": {"kind": "classifier"}, "data": table(tmp_path)})
    plan = dry_run(recipe, store)
    assert plan.tokens is None and plan.decisions == plan.rows > 100 and plan.seconds is not None


# ---------------------------------------------------------------------- slates


def banner_log(tmp_path: Path, count: int) -> dict[str, Any]:
    """Logged slates of a simulated shop, and its catalogue, as files."""
    world = Banner("logit")
    records = world.log(logging_policy(world), count, seed=0)
    lines = []
    for record in records:
        request = record.inputs
        told = {"context": dict(request.context), "viewed": request.viewed}
        history = [{"item": past.item, "type": past.type} for past in request.history]
        lines.append(
            {
                "request": {**told, "history": history},
                "slate": list(record.output),
                "log_probs": list(record.behavior_log_probs or ()),
                "events": record.item["events"],
            }
        )
    items = [{"id": item.id, "features": dict(item.features)} for item in world.catalogue]
    return {
        "train": write_jsonl(tmp_path / "log.jsonl", lines),
        "catalogue": write_jsonl(tmp_path / "items.jsonl", items),
    }


def test_slates_are_learnt_against_a_simulated_shop(tmp_path: Path, runs: Runs) -> None:
    outcome = runs(
        method="rft",
        model={"kind": "slate"},
        slate={"width": 16},
        data={"train": {"banner": "logit", "size": 400}, "heldout": 60},
        rft={"prompts": 16, "hopeless": "train"},
        fit={"steps": 3},
    )
    assert outcome.after.grader == "banner-logit" and len(outcome.after.items) == 60
    assert all(len(example.output) == 5 for example in outcome.after.examples)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert samples and "candidates" in json.dumps(samples[0])


def test_ppo_learns_with_values_and_saves_the_policy_alone(tmp_path: Path, runs: Runs) -> None:
    outcome = runs(
        method="ppo",
        model={"kind": "slate"},
        slate={"width": 16},
        data={"train": {"banner": "logit", "size": 400}, "heldout": 60},
        ppo={"prompts": 16, "hopeless": "train"},
        alarms={"change": {"entropy": "off"}},
        fit={"steps": 3},
    )
    assert outcome.steps == 3 and outcome.kind == "slate"
    told = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all("explained_variance" in row and row["value"] == row["value"] for row in told)
    assert load_policy(tmp_path / "run" / "model").kind == "slate", "what serves needs no values"


def test_slates_are_learnt_from_logs_with_points_for_events(tmp_path: Path, runs: Runs) -> None:
    data = {**banner_log(tmp_path, 600), "heldout": 0.3}
    outcome = runs(
        method="off_policy",
        model={"kind": "slate"},
        slate={"width": 16},
        grader=CLICKS,
        data=data,
        off_policy={"epochs": 1},
        fit={"learning_rate": 0.001},
    )
    assert outcome.before.grader == outcome.after.grader == "events"
    assert outcome.steps == 9 and "off_policy.batch_size = 52" in outcome.choices[0]


# ---------------------------------------------------------------------- what people get wrong


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"data": {"label": "bougt"}}, DataError, "did you mean 'bought'"),
        ({"data": {"label": ""}}, DataError, "columns"),
        ({"method": "rft"}, ConfigError, "write grader:"),
        ({"model": {"kind": "classifer"}}, ConfigError, "model.kind"),
        ({"model": {"kind": "language"}}, ConfigError, "model.path is missing"),
        ({"evaluate": {"temperature": 0, "n": 3}}, ConfigError, "n must be 1"),
        ({"classifier": {"hiden": 3}}, ConfigError, "unknown key"),
        ({"sft": {"class_weights": "equal"}}, ConfigError, "class_weights"),
        ({"data": {"train": {"banner": "logit", "size": 10}, "heldout": 5}}, ConfigError, "model.kind: slate"),
    ],
)
def test_a_mistake_is_told(
    tmp_path: Path, runs: Runs, change: dict[str, Any], error: type[Exception], told: str
) -> None:
    recipe: dict[str, Any] = {"method": "sft", "model": {"kind": "classifier"}, "data": table(tmp_path, 60)}
    for key, value in change.items():
        recipe[key] = {**recipe[key], **value} if isinstance(recipe.get(key), dict) else value
    with pytest.raises(error, match=told):
        runs(**recipe)


def test_a_log_without_propensities_is_refused(tmp_path: Path, runs: Runs) -> None:
    rows = [{**row, "propensity": 0.5 if index else 0} for index, row in enumerate(decisions("logged", 40))]
    with pytest.raises((DataError, MissingLogProbs), match="had no chance"):
        runs(method="off_policy", data={"train": write_jsonl(tmp_path / "log.jsonl", rows)})


def test_recipes_of_other_kinds_and_methods_stay_out_of_a_recipes_file(tmp_path: Path) -> None:
    recipe = recipe_of({"method": "sft", "model": {"kind": "classifier"}, "data": table(tmp_path)})
    assert "slate" not in recipe.to_dict() and "dpo" not in recipe.to_dict() and "classifier" in recipe.to_dict()
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe


# ---------------------------------------------------------------------- deciding


def test_decisions_of_chance_are_a_log_that_can_be_learnt_from(tmp_path: Path, store: Store, runs: Runs) -> None:
    runs(method="sft", data=table(tmp_path), save={"name": "buyers"})
    version = store.versions()[-1].id
    fresh = [{**row, "colour": "mauve" if not index else row["colour"]} for index, row in enumerate(people(40, seed=8))]
    unknown = write_csv(tmp_path / "unknown.csv", [{k: v for k, v in row.items() if k != "bought"} for row in fresh])
    best, passed_over = decide_rows(version, unknown, store)
    assert len(best) == 40 and all(one.probability >= 0.5 for one in best)
    assert sum(count for what, count in passed_over.items() if "colour" in what) == 1, "counted once"
    assert "log_probs" not in best[0].row() and best[0].row()["policy_version"] == version
    drawn, _ = decide_rows(version, unknown, store, sampling=Sampling(temperature=1.0, seed=3))
    rows = [
        {**one.row(), "reward": float(one.record.output == row["bought"])}
        for one, row in zip(drawn, fresh, strict=True)
    ]
    found = read_examples(write_jsonl(tmp_path / "log.jsonl", rows), "logged")
    assert [record.behavior_log_probs for record in found.rows] == [one.record.behavior_log_probs for one in drawn]
    assert all(0 < one.probability <= 1 for one in drawn)


def test_a_missing_column_is_named(tmp_path: Path, store: Store, runs: Runs) -> None:
    runs(method="sft", data=table(tmp_path), save={"name": "buyers"})
    lacking = write_csv(tmp_path / "lacking.csv", [{"height": 1.0, "sex": "f"}])
    with pytest.raises(DataError, match="no column 'colour'"):
        decide_rows(store.versions()[-1].id, lacking, store)
