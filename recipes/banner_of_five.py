"""the banner of five: a slate policy learns from logs, then from a simulated shop, and is compared with its rivals

    python recipes/banner_of_five.py --folder runs/banner          # two shops, about 15 minutes on two cores
    python recipes/banner_of_five.py --folder runs/banner --quick  # one small run, about a minute

A page shows five of forty products. The log of a stochastic policy is all there is at first: a policy is made of it by
the off-policy likelihood, and then goes on against the shop itself. Judged are exact expected points on visits that
nobody trained on. Settings of learning were chosen in the shop "logit" alone; docs/banner.md says how, and what was
seen of the shop "cascade" before the length of the log was fixed. The folder gets `summary.json` and `report.html`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from banner_page import write_page
from numpy.typing import NDArray

from melior.policies.slate import SlatePolicy
from melior.policies.slate_network import Slate
from melior.rollouts.banner import Banner, best_slates, logging_policy, marginal_ranking, popularity
from melior.rollouts.banner.learnt import after_history, together
from melior.statistics import Interval, mean_interval
from melior.trainers.logged import Logged, OffPolicy
from melior.trainers.loop import FitConfig, fit
from melior.trainers.reinforcement import Rollouts, reinforcement
from melior.trainers.supervised import Examples, supervised
from melior.types import Demonstration, Record, Sampling, Score, SlateRequest

FAMILIES = ("logit", "cascade")
RIVALS = ("logging policy", "popularity", "true marginal rates", "SFT on what was chosen")  # all must be beaten
LOGS, SHOP, PLAIN = "from logs", "from logs, then the shop", "plain Plackett–Luce from logs"
BEST = "best slate found"
GREEDY = Sampling(temperature=0)
MOST = 10.0  # points that a slate counts at most in SFT: one purchase outweighs ten clicks, not more
TAIL = 4.0  # points that a position counts at most when learning from the log: purchases are rare, and mostly noise
BEST_OF = 300  # visits on which the best slate is searched for: it is no rival, and the search is slow
REPEATS = 20  # slates per visit over which a sampling policy's points are averaged

Values = dict[str, NDArray[np.float64]]  # policy → expected points of each fresh visit


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything."""

    impressions: int = 200_000  # logged
    fresh: int = 2_000  # visits that judge
    curve: tuple[int, ...] = (2_000, 5_000, 20_000, 60_000)  # shorter logs, of the first seed
    epochs: int = 4  # over the log
    batch: int = 1_024  # impressions of an update
    steps: int = 160  # on-policy updates
    prompts: int = 64  # visits of an update, eight slates each
    explained: int = 300  # visits behind the tables of what was learnt


QUICK = Size(impressions=4_000, fresh=300, curve=(1_000,), batch=256, steps=5, prompts=16, explained=60)
# Propensities of this log lie about 1/20, the fresh policy's about 1/40: the clip bounds what a rare item can say.
SETTINGS = OffPolicy(ratio="decision", credit="own", baseline="none", frozen=True, clip=1.25)


@dataclass
class Outcome:
    """What one shop and one seed gave."""

    values: Values
    seconds: dict[str, float] = field(default_factory=dict)
    curve: list[tuple[int, Interval]] = field(default_factory=list)
    tables: dict[str, Any] = field(default_factory=dict)
    examples: list[tuple[str, dict[str, tuple[list[str], float]]]] = field(default_factory=list)
    log: dict[str, float] = field(default_factory=dict)

    def gain(self, name: str, over: str) -> Interval:
        """Points that one policy has over another per visit, paired by visit."""
        return mean_interval(self.values[name] - self.values[over])


def main() -> None:
    """Runs everything, writes the folder, and fails where a claim does."""
    parser = argparse.ArgumentParser(description="Learn a banner of five products from logs and from a simulated shop")
    parser.add_argument("--folder", type=Path, default=Path("runs/banner"))
    parser.add_argument("--quick", action="store_true", help="one small shop and one seed, to see that it runs")
    parser.add_argument("--seeds", type=int, default=1, help="independent repetitions: shop, log and network")
    parser.add_argument("--family", choices=FAMILIES, help="one shop only")
    told = parser.parse_args()
    families = (told.family,) if told.family else FAMILIES[:1] if told.quick else FAMILIES
    size = QUICK if told.quick else Size()
    told.folder.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, list[Outcome]] = {}
    for family in families:
        outcomes[family] = [run(family, seed, size) for seed in range(told.seeds)]
        found = summary(outcomes, size)
        (told.folder / "summary.json").write_text(json.dumps(found, indent=1, ensure_ascii=False))
        write_page(told.folder / "report.html", outcomes, found)
    for line in found["sentences"]:
        print(line)
    print(f"{told.folder}/report.html")
    if found["failed"] and not told.quick:
        sys.exit(f"{len(found['failed'])} claims failed: {'; '.join(found['failed'])}")


