"""service: people's ratings of a coffee shop's answers choose the best of n, and other people's ratings judge that

    python recipes/service.py --out runs/service

People called 795 answers of an ordering agent good or bad (Taskmaster-4; calls of the shop's interface left out). One
half of the openings teaches a reward model, the proxy; the other half another one, the gold. SmolLM2 answers customers
of dialogs that neither learnt from, n times each; the proxy takes the best, and the gold, which is never optimised,
says what that is worth. Where the proxy's own reward goes on rising and the gold's does not, the proxy is being gamed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vectors import read_texts, texts

from melior.data.formats import canonical, read_examples
from melior.data.splits import split
from melior.durable import write_file
from melior.evaluation.reward_model import RewardReport, reward_report
from melior.policies.language import LanguagePolicy
from melior.policies.reward_model import Reward, RewardModel
from melior.reports.document import Part, listed, paragraph, write_document
from melior.reports.plots import band_chart, table
from melior.reports.reward_model import reward_section
from melior.reports.schema import Line, Point
from melior.statistics import Interval, mean_interval
from melior.trainers.loop import FitConfig, fit
from melior.trainers.reward_model import Ratings, logistic
from melior.types import Demonstration, Rated, Sampling

Floats = NDArray[np.float64]
MODEL = "smollm2-135m-instruct"
ROLE = {"role": "system", "content": "You take orders for a coffee bar. Answer the customer in one short sentence."}
LONGEST = 600  # characters of a dialog that SmolLM2 goes on with
SHOWN = 10  # dialogs on the page


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Small, so that the whole costs about three minutes of one core."""

    dialogs: int = 32  # that SmolLM2 goes on with
    n: int = 8  # answers to each
    tokens: int = 20
    temperature: float = 0.7  # at 1 so small a model hardly makes sense
    asked: float = 0.25  # of the openings: their dialogs are gone on with
    epochs: int = 12
    learning_rate: float = 1e-3
    seed: int = 0


# ---------------------------------------------------------------------- two reward models


@dataclass(frozen=True)
class Rows:
    """Rated answers in words, and rows whose dialogs are gone on with; no opening stands on two sides."""

    proxy: Sequence[Rated]
    gold: Sequence[Rated]
    asked: Sequence[Rated]  # calls too: only what was said before is used

    @classmethod
    def read(cls, settings: Settings) -> Rows:
        rows = list(read_examples("known:taskmaster-reward").rows)
        others, asked = split(rows, settings.asked, seed=settings.seed)
        proxy, gold = split([row for row in others if not row.item["call"]], 0.5, seed=settings.seed)
        return cls(proxy, gold, asked)

    def dialogs(self, most: int) -> list[list[Mapping[str, Any]]]:
        """Different dialogs in which a customer spoke last, and no interface before."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for row in self.asked:
            said = row.inputs
            spoken = said[-1]["role"] == "user" and all(each["role"] != "tool" for each in said)
            if spoken and sum(len(each["content"]) for each in said) <= LONGEST:
                found[canonical(said)] = said
        return list(found.values())[:most]


def taught(rows: Sequence[Rated], seed: int, settings: Settings) -> RewardModel:
    """A reward model of answers: MiniLM's vectors, and the log-odds that people call them good."""
    model = RewardModel.make(Reward(inputs="text", text=texts()), rows, seed=seed)
    steps = Ratings(model, rows, batch_size=64, epochs=settings.epochs, seed=seed)
    fit(model, steps, logistic(), FitConfig(learning_rate=settings.learning_rate, weight_decay=0.01))
    return model


# ---------------------------------------------------------------------- the best of n


def best_of(proxy: Floats, judged: Floats, k: int) -> Floats:  # [P, N], [P, N] -> [P]
    """What the answer is worth that the proxy likes best of k, in expectation over all choices of k of the n.

    Source: Nakano et al. 2021, arXiv:2112.09332, appendix I.
    """
    n = proxy.shape[1]
    weights = np.array([math.comb(place, k - 1) / math.comb(n, k) for place in range(n)])
    order = np.argsort(proxy, axis=1, kind="stable")
    return np.asarray(np.take_along_axis(judged, order, axis=1) @ weights)


