"""comparisons pair items, and refuse what cannot be paired"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from table_policy import Answers, TablePolicy, tasks_of

from melior.errors import DataError
from melior.evaluation.compare import Comparison, compare, pooled
from melior.evaluation.evaluate import Evaluation, evaluate
from melior.types import Sampling

TWO = Sampling(n=2, max_tokens=8)


def evaluated(chances: dict[str, float], seed: int = 0, length: int = 3, **options: object) -> Evaluation:
    return evaluate(TablePolicy(chances, length=length), tasks_of(chances), Answers(**options), replace(TWO, seed=seed))


def better(chances: dict[str, float], gain: float = 0.3) -> dict[str, float]:
    return {text: min(chance + gain, 1.0) for text, chance in chances.items()}


def test_the_gain_is_the_difference_of_the_rewards(chances: dict[str, float]) -> None:
    candidate, baseline = evaluated(better(chances), seed=1), evaluated(chances, seed=2)
    comparison = compare(candidate, baseline)
    assert comparison.gain.estimate == pytest.approx(candidate.reward.estimate - baseline.reward.estimate)
    assert comparison.gain.low > 0
    assert comparison.baseline["reward"] == pytest.approx(baseline.reward.estimate)
    assert set(comparison.differences) == {"reward", "greedy", "truncated", "tokens"}
    back = compare(baseline, candidate)
    assert back.gain.estimate == pytest.approx(-comparison.gain.estimate)
    assert back.gain.low == pytest.approx(-comparison.gain.high, abs=0.02)


def test_a_policy_against_itself_gains_nothing_but_is_not_certain(chances: dict[str, float]) -> None:
    comparison = compare(evaluated(chances), evaluated(chances))
    assert comparison.gain.estimate == 0.0
    assert comparison.gain.low < 0 < comparison.gain.high


def test_longer_outputs_show(chances: dict[str, float]) -> None:
    comparison = compare(evaluated(chances, length=6), evaluated(chances))
    assert comparison.interval("tokens").estimate == 3.0
    cut = compare(evaluated(chances, length=9), evaluated(chances))
    assert cut.interval("truncated").estimate == 1.0


def test_other_items_are_refused_with_numbers(chances: dict[str, float]) -> None:
    fewer = dict(list(chances.items())[:30])
    with pytest.raises(DataError, match="the candidate has 30 items, the baseline 40, and 30 are shared"):
        compare(evaluated(fewer), evaluated(chances))


def test_same_keys_with_other_contents_are_refused(chances: dict[str, float]) -> None:
    tasks = [replace(task, item={"answer": "wrong"}) for task in tasks_of(chances)]
    other = evaluate(TablePolicy(chances), tasks, Answers(), TWO)
    with pytest.raises(DataError, match="other contents"):
        compare(other, evaluated(chances))


def test_other_graders_and_samplings_are_refused(chances: dict[str, float]) -> None:
    with pytest.raises(DataError, match="graded by 'strict', the baseline by 'answers'"):
        compare(evaluated(chances, name="strict"), evaluated(chances))
    hot = evaluate(TablePolicy(chances), tasks_of(chances), Answers(), replace(TWO, temperature=1.5))
    with pytest.raises(DataError, match="same settings"):
        compare(hot, evaluated(chances))


def test_items_missing_on_one_side_leave_both(chances: dict[str, float]) -> None:
    candidate = evaluated(better(chances), failing=frozenset(["question 0"]))
    baseline = evaluated(chances, failing=frozenset(["question 1", "question 2"]))
    comparison = compare(candidate, baseline)
    assert comparison.missing == 3 and len(comparison.differences["reward"]) == 37
    expected = [
        np.mean(candidate.values["reward"][key]) - np.mean(baseline.values["reward"][key])
        for key in comparison.differences["reward"]
    ]
    assert comparison.gain.estimate == pytest.approx(np.mean(expected))


def test_nothing_left_to_pair_is_an_error(chances: dict[str, float]) -> None:
    half, rest = frozenset(list(chances)[:20]), frozenset(list(chances)[20:])
    with pytest.raises(DataError, match="0 of 40 items have graded samples on both sides"):
        compare(evaluated(chances, failing=half), evaluated(chances, failing=rest))


def test_pooled_runs_average_by_item(chances: dict[str, float]) -> None:
    runs = [compare(evaluated(better(chances), seed=seed), evaluated(chances, seed=seed + 10)) for seed in range(3)]
    whole = pooled(runs)
    assert whole.gain.estimate == pytest.approx(np.mean([run.gain.estimate for run in runs]))
    assert len(whole.differences["reward"]) == 40 and whole.items == 40
    assert whole.gain.high - whole.gain.low < np.mean([run.gain.high - run.gain.low for run in runs])
    assert pooled(runs[:1]) == runs[0]
    assert pooled([runs[0]] * 2).gain.low == pytest.approx(runs[0].gain.low)
    with pytest.raises(DataError):
        pooled([])


def test_looks_at_any_time_cost_width(chances: dict[str, float]) -> None:
    comparison = compare(evaluated(better(chances), seed=1), evaluated(chances, seed=2))
    once, anytime = comparison.gain, comparison.anytime_interval("reward")
    assert anytime.low <= once.low and anytime.high >= once.high
    assert anytime.estimate == pytest.approx(once.estimate)


def test_a_metric_nobody_measured_is_named(chances: dict[str, float]) -> None:
    comparison = compare(evaluated(chances), evaluated(chances))
    with pytest.raises(DataError, match="'toxicity' is none of the 4 metrics compared"):
        comparison.interval("toxicity")


def test_json_round_trip(chances: dict[str, float]) -> None:
    comparison = compare(evaluated(better(chances)), evaluated(chances))
    text = json.dumps(comparison.to_json(), allow_nan=False)
    assert Comparison.from_json(json.loads(text)) == comparison
