"""the laws every objective keeps, whatever it minimises

An objective joins by a `Case` in CASES; one without a case fails the first test. What each one's gradient should be is
tested beside it (tests/trainers, tests/losses, test_enumeration.py); here stands what all have in common.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tabular import Reward, Tabular, tasks_for
from torch import Tensor
from torch.nn.functional import pad

import melior.trainers
from melior.policies.base import Batch, Rates, Scored
from melior.policies.reward_model import RewardModel
from melior.policies.slate import SlatePolicy
from melior.policies.slate_network import Slate
from melior.policies.values import ActorCritic
from melior.trainers.distillation import CandidateDistillation, OnPolicyDistillation
from melior.trainers.logged import Logged, OffPolicy
from melior.trainers.mixture import Mixed, Part, mixture
from melior.trainers.pairs import Pairs
from melior.trainers.ppo import Ppo
from melior.trainers.preference import Dpo, Ipo, Orpo, SimPo
from melior.trainers.prospect import Judged, Kto
from melior.trainers.reinforcement import METHODS, Reinforcement
from melior.trainers.reward_model import BradleyTerry, Comparisons, OnRatings, Ratings
from melior.trainers.rollouts import Rollouts
from melior.trainers.steps import Step
from melior.trainers.supervised import Examples, Supervised
from melior.trainers.teachers import TeacherExamples, TeacherRollouts
from melior.types import Demonstration, Item, Preference, Rated, Record, Sampling, Score, SlateRequest

EXACT = 1e-12
ASKED = ("want", "prepare", "counts", "active", "loss")
SHARED = {"Pairwise"}  # what objectives have in common, with no loss of its own


@dataclass(frozen=True)
class Case:
    """An objective, what it trains, and a step it learns from."""

    name: str
    objective: Any
    make: Callable[[], tuple[Any, Step]]  # the trainable in fp64, and a step
    # Whether a micro-batch may hold nothing decided; steps over pairs, and over outputs called good or bad, leave
    # out who has nothing to compare.
    empty_rows: bool = True


# ---------------------------------------------------------------------- what they learn from

TEXTS = ("a", "b", "c")
OUTPUTS = [(1, 2, 3), (4,), (2, 2), (3, 1, 4, 1), (0,), (1, 0, 2, 3)]


def policy() -> Tabular:
    """Of outputs of several lengths; its reference is another policy."""
    made = Tabular(TEXTS, length=4, stops=True, spread=0.5)
    made.reference = torch.randn(made.reference.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return made


def drawn(number: int) -> float:
    return float(torch.rand((), generator=torch.Generator().manual_seed(number), dtype=torch.float64))


def demonstrations() -> tuple[Any, Step]:
    rows = [Demonstration(TEXTS[n % 3], output, weight=(1.0, 0.0, 2.5)[n % 3]) for n, output in enumerate(OUTPUTS)]
    learner = policy()
    return learner, Examples(learner, [*rows, Demonstration("a", (2, 1))])(0)


def pairs() -> tuple[Any, Step]:
    learner = policy()
    rows = [
        Preference(
            TEXTS[n % 3],
            OUTPUTS[n],
            OUTPUTS[(n + 1) % len(OUTPUTS)],
            probability=(1.0, 0.8, 0.5)[n % 3],
            margin=0.3 * (n % 2),
            weight=0.5 + n % 2,
        )
        for n in range(len(OUTPUTS))
    ]
    return learner, Pairs(learner, rows)(0)


def judged() -> tuple[Any, Step]:
    learner = policy()
    rows = [Rated(TEXTS[n % 3], output, float(n % 2), weight=1.0 + n % 3) for n, output in enumerate(OUTPUTS)]
    return learner, Judged(learner, rows)(0)


def grade(record: Record) -> Score:
    """A grader that fails now and then."""
    value = float(sum(record.decisions or ()) % 4) + 0.3 * len(record.decisions or ())
    return Score(value=None, error="lost") if sum(record.decisions or ()) % 7 == 6 else Score(value=value)


def rollouts() -> tuple[Any, Step]:
    learner = policy()
    step = Rollouts(learner, tasks_for(learner), Reward(grade), Sampling(n=4, max_tokens=4))(0)
    # As if the sampler had been a little wrong, so that ratios are not all 1.
    behavior = step.batch.columns["behavior_log_probs"]
    noise = torch.randn(behavior.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return learner, step.with_columns(behavior_log_probs=behavior + 0.1 * noise * step.batch.mask)


def logged() -> tuple[Any, Step]:
    learner, step = policy(), Sampling(n=6, max_tokens=4, seed=3)
    records = Tabular(TEXTS, length=4, stops=True, spread=0.7, seed=5).sample(TEXTS, step)
    scores = [
        Score(value=sum(earned), decisions=earned)
        for number, record in enumerate(records)
        for earned in [tuple(drawn(10 * number + place) for place in range(len(record.decisions or ())))]
    ]
    return learner, Logged(learner, records, scores)(0)


def taught() -> tuple[Any, Step]:
    learner, teacher = policy(), Tabular(TEXTS, length=4, stops=True, seed=9)
    sampling = Sampling(n=3, max_tokens=4)
    return learner, TeacherRollouts(learner, teacher, tasks_for(learner), sampling, grader=Reward(grade), k=3)(0)


def examples_of_a_teacher() -> tuple[Any, Step]:
    learner, teacher = policy(), Tabular(TEXTS, length=4, stops=True, seed=9)
    rows = [Demonstration(TEXTS[n % 3], output, weight=1.0 + n % 2) for n, output in enumerate(OUTPUTS)]
    return learner, TeacherExamples(learner, teacher, rows, k=3)(0)


ITEMS = [Item(f"i{number}", {"price": float(number), "kind": "ab"[number % 2]}) for number in range(6)]
REQUESTS = [SlateRequest({"hour": float(hour)}) for hour in range(4)]
SLATES = [["i0", "i1", "i2"], ["i5", "i3"], ["i4"], ["i2", "i0", "i4"]]


def slates() -> SlatePolicy:
    made = SlatePolicy.make(Slate(positions=3, width=8), ITEMS, REQUESTS, seed=1)
    made.network.to(torch.float64)
    with torch.no_grad():
        for _, parameter in made.candidates():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)).double())
    return made


def acted() -> tuple[Any, Step]:
    learner = ActorCritic.make(slates())
    with torch.no_grad():
        learner.head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(6))
    tasks = [replace(task, inputs=request) for task, request in zip(tasks_for(Tabular(("w", "x", "y", "z"))), REQUESTS)]
    grader = Reward(lambda record: Score(value=float(sum(record.decisions or ()) % 5)))
    return learner, Rollouts(learner, tasks, grader, Sampling(n=3, max_tokens=3))(0)


def compared() -> tuple[Any, Step]:
    model = RewardModel.on(slates(), heads=("clicks", "sales"))
    rows = [
        Preference(REQUESTS[n], SLATES[n], SLATES[(n + 1) % 4], probability=1.0 - 0.2 * n, weight=1.0 + n, item=head(n))
        for n in range(4)
    ]
    return model, Comparisons(model, rows)(0)


def head(number: int) -> Mapping[str, Any]:
    return {"head": ("clicks", "sales")[number % 2]}


def rated(scale: str) -> Callable[[], tuple[Any, Step]]:
    def make() -> tuple[Any, Step]:
        levels = {"clicks": (1.0, 2.0, 3.0)} if scale == "grades" else {}
        model = RewardModel.on(slates(), heads=("clicks",), levels=levels)
        ratings = [1.0, 0.0, 0.0, 1.0] if scale == "yes_no" else [1.0, 3.0, 2.0, 2.0]
        rows = [Rated(REQUESTS[n], SLATES[n], ratings[n], weight=1.0 + n) for n in range(4)]
        if scale == "number":
            model.standardise(rows)
        return model, Ratings(model, rows)(0)

    return make


PPO_PTX = mixture(
    Part("rl", None, Reinforcement(beta=0.1)),  # type: ignore[arg-type]
    Part("sft", None, Supervised(), weight=0.3),  # type: ignore[arg-type]
    Part("taught", None, CandidateDistillation(), weight=0.5),  # type: ignore[arg-type]
)[1]


def mixed() -> tuple[Any, Step]:
    learner = policy()
    fresh, shown, told = rollouts()[1], demonstrations()[1], examples_of_a_teacher()[1]

    class Given:
        """The same step every time."""

        total = 1

        def __init__(self, step: Step) -> None:
            self.step = step

        def __call__(self, index: int) -> Step:
            return self.step

        def fingerprint(self) -> str:
            return "given"

    steps, _ = mixture(
        Part("rl", Given(fresh), Reinforcement(beta=0.1)),
        Part("sft", Given(shown), Supervised(), weight=0.3),
        Part("taught", Given(told), CandidateDistillation(), weight=0.5),
    )
    return learner, steps(0)


def cases() -> Iterator[Case]:
    yield Case("supervised", Supervised(), demonstrations)
    yield Case("supervised, smoothed", Supervised(smoothing=0.1), demonstrations)
    preferences = {
        "dpo": Dpo(),
        "dpo, smoothed": Dpo(label_smoothing=0.1, nll=0.5),
        "dpo, robust": Dpo(robust=True, label_smoothing=0.2),
        "dpo, normalised": Dpo(length_normalised=True),
        "ipo": Ipo(),
        "ipo, sums": Ipo(length_normalised=False, label_smoothing=0.1),
        "simpo": SimPo(),
        "orpo": Orpo(),
    }
    for name, objective in preferences.items():
        yield Case(name, objective, pairs, empty_rows=False)
    yield Case("kto", Kto(), judged, empty_rows=False)
    for name, settings in METHODS.items():
        yield Case(name, Reinforcement(**{"length": 4, "beta": 0.1, **settings}), rollouts)
    yield Case("dr_grpo, entropy and correction", Reinforcement(entropy=0.1, correction="decision"), rollouts)
    yield Case("gspo, correction", Reinforcement(surrogate="output", correction="output"), rollouts)
    yield Case("rloo, cut outputs", Reinforcement(drop_truncated=True, overlong_margin=2), rollouts)
    yield Case("off_policy", OffPolicy(beta=0.1, entropy=0.1), logged)
    yield Case("off_policy, prefix", OffPolicy(ratio="prefix", credit="to_go"), logged)
    yield Case("off_policy, decision", OffPolicy(ratio="decision", credit="own", frozen=True, baseline="none"), logged)
    yield Case("off_policy, normalised", OffPolicy(normalized=True), logged)
    yield Case("ppo", Ppo(entropy=0.1, beta=0.1), acted)
    yield Case("ppo, as it is", Ppo(whiten=False, value_clip=None, truncated="bootstrap"), acted)
    yield Case("on-policy distillation", OnPolicyDistillation(reward=0.5, discount=0.5), taught)
    yield Case("distillation on its own outputs", CandidateDistillation(beta=0.5), taught)
    yield Case("distillation", CandidateDistillation(temperature=2.0, demonstration=0.2), examples_of_a_teacher)
    yield Case("distillation, reverse", CandidateDistillation(beta=1.0, remainder=False), examples_of_a_teacher)
    yield Case("bradley_terry", BradleyTerry(centring=0.1), compared, empty_rows=False)
    for scale in ("number", "yes_no", "grades"):
        yield Case(f"ratings, {scale}", OnRatings(scale=scale), rated(scale), empty_rows=False)  # type: ignore[arg-type]
    yield Case("mixed", PPO_PTX, mixed)


CASES = list(cases())
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


# ---------------------------------------------------------------------- laws


def objectives() -> set[str]:
    """Classes of melior.trainers that do all an objective is asked for."""
    found = set()
    for module in pkgutil.iter_modules(melior.trainers.__path__):
        defined = importlib.import_module(f"melior.trainers.{module.name}")
        for name, each in vars(defined).items():
            here = isinstance(each, type) and each.__module__ == defined.__name__
            if here and not getattr(each, "_is_protocol", False) and all(hasattr(each, word) for word in ASKED):
                found.add(name)
    return found - SHARED


def test_every_objective_has_a_case() -> None:
    assert objectives() == {type(case.objective).__name__ for case in CASES}
    assert {"Supervised", "Dpo", "Reinforcement", "Ppo", "Kto"} <= objectives()  # the search finds what there is


def parameters_of(trainable: Any) -> list[Tensor]:
    return [parameter for group in trainable.parameter_groups(Rates(1.0)) for parameter in group.parameters]


def learnt(trainable: Any, objective: Any, batch: Batch, budget: int | None = None) -> tuple[float, list[Tensor]]:
    """Loss and gradient of a prepared batch, cut as the loop cuts it."""
    parameters = parameters_of(trainable)
    total, gradients = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
    rows = objective.active(batch)
    if not rows:
        return total, gradients
    counts, active = objective.counts(batch), batch.select(rows)
    for cut in trainable.cut(active, budget):
        part = active.select(cut)
        loss = added(objective.loss(trainable.score(part, objective.want), part), counts)
        total += float(loss.detach())
        for gradient, found in zip(gradients, torch.autograd.grad(loss, parameters, allow_unused=True)):
            gradient += 0.0 if found is None else found
    return total, gradients


def added(terms: Sequence[Any], counts: Mapping[str, float]) -> Tensor:
    """The loss, as the loop adds its terms up."""
    return torch.stack([term.total * (term.weight / counts[term.name]) for term in terms]).sum()


def prepared(case: Case) -> tuple[Any, Batch]:
    trainable, step = case.make()
    return trainable, case.objective.prepare(step, trainable).batch


def assert_same(found: tuple[float, list[Tensor]], wanted: tuple[float, list[Tensor]]) -> None:
    scale = max(float(gradient.abs().max()) for gradient in wanted[1] if gradient.numel())
    assert scale > 1e-3, "a case that learns nothing tests nothing"
    assert found[0] == pytest.approx(wanted[0], rel=EXACT, abs=EXACT)
    for mine, theirs in zip(found[1], wanted[1], strict=True):
        assert bool(((mine - theirs).abs() <= EXACT * scale).all())


@EACH
def test_every_cut_gives_the_same_gradient(case: Case) -> None:
    trainable, batch = prepared(case)
    whole = learnt(trainable, case.objective, batch)
    active = batch.select(case.objective.active(batch))
    cuts = {budget: list(map(tuple, trainable.cut(active, budget))) for budget in (1, 8, 30)}
    assert len(cuts[1]) > 1
    for budget in cuts:
        assert_same(learnt(trainable, case.objective, batch, budget), whole)


@EACH
def test_the_order_of_rows_changes_nothing(case: Case) -> None:
    trainable, step = case.make()
    whole = learnt(trainable, case.objective, case.objective.prepare(step, trainable).batch)
    order = torch.randperm(len(step.batch), generator=torch.Generator().manual_seed(3)).tolist()
    if case.name == "mixed":  # its parts are prepared one by one
        learner, mixed_step = case.make()
        batch = case.objective.prepare(mixed_step, learner).batch
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3)).tolist()
        assert_same(learnt(learner, case.objective, batch.select(order)), whole)
        return
    turned = case.objective.prepare(replace(step, batch=step.batch.select(order)), trainable).batch
    assert_same(learnt(trainable, case.objective, turned), whole)


@EACH
def test_columns_of_padding_change_nothing(case: Case) -> None:
    """Whatever stands behind a row's last decision, in the batch or in what was scored, leaves no trace."""
    trainable, batch = prepared(case)
    objective, parameters = case.objective, parameters_of(trainable)
    batch = batch.select(objective.active(batch))
    counts, scored = objective.counts(batch), trainable.score(batch, objective.want)
    wide = padded(batch, 2)
    assert objective.active(wide) == objective.active(batch)
    told = objective.counts(wide)
    assert told == pytest.approx(counts, rel=1e-14)
    found = []
    for seen, part, count in ((scored, batch, counts), (padded_scores(scored, batch, 2), wide, told)):
        loss = added(objective.loss(seen, part), count)
        slopes = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        zeros = [torch.zeros_like(parameter) for parameter in parameters]
        found.append((float(loss.detach()), [z if s is None else s for s, z in zip(slopes, zeros)]))
    assert_same(found[1], found[0])


