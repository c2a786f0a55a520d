"""reward models on people's preferences and ratings, against linear models on the same folds

    python recipes/reward_models.py hh           # 1,154 pairs of answers, the less harmful chosen
    python recipes/reward_models.py taskmaster   # 3,228 turns of a coffee shop's agent, called good or bad
    python recipes/reward_models.py hopper       # 100 pairs of a robot's segments; also walker2d, can, lift

Every reward comes from models that did not learn from the row, nor from any row of its group: folds are cut between
groups, settings are chosen inside the learning rows of each fold, and what is compared is paired by row. Each fold is
kept in the output folder as it ends, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import reward_floors as floors
import torch
from reward_fields import FIELDS, MELIOR, STACK, Field, Trial
from reward_floors import Floats, Rows
from reward_outcome import Judged, Outcome, Told, base_rates, limits, picks, right
from reward_page import write_page

from melior.data.formats import canonical, fingerprint, read_examples
from melior.data.splits import folds
from melior.durable import write_file
from melior.evaluation.calibration import temperature_of
from melior.evaluation.reward_model import reward_report
from melior.policies.reward_ensemble import RewardEnsemble
from melior.policies.reward_heads import DEFAULT, Heads
from melior.policies.reward_model import Reward, RewardModel, sides
from melior.policies.reward_segments import Segments
from melior.policies.reward_texts import PairedTexts, TextReader
from melior.policies.reward_trunks import FeatureTrunk
from melior.policies.texts import TextInputs, Texts
from melior.statistics import Interval, wilson
from melior.trainers.loop import FitConfig, fit
from melior.trainers.reward_model import Comparisons, Ratings, bradley_terry, logistic
from melior.trainers.steps import Steps
from melior.types import Demonstration, Preference, Rated

PORTION = 1000  # outputs between two times that vectors are kept
LONGEST = 128  # tokens of a prompt or an answer that MiniLM reads, the last ones: half the time of its 256


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How often rows are cut, and how many models speak together."""

    outer: int
    inner: int = 3
    members: int = 3  # of what speaks at last; settings are chosen by one model each
    seed: int = 0


# ---------------------------------------------------------------------- melior's reward models


@cache
def encoder() -> TextInputs:
    return TextInputs.make(Texts(max_length=LONGEST))


VECTORS: dict[str, torch.Tensor] = {}  # of every text that MiniLM has read, shared by all models of a run


def read_texts(rows: Rows, messages: int | None, path: Path) -> None:
    """Lets MiniLM read every text of the rows once, in portions that are kept in a file."""
    if path.is_file():
        with np.load(path, allow_pickle=False) as kept:
            VECTORS.update(zip(kept["keys"].tolist(), torch.from_numpy(kept["vectors"]), strict=True))
    reader = TextReader(encoder(), PairedTexts(messages=messages))
    reader.vectors = VECTORS
    examples = sides(rows)
    for start in range(0, len(examples), PORTION):
        before = len(VECTORS)
        reader.read(examples[start : start + PORTION])
        if len(VECTORS) > before:
            print(f"MiniLM has read {min(start + PORTION, len(examples)):,} of {len(examples):,} outputs", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, keys=np.array(list(VECTORS)), vectors=torch.stack(list(VECTORS.values())).numpy())


