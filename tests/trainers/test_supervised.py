"""demonstrations as steps: every row once per epoch, and only what can be learned"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tabular import Tabular

from melior.errors import ConfigError, DataError
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.policies.language import LanguagePolicy
from melior.trainers.loop import FitConfig, fit
from melior.trainers.supervised import Examples, HeldoutLoss, Supervised
from melior.types import Demonstration

ROWS = [Demonstration("a", (number % 5, number // 5)) for number in range(11)]


def test_every_row_comes_once_per_epoch_in_a_new_order() -> None:
    policy = Tabular()
    steps = Examples(policy, ROWS, batch_size=4, epochs=3)
    assert (steps.per_epoch, steps.total) == (3, 9)
    epochs = [[o for i in range(3) for o in steps(3 * epoch + i).batch.outputs] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(Examples(policy, ROWS, batch_size=11)(0).batch.outputs)
    assert epochs[0] != epochs[1]
    again = Examples(policy, ROWS, batch_size=4, epochs=3)
    assert again(7).batch.outputs == steps(7).batch.outputs
    assert Examples(policy, ROWS, batch_size=4, epochs=3, seed=1)(7).batch.outputs != steps(7).batch.outputs


def test_every_turn_of_a_conversation_travels_together(learner: Callable[..., LanguagePolicy]) -> None:
    policy = learner()
    talk = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, ["hi", "a", "and", "b"])]
    steps = Examples(policy, [Demonstration(talk), Demonstration("hi", "cat")], batch_size=1)
    assert sorted(len(steps(index).batch) for index in range(2)) == [1, 2]


def test_rows_with_nothing_to_learn_are_dropped_and_counted(learner: Callable[..., LanguagePolicy]) -> None:
    policy = learner()
    policy.max_length = 40
    rows = [Demonstration("hi", "a"), Demonstration("the cat sat " * 60, "b"), Demonstration("hi", "c", weight=0.0)]
    steps = Examples(policy, rows)
    assert (steps.dropped, len(steps(0).batch)) == (2, 1)
    with pytest.raises(DataError, match="None of 2 rows"):
        Examples(policy, rows[1:])
    with pytest.raises(DataError, match="0 demonstrations"):
        Examples(policy, [])
    for held_out in (rows[1:2], rows[2:]):
        with pytest.raises(DataError, match="None of 1 held-out rows"):
            HeldoutLoss(policy, held_out)


def test_weights_weigh() -> None:
    """A row of weight 2 pulls like two equal rows."""
    policy = Tabular()
    losses = []
    for rows in ([Demonstration("a", (1,), weight=2.0), ROWS[3]], [Demonstration("a", (1,))] * 2 + [ROWS[3]]):
        batch = policy.encode(rows)
        (term,) = Supervised().loss(policy.score(batch), batch)
        losses.append(torch.autograd.grad(term.total / Supervised().counts(batch)["nll"], policy.logits)[0])
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-14)


def test_other_rows_have_another_fingerprint() -> None:
    policy = Tabular()
    prints = {
        Examples(policy, rows, batch_size=size, epochs=epochs, seed=seed).fingerprint()
        for rows, size, epochs, seed in [
            (ROWS, 4, 1, 0),
            (ROWS[1:], 4, 1, 0),
            (ROWS, 5, 1, 0),
            (ROWS, 4, 2, 0),
            (ROWS, 4, 1, 1),
        ]
    }
    assert len(prints) == 5
    assert Examples(policy, ROWS, batch_size=4).fingerprint() == Examples(policy, ROWS, batch_size=4).fingerprint()


def test_smoothing_keeps_a_share_for_every_other_label() -> None:
    rows = [Demonstration({"side": side}, label) for side, label in (("left", "a"), ("right", "b")) for _ in range(4)]
    chances = []
    for smoothing in (0.0, 0.3):
        policy = ClassifierPolicy.make(Classifier(labels=("a", "b", "c")), rows, seed=0, device="cpu")
        steps = Examples(policy, rows, batch_size=8, epochs=150)
        fit(policy, steps, Supervised(smoothing=smoothing), FitConfig(learning_rate=0.02))
        chances.append(policy.probabilities([rows[0].inputs])[0].tolist())
    assert chances[0][0] > 0.97
    assert chances[1] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_smoothing_needs_candidates_and_is_a_share() -> None:
    policy = Tabular()
    batch = policy.encode(ROWS)
    with pytest.raises(ConfigError, match=r"smoothing=0\.1 needs a policy that lists all candidates"):
        Supervised(smoothing=0.1).loss(policy.score(batch), batch)
    with pytest.raises(ConfigError, match=r"got 1\.0"):
        Supervised(smoothing=1.0)
