"""mixtures: weights and turns, names and metrics, empty parts, resuming, and parts that must not see one another"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tabular import Reward, Tabular, tasks_for

from melior.errors import ConfigError
from melior.policies.base import CANDIDATE_IDS, LOG_PROBS, Batch, Scored, Want
from melior.trainers.best_of import BestOf
from melior.trainers.logged import Logged, off_policy
from melior.trainers.loop import FitConfig, Run, fit
from melior.trainers.mixture import Anneal, Mixed, Mixture, Part, mixture
from melior.trainers.pairs import Pairs
from melior.trainers.preference import Dpo, Ipo
from melior.trainers.reinforcement import reinforcement
from melior.trainers.rollouts import Rollouts
from melior.trainers.steps import Step, Term
from melior.trainers.supervised import Examples, Supervised, supervised
from melior.types import Demonstration, Preference, Sampling, Score

INPUTS = ("a", "b", "c", "d")
SUM = Reward(lambda record: Score(value=float(sum(record.decisions))))
ROWS = [Demonstration("a", (1, 2, 3)), Demonstration("b", (4, 0)), Demonstration("c", (2,), weight=0.5)]
PAIRS = [Preference("a", (1, 1), (2, 2, 2)), Preference("c", (3,), (0, 4)), Preference("d", (1,), (2,))]


def rollouts(policy: Tabular, *, seed: int = 0, n: int = 4, grader: Any = SUM) -> Rollouts:
    return Rollouts(policy, tasks_for(policy), grader, Sampling(n=n, max_tokens=3, seed=seed), prompts=4, seed=seed)


def examples(policy: Tabular, **settings: Any) -> Examples:
    return Examples(policy, ROWS, **{"batch_size": 2, "epochs": 3, **settings})


def without_times(run: Run) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in run.metrics]


def gradient(policy: Tabular, steps: Any, objective: Any, **config: Any) -> torch.Tensor:
    """Of the first step of `fit`, as plain gradient descent would take it: a huge epsilon makes Adam linear."""
    before = policy.state()["logits"].clone()
    rate, huge = 1.0, 1e9
    settings = FitConfig(steps=1, learning_rate=rate, epsilon=huge, max_grad_norm=1e12, schedule="constant", **config)
    fit(policy, steps, objective, settings)
    moved = (before - policy.state()["logits"]) * huge / rate
    policy.load_state({"logits": before})
    return moved


# ---------------------------------------------------------------- weights and turns


@given(
    st.floats(0, 10), st.floats(0, 10), st.integers(1, 50), st.sampled_from(["linear", "cosine", "switch"]),
)  # fmt: skip
def test_a_weight_goes_from_start_to_end_and_stays(start: float, end: float, steps: int, shape: Any) -> None:
    anneal = Anneal(start, end, steps, shape)
    weights = [anneal(index) for index in range(steps + 5)]
    assert weights[0] == pytest.approx(start) and weights[steps:] == pytest.approx([end] * 5)
    rising = [(after - before) * (1 if end >= start else -1) for before, after in pairwise(weights)]
    assert all(change >= -1e-9 for change in rising)


def test_a_line_a_cosine_and_a_switch() -> None:
    assert [Anneal(1, 0, 4)(index) for index in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]
    assert Anneal(0, 2, 4, "cosine")(1) == pytest.approx(1 - math.cos(math.pi / 4))
    assert [Anneal(1, 0, 2, "switch")(index) for index in range(4)] == [1, 1, 0, 0]


@dataclass
class Counted:
    """Steps that remember what they were asked for."""

    batch: Batch
    total: int | None = None
    asked: list[int] = field(default_factory=list)

    def __call__(self, index: int) -> Step:
        self.asked.append(index)
        return Step(self.batch)

    def fingerprint(self) -> str:
        return "counted"


def test_parts_take_turns_and_count_their_own_steps() -> None:
    policy = Tabular(INPUTS)
    every, second, third = (Counted(policy.encode(ROWS)) for _ in range(3))
    steps = Mixture(
        [
            Part("every", every, supervised()),
            Part("second", second, supervised(), every=2, offset=1),
            Part("third", third, supervised(), weight=Anneal(0, 1, 6), every=3),
        ]
    )
    found = [steps(index) for index in range(7)]
    assert every.asked == list(range(7)) and second.asked == [0, 1, 2]
    assert third.asked == [1, 2]  # at its first turn it weighed nothing, so it cost nothing
    assert [step.metrics["third.weight"] for step in found] == [0, 0, 0, 0.5, 0, 0, 1]
    assert [len(step.batch) for step in found] == [3, 6, 3, 9, 3, 6, 6]


def test_it_ends_with_its_longest_part_or_never() -> None:
    batch = Tabular(INPUTS).encode(ROWS)
    parts = [Part("a", Counted(batch, 3), supervised(), every=4), Part("b", Counted(batch, 5), supervised())]
    assert Mixture(parts).total == 9  # the third turn of "a" is step 8
    assert Mixture([*parts, Part("c", Counted(batch), supervised())]).total is None


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (lambda part: [], "names of their own"),
        (lambda part: [part("a"), part("a")], "names of their own"),
        (lambda part: [part("a", every=2)], "at step 1"),
        (lambda part: [part("a", weight=Anneal(1, 0, 5)), part("b", every=2, offset=1)], "at step 6"),
        (lambda part: [part("a.b")], r"without '\.'"),
        (lambda part: [part("")], "a word"),
        (lambda part: [part("a", weight=-1.0)], "weight ≥ 0"),
        (lambda part: [part("a", weight=math.nan)], "weight ≥ 0"),
        (lambda part: [part("a", every=2, offset=2)], "offset < every"),
        (lambda part: [part("a", weight=Anneal(1, 0, 0))], "steps ≥ 1"),
        (lambda part: [part("a", weight=Anneal(1, -1, 3))], "weights ≥ 0"),
        (lambda part: [part("a", weight=Anneal(1, 0, 3, "square"))], "linear"),
    ],
)
def test_what_cannot_be_a_mixture_is_refused(parts: Callable[..., Any], why: str) -> None:
    batch = Tabular(INPUTS).encode(ROWS)
    with pytest.raises(ConfigError, match=why):
        Mixture(parts(lambda name, **more: Part(name, Counted(batch), supervised(), **more)))


def test_a_fingerprint_tells_all_that_matters() -> None:
    policy = Tabular(INPUTS)
    part = Part("a", examples(policy), Dpo())
    others = [
        replace(part, name="b"),
        replace(part, objective=Ipo()),
        replace(part, objective=Dpo(beta=0.2)),
        replace(part, steps=examples(policy, seed=1)),
        replace(part, weight=Anneal(1, 1, 3)),
        replace(part, weight=2.0),
        replace(part, every=1, weight=Anneal(1, 1, 3, "cosine")),
    ]
    prints = [Mixture([each]).fingerprint() for each in [part, *others]]
    assert len(set(prints)) == len(prints)
    assert Mixture([part]).fingerprint() == prints[0]


# ---------------------------------------------------------------- gradients


def every_part(policy: Tabular) -> list[Part]:
    records = policy.sample(list(INPUTS), Sampling(n=3, max_tokens=3, seed=9))
    scores = [Score(value=float(sum(r.decisions)), decisions=tuple(map(float, r.decisions))) for r in records]
    return [
        Part("rl", rollouts(policy), reinforcement(beta=0.1, entropy=0.05), 0.3),
        Part("sft", examples(policy, batch_size=3), supervised(), Anneal(2.0, 0.0, 10)),
        Part("dpo", Pairs(policy, PAIRS, batch_size=3), Dpo(beta=0.5), 0.8),
        Part("log", Logged(policy, records, scores), off_policy(credit="to_go"), 1.1),  # advantages of other shape
        Part("best", BestOf(rollouts(policy, seed=3)), supervised(), 0.6),
    ]


def moved(policy: Tabular) -> Tabular:
    with torch.no_grad():
        policy.logits.add_(0.1 * policy.logits.roll(1, 1))
    return policy


@pytest.mark.parametrize("budget", [None, 1, 4, 7])
def test_the_loop_follows_the_weighted_sum_of_the_parts_however_it_cuts(budget: int | None) -> None:
    policy = moved(Tabular(INPUTS))
    parts = every_part(policy)
    wanted = sum(part.weighs(0) * gradient(policy, part.steps, part.objective) for part in parts)
    found = gradient(policy, *mixture(*parts), micro_batch=budget)
    assert float(wanted.abs().max()) > 0.1
    # what was read from weights of about 1 that moved by a billionth is exact to about 1e-7
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


def test_one_part_of_weight_one_is_that_part_alone() -> None:
    whole, mixed = Tabular(INPUTS), Tabular(INPUTS)
    config = FitConfig(steps=4, learning_rate=0.1)
    alone = fit(whole, rollouts(whole), reinforcement(beta=0.1), config)
    run = fit(mixed, *mixture(Part("rl", rollouts(mixed), reinforcement(beta=0.1))), config)
    assert torch.equal(whole.state()["logits"], mixed.state()["logits"])
    for row, mine in zip(without_times(run), without_times(alone), strict=True):
        ours = ("step", "learning_rate", "loss", "grad_norm", "skipped", "rows")
        assert all(row[name] == mine[name] for name in ours)
        assert all(row[f"rl.{name}"] == value for name, value in mine.items() if name not in ours)


def test_whole_pairs_stay_whole_in_every_share_of_a_step() -> None:
    policy = Tabular(INPUTS)
    parts = [Part("rl", rollouts(policy), reinforcement()), Part("dpo", Pairs(policy, PAIRS, batch_size=3), Dpo())]
    run = fit(policy, *mixture(*parts), FitConfig(steps=2, minibatches=3, micro_batch=2))  # a parted pair raises
    assert run.skipped == 0 and run.last("dpo.preference") > 0


class Nothing:
    """Steps without rows."""

    total = None

    def __init__(self, batch: Batch) -> None:
        self.batch = batch.select([])

    def __call__(self, index: int) -> Step:
        return Step(self.batch, {"reward": 0.0})

    def fingerprint(self) -> str:
        return "nothing"


def test_a_part_without_rows_is_fine_and_so_is_a_step_without_any() -> None:
    policy = Tabular(INPUTS)
    nothing = Part("none", Nothing(rollouts(policy)(0).batch), reinforcement(beta=0.1))
    sft = Part("sft", examples(policy), supervised())
    alone = gradient(policy, *mixture(sft))
    torch.testing.assert_close(gradient(policy, *mixture(nothing, sft)), alone, rtol=0, atol=0)
    before = policy.state()["logits"].clone()
    run = fit(policy, *mixture(nothing), FitConfig(steps=2, weight_decay=0.1))
    assert torch.equal(policy.state()["logits"], before)
    assert [row["loss"] for row in run.metrics] == [0.0, 0.0] and run.last("none.reward") == 0


# ---------------------------------------------------------------- parts do not see one another


@dataclass(frozen=True)
class Nosy:
    """Fails where it sees anything that is not its own."""

    columns: frozenset[str]
    rows: int
    want: frozenset[Want] = LOG_PROBS

    def prepare(self, step: Step, policy: Any) -> Step:
        self._look(step.batch)
        return step

    def counts(self, batch: Batch) -> Mapping[str, float]:
        self._look(batch)
        return {"seen": float(len(batch))}

    def active(self, batch: Batch) -> list[int]:
        self._look(batch)
        return list(range(len(batch)))

    def loss(self, scored: Scored, batch: Batch) -> list[Term]:
        assert len(scored.log_probs) == len(batch) <= self.rows and set(batch.columns) == self.columns
        return [Term("seen", scored.log_probs.sum())]

    def _look(self, batch: Batch) -> None:
        assert len(batch) == self.rows and set(batch.columns) == self.columns


def test_a_part_sees_its_own_rows_and_columns_and_nothing_else() -> None:
    policy = Tabular(INPUTS)
    plain = policy.encode(ROWS)
    marked = plain.with_columns(rewards=torch.ones(3), mine=torch.ones(plain.mask.shape))
    parts = [
        Part("plain", Counted(plain), Nosy(frozenset(plain.columns), 3)),
        Part("marked", Counted(marked), Nosy(frozenset(marked.columns), 3)),
        Part("rl", rollouts(policy), reinforcement()),
    ]
    run = fit(policy, *mixture(*parts), FitConfig(steps=1, micro_batch=2))
    assert run.metrics[0]["plain.seen"] == run.metrics[0]["marked.seen"]


def test_candidates_of_two_lengths_stand_side_by_side_and_all_beside_some_is_refused() -> None:
    policy = Tabular(INPUTS)
    batch = policy.encode(ROWS)

    @dataclass(frozen=True)
    class Asks(Supervised):
        k: int = 0

        @property
        def want(self) -> frozenset[Want]:
            return frozenset({Want.CANDIDATES})

        def loss(self, scored: Scored, batch: Batch) -> list[Term]:
            assert scored.candidates is not None and scored.candidates.shape[2] == self.k
            assert torch.isfinite(scored.candidates[batch.mask]).all()
            return [Term("nll", -scored.candidates[batch.mask].sum())]

    def asking(k: int) -> Part:
        ids = torch.arange(k).expand(*batch.mask.shape, k)
        return Part(f"k{k}", Counted(batch.with_columns(**{CANDIDATE_IDS: ids})), Asks(k=k))

    fit(policy, *mixture(asking(2), asking(4), Part("sft", examples(policy), supervised())), FitConfig(steps=1))
    every = Part("all", Counted(batch), Asks(k=5))
    fit(policy, *mixture(every), FitConfig(steps=1))
    with pytest.raises(ConfigError, match=r"part 'all' wants every candidate.*take turns"):
        fit(policy, *mixture(every, asking(2)), FitConfig(steps=1))
    turns = mixture(replace(every, every=2), replace(asking(2), every=2, offset=1))
    fit(policy, *turns, FitConfig(steps=2))


def test_the_objective_of_a_mixture_needs_its_steps() -> None:
    policy = Tabular(INPUTS)
    with pytest.raises(ConfigError, match="take both from mixture"):
        fit(policy, examples(policy), Mixed({"sft": supervised()}), FitConfig(steps=1))


# ---------------------------------------------------------------- a whole run


def hybrid(policy: Tabular) -> tuple[Mixture, Mixed]:
    return mixture(
        Part("rl", rollouts(policy), reinforcement(beta=0.2, kl_target=0.5), every=2),
        Part("sft", examples(policy), supervised(), Anneal(1.0, 0.0, 5)),
        Part("best", BestOf(rollouts(policy, seed=1)), supervised(), 0.5, every=2, offset=1),
    )


@pytest.mark.parametrize("after", [1, 4, 6])
def test_an_interrupted_mixture_goes_on_as_if_nothing_had_happened(tmp_path: Path, after: int) -> None:
    """Annealing, turns, and a KL weight that remembers what it measured."""

    def interrupt(done: int, total: int, metrics: Any) -> None:
        if done == after:
            os.kill(os.getpid(), signal.SIGINT)

    whole, policy, again = Tabular(INPUTS), Tabular(INPUTS), Tabular(INPUTS, seed=7)
    again.reference = whole.reference
    expected = fit(whole, *hybrid(whole), FitConfig(steps=9, learning_rate=0.1))
    config = FitConfig(steps=9, learning_rate=0.1, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(policy, *hybrid(policy), config, on_step=interrupt)
    run = fit(again, *hybrid(again), config)
    assert without_times(run) == without_times(expected)
    assert torch.equal(again.state()["logits"], whole.state()["logits"])
    told = [row["rl.beta"] for row in run.metrics if "rl.beta" in row]
    assert len(told) == 5 and len(set(told)) > 1  # it did change from turn to turn


def test_samples_and_histograms_say_which_part_they_are_of() -> None:
    policy = Tabular(INPUTS)
    steps, objective = hybrid(policy)
    step = objective.prepare(steps(0), policy)
    assert {sample["part"] for sample in step.samples} == {"rl"}
    assert {"rl.length", "rl.reward"} <= step.histograms.keys()
    assert step.metrics["decisions"] == float(step.batch.mask.sum())


@pytest.mark.parametrize("seed", range(5))
def test_rewards_and_demonstrations_together_find_the_known_optimum(seed: int) -> None:
    """Only rewards know "a" and "b", only demonstrations "c" and "d"; both at once, annealed, and in turns."""
    policy = Tabular(INPUTS, length=1, seed=seed, spread=0.3)
    known = Reward(lambda r: Score(value={3: 1.0, 2: 0.5}.get(r.decisions[0], 0.0)))
    tasks = tasks_for(policy)[:2]
    draws = Rollouts(policy, tasks, known, Sampling(n=12, max_tokens=1, seed=seed), prompts=2, seed=seed)
    shown = Examples(policy, [Demonstration("c", (2,)), Demonstration("d", (4,))], batch_size=2)
    steps, objective = mixture(
        Part("rl", draws, reinforcement(entropy=0.02), every=2),
        Part("best", BestOf(draws, contrast=True), supervised(), 0.5, every=2, offset=1),
        Part("sft", shown, supervised(), Anneal(1.0, 0.2, 40, "cosine")),
    )
    fit(policy, steps, objective, FitConfig(steps=60, learning_rate=0.15))
    best = policy.encode([Demonstration(i, o) for i, o in zip(INPUTS, [(3,), (3,), (2,), (4,)])])
    assert float(policy.score(best).log_probs.exp().min().detach()) > 0.9