def made(trial: Trial, rows: Rows, seed: int, messages: int | None = None) -> RewardModel:
    """An untrained model that reads rows like these."""
    if not isinstance(sides(rows[:1])[0].output, str | list):
        return RewardModel.make(Reward(inputs="segment", segment=Segments(hidden=trial.hidden)), rows, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = PairedTexts(hidden=sum(trial.hidden), dropout=0.0, words=trial.words, messages=messages)
        reader = TextReader(encoder(), config)
        reader.vectors = VECTORS
        return RewardModel(FeatureTrunk(reader), Heads((DEFAULT,), reader.width))


def trained(trial: Trial, rows: Rows, seed: int, messages: int | None = None) -> RewardModel:
    """A model that has learnt from the rows: Bradley–Terry from pairs, logistic from ratings."""
    model = made(trial, rows, seed, messages)
    pairs = isinstance(rows[0], Preference)
    shown: Callable[..., Steps] = Comparisons if pairs else Ratings
    steps = shown(model, rows, batch_size=trial.batch_size, epochs=trial.epochs, seed=seed)
    config = FitConfig(learning_rate=trial.learning_rate, weight_decay=trial.weight_decay)
    fit(model, steps, bradley_terry() if pairs else logistic(), config)
    return model


def stacked(rows: Rows, parts: Floats, others: Floats, seed: int) -> tuple[Floats, Floats]:  # [N, 2], [M, 2]
    """Rewards of others, and of the rows, by a linear reward model that reads two models' rewards as one step."""
    trial = Trial(name="stack", epochs=80, batch_size=256, learning_rate=0.05, weight_decay=0.0)
    steps = [np.asarray(each, dtype=np.float32)[None] for each in parts]
    if isinstance(rows[0], Preference):
        told: list[Any] = [
            Preference(None, steps[2 * place], steps[2 * place + 1], row.probability) for place, row in enumerate(rows)
        ]
    else:
        told = [Rated(None, step, row.rating) for step, row in zip(steps, rows, strict=True)]
    model = trained(trial, told, seed)

    def rewards(some: Floats) -> Floats:
        read = [Demonstration(None, np.asarray(each, dtype=np.float32)[None]) for each in some]
        return np.asarray(model.rewards(read)[:, 0])

    return rewards(others), rewards(parts)


# ---------------------------------------------------------------------- folds


@dataclass(frozen=True)
class Fold:
    """What each method gave to the rows of one fold, and what the inner folds chose."""

    rows: list[str]  # ids
    rewards: Mapping[str, list[float]]  # method → one per output, of a pair two, the chosen first
    chosen: Mapping[str, str]
    seconds: float


def measured(field: Field, learnt: Rows, unseen: Rows, settings: Settings) -> Fold:
    """The rewards of unseen rows by every method, each tuned inside the learnt rows."""
    start = time.monotonic()
    examples = sides(unseen)
    inner = folds(learnt, settings.inner, seed=settings.seed + 1)
    linear, ours = linear_way(field), melior_way(field, settings)
    inside = {
        "linear": chosen_inside(learnt, inner, linear, [str(each) for each in floors.STRENGTHS]),
        "melior": chosen_inside(learnt, inner, melior_way(field, replace(settings, members=1)), list(named(field))),
    }
    chosen = {method: name for method, (name, _) in inside.items()}
    parts = np.stack([rewards for _, rewards in inside.values()], axis=1)  # [N, 2] by models that did not see the row
    fresh = np.stack(
        [way(learnt, examples, [name])[name] for way, name in zip((linear, ours), chosen.values(), strict=True)], 1
    )
    rewards = {field.linear_name: fresh[:, 0], MELIOR: fresh[:, 1]}
    rewards[STACK], _ = stacked(learnt, parts, fresh, settings.seed)
    unit = sure_as(learnt, parts[:, 1])
    told = {name: (found / unit if name == MELIOR else found).tolist() for name, found in rewards.items()}
    return Fold([row.id for row in unseen], told, chosen, time.monotonic() - start)


Way = Callable[[Rows, Sequence[Any], Sequence[str]], Mapping[str, Floats]]  # rows, outputs, settings → rewards by each


def linear_way(field: Field) -> Way:
    """The linear model, by the names of strengths."""

    def way(rows: Rows, examples: Sequence[Any], names: Sequence[str]) -> Mapping[str, Floats]:
        learn = field.linear(floors.compared(rows) if isinstance(rows[0], Preference) else rows)
        return {name: learn(float(name))(examples) for name in names}

    return way


def melior_way(field: Field, settings: Settings) -> Way:
    """The mean reward of several models that differ by seed, by the names of trials."""

    def one(trial: Trial, rows: Rows, examples: Sequence[Any]) -> Floats:
        seeds = range(settings.seed, settings.seed + settings.members)
        models = [trained(trial, rows, seed, field.messages) for seed in seeds]
        return np.mean([model.rewards(examples)[:, 0].numpy() for model in models], axis=0)

    return lambda rows, examples, names: {name: one(named(field)[name], rows, examples) for name in names}


def named(field: Field) -> Mapping[str, Trial]:
    return {trial.name: trial for trial in field.trials}


def chosen_inside(
    learnt: Rows, inner: Sequence[tuple[Rows, Rows]], way: Way, names: Sequence[str]
) -> tuple[str, Floats]:
    """The setting whose rewards of inner held-out rows fit people best, and these rewards."""
    width = 2 if isinstance(learnt[0], Preference) else 1
    place = {row.id: number for number, row in enumerate(learnt)}
    found = {name: np.zeros((len(learnt), width)) for name in names}
    for kept, held in inner:
        for name, rewards in way(kept, sides(held), names).items():
            found[name][[place[row.id] for row in held]] = rewards.reshape(-1, width)
    flat = {name: rewards.ravel() for name, rewards in found.items()}
    best = min(flat, key=lambda name: loss(learnt, flat[name] / sure_as(learnt, flat[name])))
    return best, flat[best]


def log_odds(rows: Rows, rewards: Floats) -> tuple[Floats, Floats]:
    """Log-odds that rewards mean, and the shares of people they are about."""
    if isinstance(rows[0], Preference):
        pairs = rewards.reshape(-1, 2)
        return pairs[:, 0] - pairs[:, 1], np.array([row.probability for row in rows])
    return rewards, np.array([row.rating for row in rows])


def loss(rows: Rows, rewards: Floats) -> float:
    """Mean cross-entropy of people's labels, in nats."""
    odds, shares = log_odds(rows, rewards)
    return float(np.mean(shares * np.logaddexp(0, -odds) + (1 - shares) * np.logaddexp(0, odds)))


def sure_as(rows: Rows, rewards: Floats) -> float:
    """What rewards are divided by to be as sure as they may."""
    odds, shares = log_odds(rows, rewards)
    return temperature_of(odds, shares, np.ones(len(odds)))


def cross_fitted(field: Field, rows: Rows, settings: Settings, folder: Path) -> list[Fold]:
    """Every row's rewards from models that never saw its group; folds that were kept are not made again."""
    found = []
    key = canonical([fingerprint(rows), asdict(settings), [asdict(each) for each in field.trials], field.messages])
    for number, (learnt, unseen) in enumerate(folds(rows, settings.outer, seed=settings.seed), start=1):
        path = folder / "folds" / f"{number}.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if kept.get("key") != key:
            kept = {"key": key, **asdict(measured(field, learnt, unseen, settings))}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps(kept).encode())
            print(f"fold {number}/{settings.outer}: {kept['seconds']:.0f} s, chose {kept['chosen']}", flush=True)
        found.append(Fold(**{name: value for name, value in kept.items() if name != "key"}))
    return found