def padded(batch: Batch, more: int) -> Batch:
    """The batch with places behind, which nobody decided and where anything may stand."""
    width = batch.mask.shape[1]

    def longer(column: Tensor) -> Tensor:
        if column.dim() < 2 or column.shape[1] != width:
            return column
        around = (0, 0) * (column.dim() - 2) + (0, more)
        return pad(column, around, value=math.nan if column.is_floating_point() else 0)

    columns = {name: longer(column) for name, column in batch.columns.items()}
    return replace(batch, mask=longer(batch.mask), weights=longer(batch.weights), columns=columns)


def padded_scores(scored: Scored, batch: Batch, more: int) -> Scored:
    width = batch.mask.shape[1]

    def longer(values: Tensor | None, places: int) -> Tensor | None:
        if values is None or values.dim() < 2 or values.shape[1] != places:  # a reward model's values have no places
            return values
        return pad(values, (0, 0) * (values.dim() - 2) + (0, more), value=math.nan)

    return Scored(
        longer(scored.log_probs, width),  # type: ignore[arg-type]
        longer(scored.entropy, width),
        longer(scored.values, width + 1),
        longer(scored.candidates, width),
        longer(scored.states, width + 1),
    )


@EACH
def test_where_nothing_was_decided_nothing_is_learnt(case: Case) -> None:
    """Rows without a decision have no gradient, and leave that of the others finite."""
    if not case.empty_rows:
        pytest.skip("these steps have no rows without a decision")
    trainable, batch = prepared(case)
    objective, parameters = case.objective, parameters_of(trainable)
    for share in (1, 2):  # all rows, or every second one
        mask = batch.mask.clone()
        mask[::share] = False
        part = replace(batch, mask=mask)
        rows = objective.active(part)
        assert all(bool(mask[row].any()) for row in rows)
        scored = trainable.score(part, objective.want)
        slopes = torch.autograd.grad(
            added(objective.loss(scored, part), {name: 1.0 for name in objective.counts(part)}),
            parameters,
            allow_unused=True,
        )
        moved = [slope for slope in slopes if slope is not None]
        assert all(bool(slope.isfinite().all()) for slope in moved)
        assert any(bool(slope.any()) for slope in moved) == (share == 2)


@EACH
def test_a_step_without_rows_is_none(case: Case) -> None:
    """As where no output could be graded: nothing is computed, and no count or metric fails."""
    trainable, step = case.make()
    if case.name == "mixed":
        parts = {name: replace(part, batch=part.batch.select([])) for name, part in step.parts.items()}  # type: ignore[attr-defined]
        empty: Any = replace(step, batch=step.batch.select([]), parts=parts)  # type: ignore[call-arg]
    else:
        empty = replace(step, batch=step.batch.select([]))
    batch = case.objective.prepare(empty, trainable).batch
    assert case.objective.active(batch) == []
    counts = case.objective.counts(batch)
    assert all(math.isfinite(count) for count in counts.values())
    assert isinstance(case.objective, Mixed) or counts