def run(family: str, seed: int, size: Size) -> Outcome:
    """One shop, one log, one network: everything that is compared."""
    started = time.monotonic()
    world = Banner(family, seed)
    fresh = world.requests(size.fresh, seed=1_000_000 + seed)
    behavior = logging_policy(world)
    records = world.log(behavior, size.impressions, seed)
    scores = world.logged_scores(records)
    note = Notes(f"{family}, seed {seed}", started)
    note("logged")
    out = Outcome(rivals(world, fresh, records, scores))
    out.log = {"points": float(np.mean([score.value or 0.0 for score in scores])), "impressions": len(records)}
    note("rivals judged")
    chosen = learn_chosen(new_policy(world, records, seed), records, scores, size, seed)
    out.values["SFT on what was chosen"] = value(world, chosen, fresh)
    note("SFT")
    policy = learn_log(new_policy(world, records, seed), records, scores, size, seed)
    out.values[LOGS] = value(world, policy, fresh)
    note("off-policy")
    if seed == 0:
        out.curve = learning_curve(world, records, scores, fresh, out.values["logging policy"], size)
        out.curve.append((size.impressions, out.gain(LOGS, "logging policy")))
        note("curve")
    plain = learn_log(new_policy(world, records, seed, combinations=False), records, scores, size, seed)
    out.values[PLAIN] = value(world, plain, fresh)
    note("plain Plackett–Luce")
    practise(world, policy, size, seed)
    out.values[SHOP] = value(world, policy, fresh)
    note("on-policy")
    if seed == 0:
        out.tables = {
            "after": after_history(world, policy, fresh),
            "together": together(world, policy, fresh[: size.explained // 10]),
        }
        out.examples = examples(world, policy, fresh)
        note("what it learnt")
    out.seconds = note.seconds
    return out


class Notes:
    """Prints what is done, and remembers how long it took."""

    def __init__(self, name: str, started: float) -> None:
        self.name, self.last, self.seconds = name, started, dict[str, float]()

    def __call__(self, done: str) -> None:
        now = time.monotonic()
        self.seconds[done], self.last = round(now - self.last, 1), now
        print(f"{self.name}: {done}, {self.seconds[done]:.0f} s", flush=True)


# ---------------------------------------------------------------------- learning


def new_policy(world: Banner, records: Sequence[Record], seed: int, *, combinations: bool = True) -> SlatePolicy:
    """A policy that knows the catalogue and nothing else."""
    settings = Slate(positions=5, combinations=combinations, width=32)
    return SlatePolicy.make(settings, world.catalogue, [r.inputs for r in records[:5_000]], seed=seed)


def learn_chosen(
    policy: SlatePolicy, records: Sequence[Record], scores: Sequence[Score], size: Size, seed: int
) -> SlatePolicy:
    """SFT on the slates people did something with, by their points."""
    rows = [
        Demonstration(record.inputs, record.output, weight=min(score.value or 0.0, MOST))
        for record, score in zip(records, scores)
        if score.value
    ]
    steps = Examples(policy, rows, batch_size=256, epochs=size.epochs, seed=seed)
    fit(policy, steps, supervised(), FitConfig(learning_rate=2e-3))
    return policy


def learn_log(
    policy: SlatePolicy, records: Sequence[Record], scores: Sequence[Score], size: Size, seed: int
) -> SlatePolicy:
    """The off-policy likelihood on the whole log: every position by what it earned, weighted by its propensity."""
    capped = [replace(score, decisions=tuple(min(each, TAIL) for each in score.decisions)) for score in scores]
    capped = [replace(score, value=sum(score.decisions)) for score in capped]
    steps = Logged(policy, records, capped, batch_size=size.batch, epochs=size.epochs, seed=seed)
    fit(policy, steps, SETTINGS, FitConfig(learning_rate=3e-3, weight_decay=0.1))
    return policy


def practise(world: Banner, policy: SlatePolicy, size: Size, seed: int) -> None:
    """On-policy: slates are shown to new visitors, eight each, and compared.

    At a low temperature, since the likelihood's policy is spread out and served greedily.
    """
    tasks = world.tasks(size.steps * size.prompts, seed=2_000_000 + seed)
    sampling = Sampling(n=8, temperature=0.3, seed=seed)
    steps = Rollouts(policy, tasks, world, sampling, prompts=size.prompts, seed=seed)
    objective = reinforcement(estimator="leave_one_out", length=5)
    fit(policy, steps, objective, FitConfig(steps=size.steps, learning_rate=1e-3))


def learning_curve(
    world: Banner,
    records: Sequence[Record],
    scores: Sequence[Score],
    fresh: Sequence[SlateRequest],
    logging: NDArray[np.float64],
    size: Size,
) -> list[tuple[int, Interval]]:
    """The gain over the logging policy of policies made of shorter logs."""
    found = []
    for count in size.curve:
        part, told = records[:count], scores[:count]
        policy = learn_log(new_policy(world, part, 0), part, told, size, 0)
        found.append((count, mean_interval(value(world, policy, fresh) - logging)))
    return found


# ---------------------------------------------------------------------- judging


def value(world: Banner, policy: Any, fresh: Sequence[SlateRequest]) -> NDArray[np.float64]:
    """Exact expected points of the slates a policy serves: greedily, as it would be released."""
    return points(world, fresh, [record.output for record in policy.sample(fresh, GREEDY)])


def points(world: Banner, fresh: Sequence[SlateRequest], slates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Exact expected points, one number per visit."""
    return np.asarray(world.expected(fresh, slates).numpy())


def rivals(world: Banner, fresh: Sequence[SlateRequest], records: Sequence[Record], scores: Sequence[Score]) -> Values:
    """What must be beaten, and the best slate that a search with the truth in hand finds."""
    shown = logging_policy(world).sample(fresh, Sampling(n=REPEATS, seed=99))
    every = points(world, [record.inputs for record in shown], [record.output for record in shown])
    alone = points(world, fresh, marginal_ranking(world, fresh).slates(fresh))
    company = points(world, fresh, marginal_ranking(world, fresh, company=5).slates(fresh))
    return {
        "logging policy": every.reshape(len(fresh), REPEATS).mean(1),
        "popularity": points(world, fresh, popularity(world, records, scores).slates(fresh)),
        "true marginal rates": alone if alone.mean() > company.mean() else company,  # whichever is the stronger
        BEST: points(world, fresh[:BEST_OF], best_slates(world, fresh[:BEST_OF], rounds=1)),
    }


def examples(
    world: Banner, policy: SlatePolicy, fresh: Sequence[SlateRequest]
) -> list[tuple[str, dict[str, tuple[list[str], float]]]]:
    """A few visits, and what each policy shows them."""
    some = [*[r for r in fresh if r.viewed][:2], *[r for r in fresh if r.history][:2], *[r for r in fresh[:50]][:1]]
    slates = {
        "learnt": [list(record.output) for record in policy.sample(some, GREEDY)],
        "by true marginal rates": marginal_ranking(world, some).slates(some),
        "best found": best_slates(world, some),
    }
    worth = {name: points(world, some, shown) for name, shown in slates.items()}
    return [
        (told(request), {name: (shown[row], float(worth[name][row])) for name, shown in slates.items()})
        for row, request in enumerate(some)
    ]


def told(request: SlateRequest) -> str:
    """A visit in words."""
    known = ", ".join(f"{name} {what}" for name, what in request.context.items() if what is not None)
    before = f"; looks at {request.viewed}" if request.viewed else ""
    past = ", ".join(f"{entry.type} of {entry.item}" for entry in request.history[-4:])
    return f"{known}{before}{f'; before: {past}' if past else ''}"


def summary(outcomes: Mapping[str, Sequence[Outcome]], size: Size) -> dict[str, Any]:
    """Everything as plain JSON: means, gains, claims, the curve, what was learnt."""
    found: dict[str, Any] = {"size": asdict(size), "settings": asdict(SETTINGS), "families": {}}
    sentences, failed = [], []
    for family, runs in outcomes.items():
        claims = {}
        for policy in (LOGS, SHOP):
            for rival in RIVALS:
                gains = [run.gain(policy, rival) for run in runs]
                held = all(gain.low > 0 for gain in gains)
                claims[f"{policy} > {rival}"] = {"held": held, "gains": [gain.to_json() for gain in gains]}
                line = f"{family}: {policy} against {rival}: " + "; ".join(map(str, gains))
                sentences.append(line + ("" if held else "  FAILED"))
                failed += [] if held else [line]
        found["families"][family] = {
            "means": [{name: mean_interval(each).to_json() for name, each in run.values.items()} for run in runs],
            "claims": claims,
            "curve": [[count, gain.to_json()] for count, gain in runs[0].curve],
            "better_from": better_from(runs[0].curve),
            "plain": [run.gain(LOGS, PLAIN).to_json() for run in runs],
            "learnt": {name: table.to_json() for name, table in runs[0].tables.items()},
            "seconds": [run.seconds for run in runs],
            "log": [run.log for run in runs],
        }
    return {**found, "sentences": sentences, "failed": failed}


def better_from(curve: Sequence[tuple[int, Interval]]) -> int | None:
    """The fewest impressions from which on every longer log gave a policy better than the logging one."""
    first = None
    for count, gain in reversed(curve):
        if gain.low <= 0:
            break
        first = count
    return first


if __name__ == "__main__":
    main()