def spent(k: int) -> float:
    """KL(best of k ‖ the policy) in nats, an upper bound.

    Source: Stiennon et al. 2020, arXiv:2009.01325, appendix G.3.
    """
    return math.log(k) - (k - 1) / k


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Answers to each dialog, and what both reward models say of them."""

    dialogs: Sequence[Sequence[Mapping[str, Any]]]
    answers: Sequence[Sequence[str]]
    proxy: Floats  # [P, N] log-odds of being called good
    gold: Floats  # [P, N]
    reports: Mapping[str, RewardReport]
    seconds: float

    @property
    def sizes(self) -> list[int]:
        return [k for k in (1, 2, 4, 8, 16) if k <= self.proxy.shape[1]]

    @property
    def gains(self) -> dict[str, dict[int, Interval]]:
        """By how much the best of k beats any answer, for both judges, paired by dialog."""
        judges = {"proxy": self.proxy, "gold": self.gold}
        return {
            name: {k: mean_interval(best_of(self.proxy, found, k) - found.mean(1)) for k in self.sizes[1:]}
            for name, found in judges.items()
        }

    @property
    def kept(self) -> Interval:
        """Correlation of both judges' rewards of answers to one dialog."""
        within = [np.corrcoef(a, b)[0, 1] for a, b in zip(self.proxy, self.gold, strict=True) if a.std() and b.std()]
        return mean_interval(within, bounds=(-1, 1))

    @property
    def sentence(self) -> str:
        """Whether what the proxy takes is better by the gold as well."""
        k = self.sizes[-1]
        proxy, gold = (self.gains[name][k] for name in ("proxy", "gold"))
        told = "rises too" if gold.low > 0 else "falls" if gold.high < 0 else "does not change beyond chance"
        return (
            f"The best of {k} by the proxy is better by {proxy} (log-odds) in the proxy's own eyes; the reward of the "
            f"gold model, which learnt from other people's rows, {told} ({gold}), on {len(self.dialogs)} dialogs."
        )

    @property
    def limits(self) -> list[str]:
        """What this cannot show."""
        auc = self.reports["gold"].measures["auc"]
        return [
            f"The gold is a reward model as well: it tells good answers of people from bad ones with an area of {auc}.",
            "Both judges read MiniLM's vectors of the same kind of rows, so they may err alike: the gold flatters.",
            "86 % of the rated answers were called good, and all were written by people or a large model; those of "
            "SmolLM2 are of another kind, about which neither judge learnt anything.",
            "Both read the end of a dialog as one vector: whether an order was taken down rightly, they hardly know.",
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "sentence": self.sentence,
            "gains": {
                name: {k: {**each.to_json(), "nats": spent(k)} for k, each in found.items()}
                for name, found in self.gains.items()
            },
            "correlation": self.kept.to_json(),
            "reports": {name: report.to_json() for name, report in self.reports.items()},
            "limits": self.limits,
            "seconds": round(self.seconds),
        }


