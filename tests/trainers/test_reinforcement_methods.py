"""the methods of `Reinforcement`: the papers' numbers, the corrections, and the weight of the KL that is steered"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import Fixed, distance, gradient
from tabular import Reward, Tabular, tasks_for
from test_gradients import GROUPS, LENGTHS, OLD, REWARDS, SHIFTS, NoPolicy, graded, padded, table
from test_ppo import MADE, even
from torch import Tensor

from melior.errors import ConfigError, MissingLogProbs
from melior.losses.divergence import adaptive_beta
from melior.policies.base import Batch, Scored
from melior.policies.language import LanguagePolicy
from melior.trainers.loop import FitConfig, Run, fit
from melior.trainers.reinforcement import METHODS, Reinforcement, Rollouts, reinforcement
from melior.trainers.steps import Step
from melior.types import Sampling, Score, Task

# ---------------------------------------------------------------- the closed-form table


def advantages_by_hand(estimator: str, std: bool) -> list[float]:
    members = {g: [r for k, r in zip(GROUPS, REWARDS) if k == g] for g in GROUPS}
    if estimator == "batch":  # arXiv:2501.03262: over all decisions of the batch
        decisions = [reward for reward, length in zip(REWARDS, LENGTHS) for _ in range(length)]
        return [(r - statistics.fmean(decisions)) / (statistics.pstdev(decisions) + 1e-8) for r in REWARDS]
    if estimator == "leave_one_out":
        return [
            r - (sum(members[g]) - r) / (len(members[g]) - 1) for g, r in zip(GROUPS, REWARDS)
        ]  # arXiv:2402.14740 eq. 6
    compared = [r - statistics.fmean(members[g]) for g, r in zip(GROUPS, REWARDS)]
    if estimator == "group_batch":  # arXiv:2501.03262, its baseline variant
        return [a / (statistics.pstdev(compared) + 1e-8) for a in compared]
    return [a / (statistics.stdev(members[g]) + 1e-4 if std else 1.0) for g, a in zip(GROUPS, compared)]


def by_hand(settings: dict[str, Any], shift: list[float]) -> tuple[float, list[float]]:
    """Loss and its slope by every decision's log-prob, in plain floats from the papers."""
    low, high = settings["clip_low"], settings["clip_high"]
    given = advantages_by_hand(settings["estimator"], settings.get("divide_by_std", False))
    loss, slopes = 0.0, []
    for advantage, length in zip(given, LENGTHS):
        share = {
            "decisions": 1 / sum(LENGTHS),
            "outputs": 1 / len(LENGTHS) / length,
            "constant": 1 / len(LENGTHS) / 8,
        }[settings["aggregate"]]
        ratios = [math.exp(shift[place]) for place in range(length)]
        if settings["surrogate"] == "output":  # arXiv:2507.18071 eqs. 5, 7: one ratio, the geometric mean
            ratio = math.prod(ratios) ** (1 / length)
            clipped = min(max(ratio, 1 - low), 1 + high)
            open_ = ratio * advantage <= clipped * advantage
            loss -= share * length * min(ratio * advantage, clipped * advantage)
            slopes += [-share * ratio * advantage if open_ else 0.0] * length
        for place, ratio in enumerate(ratios) if settings["surrogate"] != "output" else ():
            clipped = min(max(ratio, 1 - low), 1 + high)
            if settings["surrogate"] == "cispo":  # arXiv:2506.13585 eq. 4
                loss -= share * clipped * advantage * (OLD[place] + shift[place])
                slopes.append(-share * clipped * advantage)
            else:  # arXiv:1707.06347 eq. 7
                loss -= share * min(ratio * advantage, clipped * advantage)
                slopes.append(-share * ratio * advantage if ratio * advantage <= clipped * advantage else 0.0)
    return loss, slopes


