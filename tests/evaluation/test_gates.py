"""the gate itself: it seldom promotes what is no better, and mostly promotes what is"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from table_policy import Answers, TablePolicy, tasks_of

from melior.errors import ConfigError, DataError
from melior.evaluation.compare import Comparison, compare
from melior.evaluation.evaluate import evaluate
from melior.evaluation.gates import Gate, Guard, Verdict, decide
from melior.types import Sampling

SIMULATIONS = 1000
ITEMS = 200
UNGUARDED = Gate(guards=())

Draw = Callable[[np.random.Generator, int], np.ndarray]  # chance, samples → [items] means of one policy


def bernoulli(p: float) -> Draw:
    return lambda chance, samples: chance.binomial(samples, p, ITEMS) / samples


def continuous(chance: np.random.Generator, samples: int) -> np.ndarray:
    return chance.beta(0.4, 1.2, (ITEMS, samples)).mean(axis=1)


def unbounded(chance: np.random.Generator, samples: int) -> np.ndarray:
    return chance.normal(0.0, 1.0, (ITEMS, samples)).mean(axis=1)


RIVALS: dict[str, Draw] = {f"right with {p}": bernoulli(p) for p in (0.1, 0.3, 0.5, 0.9)} | {
    "partial credit": continuous,
    "unbounded": unbounded,
}


def compared(differences: np.ndarray, greedy: np.ndarray | None = None, bounded: bool = True) -> Comparison:
    metrics = {"reward": differences} if greedy is None else {"reward": differences, "greedy": greedy}
    return Comparison(
        differences={name: {str(i): float(x) for i, x in enumerate(values)} for name, values in metrics.items()},
        baseline=dict.fromkeys(metrics, 0.3),
        bounds=dict.fromkeys(metrics, (-1.0, 1.0)) if bounded else {},
        items=len(differences),
    )


@pytest.mark.parametrize("samples", [2, 4])
@pytest.mark.parametrize("name", RIVALS)
def test_an_equal_candidate_is_promoted_in_at_most_five_percent(name: str, samples: int) -> None:
    chance, draw = np.random.default_rng(samples), RIVALS[name]
    verdicts = [
        decide(compared(draw(chance, samples) - draw(chance, samples), bounded=name != "unbounded"), UNGUARDED).result
        for _ in range(SIMULATIONS)
    ]
    assert verdicts.count("promote") <= 0.05 * SIMULATIONS
    assert verdicts.count("reject") <= 0.05 * SIMULATIONS
    # each end of a two-sided 95 % interval errs in 2.5 %: none at all would be a gate that never opens
    assert verdicts.count("promote") >= 0.005 * SIMULATIONS


def test_a_worse_candidate_is_hardly_ever_promoted() -> None:
    chance = np.random.default_rng(0)
    worse, base = bernoulli(0.25), bernoulli(0.3)
    verdicts = [decide(compared(worse(chance, 2) - base(chance, 2)), UNGUARDED).result for _ in range(SIMULATIONS)]
    assert verdicts.count("promote") <= 0.005 * SIMULATIONS


def test_power_without_guards() -> None:
    """200 items × 2 samples see a gain from .30 to .40 in at least 80 % of trials."""
    chance = np.random.default_rng(1)
    better, base = bernoulli(0.4), bernoulli(0.3)
    verdicts = [decide(compared(better(chance, 2) - base(chance, 2)), UNGUARDED).result for _ in range(SIMULATIONS)]
    assert verdicts.count("promote") >= 0.8 * SIMULATIONS
    assert "reject" not in verdicts


def test_power_with_the_greedy_guard() -> None:
    """200 items × 2 samples and one greedy output see a gain from .30 to .42, in both, in at least 80 % of trials."""
    chance = np.random.default_rng(2)
    better, base = bernoulli(0.42), bernoulli(0.3)
    gate = Gate(guards=(Guard(metric="greedy", margin=0.05),))
    verdicts = [
        decide(compared(better(chance, 2) - base(chance, 2), better(chance, 1) - base(chance, 1)), gate).result
        for _ in range(SIMULATIONS)
    ]
    assert verdicts.count("promote") >= 0.8 * SIMULATIONS


def test_a_clear_loss_is_rejected() -> None:
    chance = np.random.default_rng(3)
    verdict = decide(compared(bernoulli(0.1)(chance, 2) - bernoulli(0.4)(chance, 2)), UNGUARDED)
    assert verdict.result == "reject" and verdict.interval.high < 0 and verdict.items_needed is None
    assert verdict.sentence.startswith("Reject: on 200 items, reward changed by -0.")


def test_a_breached_guard_rejects_what_gained() -> None:
    chance = np.random.default_rng(4)
    gained = bernoulli(0.8)(chance, 2) - bernoulli(0.3)(chance, 2)
    lost = bernoulli(0.2)(chance, 1) - bernoulli(0.6)(chance, 1)
    gate = Gate(guards=(Guard(metric="greedy", margin=0.05),))
    verdict = decide(compared(gained, lost), gate)
    assert verdict.result == "reject"
    assert len(verdict.reasons) == 1 and "greedy" in verdict.reasons[0]
    assert decide(compared(gained, gained), gate).result == "promote"


def test_an_unclear_guard_is_inconclusive_and_asks_for_items() -> None:
    chance = np.random.default_rng(5)
    gained = bernoulli(0.8)(chance, 2) - bernoulli(0.3)(chance, 2)
    unclear = bernoulli(0.5)(chance, 1) - bernoulli(0.5)(chance, 1)
    verdict = decide(compared(gained, unclear), Gate(guards=(Guard(metric="greedy", margin=0.02),)))
    assert verdict.result == "inconclusive"
    assert verdict.items_needed is not None and verdict.items_needed > 0
    assert verdict.sentence.endswith(f"about {verdict.items_needed} more items needed.")


def test_the_margin_moves_the_line() -> None:
    chance = np.random.default_rng(6)
    comparison = compared(bernoulli(0.5)(chance, 4) - bernoulli(0.3)(chance, 4))
    assert decide(comparison, UNGUARDED).result == "promote"
    assert decide(comparison, replace(UNGUARDED, margin=0.2)).result == "inconclusive"
    assert decide(comparison, replace(UNGUARDED, margin=0.4)).result == "reject"


def test_the_items_asked_for_decide() -> None:
    """An inconclusive gate names a number of items; with that many, the same gain passes in about 80 % of trials."""
    chance = np.random.default_rng(7)
    differences = chance.normal(0.0, 0.5, 200)
    differences = 0.05 + 0.5 * (differences - differences.mean()) / differences.std(ddof=1)
    verdict = decide(compared(differences, bounded=False), UNGUARDED)
    assert verdict.result == "inconclusive" and verdict.items_needed is not None
    again = [
        decide(compared(chance.normal(0.05, 0.5, 200 + verdict.items_needed), bounded=False), UNGUARDED).result
        for _ in range(300)
    ]
    assert 0.72 <= again.count("promote") / 300 <= 0.9


def test_no_gain_worth_having_is_said_so() -> None:
    differences = np.tile([0.1, -0.1], 500)
    verdict = decide(compared(differences), UNGUARDED)
    assert verdict.result == "inconclusive" and verdict.items_needed == 0
    assert "more items are unlikely to decide" in verdict.sentence


def test_a_guard_where_nothing_changed_asks_for_the_items_that_clear_it() -> None:
    gate = Gate(guards=(Guard(metric="greedy", margin=0.05),))
    gained = np.tile([1.0, 0.5], 100)
    verdict = decide(compared(gained[:60], np.zeros(60)), gate)
    assert verdict.result == "inconclusive" and verdict.items_needed is not None
    enough = 60 + verdict.items_needed
    assert decide(compared(gained[:enough], np.zeros(enough)), gate).result == "promote"
    assert decide(compared(gained[: enough - 1], np.zeros(enough - 1)), gate).result == "inconclusive"


def test_the_worst_there_can_be_is_still_a_verdict() -> None:
    gate = Gate(guards=(Guard(metric="greedy", margin=0.99),))
    verdict = decide(compared(np.tile([1.0, 0.5], 100), -np.ones(200)), gate)
    assert verdict.result == "inconclusive" and verdict.items_needed is not None


def test_identical_outputs_do_not_promote() -> None:
    assert decide(compared(np.zeros(200)), UNGUARDED).result == "inconclusive"
    endless = decide(compared(np.zeros(200), bounded=False), UNGUARDED)
    assert endless.result == "inconclusive" and endless.items_needed is None
    assert endless.interval.high == math.inf


def test_few_items_never_decide() -> None:
    verdict = decide(compared(np.ones(20)), UNGUARDED)
    assert verdict.result == "inconclusive" and verdict.items_needed == 10
    one_user = replace(compared(np.ones(200)), clusters={str(index): "user" for index in range(200)})
    verdict = decide(one_user, UNGUARDED)
    assert verdict.result == "inconclusive" and "1 independent groups" in verdict.sentence


def test_an_estimate_from_a_log_decides_by_the_rows_it_rests_on() -> None:
    gained = compared(np.full(400, 0.2))
    assert decide(gained, UNGUARDED).result == "promote"
    verdict = decide(replace(gained, effective=12.4), UNGUARDED)
    assert verdict.result == "inconclusive" and "rests on 12 rows" in verdict.reasons[0]
    assert verdict.items_needed == math.ceil((30 - 12.4) * 400 / 12.4)
    assert decide(replace(gained, effective=30.0), UNGUARDED).result == "promote"


def test_many_missing_items_never_decide() -> None:
    comparison = replace(compared(np.tile([1.0, 0.5], 50)), items=110, missing=10)
    assert decide(comparison, UNGUARDED).result == "inconclusive"
    assert decide(replace(comparison, items=102, missing=2), UNGUARDED).result == "promote"


def test_runs_are_pooled_over_their_items() -> None:
    chance = np.random.default_rng(9)
    runs = [compared(bernoulli(0.36)(chance, 2) - bernoulli(0.3)(chance, 2)) for _ in range(6)]
    verdict = decide(runs, UNGUARDED)
    assert verdict.result == "promote" and verdict.items == 200
    assert verdict.interval.estimate == pytest.approx(np.mean([run.gain.estimate for run in runs]))


def test_repeated_looks_hold_the_level() -> None:
    """Looking after every 20 further items: one-look intervals promote an equal candidate far too often."""
    chance = np.random.default_rng(10)
    trials = [bernoulli(0.5)(chance, 1) - bernoulli(0.5)(chance, 1) for _ in range(120)]
    fooled = set()
    for items in range(40, ITEMS + 1, 20):  # one size at a time: resamples are drawn once a size
        gate = replace(UNGUARDED, resamples=500)
        results = [decide(compared(differences[:items]), gate).result for differences in trials]
        fooled |= {trial for trial, result in enumerate(results) if result == "promote"}
    assert len(fooled) > 0.05 * len(trials)
    # its limits never widen, so the last look remembers every look before
    results = [decide(compared(differences), replace(UNGUARDED, repeated=True)).result for differences in trials]
    assert results.count("promote") <= 0.03 * len(trials)
    strong = np.random.default_rng(0).choice([1.0, 0.0], 200)
    assert decide(compared(strong), replace(UNGUARDED, repeated=True)).result == "promote"
    with pytest.raises(DataError, match="no bounds for 'reward'"):
        decide(compared(strong, bounded=False), replace(UNGUARDED, repeated=True))


def test_the_whole_way_from_policies_to_verdict() -> None:
    chances = {f"question {index}": 0.3 for index in range(200)}
    better = {text: 0.6 for text in chances}
    sampling = Sampling(n=2, max_tokens=8)

    def verdict(candidate: TablePolicy, seed: int) -> Verdict:
        tasks = tasks_of(chances)
        ours = evaluate(candidate, tasks, Answers(), replace(sampling, seed=seed))
        theirs = evaluate(TablePolicy(chances), tasks, Answers(), sampling)
        return decide(compare(ours, theirs))

    promoted = verdict(TablePolicy(better), 1)
    assert promoted.result == "promote" and set(promoted.guards) == {"greedy", "truncated", "tokens"}
    assert promoted.sentence.startswith("Promote: reward changed by 0.") and "3 guards held" in promoted.sentence
    assert verdict(TablePolicy(chances), 2).result != "promote"
    longer = verdict(TablePolicy(better, length=7), 1)
    assert longer.result == "reject" and "tokens changed by 4.000" in longer.sentence
    cut = verdict(TablePolicy(better, length=9), 1)
    assert cut.result == "reject" and any("truncated" in reason for reason in cut.reasons)


def test_an_unmeasured_guard_is_an_error() -> None:
    with pytest.raises(DataError, match="'greedy' is none of the 1 metrics"):
        decide(compared(np.ones(50)), Gate())


def test_json_round_trip() -> None:
    chance = np.random.default_rng(0)
    differences = bernoulli(0.4)(chance, 2) - bernoulli(0.3)(chance, 2)
    for comparison in (compared(differences), compared(np.zeros(50), bounded=False)):
        verdict = decide(comparison, UNGUARDED)
        assert Verdict.from_json(json.loads(json.dumps(verdict.to_json(), allow_nan=False))) == verdict


def test_bad_gates_are_refused() -> None:
    for settings in ({"level": 1.0}, {"effect": 0.0}, {"minimum_items": 1}, {"maximum_missing": 2.0}, {"resamples": 3}):
        with pytest.raises(ConfigError):
            Gate(**settings)
    with pytest.raises(ConfigError, match=r"margin ≥ 0, got -0\.1"):
        Guard(metric="greedy", margin=-0.1)
    with pytest.raises(ConfigError, match="'higher' or 'lower'"):
        Guard(metric="greedy", margin=0.1, better="up")  # type: ignore[arg-type]
