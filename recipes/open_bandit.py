"""a shop's banner from its logs: two policies judged from each other's impressions, and a slate policy learnt from them

    python recipes/open_bandit.py --out runs/open-bandit

The sample of the Open Bandit Dataset holds 10,000 impressions that were shown at random and 10,000 that Bernoulli
Thompson sampling chose, with 38 and 42 clicks. So few clicks test the estimators, not the rankings: each policy is
estimated from the log of the other and held against its own mean, then a slate policy learns from half of the random
log and is judged on the other half. No difference here is significant, and the recipe says so from its own intervals.

Source: Saito et al. 2021, arXiv:2008.07146; all rows of both logs click at .35 % (random) and .50 %.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from melior import off_policy
from melior.data.catalogues import read_catalogue
from melior.data.formats import read_examples
from melior.data.splits import split
from melior.evaluation.compare import compare
from melior.evaluation.logged import Estimator, evaluate_log, evaluate_logged
from melior.policies.slate import SlatePolicy
from melior.policies.slate_network import Slate
from melior.rewards.graders import load_grader
from melior.statistics import Interval, mean_interval
from melior.trainers.logged import Logged
from melior.trainers.logged import off_policy as objective
from melior.trainers.loop import FitConfig, fit
from melior.types import Record, Score

ITEMS = 80
POINTS = {"type": "events", "points": {"click": 1}}
PUBLISHED = {"random": 0.0035, "bernoulli-ts": 0.0050}  # click rates of the whole data set
PRIOR = 100.0  # impressions at the mean rate that every item and slot are given: a click is one in 250


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, and on how much."""

    heldout: float = 0.5  # of the random log
    epochs: int = 3
    batch_size: int = 500
    learning_rate: float = 3e-3
    clip: float = 10.0
    beta: float = 0.1  # of KL to the logging policy: 20 clicks must not move much
    seed: int = 0


Chances = Mapping[tuple[str, str], float]  # (item, slot) → probability


def main() -> None:
    """Runs both parts, prints what they say and writes summary.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/open-bandit"))
    parser.add_argument("--quick", action="store_true", help="one pass over a tenth of the rows, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    settings = Settings(seed=asked.seed, epochs=1 if asked.quick else Settings.epochs)
    told = run(settings, rows=1000 if asked.quick else None)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "summary.json").write_text(json.dumps(told, indent=1))
    print(f"\n{asked.out / 'summary.json'}: every number above")


def run(settings: Settings, rows: int | None = None) -> dict[str, Any]:
    """Both parts on the first `rows` impressions of each log, all of them where it is None."""
    logs: dict[str, list[Record]] = {
        name: read_examples(f"known:open-bandit@{name}").rows[:rows] for name in ("random", "bernoulli-ts")
    }
    scores = {name: graded(records) for name, records in logs.items()}
    for name, given in scores.items():
        clicks = sum(int(score.value or 0) for score in given)
        print(f"{name}: {len(given):,} impressions, {clicks} clicks; whole data set {PUBLISHED[name]:.2%}")
    estimates = exchanged(logs, scores)
    learnt = trained(logs["random"], scores["random"], settings)
    return {"clicks": {n: sum(s.value or 0 for s in g) for n, g in scores.items()}, "estimates": estimates, **learnt}


def graded(records: Sequence[Record]) -> list[Score]:
    """One point per click."""
    return load_grader(POINTS).grade_many(records)


# ---------------------------------------------------------------------- each policy from the log of the other


def exchanged(logs: Mapping[str, Sequence[Record]], scores: Mapping[str, Sequence[Score]]) -> list[dict[str, Any]]:
    """Estimates of each policy from the other's log, beside the mean of its own."""
    chances = {"random": dict.fromkeys(cells(), 1 / ITEMS), "bernoulli-ts": shown_chances(logs["bernoulli-ts"])}
    told = []
    print("\ntarget        from          estimator   clicks per 100   95 % interval     its own log says")
    for target, source in (("bernoulli-ts", "random"), ("random", "bernoulli-ts")):
        records, rewards = logs[source], rewards_of(scores[source])
        weights = torch.tensor(
            [chances[target].get((r.output[0], slot_of(r)), 0.0) / np.exp(logged(r)) for r in records],
            dtype=torch.float64,
        )
        predicted, expected = modelled(records, rewards, chances[target])
        own = interval(rewards_of(scores[target]))
        for name, values in (
            ("ips", off_policy.ips(rewards, weights)),
            ("snips", off_policy.snips(rewards, weights)),
            ("dr", off_policy.doubly_robust(rewards, weights, predicted, expected)),
        ):
            found = interval(values)
            told.append({"target": target, "from": source, "estimator": name, **found.to_json(), "own": own.to_json()})
            print(
                f"{target:13s} {source:13s} {name:9s} {100 * found.estimate:10.3f}         "
                f"[{100 * found.low:.3f}, {100 * found.high:.3f}]    "
                f"{100 * own.estimate:.3f} [{100 * own.low:.3f}, {100 * own.high:.3f}]"
            )
        overlap = off_policy.overlap(weights, rewards)
        for warning in overlap.warnings():
            print(f"  ! {warning}")
        told[-1]["warnings"] = overlap.warnings()
        told[-1]["effective"] = overlap.effective
    return told


def cells() -> list[tuple[str, str]]:
    """Every item in every slot."""
    return [(str(item), slot) for item in range(ITEMS) for slot in ("1", "2", "3")]


