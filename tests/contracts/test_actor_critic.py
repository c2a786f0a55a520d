"""a policy with a value function: one forward pass, the policy's numbers untouched, kept beside the plain policy"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tabular import Tabular
from test_policies import CASES, EVERYTHING, Case, sampled
from tiny import AllDouble

from melior.errors import CheckpointError, ConfigError, ModelError
from melior.policies.base import LOG_PROBS, Rates, Want
from melior.policies.kinds import load_policy
from melior.policies.values import FILE, WEIGHTS, ActorCritic, values_of

VALUES = frozenset({Want.VALUES})
BOTH = LOG_PROBS | VALUES
KINDS = [case for case in CASES if case.name in ("labels of a table", "several labels", "language", "slates")]


@pytest.fixture(params=KINDS, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def spread(critic: ActorCritic) -> ActorCritic:
    """A value function that tells states apart."""
    source = torch.Generator().manual_seed(3)
    for parameter in critic.head.parameters():
        parameter.data += torch.randn(parameter.shape, generator=source, dtype=parameter.dtype)
    return critic


@pytest.fixture
def actor(case: Case, folder_of: Callable[..., Path]) -> Iterator[ActorCritic]:
    with AllDouble():
        yield spread(ActorCritic.make(case.make(folder_of, "float64")))


def test_log_probs_are_the_policys_own(actor: ActorCritic, case: Case) -> None:
    batch = actor.encode(sampled(actor, case))
    assert torch.equal(actor.score(batch).log_probs, actor.policy.score(batch).log_probs)
    assert (actor.score(batch, BOTH).log_probs - actor.policy.score(batch).log_probs).abs().max() <= case.exact
    found = actor.score(batch, EVERYTHING - {Want.CANDIDATES})
    assert found.entropy is not None and found.states is not None and found.values is not None
    assert actor.score(batch, BOTH).states is None


def test_a_value_reads_the_state_at_its_place_and_0_stands_behind_a_row(actor: ActorCritic, case: Case) -> None:
    batch = actor.encode(sampled(actor, case))
    found = actor.score(batch, BOTH | {Want.STATES})
    assert found.values.shape == (len(batch), batch.mask.shape[1] + 1)
    wanted = found.states @ actor.head.weight[0] + actor.head.bias
    for row, length in enumerate(batch.mask.sum(1).tolist()):
        torch.testing.assert_close(found.values[row, : length + 1], wanted[row, : length + 1], rtol=0, atol=1e-12)
        assert not bool(found.values[row, length + 1 :].any())
    alone = actor.score(batch, VALUES)
    torch.testing.assert_close(alone.values, found.values, rtol=0, atol=case.exact)


def test_values_do_not_depend_on_batch_mates_or_cuts(actor: ActorCritic, case: Case) -> None:
    batch = actor.encode(sampled(actor, case))
    whole = values_of(actor, batch)
    torch.testing.assert_close(values_of(actor, batch, 1), whole, rtol=0, atol=max(case.exact, 1e-11))
    assert float(whole.std()) > 1e-3


def test_a_detached_value_leaves_the_trunk_alone_and_a_shared_one_does_not(actor: ActorCritic, case: Case) -> None:
    batch = actor.encode(sampled(actor, case))
    detached = ActorCritic(actor.policy, actor.head, detach=True)
    own = [parameter for _, parameter in actor.policy.candidates() if parameter.requires_grad]
    for one, reaches in ((actor, True), (detached, False)):
        total = one.score(batch, VALUES).values.square().sum()
        gradients = torch.autograd.grad(total, own + list(actor.head.parameters()), allow_unused=True)
        assert any(g is not None and bool(g.any()) for g in gradients[: len(own)]) == reaches
        assert all(bool(g.any()) for g in gradients[len(own) :])


def test_a_critic_of_its_own_changes_nothing_of_the_policy(case: Case, folder_of: Callable[..., Path]) -> None:
    with AllDouble():
        policy, critic = case.make(folder_of, "float64"), case.make(folder_of, "float64")
        actor = spread(ActorCritic.make(policy, critic=critic))
        batch = actor.encode(sampled(actor, case))
        found = actor.score(batch, BOTH)
        assert torch.equal(found.log_probs, policy.score(batch).log_probs)
        own = [parameter for _, parameter in policy.candidates() if parameter.requires_grad]
        theirs = [parameter for _, parameter in critic.candidates() if parameter.requires_grad]
        gradients = torch.autograd.grad(found.values.square().sum(), own + theirs, allow_unused=True)
        assert all(gradient is None for gradient in gradients[: len(own)])
        assert any(gradient is not None and bool(gradient.any()) for gradient in gradients[len(own) :])


def test_what_trains_is_named_apart_and_can_be_frozen(case: Case, folder_of: Callable[..., Path]) -> None:
    policy = case.make(folder_of, "float32")
    actor = ActorCritic.make(policy, critic=case.make(folder_of, "float32"))
    names = [name for name, _ in actor.candidates()]
    assert len(names) == len(set(names)) and {"value.weight", "value.bias"} < set(names)
    assert {name for name in names if name.startswith("critic.")} == {f"critic.{n}" for n, _ in policy.candidates()}
    grouped = actor.parameter_groups(Rates(1.0, factors={r"^value\.": 10.0}))
    fast = {name for group in grouped if group.learning_rate == 10.0 for name in group.names}
    assert fast == {"value.weight", "value.bias"}
    before = actor.fingerprint()
    assert actor.freeze({r"^critic\.": 0.0}) == {}
    assert not any(name.startswith("critic.") for name in actor.state()) and actor.fingerprint() != before
    with pytest.raises(ConfigError, match="matches no"):
        actor.freeze({"no such parameter": 0.0})


@pytest.mark.parametrize("separate", [False, True])
def test_what_was_saved_comes_back_and_the_plain_policy_from_the_same_folder(
    separate: bool, case: Case, folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    policy = case.make(folder_of, "float32")
    critic = case.make(folder_of, "float32") if separate else None
    actor = spread(ActorCritic.make(policy, critic=critic, detach=separate))
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():  # of a LoRA too
        for tensor in actor.state().values():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=source, dtype=tensor.dtype))
    batch = actor.encode(sampled(actor, case))
    actor.save(tmp_path / "saved")
    actor.save(tmp_path / "saved")  # over itself
    loaded = ActorCritic.load(tmp_path / "saved", device="cpu")
    again = loaded.encode(sampled(actor, case))
    assert loaded.fingerprint() == actor.fingerprint() and loaded.detach == separate
    torch.testing.assert_close(values_of(loaded, again), values_of(actor, batch), rtol=0, atol=1e-5)
    plain: Any = load_policy(tmp_path / "saved", device="cpu")
    assert plain.kind == actor.kind and plain.fingerprint() == policy.fingerprint()
    torch.testing.assert_close(plain.score(again).log_probs, policy.score(batch).log_probs, rtol=0, atol=1e-5)


def test_a_damaged_value_function_is_told(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "slates")
    actor = spread(ActorCritic.make(case.make(lambda: None, "float32")))
    actor.policy.save(tmp_path / "plain")
    with pytest.raises(ModelError, match=r"no value function; make one"):
        ActorCritic.load(tmp_path / "plain")
    actor.save(tmp_path / "saved")
    (tmp_path / "saved" / WEIGHTS).write_bytes(b"0" * 8)
    with pytest.raises(CheckpointError, match="damaged"):
        ActorCritic.load(tmp_path / "saved")
    assert (tmp_path / "saved" / FILE).is_file()


def test_a_fresh_value_function_expects_nothing_and_its_weights_are_its_origin() -> None:
    policy = Tabular(("a", "b"))
    actor = ActorCritic.make(policy)
    assert not bool(values_of(actor, policy.every_row()).any())
    other = ActorCritic.make(policy)
    assert actor.origin == other.origin
    assert ActorCritic(policy, spread(other).head).origin != actor.origin


def test_a_policy_without_values_and_a_critic_of_other_decisions_are_refused() -> None:
    policy = Tabular()
    with pytest.raises(ModelError, match=r"wrap it: ActorCritic\.make"):
        values_of(policy, policy.every_row())
    with pytest.raises(ModelError, match="decides otherwise"):
        ActorCritic.make(policy, critic=Tabular(vocabulary=3))


def test_gradients_of_values_equal_finite_differences(actor: ActorCritic, case: Case) -> None:
    batch = actor.encode(sampled(actor, case))
    parameters = [parameter for _, parameter in actor.candidates() if parameter.requires_grad]
    source = torch.Generator().manual_seed(4)
    start = [p.detach() + 0.05 * torch.randn(p.shape, generator=source, dtype=p.dtype) for p in parameters]
    direction = [torch.randn(p.shape, generator=source, dtype=p.dtype) for p in parameters]

    def value(step: float) -> torch.Tensor:
        for parameter, origin, towards in zip(parameters, start, direction, strict=True):
            parameter.data = origin + step * towards
        return actor.score(batch, VALUES).values.square().mean()

    found = torch.autograd.grad(value(0.0), parameters, allow_unused=True)
    slope = sum(float((g * towards).sum()) for g, towards in zip(found, direction, strict=True) if g is not None)
    with torch.no_grad():
        measured = float(value(1e-6) - value(-1e-6)) / 2e-6
    assert measured == pytest.approx(slope, rel=1e-5, abs=1e-6) and abs(slope) > 1e-3


def test_padding_columns_change_no_value() -> None:
    policy = Tabular(stops=True)
    actor = spread(ActorCritic.make(policy))
    batch = policy.every_row()
    padding = torch.zeros(len(batch), 2)
    wide = replace(batch, mask=torch.cat([batch.mask, padding.bool()], 1))
    found = values_of(actor, wide)
    assert torch.equal(found[:, : batch.mask.shape[1] + 1], values_of(actor, batch))
    assert not bool(found[:, batch.mask.shape[1] + 1 :].any())