# ---------------------------------------------------------------------- what is told


def outcome(field: Field, rows: Rows, found: Sequence[Fold], settings: Settings, seconds: float) -> Outcome:
    """The figures of all methods on all rows."""
    width = 2 if isinstance(rows[0], Preference) else 1
    place = {row.id: number for number, row in enumerate(rows)}
    rewards = {name: np.zeros((len(rows), width)) for name in found[0].rewards}
    for fold in found:
        for name, mine in fold.rewards.items():
            rewards[name][[place[id] for id in fold.rows]] = np.reshape(mine, (-1, width))
    judged = Judged.of(rows)
    kept = {name: judged.kept(rows, each) for name, each in rewards.items()}
    examples = sides(rows)
    rules = {name: judged.measure(judged.kept(rows, rule(examples))) for name, rule in field.rules.items()}
    claimed = field.claimed
    chosen = {method: dict(Counter(fold.chosen[method] for fold in found)) for method in found[0].chosen}
    return Outcome(
        field=field,
        rows=len(judged.rows),
        measures={name: judged.measure(each) for name, each in kept.items()},
        gains={name: judged.gain(kept[name], kept[field.linear_name]) for name in (MELIOR, STACK)},
        rules={**rules, **base_rates(judged.rows)},
        report=reward_report(Told.of(rows, rewards[claimed].ravel()), rows),
        chosen=chosen,
        heldout=on_heldout(field, rows, chosen, settings) if field.heldout else {},
        picks=picks(rows, kept[claimed]) if isinstance(rows[0], Rated) else {},
        limits=limits(judged, kept[claimed], kept[field.linear_name], len(rows)),
        seconds=seconds,
    )