def slot_of(record: Record) -> str:
    """The slot of the banner that an impression is of."""
    return str(record.inputs.context["slot"])


def logged(record: Record) -> float:
    """The log-propensity of an impression, in nats."""
    assert record.behavior_log_probs is not None  # rows without are refused when they are read
    return record.behavior_log_probs[0]


def shown_chances(records: Sequence[Record]) -> Chances:
    """How often a policy that knows no context showed each item in each slot.

    Its chances drift as it learns, so the mean of the propensities it logged would be too high: an item is logged
    mostly while its chance is high. What it never showed has no chance here.
    """
    shown = Counter((record.output[0], slot_of(record)) for record in records)
    slots = Counter(slot_of(record) for record in records)
    return {(item, slot): count / slots[slot] for (item, slot), count in shown.items()}


def modelled(records: Sequence[Record], rewards: Tensor, chances: Chances) -> tuple[Tensor, Tensor]:
    """What click rates by item and slot, fitted on the other half of the rows, expect of a row and of a policy."""
    predicted, expected = torch.zeros_like(rewards), torch.zeros_like(rewards)
    half = torch.arange(len(records)) % 2 == 0
    for side in (half, ~half):
        rates = rates_of([r for r, other in zip(records, ~side, strict=True) if other], rewards[~side])
        total = {slot: sum(p * rates(item, slot) for (item, s), p in chances.items() if s == slot) for slot in "123"}
        for row in side.nonzero()[:, 0].tolist():
            slot = slot_of(records[row])
            predicted[row], expected[row] = rates(records[row].output[0], slot), total[slot]
    return predicted, expected


def rates_of(records: Sequence[Record], rewards: Tensor) -> Any:
    """Click rates by item and slot, drawn towards the mean rate as if it had been seen `PRIOR` times before."""
    clicks: dict[tuple[str, str], float] = defaultdict(float)
    shown: dict[tuple[str, str], int] = defaultdict(int)
    for record, reward in zip(records, rewards.tolist(), strict=True):
        clicks[record.output[0], slot_of(record)] += reward
        shown[record.output[0], slot_of(record)] += 1
    mean = float(rewards.mean())
    return lambda item, slot: (clicks[item, slot] + PRIOR * mean) / (shown[item, slot] + PRIOR)


def rewards_of(scores: Sequence[Score]) -> Tensor:
    """What each impression earned."""
    return torch.tensor([score.value or 0.0 for score in scores], dtype=torch.float64)


def interval(values: Tensor) -> Interval:
    """The mean with its bootstrap interval."""
    return mean_interval(values.tolist())


# ---------------------------------------------------------------------- a slate policy from the random log


def trained(records: Sequence[Record], scores: Sequence[Score], settings: Settings) -> dict[str, Any]:
    """A slate policy learnt from a part of the log and judged on the rest, beside the log itself."""
    items = read_catalogue("known:open-bandit-items")
    place = {item.id: index for index, item in enumerate(items)}
    records = [replace(record, decisions=(place[record.output[0]],)) for record in records]  # as the policy counts them
    score_of = {id(record): score for record, score in zip(records, scores, strict=True)}
    train, held = split(list(records), settings.heldout, settings.seed)
    ours, theirs = [score_of[id(r)] for r in train], [score_of[id(r)] for r in held]
    print(f"\nlearning from {len(train):,} rows ({rewards_of(ours).sum():.0f} clicks), judged on {len(held):,} others")
    policy = SlatePolicy.make(Slate(positions=1), items, [record.inputs for record in train], settings.seed)
    steps = Logged(policy, train, ours, batch_size=settings.batch_size, epochs=settings.epochs, seed=settings.seed)
    fit(
        policy,
        steps,
        objective(clip=settings.clip, beta=settings.beta),
        FitConfig(learning_rate=settings.learning_rate),
    )
    rates = rates_of(train, rewards_of(ours))

    def expects(log: Sequence[Record]) -> Tensor:  # [N, 1, K] in the order of the catalogue
        return torch.tensor([[[rates(item.id, slot_of(record)) for item in items]] for record in log])

    baseline = evaluate_log(held, theirs, grader="clicks")
    print(f"the log itself: {100 * baseline.reward.estimate:.3f} clicks per 100")
    told: dict[str, Any] = {"logged": baseline.reward.to_json()}
    estimators: tuple[Estimator, ...] = ("snips", "dr")
    significant = False
    for name in estimators:
        found = evaluate_logged(policy, held, theirs, estimator=name, expects=expects, grader="clicks")
        gain = compare(found, baseline).gain
        told[name] = {"value": found.reward.to_json(), "gain": gain.to_json(), "notes": list(found.notes)}
        apart = not gain.low <= 0 <= gain.high
        significant = significant or apart
        says = "significant; look again with more clicks" if apart else "not significant"
        print(
            f"{name:6s} {100 * found.reward.estimate:.3f} clicks per 100; against the log "
            f"{100 * gain.estimate:+.3f} [{100 * gain.low:+.3f}, {100 * gain.high:+.3f}]: {says}"
        )
        for note in found.notes:
            print(f"  ! {note}")
    told["significant"] = significant
    if not told["significant"]:
        print("Some forty clicks tell nobody which of these policies is better; they show that the estimators run.")
    return told


if __name__ == "__main__":
    main()