def write_page(folder: Path, result: Outcome) -> Path:
    """A page for people: both curves, and answers to read."""
    head = ("best of", "nats from the policy, at most", "gain by the proxy", "gain by the gold")
    sizes = result.sizes[1:]
    rows = [(k, f"{spent(k):.2f}", *(str(result.gains[name][k]) for name in ("proxy", "gold"))) for k in sizes]
    lines = [
        Line(name=name, points=tuple(_point(k, each) for k, each in found.items()))
        for name, found in result.gains.items()
    ]
    note = "The proxy chooses; the gold judges. Where the two part, more samples buy nothing."
    places = range(min(SHOWN, len(result.dialogs)))
    read = [
        (
            result.dialogs[place][-1]["content"],
            result.answers[place][int(result.proxy[place].argmin())],
            result.answers[place][int(result.proxy[place].argmax())],
        )
        for place in places
    ]
    return write_document(
        folder / "report.html",
        "Service answers: proxy and gold",
        [
            Part(
                "The best of n",
                [
                    table(head, rows),
                    paragraph(f"Within a dialog both judges' rewards correlate by {result.kept}."),
                    band_chart("Gain over any answer, log-odds", note, lines, across="answers chosen from"),
                ],
            ),
            Part("Answers", [table(("the customer", "the proxy's worst", "the proxy's best"), read)]),
            *(
                Part(f"The {name}, on rows it never saw", [reward_section(report.to_json())])
                for name, report in result.reports.items()
            ),
            Part("What this cannot show", [listed(result.limits)]),
        ],
        lead="SmolLM2 answers customers of a coffee bar; people's ratings choose, and other people's ratings judge.",
        verdict=("measured", result.sentence),
    )


def _point(x: float, found: Interval) -> Point:
    return Point(x=x, estimate=found.estimate, low=found.low, high=found.high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/service"), help="folder for models, summary and page")
    parser.add_argument("--model", default=MODEL, help="name or folder of the language model")
    parser.add_argument("--dialogs", type=int, default=Settings.dialogs, help="how many are gone on with")
    parser.add_argument("--n", type=int, default=Settings.n, help="answers to each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few rows and answers: whether it runs")
    given = parser.parse_args()
    settings = Settings(dialogs=given.dialogs, n=given.n, seed=given.seed)
    if given.quick:
        settings = Settings(dialogs=3, n=4, tokens=6, epochs=1, seed=given.seed)
    start = time.monotonic()
    rows = Rows.read(settings)
    if given.quick:
        rows = Rows(rows.proxy[:60], rows.gold[:60], rows.asked)
    read_texts([*rows.proxy, *rows.gold], given.out / "vectors.npz")
    models = {
        "proxy": taught(rows.proxy, settings.seed, settings),
        "gold": taught(rows.gold, settings.seed + 1, settings),
    }
    reports = {name: reward_report(models[name], getattr(rows, other)) for name, other in UNSEEN.items()}
    for name, model in models.items():
        model.save(given.out / name)
        print(f"{name}: area {reports[name].measures['auc']} on {reports[name].rows} unseen rows", flush=True)
    dialogs = rows.dialogs(settings.dialogs)
    policy = LanguagePolicy.load(given.model)
    sampling = Sampling(n=settings.n, max_tokens=settings.tokens, temperature=settings.temperature, seed=settings.seed)
    records = policy.sample([[ROLE, *dialog] for dialog in dialogs], sampling)
    answers = [
        [str(record.output) for record in records[place * settings.n : (place + 1) * settings.n]]
        for place in range(len(dialogs))
    ]
    shown = [Demonstration(dialog, answer) for dialog, said in zip(dialogs, answers, strict=True) for answer in said]
    rewards = {
        name: model.rewards(shown)[:, 0].double().numpy().reshape(len(dialogs), -1) for name, model in models.items()
    }
    result = Outcome(dialogs=dialogs, answers=answers, **rewards, reports=reports, seconds=time.monotonic() - start)
    told = [
        {"dialog": dialog, "answers": said, "proxy": proxy.tolist(), "gold": gold.tolist()}
        for dialog, said, proxy, gold in zip(dialogs, answers, result.proxy, result.gold, strict=True)
    ]
    summary = {**result.to_json(), "settings": asdict(settings), "answers": told}
    write_file(given.out / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False).encode())
    for k in result.sizes[1:]:
        print(f"best of {k}: proxy {result.gains['proxy'][k]}   gold {result.gains['gold'][k]}")
    print("\n".join([*result.limits, result.sentence, f"Page: {write_page(given.out, result)}"]))


UNSEEN = {"proxy": "gold", "gold": "proxy"}  # each reward model is judged by the rows that the other learnt from


if __name__ == "__main__":
    main()
