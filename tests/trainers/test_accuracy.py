"""token accuracy is what a greedy reader of the same tokens counts"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from melior.policies.language import LanguagePolicy
from melior.trainers.accuracy import Known, known
from melior.trainers.supervised import HeldoutLoss
from melior.types import Demonstration, Sampling

ROWS = [Demonstration(f"say {word}", f"the {word} sat") for word in ("cat", "hat", "mat", "man")]


def test_it_is_the_share_of_tokens_that_the_models_own_argmax_is(shared_policy: Callable[..., LanguagePolicy]) -> None:
    policy = shared_policy("llama", layout="padded")
    hits, total, nats = 0, 0, 0.0
    for row in ROWS:
        (turn,) = policy.renderer.turns(row)
        ids = torch.tensor([[*turn.context, *turn.decisions]])
        with torch.no_grad():
            logits = policy.backbone.inner(input_ids=ids).logits[0, len(turn.context) - 1 : -1].double()
        decided = ids[0, len(turn.context) :]
        hits += int((logits[:, : len(policy.renderer.tokenizer)].argmax(-1) == decided).sum())
        nats -= float(torch.log_softmax(logits, -1).gather(-1, decided[:, None]).sum())
        total += len(decided)
    loss, accuracy = known(policy, policy.encode(ROWS))
    assert accuracy == hits / total and loss == pytest.approx(nats / total, abs=1e-6)
    assert loss == pytest.approx(HeldoutLoss(policy, ROWS)(policy)["heldout_loss"], abs=1e-9)


def test_what_the_policy_says_at_its_best_is_all_known(shared_policy: Callable[..., LanguagePolicy]) -> None:
    policy = shared_policy("llama")
    said = policy.sample([row.inputs for row in ROWS], Sampling(temperature=0, max_tokens=10))
    assert known(policy, policy.encode(said))[1] == 1.0


def test_rows_that_teach_nothing_say_nothing(shared_policy: Callable[..., LanguagePolicy]) -> None:
    policy = shared_policy("llama")
    assert known(policy, policy.encode([])) == (None, None)
    assert known(policy, policy.encode([Demonstration("a", "b", weight=0.0)])) == (None, None)
    found = Known(policy, ROWS, [])(policy)
    assert found.keys() == {"mean_token_accuracy"} and found == Known(policy, ROWS[::-1], [])(policy)