PLAIN = {"estimator": "group_relative", "aggregate": "constant", "surrogate": "decision", "clip_low": 0.2}
GRID = [
    {**PLAIN, "estimator": e, "aggregate": a, "surrogate": s, "clip_low": low, "clip_high": high}
    for e, a, s, (low, high) in product(
        ("group_relative", "leave_one_out", "batch", "group_batch"),
        ("decisions", "outputs", "constant"),
        ("decision", "output", "cispo"),
        ((0.2, 0.28), (1.0, 0.2), (3e-4, 4e-4)),
    )
]
NAMED = [{**PLAIN, **{k: v for k, v in settings.items() if k != "kl"}} for settings in METHODS.values()]


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
def test_every_variant_has_the_papers_numbers(shift: list[float]) -> None:
    for settings, padding in product([*NAMED, *GRID], (0, 3)):
        objective = Reinforcement(**settings, length=8)
        batch, log_probs = table(shift)
        prepared = padded(objective.prepare(Step(batch), NoPolicy()).batch, padding)
        scored = torch.nn.functional.pad(log_probs, (0, padding), value=math.nan)
        (term,) = objective.loss(Scored(scored), prepared)
        loss = term.total / objective.counts(prepared)["policy"]
        slope = torch.autograd.grad(loss, log_probs)[0]
        expected, slopes = by_hand(settings, shift)
        assert loss.item() == pytest.approx(expected, abs=1e-12), settings
        assert slope[batch.mask].tolist() == pytest.approx(slopes, abs=1e-12), settings
        assert not bool(slope[~batch.mask].any())


def test_the_table_of_methods_is_the_docstrings() -> None:
    lines = [line.strip() for line in (Reinforcement.__doc__ or "").splitlines()]
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("|")]
    told = {cells[0].strip(): [cell.strip().strip('"') for cell in cells[1:]] for cells in rows[2:]}
    assert set(told) == set(METHODS)
    for name, (estimator, aggregate, surrogate, clips, kl) in told.items():
        made = reinforcement(name)  # type: ignore[arg-type]
        assert estimator == made.estimator + (", by std" if made.divide_by_std else "")
        assert (aggregate, surrogate, kl) == (made.aggregate, made.surrogate, made.kl)
        assert [float(clip) for clip in clips.split(",")] == [made.clip_low, made.clip_high]


def test_own_settings_go_before_a_methods_and_an_unknown_method_is_told() -> None:
    assert reinforcement("gspo", clip_high=0.1) == replace(reinforcement("gspo"), clip_high=0.1)
    assert reinforcement(entropy=0.1) == Reinforcement(entropy=0.1)
    with pytest.raises(ConfigError, match=r"no method 'ppo'; write one of grpo, .*cispo"):
        reinforcement("ppo")  # type: ignore[arg-type]


# ---------------------------------------------------------------- on-policy, and however it is cut


def sum_of(record: Any) -> float:
    return float(sum((1 + place) * decided for place, decided in enumerate(record.decisions)))


@pytest.mark.parametrize("method", METHODS)
def test_every_cut_gives_the_same_gradient(method: Any, tmp_path: Path) -> None:
    policy = Tabular(("a", "b"), stops=True, spread=0.3)
    policy.reference += torch.randn(policy.reference.shape, generator=torch.Generator().manual_seed(1)).double()
    batch = graded(policy, tasks_for(policy), sum_of, n=5)
    objective = reinforcement(method, beta=0.3, kl_target=2.0, entropy=0.1, length=3)
    whole = gradient(policy, batch, objective, tmp_path / "whole")
    for budget in (1, 4, 11):
        assert distance(gradient(policy, batch, objective, tmp_path / str(budget), micro_batch=budget), whole) <= 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_on_policy_every_ratio_is_one_and_no_clip_is_felt(method: Any, tmp_path: Path) -> None:
    policy = Tabular(("a", "b"), stops=True, spread=0.3)
    batch = graded(policy, tasks_for(policy), sum_of, n=5)
    objective = reinforcement(method, length=3)
    run = fit(policy, Fixed([batch]), objective, FitConfig(learning_rate=1e-9))
    assert run.last("policy/ratio") == pytest.approx(1.0, abs=1e-12)
    assert run.last("policy/clip_low") == run.last("policy/clip_high") == 0
    tight = replace(objective, clip_low=1e-6, clip_high=1e-6)
    found = gradient(policy, batch, objective, tmp_path / "as it is")
    assert distance(gradient(policy, batch, tight, tmp_path / "tight"), found) <= 1e-6


