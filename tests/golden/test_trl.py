"""TRL's own trainers and melior's objectives say the same of the same numbers, loss and gradient

trl.json is what TRL 1.16 said (tests/golden/record_trl.py); given are the same weights, token ids, labels and rewards
(tests/golden/trl_given.py). Where the two differ by convention, the test says how in a sentence and holds the exact
relation. In fp64 they agree to 1e-9.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import trl_given as given
from tiny import ROWS, tiny_tokenizer
from torch import Tensor

from melior.losses.divergence import kl_k3
from melior.masking import mean_decisions, padded
from melior.policies.adapters import LoRA
from melior.policies.base import CANDIDATE_IDS, Batch, Want, score_all
from melior.policies.language import LanguagePolicy
from melior.policies.reward_model import RewardModel
from melior.trainers.distillation import CandidateDistillation, OnPolicyDistillation
from melior.trainers.loop import FitConfig, fit
from melior.trainers.pairs import paired
from melior.trainers.preference import Dpo, Ipo, Orpo, Pairwise, SimPo
from melior.trainers.prospect import Kto
from melior.trainers.references import CONTENT, References, contents_of
from melior.trainers.reinforcement import METHODS, Reinforcement, reinforcement
from melior.trainers.reward_model import BradleyTerry
from melior.trainers.steps import Objective, Step
from melior.trainers.supervised import Supervised
from melior.trainers.teachers import TEACHER_CANDIDATES, TEACHER_LOG_PROBS, candidates_of
from melior.types import Preference, Record, Sampling

TRL: Mapping[str, Any] = json.loads((Path(__file__).parent / "trl.json").read_text())
EXACT = {"fp64": 1e-9, "fp32": 2e-6}  # relative: of the loss to what is added up in it, of gradients to their norm
DTYPES = {"fp64": torch.float64, "fp32": torch.float32}
NAMES: Mapping[str, Any] = {"fp64": "float64", "fp32": "float32"}
Policies = Callable[[str], LanguagePolicy]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def folder(name: str) -> Path:
        path = tmp_path_factory.mktemp(name)
        given.model(name).save_pretrained(str(path))
        tiny_tokenizer(None).save_pretrained(str(path))
        return path

    return folder


@pytest.fixture(scope="session")
def loaded(folders: Callable[[str], Path]) -> Callable[[str, str], LanguagePolicy]:
    return cache(lambda precision, name: LanguagePolicy.load(folders(name), dtype=NAMES[precision], device="cpu"))


@pytest.fixture(params=["fp64", "fp32"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def policies(loaded: Callable[[str, str], LanguagePolicy], precision: str) -> Policies:
    return lambda name: loaded(precision, name)


# ---------------------------------------------------------------------- what is compared


def learnt(
    policy: Any,
    step: Step,
    objective: Objective,
    *,
    before: Any = None,  # the policy that stood when the step was collected
    change: Callable[[Batch], Batch] = lambda batch: batch,
) -> Tensor:
    """The loss of a step as the loop adds it up, in two micro-batches or more."""
    prepared = change(objective.prepare(step, before or policy).batch)
    counts = objective.counts(prepared)
    active = prepared.select(objective.active(prepared))
    cuts = list(policy.cut(active, 24))
    assert len(cuts) > 1
    totals = []
    for rows in cuts:
        part = active.select(rows)
        terms = objective.loss(policy.score(part, objective.want), part)
        totals += [term.total * (term.weight / counts[term.name]) for term in terms]
    return torch.stack(totals).sum()


def agree(name: str, precision: str, trained: Any, loss_of: Callable[[], Tensor], *, value: Any = None) -> None:
    """The loss and its gradient are those of the case; `value` is the loss where it differs and its gradient does not.

    `trained` has the parameters.
    """
    told, tolerance = TRL["cases"][name][precision], EXACT[precision]
    parameters = dict(trained.candidates())
    for parameter in parameters.values():
        parameter.grad = None
    with given.precision(DTYPES[precision]):
        loss = loss_of()
        loss.backward()
        found = given.gradient({named(key): each for key, each in parameters.items() if each.grad is not None})
        measured = float(loss.detach() if value is None else value())
    assert measured == pytest.approx(told["loss"], rel=tolerance, abs=tolerance)
    assert found["norm"] == pytest.approx(told["norm"], rel=tolerance)
    if precision == "fp64":
        assert found["along"].keys() == told["along"].keys()
        for parameter, along in told["along"].items():
            assert found["along"][parameter] == pytest.approx(along, abs=tolerance * told["norm"]), parameter
        assert found["model.norm.weight"] == pytest.approx(told["model.norm.weight"], abs=tolerance * told["norm"])


def named(ours: str) -> str:
    """A parameter's name in TRL's model."""
    return {"head.weight": "score.weight"}.get(ours, ours.removeprefix("trunk."))


def record(context: Sequence[int], decisions: Sequence[int], **more: Any) -> Record:
    return Record(inputs="", output="", context=tuple(context), decisions=tuple(decisions), **more)


def pairs(policy: Any, *, margins: Sequence[float] = (0.0,) * len(given.PAIRS)) -> Batch:
    """The pairs as one batch."""
    sides = [(record(prompt, chosen), record(prompt, rejected)) for prompt, chosen, rejected in given.PAIRS]
    return _paired(policy, sides, margins)


def _paired(policy: Any, sides: Sequence[tuple[Record, Record]], margins: Sequence[float]) -> Batch:
    ones = torch.ones(len(sides), dtype=torch.float64)
    labels = {"probability": ones, "margin": torch.tensor(margins, dtype=torch.float64), "weight": ones}
    return paired(policy, sides, labels)[0]


def referred(policies: Policies, batch: Batch, name: str = "reference") -> Step:
    return Step(batch, reference=References(policies("policy"), reference=policies(name)))


def flat(batch: Batch) -> Step:
    """A reference that gives every output the same probability, which is none."""
    return Step(batch.with_columns(ref_log_probs=torch.zeros(batch.mask.shape, dtype=torch.float64)))


# ---------------------------------------------------------------------- imitation and preferences


def test_sft(policies: Policies, precision: str) -> None:
    policy = policies("policy")
    step = Step(policy.encode([record(prompt, chosen) for prompt, chosen, _ in given.PAIRS]))
    agree("sft/completion", precision, policy, lambda: learnt(policy, step, Supervised()))


REFERRED: Mapping[str, Pairwise] = {
    "dpo/sigmoid": Dpo(beta=0.3),
    "dpo/robust": Dpo(beta=0.3, robust=True, label_smoothing=0.1),
    "dpo/ipo": Ipo(beta=0.3),
    "dpo/sigmoid_norm": Dpo(beta=5.0, length_normalised=True),
    "dpo/sigmoid and sft": Dpo(beta=0.3, nll=0.4),
}


@pytest.mark.parametrize("name", REFERRED)
def test_preferences_against_a_reference(name: str, policies: Policies, precision: str) -> None:
    policy = policies("policy")
    agree(name, precision, policy, lambda: learnt(policy, referred(policies, pairs(policy)), REFERRED[name]))


# CPO is DPO against a reference that has no say.
UNREFERRED: Mapping[str, Pairwise] = {
    "cpo/sigmoid": Dpo(beta=0.5, nll=0.4),
    "cpo/sigmoid smoothed": Dpo(beta=0.5, label_smoothing=0.1),
    "cpo/ipo": Ipo(beta=0.5, nll=0.4),
    "cpo/simpo": SimPo(beta=2.0, gamma=1.0),
}


@pytest.mark.parametrize("name", UNREFERRED)
def test_preferences_without_a_reference(name: str, policies: Policies, precision: str) -> None:
    policy = policies("policy")
    agree(name, precision, policy, lambda: learnt(policy, flat(pairs(policy)), UNREFERRED[name]))


def test_smoothed_simpo(policies: Policies, precision: str) -> None:
    """TRL asks the chosen side for the target margin whichever side is right; melior asks the side that is.

    So TRL's is the cross-entropy of a smoothed label at the reward gap less gamma, which is DPO on means with a margin.
    """
    policy = policies("policy")
    batch = pairs(policy, margins=[1.0] * len(given.PAIRS))
    objective = Dpo(beta=2.0, length_normalised=True, label_smoothing=0.1)
    agree("cpo/simpo smoothed", precision, policy, lambda: learnt(policy, flat(batch), objective))


def test_orpo(policies: Policies, precision: str) -> None:
    """TRL imitates the prompt too, from its second token on; melior imitates what was decided."""
    policy = policies("policy")
    whole = [(*prompt, *chosen) for prompt, chosen, _ in given.PAIRS]
    texts = Step(policy.encode([record(ids[:1], ids[1:]) for ids in whole]))

    def loss() -> Tensor:
        odds = learnt(policy, Step(pairs(policy)), Orpo(beta=0.3, nll=0.0))
        return odds + learnt(policy, texts, Supervised())

    agree("orpo/orpo", precision, policy, loss)


KTO: Mapping[str, Kto] = {
    "kto/equal": Kto(beta=0.3, desirable_weight=1.0, undesirable_weight=1.0),
    "kto/weighted": Kto(beta=0.1, desirable_weight=1.0, undesirable_weight=4 / 3),
    "kto/exchanged": Kto(beta=0.3, desirable_weight=1.0, undesirable_weight=1.0),
}


@pytest.mark.parametrize("name", KTO)
def test_kto(name: str, policies: Policies, precision: str) -> None:
    """TRL's mismatched output is that of the row before; melior takes another row's, so the rows are given here."""
    names = ("reference", "policy") if name.endswith("exchanged") else ("policy", "reference")
    policy, outputs = policies(names[0]), len(given.JUDGED)
    records = [record(prompt, output) for prompt, output, _ in given.JUDGED]
    records += [record(prompt, output) for prompt, output in given.MISMATCHED]
    batch = policy.encode(records)
    rows = batch.columns["examples"]
    good = torch.tensor([desirable for *_, desirable in given.JUDGED])[rows % outputs]
    batch = replace(batch, groups=rows, whole=True).with_columns(
        desirable=good, mismatched=rows >= outputs, weight=torch.ones(len(rows), dtype=torch.float64), examples=rows
    )
    batch = batch.with_columns(**{CONTENT: contents_of([(one,) for one in records], batch)})
    step = referred(policies, batch, names[1])
    agree(name, precision, policy, lambda: learnt(policy, step, KTO[name]))
    with given.precision(DTYPES[precision]):
        point = KTO[name].prepare(step, policy).metrics["reference_point"]
    told = TRL["cases"][name][precision]["reference_point"]
    assert point == pytest.approx(told, abs=10 * EXACT[precision])
    assert (told > 0.1) == name.endswith("exchanged")


# ---------------------------------------------------------------------- reward models


def scorer(policies: Policies) -> RewardModel:
    """A reward model with the given head; TRL's has no bias, so melior's stays 0 and is not learnt."""
    model = RewardModel.on(policies("policy"))
    model.heads.bias.requires_grad_(False)
    with torch.no_grad():
        model.heads.weight.copy_(given.SCORE)
    return model


REWARD: Mapping[str, tuple[bool, BradleyTerry]] = {
    "reward/plain": (False, BradleyTerry()),
    "reward/margin": (True, BradleyTerry()),
    "reward/centred": (False, BradleyTerry(centring=0.01)),
}


@pytest.mark.parametrize("name", REWARD)
def test_reward_models(name: str, policies: Policies, precision: str) -> None:
    model, (margins, objective) = scorer(policies), REWARD[name]
    batch = pairs(model, margins=given.MARGINS if margins else [0.0] * len(given.PAIRS))
    step = Step(batch.with_columns(heads=torch.zeros(len(batch), dtype=torch.long)))
    agree(name, precision, model, lambda: learnt(model, step, objective))


def test_a_reward_is_not_read_too_early(policies: Policies, precision: str) -> None:
    """Where padding is the stop token TRL reads the reward before it, as transformers finds the last token by its id.

    melior reads behind the last token, so it says the same only of outputs that lack it (transformers #35352).
    """
    model = scorer(policies)
    whole = [[(*prompt, *side) for side in sides] for prompt, *sides in given.PAIRS]
    early = [(record(c[:1], c[1:-1]), record(r[:1], r[1:-1])) for c, r in whole]
    batch = _paired(model, early, [0.0] * len(early))
    step = Step(batch.with_columns(heads=torch.zeros(len(batch), dtype=torch.long)))
    name = "reward/padded with the stop token"
    agree(name, precision, model, lambda: learnt(model, step, BradleyTerry()))
    told = TRL["cases"]
    assert abs(told[name]["fp64"]["loss"] - told["reward/plain"]["fp64"]["loss"]) > 1e-3


# ---------------------------------------------------------------------- rewards


def sampled(
    policies: Policies,
    precision: str,
    *,
    on_policy: bool = False,
    sampler: bool = False,
    ungraded: bool = False,
    temperature: float = 1.0,
) -> Step:
    """The given outputs as rollouts of the old policy, or of one whose log-probs are off from its own."""
    old = policies("policy" if on_policy else "old")
    settings = Sampling(n=given.GROUP, max_tokens=given.LONGEST, temperature=temperature)
    records = [
        record(given.owner(row), ids, group=str(row // given.GROUP), sampling=settings)
        for row, ids in enumerate(given.OUTPUTS)
    ]
    batch = old.encode(records)
    with given.precision(DTYPES[precision]):
        chances = score_all(old, batch)
    if sampler:
        chances = chances + padded(given.sampler_noise(), batch.mask)
    rewards = [torch.nan if reward is None else reward for reward in given.UNGRADED] if ungraded else given.REWARDS
    batch = batch.with_columns(
        rewards=torch.tensor(rewards, dtype=torch.float64),
        truncated=torch.tensor(given.CUT),
        limit=torch.full((len(batch),), given.LONGEST),
        behavior_log_probs=chances,
    )
    return Step(batch, reference=lambda asked: score_all(policies("reference"), asked))


CLIPS = {"clip_low": 0.2, "clip_high": 0.28}
NARROW = {"clip_low": 0.02, "clip_high": 0.03}
GRPO: Mapping[str, Reinforcement] = {
    "grpo/grpo": reinforcement("grpo", **CLIPS),
    "grpo/grpo on policy": reinforcement("grpo", **CLIPS),
    "grpo/bnpo": reinforcement("dapo", **CLIPS),
    "grpo/dapo": reinforcement("dapo", **CLIPS),
    "grpo/dr_grpo": reinforcement("dr_grpo", length=given.LONGEST, **CLIPS),
    "grpo/cispo": reinforcement("cispo", clip_high=0.1),  # TRL's bound is of the ratio: 1 + clip_high
    "grpo/gspo": reinforcement("gspo", **NARROW),
    "grpo/luspo": reinforcement("gspo", aggregate="constant", length=1, **NARROW),
    "grpo/unscaled": reinforcement("grpo", divide_by_std=False, **CLIPS),
    "grpo/entropy": reinforcement("dapo", entropy=0.05, **CLIPS),
    "grpo/at a temperature": reinforcement("grpo", **CLIPS),
}


@pytest.mark.parametrize("name", GRPO)
def test_policy_gradients(name: str, policies: Policies, precision: str) -> None:
    policy = policies("policy")
    temperature = 0.7 if name.endswith("temperature") else 1.0
    step = sampled(policies, precision, on_policy=name.endswith("on policy"), temperature=temperature)
    agree(name, precision, policy, lambda: learnt(policy, step, GRPO[name]))
    advantages = GRPO[name].prepare(step, policy).batch.columns["advantages"].tolist()
    assert advantages == pytest.approx(TRL["cases"][name][precision]["advantages"], abs=EXACT[precision])


CORRECTIONS: Mapping[str, Mapping[str, Any]] = {
    "grpo/sampler, token truncated": {"correction": "decision"},
    "grpo/sampler, token dropped": {"correction": "decision", "correction_drop": True},
    "grpo/sampler, sequence truncated": {"correction": "output"},
    "grpo/sampler, sequence dropped": {"correction": "output", "correction_drop": True},
}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_corrections_of_a_sampler_that_differs(name: str, policies: Policies, precision: str) -> None:
    policy, step = policies("policy"), sampled(policies, precision, sampler=True)
    objective = reinforcement("grpo", correction_cap=1.3, **CORRECTIONS[name], **CLIPS)
    agree(name, precision, policy, lambda: learnt(policy, step, objective, before=policies("old")))


def test_advantages_scaled_by_the_batch(policies: Policies, precision: str) -> None:
    """TRL divides by the deviation of all rewards, melior by that of the advantages, which is of what is learnt from.

    The losses stand in the ratio of the two deviations.
    """
    policy, step = policies("policy"), sampled(policies, precision)
    rewards = torch.tensor(given.REWARDS, dtype=torch.float64)
    centred = rewards - rewards.reshape(-1, given.GROUP).mean(1).repeat_interleave(given.GROUP)
    factor = float((centred.square().mean().sqrt() + 1e-8) / (rewards.std() + 1e-4))
    objective = reinforcement("reinforce++_baseline", **CLIPS)
    agree("grpo/scaled by the batch", precision, policy, lambda: factor * learnt(policy, step, objective))


def test_the_kl_of_grpo(policies: Policies, precision: str) -> None:
    """TRL adds the k3 estimate, and its gradient, which is not the KL's; melior's `kl` term has the KL's gradient.

    TRL's loss is melior's without a KL, and beta times the mean of `kl_k3`.
    """
    policy, step = policies("policy"), sampled(policies, precision)
    objective = reinforcement("grpo", **CLIPS)

    def loss() -> Tensor:
        assert step.reference is not None
        batch = step.batch
        reference = step.reference(batch)
        apart = kl_k3(policy.score(batch).log_probs, reference.to(DTYPES[precision]))
        return learnt(policy, step, objective) + 0.2 * mean_decisions(apart, batch.mask).mean()

    agree("grpo/k3", precision, policy, loss)


def test_an_output_that_nobody_could_grade(policies: Policies, precision: str) -> None:
    """TRL gives it advantage 0 and counts its decisions in the mean; melior leaves it out of both."""
    policy, step = policies("policy"), sampled(policies, precision, ungraded=True)
    lengths = [len(ids) for ids in given.OUTPUTS]
    graded = [length for length, reward in zip(lengths, given.UNGRADED, strict=True) if reward is not None]
    factor = sum(graded) / sum(lengths)
    loss = reinforcement("dapo", **CLIPS)
    agree("grpo/one ungraded", precision, policy, lambda: factor * learnt(policy, step, loss))


def test_outputs_that_were_cut(policies: Policies, precision: str) -> None:
    """TRL leaves them out of the loss and compares the others with them; melior compares the others among themselves.

    Given TRL's advantages the losses agree.
    """
    name = "grpo/cut ones left out"
    policy, step = policies("policy"), sampled(policies, precision)
    told = torch.tensor(TRL["cases"][name][precision]["advantages"], dtype=torch.float64)[~torch.tensor(given.CUT)]
    objective = reinforcement("dapo", drop_truncated=True, **CLIPS)
    agree(
        name,
        precision,
        policy,
        lambda: learnt(policy, step, objective, change=lambda batch: batch.with_columns(advantages=told)),
    )


RLOO: Mapping[str, tuple[float, bool]] = {  # beta, and whether one output is ungraded
    "rloo/rloo": (0.0, False),
    "rloo/k1 in the reward": (0.2, False),
    "rloo/one ungraded": (0.0, True),
}


@pytest.mark.parametrize("name", RLOO)
def test_rloo(name: str, policies: Policies, precision: str) -> None:
    """TRL clips the ratio of a whole output, melior that of each decision: on policy the gradient is the same.

    The loss is minus the advantage in TRL, and that at each decision in melior. TRL divides by ungraded outputs too.
    """
    beta, ungraded = RLOO[name]
    policy = policies("policy")
    step = sampled(policies, precision, on_policy=True, ungraded=ungraded)
    objective = reinforcement("rloo", beta=beta, length=1, **CLIPS)
    graded = len(given.OUTPUTS) - ungraded

    def value() -> float:
        advantages = objective.prepare(step, policy).batch.columns["advantages"]
        return -float(advantages.sum()) / len(given.OUTPUTS)

    agree(
        name,
        precision,
        policy,
        lambda: (graded / len(given.OUTPUTS)) * learnt(policy, step, objective),
        value=value,
    )


# ---------------------------------------------------------------------- distillation


def imitated(policy: LanguagePolicy) -> Batch:
    return policy.encode([record(prompt, chosen) for prompt, chosen, _ in given.PAIRS])


DISTILLED: Mapping[str, CandidateDistillation] = {
    "gkd/forward": CandidateDistillation(beta=0.0, remainder=False),
    "gkd/between": CandidateDistillation(beta=0.3, remainder=False),
    "gkd/reverse": CandidateDistillation(beta=1.0, remainder=False),
    "distillation/forward": CandidateDistillation(beta=0.0, temperature=2.0, remainder=False),
    "distillation/between": CandidateDistillation(beta=0.3, temperature=2.0, remainder=False),
    "distillation/reverse": CandidateDistillation(beta=1.0, remainder=False),
}


@pytest.mark.parametrize("name", DISTILLED)
def test_distillation_of_all_tokens(name: str, policies: Policies, precision: str) -> None:
    """melior multiplies by the squared temperature, so that gradients keep their size; TRL does not."""
    policy, batch, objective = policies("policy"), imitated(policies("policy")), DISTILLED[name]
    asked = batch.with_columns(**{CANDIDATE_IDS: torch.arange(ROWS).expand(*batch.mask.shape, ROWS)})
    with torch.no_grad(), given.precision(DTYPES[precision]):
        told = policies("teacher").score(asked, frozenset({Want.CANDIDATES})).candidates
    assert told is not None
    step, factor = Step(asked.with_columns(**{TEACHER_CANDIDATES: told})), objective.temperature**-2
    agree(name, precision, policy, lambda: factor * learnt(policy, step, objective))


def test_distillation_of_the_likeliest_tokens(policies: Policies, precision: str) -> None:
    policy, batch = policies("policy"), imitated(policies("policy"))
    with given.precision(DTYPES[precision]):
        ids, log_probs = candidates_of(policies("teacher"), batch, 8)
    step = Step(batch.with_columns(**{CANDIDATE_IDS: ids, TEACHER_CANDIDATES: log_probs}))
    agree(
        "iw_opd/eight likeliest", precision, policy, lambda: learnt(policy, step, CandidateDistillation(remainder=True))
    )


def test_distillation_at_sampled_tokens(policies: Policies, precision: str) -> None:
    """TRL's loss is -log π times the gap to the teacher, melior's the gap itself, with the same gradient."""
    policy, batch = policies("policy"), imitated(policies("policy"))
    with given.precision(DTYPES[precision]):
        own, told = (score_all(each, batch) for each in (policy, policies("teacher")))
    step = Step(batch.with_columns(behavior_log_probs=own, **{TEACHER_LOG_PROBS: told}))
    agree(
        "iw_opd/sampled",
        precision,
        policy,
        lambda: learnt(policy, step, OnPolicyDistillation()),
        value=lambda: (own * (own - told)).sum() / batch.mask.sum(),
    )


# ---------------------------------------------------------------------- a few steps of training


@dataclass(frozen=True)
class Same:
    """One step, again and again."""

    step: Step
    total: None = None

    def __call__(self, index: int) -> Step:
        return self.step

    def fingerprint(self) -> str:
        return "same"


@pytest.mark.parametrize("name", ["curve/sft", "curve/dpo of an adapter"])
def test_curves(name: str, folders: Callable[[str], Path], precision: str) -> None:
    """`fit` and TRL's training loop take the same way: loss and gradient norm of each step, and the weights behind it.

    Both clip the gradient, decay matrices alone, and follow a cosine; DPO's reference is the model without its adapter.
    """
    adapter = LoRA(r=given.LORA["r"], alpha=given.LORA["lora_alpha"]) if name.endswith("adapter") else None
    policy = LanguagePolicy.load(folders("policy"), dtype=NAMES[precision], device="cpu", adapter=adapter)
    learnt = {key: each for key, each in policy.candidates() if each.requires_grad}
    if adapter:
        given.fill_adapter(learnt)
        step, objective = Step(pairs(policy)), Dpo(beta=TRL["options"]["dpo"]["beta"])
    else:
        step, objective = Step(imitated(policy)), Supervised()
    with given.precision(DTYPES[precision]):
        run = fit(policy, Same(step), objective, same_settings(TRL["options"]["curve"]))
    told, tolerance = TRL["cases"][name][precision], 10 * EXACT[precision]
    assert [row["loss"] for row in run.metrics] == pytest.approx(told["loss"], rel=tolerance)
    assert [row["grad_norm"] for row in run.metrics] == pytest.approx(told["norm"], rel=tolerance)
    assert min(told["norm"]) > TRL["options"]["curve"]["max_grad_norm"]  # every step was clipped
    if precision == "fp64":
        assert given.weights(learnt) == pytest.approx(told["weights"], abs=tolerance)


def same_settings(options: Mapping[str, Any]) -> FitConfig:
    return FitConfig(
        steps=options["max_steps"],
        learning_rate=options["learning_rate"],
        schedule=options["lr_scheduler_type"],
        warmup=options["warmup_steps"],
        betas=(options["adam_beta1"], options["adam_beta2"]),
        epsilon=options["adam_epsilon"],
        weight_decay=options["weight_decay"],
        max_grad_norm=options["max_grad_norm"],
        micro_batch=24,
    )


# ---------------------------------------------------------------------- the record itself


def test_no_case_is_left_out() -> None:
    """Every case that was recorded is compared above, and was recorded with the release it is said to be of."""
    read = Path(__file__).read_text()
    assert all(f'"{name}"' in read for name in TRL["cases"])
    assert TRL["versions"]["trl"].startswith("1.16.")


def test_the_page_for_people_who_come_from_trl_names_settings_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "from-trl.md").read_text()
    ours = "".join(row.split("|")[2] for row in page.split("\n## ")[1].splitlines() if row.startswith("|"))
    kinds = (Supervised, Dpo, Ipo, SimPo, Kto, BradleyTerry, Reinforcement, CandidateDistillation, Preference)
    known = {field.name for kind in kinds for field in fields(kind)}
    assert set(re.findall(r"(\w+)=", ours)) <= known
    assert set(re.findall(r'reinforcement\("(\w+)"', ours)) <= METHODS.keys()
