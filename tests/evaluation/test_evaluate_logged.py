"""judging a policy from a log: the estimate, what it is compared with, and what is said against it"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tabular import Tabular
from torch import Tensor

from melior.errors import ConfigError, DataError, MissingLogProbs
from melior.evaluation.compare import compare
from melior.evaluation.evaluate import REWARD, Evaluation
from melior.evaluation.gates import Gate, decide
from melior.evaluation.logged import HeldoutValue, evaluate_log, evaluate_logged
from melior.masking import sum_decisions
from melior.policies.base import LOG_PROBS, Batch, Scored, Want
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.rollouts.reward_means import MeanRewards
from melior.types import Record, Sampling, Score, Task

LABELS = ("a", "b", "c")
RATES = {"a": 0.2, "b": 0.5, "c": 0.8}
PEOPLE = [{"age": float(number % 40)} for number in range(1500)]
Log = tuple[list[Record], list[Score]]


def classifier(seed: int) -> ClassifierPolicy:
    policy = ClassifierPolicy.make(
        Classifier(labels=LABELS), [Task(person) for person in PEOPLE], seed=seed, device="cpu"
    )
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # a fresh head decides evenly
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))
    return policy


def logged(policy: Any, people: Sequence[Any] = PEOPLE) -> Log:
    source = torch.Generator().manual_seed(9)
    records = policy.sample(people, Sampling(seed=3))
    lucky = torch.rand(len(records), generator=source).tolist()
    scores = [Score(value=float(luck < RATES[r.output]), name="clicks") for r, luck in zip(records, lucky)]
    return [replace(record, group=f"user {row // 2}") for row, record in enumerate(records)], scores


@pytest.fixture(scope="module")
def log() -> Log:
    return logged(classifier(1))


@pytest.fixture(scope="module")
def candidate() -> ClassifierPolicy:
    return classifier(2)


def truth(policy: ClassifierPolicy, temperature: float = 1.0) -> float:
    chances = policy.probabilities(PEOPLE).double()
    sharp = torch.softmax(chances.log() / temperature, 1) if temperature else chances
    if not temperature:
        sharp = torch.nn.functional.one_hot(chances.argmax(1), len(LABELS)).double()
    return float((sharp @ torch.tensor([RATES[label] for label in LABELS], dtype=torch.float64)).mean())


def names(record: Record) -> Sequence[str]:
    return LABELS


def all_rates(records: Sequence[Record]) -> Tensor:
    return torch.tensor([RATES[label] for label in LABELS]).expand(len(records), 1, 3)


def test_a_limit_of_nothing_is_refused_not_replaced(log: Log, candidate: ClassifierPolicy) -> None:
    with pytest.raises(ConfigError, match="limit must be above 0"):
        evaluate_logged(candidate, *log, estimator="switch_dr", expects=all_rates, limit=0.0)


@pytest.mark.parametrize("estimator", ["ips", "snips", "dr", "sndr", "dr_shrinkage", "switch_dr"])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_the_interval_holds_what_the_policy_would_earn_as_served(
    log: Log, candidate: ClassifierPolicy, estimator: Any, temperature: float
) -> None:
    sampling = Sampling(temperature=temperature)
    expects = MeanRewards(*log, names) if "dr" in estimator else None
    found = evaluate_logged(candidate, *log, estimator=estimator, sampling=sampling, expects=expects)
    value = truth(candidate, temperature)
    assert found.reward.low <= value <= found.reward.high
    assert 0 < found.reward.high - found.reward.low < 0.5
    rows = [contribution for (contribution,) in found.values[REWARD].values()]
    assert math.fsum(rows) / len(rows) == pytest.approx(found.reward.estimate)


def test_the_log_itself_is_the_baseline_and_comparisons_are_paired(log: Log, candidate: ClassifierPolicy) -> None:
    ours, theirs = evaluate_logged(candidate, *log), evaluate_log(*log)
    assert theirs.reward.estimate == pytest.approx(sum(score.value or 0.0 for score in log[1]) / len(log[1]))
    comparison = compare(ours, theirs)
    assert comparison.gain.estimate == pytest.approx(ours.reward.estimate - theirs.reward.estimate)
    assert len(comparison.units(REWARD)[0]) == len(PEOPLE) / 2  # users, not rows, are what chance draws
    same = compare(evaluate_logged(classifier(1), *log, estimator="ips"), theirs)
    assert abs(same.gain.estimate) < 1e-6
    assert decide(comparison, Gate(guards=())).result in ("promote", "reject", "inconclusive")
    assert Evaluation.from_json(json.loads(json.dumps(ours.to_json()))).values == ours.values


def test_other_logs_cannot_be_compared(log: Log, candidate: ClassifierPolicy) -> None:
    ours = evaluate_logged(candidate, *log)
    flipped = [replace(score, value=1 - (score.value or 0.0)) for score in log[1]]
    with pytest.raises(DataError, match="other contents"):
        compare(ours, evaluate_log(log[0], flipped))
    with pytest.raises(DataError, match="sampled with"):
        compare(ours, evaluate_log(*log, sampling=Sampling(temperature=0)))


def test_unusable_rows_are_refused_or_left_out_and_told(log: Log, candidate: ClassifierPolicy) -> None:
    records = [replace(log[0][0], behavior_log_probs=None), replace(log[0][1], behavior_log_probs=(-math.inf,))]
    records += log[0][2:200]
    scores = [*log[1][:2], Score(value=None, error="500"), *log[1][3:200]]
    with pytest.raises(MissingLogProbs, match="2 of 200 records"):
        evaluate_logged(candidate, records, scores)
    found = evaluate_logged(candidate, records, scores, incomplete="drop")
    assert (found.excluded, found.graded, found.missing) == (3, 197, ("row 0", "row 1", "row 2"))
    told = " ".join(found.notes)
    for reason in ("1 records are left out: no propensities", "zero or impossible", "no score"):
        assert reason in told
    assert (
        found.items[-1] == "row 199"
        and len(compare(found, evaluate_log(records, scores, incomplete="drop")).of(REWARD)) == 197
    )


def test_what_speaks_against_an_estimate_is_said(log: Log, candidate: ClassifierPolicy) -> None:
    assert not evaluate_logged(classifier(1), *log).notes
    few = evaluate_logged(candidate, log[0][:60], log[1][:60], sampling=Sampling(temperature=0.05))
    assert any("say as much as" in note for note in few.notes) and any(
        "would never decide" not in note for note in few.notes
    )
    greedy = evaluate_logged(candidate, *log, sampling=Sampling(temperature=0))
    assert any("never decide" in note for note in greedy.notes)


def test_what_cannot_be_estimated_is_refused(log: Log, candidate: ClassifierPolicy) -> None:
    for settings, told in [
        ({"estimator": "snip"}, "unknown estimator 'snip'"),
        ({"estimator": "dr"}, "needs a reward model"),
        ({"sampling": Sampling(top_k=2)}, "top_k=2"),
    ]:
        with pytest.raises(ConfigError, match=told):
            evaluate_logged(candidate, *log, **settings)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="1500 of 1500 scores do not tell"):
        evaluate_logged(candidate, *log, estimator="cascade_ips")
    with pytest.raises(DataError, match="speaks of 4 candidates, the policy of 3"):
        evaluate_logged(candidate, *log, estimator="dr", expects=lambda records: torch.zeros(len(records), 1, 4))
    greedy = Sampling(temperature=0)
    best = candidate.sample([record.inputs for record in log[0]], greedy)
    other = [row for row, (mine, theirs) in enumerate(zip(best, log[0])) if mine.output != theirs.output][:3]
    with pytest.raises(DataError, match="decides nothing of what was logged"):
        evaluate_logged(candidate, [log[0][row] for row in other], [log[1][row] for row in other], sampling=greedy)


def test_the_direct_method_repeats_the_model(log: Log, candidate: ClassifierPolicy) -> None:
    found = evaluate_logged(candidate, *log, estimator="dm", expects=all_rates)
    assert found.reward.estimate == pytest.approx(truth(candidate), abs=1e-6)


def test_a_held_out_log_measures_while_training(log: Log, candidate: ClassifierPolicy) -> None:
    told = HeldoutValue(*log)(candidate)
    assert told["heldout_value"] == pytest.approx(evaluate_logged(candidate, *log).reward.estimate)
    assert 0 < told["heldout_value_error"] < 0.1 and 0 < told["heldout_effective"] <= len(PEOPLE)


# ---------------------------------------------------------------- slates


class Listing(Tabular):
    """Lists its candidates too."""

    def score(self, batch: Batch, want: frozenset[Want] = LOG_PROBS) -> Scored:
        scored = super().score(batch, want)
        decided = torch.tensor([output for output, _ in batch.outputs])
        table = self.logits[torch.tensor(batch.inputs)[:, None], self._nodes(decided)]
        return replace(scored, candidates=torch.log_softmax(table, -1))


def slates(n: int = 1500) -> tuple[Log, Callable[[Tabular], float]]:
    """Two positions of three items; the second earns only below the first that it goes with."""
    worth = torch.tensor([[0.1, 0.9, 0.2], [0.3, 0.2, 0.1], [0.0, 0.4, 0.8]])
    first = torch.tensor([0.2, 0.6, 0.4])
    records = Listing(vocabulary=3, length=2, seed=1).sample(["a"], Sampling(n=n, seed=5))
    earned = [(float(first[r.decisions[0]]), float(worth[r.decisions])) for r in records if r.decisions]
    scores = [Score(value=math.fsum(each), decisions=each) for each in earned]

    def value(policy: Tabular) -> float:
        batch = policy.every_row()
        chances = sum_decisions(policy.score(batch).log_probs.detach(), batch.mask).exp()
        totals = torch.stack([first[a] + worth[a, b] for a, b in policy.every_output()])
        return float((chances * totals).sum())

    return ([replace(r, group=str(row)) for row, r in enumerate(records)], scores), value


@pytest.mark.parametrize("estimator", ["ips", "snips", "cascade_ips", "cascade_snips", "cascade_dr"])
def test_slates_are_judged_under_a_cascade(estimator: Any) -> None:
    log, value = slates()
    policy = Listing(vocabulary=3, length=2, seed=2)
    expects = MeanRewards(*log, lambda record: range(3)) if estimator == "cascade_dr" else None
    found = evaluate_logged(policy, *log, estimator=estimator, expects=expects)
    assert found.reward.low <= value(policy) <= found.reward.high
    if estimator == "cascade_dr":
        with pytest.raises(ConfigError, match='use "cascade_dr"'):
            evaluate_logged(policy, *log, estimator="dr", expects=expects)


# ---------------------------------------------------------------- mean rewards


def test_mean_rewards_never_see_their_own_fold() -> None:
    """Each record alone earned something: what it is told of itself must not show it."""
    log, _ = slates(60)
    for row in range(0, 60, 7):
        scores = [Score(value=0.0, decisions=(0.0, 0.0))] * 60
        scores[row] = Score(value=2.0, decisions=(1.0, 1.0))
        told = MeanRewards(log[0], scores, lambda record: range(3))(log[0])
        assert float(told[row].abs().max()) == 0.0
        assert float(told.max()) > 0.0


def test_mean_rewards_are_means_where_there_is_much_to_see() -> None:
    log, _ = slates(3000)
    told = MeanRewards(*log, lambda record: range(3), prior=1.0)(log[0][:1])
    assert told[0, 0].tolist() == pytest.approx([0.2, 0.6, 0.4], abs=0.01)


def test_mean_rewards_need_what_they_count() -> None:
    log, _ = slates(10)
    with pytest.raises(ConfigError, match="folds ≥ 2"):
        MeanRewards(*log, lambda record: range(3), folds=1)
    with pytest.raises(DataError, match="decided number 2 of 2 names"):
        MeanRewards(*log, lambda record: "ab")
    with pytest.raises(DataError, match="2 decision ids has 1 rewards"):
        MeanRewards(log[0], [Score(value=1.0)] * 10, lambda record: range(3))
