"""a student learns from a teacher: exact gradients, any cut, nothing left to learn at the teacher, and it gets there"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import distance, gradient
from tabular import Reward, Tabular, tasks_for
from torch import Tensor

from melior.errors import ConfigError, DataError
from melior.masking import sum_decisions
from melior.policies.base import Batch, Want
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.policies.language import LanguagePolicy
from melior.policies.slate import SlatePolicy
from melior.policies.slate_network import Slate
from melior.trainers.distillation import candidate_distillation, on_policy_distillation
from melior.trainers.loop import FitConfig, fit
from melior.trainers.steps import Step
from melior.trainers.teachers import TeacherExamples, TeacherRollouts
from melior.types import Demonstration, Item, Sampling, Score, SlateRequest

SAMPLING = Sampling(n=4, max_tokens=3)
ROWS = [
    Demonstration("a", (1, 2, 3)),
    Demonstration("b", (4,)),
    Demonstration("a", (0, 0), weight=0.5),
    Demonstration("b", (3, 1, 4)),
]


def two(seed: int = 0, **settings: Any) -> tuple[Tabular, Tabular]:
    """A student and a teacher of two inputs."""
    return Tabular(("a", "b"), seed=seed, **settings), Tabular(("a", "b"), seed=seed + 100, **settings)


def kl_of(student: Tabular, teacher: Tabular, text: str = "a") -> Tensor:
    """KL(student ‖ teacher) of whole outputs, all of them counted."""
    batch = student.every_row(text)
    mine = sum_decisions(student.score(batch).log_probs, batch.mask)
    theirs = sum_decisions(teacher.score(batch).log_probs, batch.mask)
    return (mine.exp() * (mine - theirs)).sum()


def slope(value: Tensor, policy: Tabular) -> Tensor:
    return torch.autograd.grad(value, policy.logits)[0]


def expected_gradient(student: Tabular, teacher: Tabular, discount: float) -> Tensor:
    """Of the distillation term over every output, each as often as it is sampled."""
    batch = student.every_row()
    taught = batch.with_columns(
        old_log_probs=student.score(batch).log_probs.detach(), teacher_log_probs=teacher.score(batch).log_probs.detach()
    )
    objective = on_policy_distillation(discount=discount)
    chance = sum_decisions(student.score(batch).log_probs, batch.mask).exp().detach()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(batch)):
        part = taught.select([row])
        (term,) = objective.loss(student.score(part), part)
        total = total + chance[row] * term.total
    return slope(total, student)


@pytest.mark.parametrize("stops", [False, True])
def test_with_discount_1_the_expected_gradient_is_that_of_the_kl_of_outputs(stops: bool) -> None:
    student, teacher = two(stops=stops)
    truth = slope(kl_of(student, teacher), student)
    torch.testing.assert_close(expected_gradient(student, teacher, 1.0), truth, rtol=0, atol=1e-10)
    assert float(truth.abs().max()) > 1e-2


@pytest.mark.parametrize("stops", [False, True])
def test_with_discount_0_it_is_that_of_each_decisions_kl_with_what_came_before_held(stops: bool) -> None:
    student, teacher = two(stops=stops)
    batch = student.every_row()
    asked = frozenset({Want.CANDIDATES, Want.LOG_PROBS})
    scored, taught = student.score(batch, asked), teacher.score(batch, asked)
    chance = sum_decisions(scored.log_probs, batch.mask).exp().detach()
    mine, theirs = scored.candidates, taught.candidates.detach()
    each = (mine.exp() * (mine - theirs)).sum(-1)  # [B, T], the KL of a place, met as often as its outputs
    truth = slope((chance[:, None] * torch.where(batch.mask, each, 0.0)).sum(), student)
    torch.testing.assert_close(expected_gradient(student, teacher, 0.0), truth, rtol=0, atol=1e-10)


# ---------------------------------------------------------------------- gradients, cuts, teachers that are the student


def taught(student: Any, teacher: Any, kind: str, **settings: Any) -> Batch:
    if kind == "on_policy":
        steps = TeacherRollouts(student, teacher, tasks_for(student), SAMPLING, k=3, **settings)
        return steps(0).batch
    return TeacherExamples(student, teacher, ROWS, k=3, batch_size=len(ROWS))(0).batch


OBJECTIVES = {
    "on_policy": on_policy_distillation(discount=0.5, reward=0.3),
    "rollouts": candidate_distillation(beta=0.5),
    "examples": candidate_distillation(temperature=2.0, demonstration=0.2),
}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_cut_gives_the_same_gradient(name: str, tmp_path: Path) -> None:
    student, teacher = two()
    grader = Reward(lambda record: Score(value=float(record.decisions[0])))
    batch = (
        taught(student, teacher, "examples")
        if name == "examples"
        else taught(student, teacher, "on_policy", grader=grader)
    )
    whole = gradient(student, batch, OBJECTIVES[name], tmp_path / "whole")
    for budget in (1, 4, 7):
        found = gradient(student, batch, OBJECTIVES[name], tmp_path / str(budget), micro_batch=budget)
        assert distance(found, whole) <= 1e-12


@pytest.mark.parametrize("remainder", [True, False])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(remainder: bool, tmp_path: Path) -> None:
    student = Tabular(("a", "b"))
    for kind, objective in (
        ("on_policy", on_policy_distillation(discount=1.0)),
        ("on_policy", candidate_distillation(remainder=remainder, beta=0.5)),
        ("examples", candidate_distillation(remainder=remainder)),
    ):
        batch = taught(student, student, kind)
        found = gradient(student, batch, objective, tmp_path / f"{kind}-{type(objective).__name__}-{remainder}")
        # What is kept of a teacher's examples is in single precision.
        assert float(found["logits"].abs().max()) <= (1e-7 if kind == "examples" else 1e-14)


@pytest.mark.parametrize("kind", ["on_policy", "examples"])
def test_gradients_through_a_language_model_equal_finite_differences(
    learner: Callable[..., LanguagePolicy], shared_policy: Callable[..., LanguagePolicy], kind: str, tmp_path: Path
) -> None:
    student, teacher = learner(), shared_policy("llama")
    rows = [Demonstration("hi", "the cat"), Demonstration("what is the answer", "a hat of the man")]
    if kind == "examples":
        objective: Any = candidate_distillation(beta=0.3, demonstration=0.5)
        batch = TeacherExamples(student, teacher, rows, k=5)(0).batch
    else:
        objective = candidate_distillation()
        tasks = [replace(task, inputs=row.inputs) for task, row in zip(tasks_for(Tabular(("x", "y"))), rows)]
        batch = TeacherRollouts(student, teacher, tasks, SAMPLING, k=5)(0).batch
    found = gradient(student, batch, objective, tmp_path)
    start = {name: tensor.clone() for name, tensor in student.state().items()}
    source = torch.Generator().manual_seed(1)
    move = {name: torch.randn(tensor.shape, generator=source, dtype=tensor.dtype) for name, tensor in start.items()}

    @torch.no_grad()
    def loss(sign: float) -> float:
        student.load_state({name: start[name] + sign * 1e-6 * move[name] for name in start})
        counts = objective.counts(batch)
        terms = objective.loss(student.score(batch, objective.want), batch)
        return sum(float(term.total) * term.weight / counts[term.name] for term in terms)

    along = sum(float((found[name] * move[name]).sum()) for name in found)
    assert (loss(1) - loss(-1)) / 2e-6 == pytest.approx(along, rel=1e-6, abs=1e-6)
    assert abs(along) > 1e-4


# ---------------------------------------------------------------------- learning


@pytest.mark.parametrize("seed", range(5))
def test_a_student_reaches_its_teacher_on_its_own_outputs(seed: int) -> None:
    student, teacher = (Tabular(vocabulary=3, length=2, seed=start) for start in (seed, seed + 100))
    before = float(kl_of(student, teacher).detach())
    steps = TeacherRollouts(student, teacher, tasks_for(student), Sampling(n=32, max_tokens=2, seed=seed), seed=seed)
    fit(student, steps, on_policy_distillation(discount=seed % 2), FitConfig(steps=60, learning_rate=0.1))
    assert float(kl_of(student, teacher).detach()) < 0.05 < before / 4


@pytest.mark.parametrize(
    ("seed", "settings"),
    list(enumerate([{}, {}, {"beta": 1.0}, {"beta": 0.5, "temperature": 2.0}, {"temperature": 0.7}])),
)
def test_a_student_reaches_its_teacher_on_its_likeliest_decisions(seed: int, settings: dict[str, float]) -> None:
    student, teacher = two(seed, vocabulary=4, length=2)
    before = max(float(kl_of(student, teacher, text).detach()) for text in "ab")
    rows = [Demonstration(text, output) for text in "ab" for output in student.every_output()]
    steps = TeacherExamples(student, teacher, rows, k=3, batch_size=32, epochs=100)
    fit(student, steps, candidate_distillation(**settings), FitConfig(learning_rate=0.1))
    assert max(float(kl_of(student, teacher, text).detach()) for text in "ab") < 1e-3 < before / 50


def test_rewards_teach_beside_the_teacher() -> None:
    student, teacher = two(vocabulary=4, length=1)
    grader = Reward(lambda record: Score(value=float(record.decisions[0] == 0)))
    chances = []
    for reward in (0.0, 20.0):
        learner = Tabular(("a", "b"), vocabulary=4, length=1)
        steps = TeacherRollouts(learner, teacher, tasks_for(student), Sampling(n=8, max_tokens=1), grader=grader)
        fit(learner, steps, on_policy_distillation(reward=reward), FitConfig(steps=40, learning_rate=0.1))
        chances.append(float(torch.softmax(learner.logits.detach()[0, 0], 0)[0]))
    assert chances[0] == pytest.approx(float(torch.softmax(teacher.logits.detach()[0, 0], 0)[0]), abs=0.15)
    assert chances[1] > 0.9


def test_a_smaller_classifier_learns_what_a_larger_one_thinks() -> None:
    rows = [
        Demonstration({"age": float(age), "kind": kind}, "yes" if age > 40 else "no")
        for age in range(20, 70, 2)
        for kind in ("a", "b")
    ]
    teacher = ClassifierPolicy.make(Classifier(), rows, seed=1, device="cpu")
    from melior.trainers.supervised import Examples, supervised

    fit(teacher, Examples(teacher, rows, epochs=20), supervised(), FitConfig(learning_rate=0.01))
    student = ClassifierPolicy.make(Classifier(), rows, seed=2, device="cpu")
    wrong = [replace(row, output="no") for row in rows]  # what the rows say is never looked at
    steps = TeacherExamples(student, teacher, wrong, k=2, epochs=40)
    run = fit(student, steps, candidate_distillation(), FitConfig(learning_rate=0.01))
    assert run.last("distillation") < 0.01 < run.metrics[0]["distillation"]
    assert run.last("distillation/agreement") == 1.0 and run.last("distillation/teacher_share") == pytest.approx(1.0)
    decided = student.sample([row.inputs for row in rows], Sampling(temperature=0))
    assert [record.output for record in decided] == [
        record.output for record in teacher.sample([row.inputs for row in rows], Sampling(temperature=0))
    ]


def test_slates_are_taught_place_by_place() -> None:
    items = [Item(f"i{number}", {"price": float(number)}) for number in range(6)]
    requests = [SlateRequest({"hour": float(hour)}) for hour in range(8)]
    student = SlatePolicy.make(Slate(positions=3), items, requests, seed=1)
    teacher = SlatePolicy.make(Slate(positions=3), items, requests, seed=2)
    with torch.no_grad():
        for _, parameter in teacher.candidates():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
    rows = [Demonstration(request, ["i0", "i3", "i5"]) for request in requests]
    steps = TeacherExamples(student, teacher, rows, k=6, batch_size=8, epochs=150)
    run = fit(student, steps, candidate_distillation(), FitConfig(learning_rate=0.02))
    assert run.last("distillation") < 0.1 * run.metrics[0]["distillation"]
    assert run.last("distillation/student_share") == pytest.approx(1.0, abs=1e-5)


# ---------------------------------------------------------------------- the teacher is asked once


def test_what_a_teacher_said_is_kept_for_the_same_teacher_rows_and_k(tmp_path: Path) -> None:
    student, teacher = two()
    first = TeacherExamples(student, teacher, ROWS, k=3, folder=tmp_path)
    again = TeacherExamples(student, teacher, ROWS, k=3, folder=tmp_path)
    assert first.asked and not again.asked and first.fingerprint() == again.fingerprint()
    for name in ("candidate_ids", "teacher_candidates"):
        assert torch.equal(first(0).batch.columns[name], again(0).batch.columns[name])
    changed = Tabular(("a", "b"), seed=7)
    for other, rows, k in ((changed, ROWS, 3), (teacher, ROWS[:3], 3), (teacher, ROWS, 2)):
        assert TeacherExamples(student, other, rows, k=k, folder=tmp_path).asked
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:40])
    assert TeacherExamples(student, teacher, ROWS, k=3, folder=tmp_path).asked


def test_rows_keep_their_own_candidates_whatever_the_order() -> None:
    student, teacher = two()
    steps = TeacherExamples(student, teacher, ROWS, k=5, batch_size=2, epochs=3)
    for index in range(steps.total):
        batch = steps(index).batch
        ids, told = batch.columns["candidate_ids"], batch.columns["teacher_candidates"]
        expected = teacher.score(batch.with_columns(candidate_ids=ids), frozenset({Want.CANDIDATES})).candidates
        torch.testing.assert_close(
            told[batch.mask].double(), expected.detach()[batch.mask].float().double(), rtol=0, atol=1e-12
        )
        assert bool((told[~batch.mask] == -math.inf).all()) and bool((ids[~batch.mask] == -1).all())


def test_who_decides_other_things_cannot_teach(
    shared_policy: Callable[..., LanguagePolicy],
) -> None:
    student, other = shared_policy("llama"), shared_policy("llama", "gemma")
    with pytest.raises(DataError, match="same tokenizer and template, labels or catalogue"):
        TeacherExamples(student, other, [Demonstration("hi", "the cat")])
    with pytest.raises(DataError, match="same tokenizer"):
        TeacherRollouts(student, other, tasks_for(Tabular()), SAMPLING)


def test_settings_and_steps_that_cannot_be_are_refused() -> None:
    student, teacher = two()
    for make, wrong, told in (
        (on_policy_distillation, {"discount": 1.5}, "discount"),
        (on_policy_distillation, {"clip": 0.5}, "clip"),
        (on_policy_distillation, {"reward": -1.0}, "reward"),
        (candidate_distillation, {"beta": -0.1}, "beta"),
        (candidate_distillation, {"temperature": 0.0}, "temperature"),
        (candidate_distillation, {"demonstration": -1.0}, "demonstration"),
    ):
        with pytest.raises(ConfigError, match=told):
            make(**wrong)
    with pytest.raises(ConfigError, match="k is at least 1, got 0"):
        TeacherExamples(student, teacher, ROWS, k=0)
    step = Step(student.encode(ROWS))
    for objective, told in ((on_policy_distillation(), "TeacherRollouts"), (candidate_distillation(), "TeacherExam")):
        with pytest.raises(DataError, match=told):
            objective.prepare(step, student)