def test_at_ratio_one_all_surrogates_agree(tmp_path: Path) -> None:
    policy = Tabular(("a", "b"), stops=True, spread=0.3)
    batch = graded(policy, tasks_for(policy), sum_of, n=5)
    first = gradient(policy, batch, Reinforcement(length=3), tmp_path / "decision")
    for surrogate in ("cispo", "output"):
        objective = Reinforcement(length=3, surrogate=surrogate)  # type: ignore[arg-type]
        assert distance(gradient(policy, batch, objective, tmp_path / surrogate), first) <= 1e-12


def test_groups_of_one_learn_by_the_whole_batch_alone() -> None:
    policy = Tabular(("a", "b"))
    grader = Reward(lambda record: Score(value=sum_of(record)))
    steps = Rollouts(policy, tasks_for(policy) * 4, grader, Sampling(n=1), alone=True)
    for method in METHODS:
        run = fit(policy, steps, reinforcement(method), FitConfig(steps=1, learning_rate=1e-6))
        assert (run.last("rows") > 0) == (method == "reinforce++"), method
    with pytest.raises(ConfigError, match="group of one never varies"):
        Rollouts(policy, tasks_for(policy), grader, Sampling(n=1), alone=True, resample=2)


def test_rewards_that_are_all_equal_teach_nothing_whatever_they_are_compared_with() -> None:
    policy = Tabular(("a", "b"))
    batch = graded(policy, tasks_for(policy), lambda record: 0.1)
    for method in METHODS:
        prepared = reinforcement(method).prepare(Step(batch), policy).batch
        assert not bool(prepared.columns["advantages"].any()), method


# ---------------------------------------------------------------- KL in the reward


def far(seed: int = 3) -> Tabular:
    """A policy away from its reference."""
    policy = Tabular(("a", "b"), stops=True, spread=0.3)
    source = torch.Generator().manual_seed(seed)
    policy.reference += torch.randn(policy.reference.shape, generator=source, dtype=torch.float64)
    return policy


def test_the_divergence_of_an_output_is_taken_from_its_reward() -> None:
    policy = far()
    batch = graded(policy, tasks_for(policy), sum_of, n=4)
    prepared = Reinforcement(beta=0.5, kl="reward", estimator="leave_one_out").prepare(Step(batch), policy).batch
    gaps = (batch.columns["behavior_log_probs"] - policy.reference_log_probs(batch)).sum(1)
    rewards = (batch.columns["rewards"] - 0.5 * gaps).reshape(2, 4)
    wanted = [r - (sum(row) - r) / 3 for row in rewards.tolist() for r in row]
    assert prepared.columns["advantages"].tolist() == pytest.approx(wanted, abs=1e-12)
    (term,) = Reinforcement(beta=0.5, kl="reward").loss(policy.score(prepared), prepared)  # no term of its own
    assert term.name == "policy" and float(term.metrics["kl_reference"]) > 0


def test_reinforce_plus_plus_charges_a_decision_for_what_follows_it_alone() -> None:
    policy = far()
    batch = graded(policy, tasks_for(policy), sum_of, n=4)
    prepared = reinforcement("reinforce++", beta=0.5).prepare(Step(batch), policy).batch
    gaps = batch.columns["behavior_log_probs"] - policy.reference_log_probs(batch)
    raw = [
        float(batch.columns["rewards"][row] - 0.5 * gaps[row, place:length].sum())
        for row, length in enumerate(batch.mask.sum(1).tolist())
        for place in range(length)
    ]
    wanted = [(value - statistics.fmean(raw)) / (statistics.pstdev(raw) + 1e-8) for value in raw]
    assert prepared.columns["advantages"][batch.mask].tolist() == pytest.approx(wanted, abs=1e-12)


# ---------------------------------------------------------------- a steered weight


def steered(folder: Path | None, steps: int, *, micro_batch: int | None = None, **how: Any) -> tuple[Run, Tabular]:
    policy = far()
    rollouts = Rollouts(policy, tasks_for(policy), Reward(lambda r: Score(value=sum_of(r))), Sampling(n=4))
    objective = Reinforcement(beta=0.2, kl_target=0.5, **how)
    settings = FitConfig(folder=folder, steps=steps, learning_rate=0.05, schedule="constant", micro_batch=micro_batch)
    return fit(policy, rollouts, objective, settings), policy