def kept_model(
    field: Field, rows: Rows, chosen: Mapping[str, Mapping[str, int]], settings: Settings, folder: Path
) -> None:
    """Melior's models as most folds chose them, from all rows, as a grader: `{"type": "learned", "model": folder}`."""
    trial = named(field)[max(chosen["melior"], key=lambda name: chosen["melior"][name])]
    seeds = range(settings.seed, settings.seed + settings.members)
    ensemble = RewardEnsemble([trained(trial, rows, seed, field.messages) for seed in seeds])
    ensemble.centre(sides(rows[:200]))
    ensemble.save(folder)


def on_heldout(
    field: Field, rows: Rows, chosen: Mapping[str, Mapping[str, int]], settings: Settings
) -> dict[str, Interval]:
    """Agreement on pairs that no fold held, with what most folds chose; and how models taught by returns agree."""
    most = {method: max(counts, key=lambda name: counts[name]) for method, counts in chosen.items()}
    ways = {
        field.linear_name: (linear_way(field), most["linear"]),
        MELIOR: (melior_way(field, settings), most["melior"]),
    }
    unseen = floors.compared(read_examples(field.heldout, "preferences").rows)
    asked = {f"{len(unseen)} held-out pairs, labels of people": (rows, unseen)}
    if field.scripted:
        scripted = read_examples(field.scripted, "preferences").rows
        asked["people's pairs, by models taught by returns"] = (scripted, floors.compared(rows))
    told = {}
    for name, (learnt, judged) in asked.items():
        for method, (way, setting) in ways.items():
            won = right(way(learnt, sides(judged), [setting])[setting].reshape(-1, 2))
            told[f"{name}: {method}"] = wilson(round(float(won.sum())), len(judged))
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=sorted(FIELDS))
    parser.add_argument("--out", type=Path, help="folder for folds, summary and page; by default runs/reward-SET")
    parser.add_argument("--folds", type=int, help="10 for segments, 5 for texts, where not said")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few rows and folds: whether it runs, not how good it is")
    given = parser.parse_args()
    field = FIELDS[given.set]
    folder = given.out or Path("runs") / f"reward-{field.name}"
    start = time.monotonic()
    rows = list(read_examples(field.source).rows)
    settings = Settings(outer=given.folds or field.folds, seed=given.seed)
    if given.quick:
        rows, settings = rows[:: max(1, len(rows) // 100)], Settings(outer=2, inner=2, members=1)
    if field.texts:
        read_texts(rows, field.messages, folder / "vectors.npz")
    found = cross_fitted(field, rows, settings, folder)
    result = outcome(field, rows, found, settings, time.monotonic() - start)
    summary = {**result.to_json(), "settings": asdict(settings)}
    write_file(folder / "summary.json", json.dumps(summary, indent=1).encode())
    for name, each in {**result.measures, **result.rules, **result.heldout, **result.picks}.items():
        print(f"{name:75s} {each}")
    for name, each in result.gains.items():
        print(f"{name + ' less ' + field.linear_name:75s} {each}")
    kept_model(field, rows, result.chosen, settings, folder / "model")
    print("\n".join([*result.limits, result.sentence, f"Page: {write_page(folder, result)}"]))
    if not result.met and not given.quick:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