def test_the_weight_follows_the_divergence_that_was_measured() -> None:
    run, _ = steered(None, 6)
    assert run.metrics[0]["beta"] == 0.2
    for before, after in zip(run.metrics, run.metrics[1:]):
        assert after["beta"] == adaptive_beta(before["beta"], before["kl_output"], target=0.5)
    assert len({row["beta"] for row in run.metrics}) == 6


def test_the_measured_divergence_is_that_of_whole_outputs() -> None:
    policy = far()
    batch = graded(policy, tasks_for(policy), sum_of, n=6)
    told = Reinforcement(beta=0.2).prepare(Step(batch), policy).metrics
    gaps = batch.columns["behavior_log_probs"] - policy.reference_log_probs(batch)
    assert told["kl_output"] == pytest.approx(float(gaps[batch.mask].sum()) / len(batch), abs=1e-12)


@pytest.mark.parametrize("kl", ["loss", "reward"])
def test_a_steered_weight_reaches_the_gradient(kl: Any, tmp_path: Path) -> None:
    """What is remembered of steps before counts, not the setting."""
    policy = far()
    batch = graded(policy, tasks_for(policy), sum_of, n=4)
    remembering = Reinforcement(beta=0.2, kl_target=0.5, kl=kl)
    step = remembering.prepare(Step(batch, memory={"beta": 0.7}), policy)
    fixed = Reinforcement(beta=0.7, kl=kl).prepare(Step(batch), policy)
    found = totals(remembering, policy, step.batch)
    torch.testing.assert_close(found, totals(Reinforcement(beta=0.7, kl=kl), policy, fixed.batch), rtol=0, atol=1e-12)
    assert not torch.equal(found, totals(Reinforcement(beta=0.2, kl=kl), policy, batch_of(policy, batch, kl)))
    assert step.memory["beta"] == adaptive_beta(0.7, step.metrics["kl_output"], target=0.5)


def batch_of(policy: Tabular, batch: Batch, kl: Any) -> Batch:
    return Reinforcement(beta=0.2, kl=kl).prepare(Step(batch), policy).batch


def totals(objective: Reinforcement, policy: Tabular, batch: Batch) -> Tensor:
    terms = objective.loss(policy.score(batch, objective.want), batch)
    return torch.autograd.grad(sum(term.total * term.weight for term in terms), policy.logits)[0]


@pytest.mark.parametrize("cut", [1, 4])
def test_a_resumed_run_steers_bit_for_bit_as_the_one_that_was_never_stopped(tmp_path: Path, cut: int) -> None:
    whole, expected = steered(tmp_path / "whole", 9)

    class Stopped(Exception):
        pass

    policy = far()
    grader = Reward(lambda r: Score(value=sum_of(r)))
    rollouts = Rollouts(policy, tasks_for(policy), grader, Sampling(n=4))
    settings = FitConfig(
        folder=tmp_path / "cut", steps=9, learning_rate=0.05, schedule="constant", checkpoint_every=cut
    )

    def stop(done: int, total: int, metrics: dict[str, float]) -> None:
        if done == 6:
            raise Stopped

    objective = Reinforcement(beta=0.2, kl_target=0.5)
    with pytest.raises(Stopped):
        fit(policy, rollouts, objective, settings, on_step=stop)
    fresh = far()
    again = Rollouts(fresh, tasks_for(fresh), grader, Sampling(n=4))
    resumed = fit(fresh, again, objective, settings)
    assert torch.equal(fresh.logits, expected.logits)
    assert [row["beta"] for row in resumed.metrics] == [row["beta"] for row in whole.metrics]
    kept = json.loads(next((tmp_path / "cut" / "checkpoints").glob("step-000009/progress.json")).read_text())
    assert kept["memory"]["beta"] == adaptive_beta(
        whole.metrics[-1]["beta"], whole.metrics[-1]["kl_output"], target=0.5
    )


def test_a_target_that_cannot_be_steered_to_is_refused() -> None:
    for settings in ({"kl_target": 6.0}, {"kl_target": 0.0, "beta": 0.1}, {"kl_target": -1.0, "beta": 0.1}):
        with pytest.raises(ConfigError, match="both must be above 0"):
            Reinforcement(**settings)
    with pytest.raises(ConfigError, match="one advantage per output"):
        reinforcement("reinforce++", surrogate="output", beta=0.1)
    with pytest.raises(ConfigError, match=r"at least 1; got 0\.5"):
        Reinforcement(correction_cap=0.5)


# ---------------------------------------------------------------- a sampler that is not the scorer


def off(batch: Batch, gaps: list[float]) -> Batch:
    """The batch as a sampler would have recorded it that found decision t by `gaps[t]` nats likelier."""
    moved = batch.columns["behavior_log_probs"] + torch.tensor(gaps, dtype=torch.float64)[: batch.mask.shape[1]]
    return batch.with_columns(behavior_log_probs=moved.masked_fill(~batch.mask, math.nan))


@pytest.mark.parametrize(
    ("per", "drop", "wanted"),
    [
        ("decision", False, [math.exp(-0.2), 2.0, math.exp(0.5)]),
        ("decision", True, [math.exp(-0.2), 0.0, math.exp(0.5)]),
        ("output", False, [math.exp(-0.2 + 0.9 + 0.5)] * 3),
        ("output", True, [0.0] * 3),
    ],
)
def test_what_was_sampled_too_often_weighs_less(per: Any, drop: bool, wanted: list[float]) -> None:
    policy = Tabular(("a",))
    batch = off(graded(policy, tasks_for(policy), sum_of, n=6), [0.2, -0.9, -0.5])
    objective = Reinforcement(correction=per, correction_drop=drop, correction_cap=2.0)
    if per == "output" and not drop:
        wanted = [min(weight, 2.0) for weight in wanted]
    prepared = objective.prepare(Step(batch), policy).batch
    assert prepared.columns["correction"][0].tolist() == pytest.approx(wanted, abs=1e-12)
    torch.testing.assert_close(prepared.columns["old_log_probs"], policy.score(batch).log_probs.detach())
    (term,) = objective.loss(policy.score(prepared), prepared)
    advantages = prepared.columns["advantages"]
    expected = -(advantages[:, None] * torch.tensor(wanted, dtype=torch.float64)).sum()
    assert term.total.item() == pytest.approx(float(expected), abs=1e-12)
    assert float(term.metrics["ratio"]) == pytest.approx(batch.mask.sum().item())  # of the scorer's, so 1 each
    assert float(term.metrics["sampler_gap"]) == pytest.approx((0.2 + 0.9 + 0.5) * 6)


def test_where_sampler_and_scorer_agree_a_correction_changes_nothing(tmp_path: Path) -> None:
    policy = far()
    batch = graded(policy, tasks_for(policy), sum_of, n=5)
    plain = gradient(policy, batch, Reinforcement(), tmp_path / "plain")
    for per, drop in product(("decision", "output"), (False, True)):
        objective = Reinforcement(correction=per, correction_drop=drop)  # type: ignore[arg-type]
        assert distance(gradient(policy, batch, objective, tmp_path / f"{per}-{drop}"), plain) <= 1e-9


def test_a_correction_without_what_the_sampler_said_is_refused() -> None:
    policy = Tabular(("a", "b"))
    grader = Reward(lambda record: Score(value=sum_of(record)))
    steps = Rollouts(policy, [Task("a")], grader, Sampling(n=4, top_p=0.9))
    with pytest.raises(MissingLogProbs, match=r"4 rows have no behavior_log_probs .*without top_k"):
        Reinforcement(correction="decision").prepare(steps(0), policy)


# ---------------------------------------------------------------- whatever the policy decides


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("method", ["rloo", "reinforce++", "gspo", "cispo"])
def test_every_kind_of_policy_has_the_same_gradient_however_it_is_cut(
    kind: str, method: Any, learner: Callable[..., LanguagePolicy], tmp_path: Path
) -> None:
    policy, inputs = MADE[kind](learner)
    steps = Rollouts(policy, [Task(one) for one in inputs], Reward(even), Sampling(n=6, max_tokens=4, seed=2))
    objective = reinforcement(method, correction="decision")
    batch = steps(0).batch
    whole = gradient(policy, batch, objective, tmp_path / "whole", micro_batch=10_000)
    assert any(bool(tensor.any()) for tensor in whole.values())
    for budget in (1, 30):
        found = gradient(policy, batch, objective, tmp_path / str(budget), micro_batch=budget)
        assert distance(found, whole) <= 1e-4  # in fp32; above it is 1e-12 in fp64
