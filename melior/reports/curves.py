"""metrics over steps as curves: which belong together, what they are called, smoothed and thinned"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from melior.reports.alarms import marks, rung
from melior.reports.files import Row, RunFiles, number

POINTS = 320  # of a curve on the page: more than a chart has pixels to tell apart
SMOOTH_FROM = 20  # steps: fewer are told as they are
WINDOW = 8  # a smoothed value looks back over about an eighth of a run

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One metric over steps. `points` are raw; `smooth` is empty where nothing was smoothed."""

    name: str
    label: str
    points: Sequence[Point]
    smooth: Sequence[Point] = ()
    heldout: bool = False
    bars: Sequence[tuple[float, float, float]] = ()  # (step, low, high): intervals, where they are known

    @property
    def last(self) -> float:
        return self.points[-1][1]

    @property
    def constant(self) -> bool:
        return len({value for _, value in self.points}) == 1


@dataclass(frozen=True)
class Chart:
    """Curves that share an axis."""

    title: str
    note: str  # what to look for
    curves: Sequence[Curve]
    marks: Sequence[tuple[float, str, bool]] = ()  # steps done, what rang then, whether it stopped the run


# title, what to look for, metric → label. The first that matches a metric has it; what no row names gets its own chart.
CHARTS: Sequence[tuple[str, str, Mapping[str, str]]] = (
    (
        "Reward",
        "Training reward should rise, and held-out reward with it; where they part, the reward is being gamed.",
        {"reward": "training", "heldout_reward": "held-out, sampled", "heldout_greedy": "held-out, greedy"},
    ),
    (
        "Loss",
        "Held-out loss that rises while training loss falls is over-fitting.",
        {"loss": "training", "heldout_loss": "held-out", "probe_loss": "training rows, measured as held-out"},
    ),
    (
        "Fitting gap",
        "Held-out loss minus that of training rows, with its interval. Growth is over-fitting.",
        {"fitting_gap": "gap", "fitting_gap_low": "low end", "fitting_gap_high": "high end"},
    ),
    ("Graders' parts", "Which part of the reward is learnt.", {r"rewards/(.+)/mean": r"\1"}),
    (
        "Contrast within groups",
        "Groups whose rewards are all equal teach nothing; near 1 the tasks are too easy or too hard.",
        {"frac_reward_zero_std": "groups without contrast", "reward_std": "standard deviation of rewards"},
    ),
    (
        "Entropy of samples",
        "Nats per decision. A collapse towards 0 means that samples of a group become equal.",
        {"sampled_entropy": "sampled"},
    ),
    (
        "Distance",
        "KL divergence per decision in nats: from the policy that sampled, and from the reference.",
        {"policy/kl_old": "from the sampling policy", "policy/kl_reference": "from the reference"},
    ),
    ("Ratio", "Probability now over probability when sampled; 1 is on-policy.", {"policy/ratio": "mean ratio"}),
    (
        "Far ratios",
        "Share of decisions that became more than twice as probable, or half as, within a step.",
        {"policy/ratio_tails": "below 1/2 or above 2"},
    ),
    (
        "Clipped decisions",
        "Share of decisions whose gradient is cut off because the policy moved too far.",
        {"policy/clip_low": "made less probable", "policy/clip_high": "made more probable"},
    ),
    (
        "Length of completions",
        "Decisions per completion. Growth without reward is padding.",
        {"completions/mean_length": "mean"},
    ),
    (
        "Cut completions",
        "Share that ran into max_tokens; raise it, or punish length, where it grows.",
        {"completions/clipped_ratio": "cut at max_tokens"},
    ),
    (
        "Repetition",
        "Share of an output's runs of four decisions that it had already. A rise is degenerate text.",
        {"completions/repetition": "repeated 4-grams"},
    ),
    (
        "Reward and length",
        "Correlation within groups. Near 1 the reward pays for length.",
        {"completions/length_correlation": "correlation"},
    ),
    ("Gradient norm", "Before clipping. Spikes come before trouble.", {"grad_norm": "gradient norm"}),
    ("Learning rate", "", {"learning_rate": "learning rate"}),
    (
        "Speed",
        "Decisions learnt from, per second of the whole step.",
        {"decisions_per_second": "decisions per second"},
    ),
    (
        "Tokens computed",
        "Per step: what was computed with shared prefixes, and what padded rows would have cost.",
        {"nodes": "computed", "padded_tokens": "padded"},
    ),
    (
        "Seconds per step",
        "Collecting is sampling and grading.",
        {"seconds": "whole step", "seconds_collect": "collecting"},
    ),
    (
        "Failed gradings",
        "Outputs that no grader could judge; they are left out, never scored 0.",
        {"grader_errors": "failed"},
    ),
    (
        "Sampler and scorer",
        "Mean difference of log-probs, sampled against recomputed; below 1e-3 with one update per step.",
        {"policy/sampler_gap": "difference in nats"},
    ),
)  # fmt: skip
OF_TEXTS = "completions/"  # what metrics of outputs that are texts begin with
NO_TEXTS = ("classifier", "slate")  # policies whose outputs have a number of decisions that is given
POLICY_LOSS = "The loss of a policy gradient need not fall: its data change with the policy. Look at the reward."
# Follow from others, or say only how the step was made up; still in metrics.jsonl.
UNDRAWN = (
    "step",
    "epoch",
    "nll",
    "policy",
    "decisions",
    "num_tokens",
    "rows",
    "skipped",
    "rounds",
    "entropy",
    "kl",
    "grader_error_rate",
)


def charts_of(run: RunFiles) -> list[Chart]:
    """Everything worth drawing of a run. Metrics that never change are left to `constants`."""
    found = {curve.name: curve for curve in _curves(run)}
    rang = rung(run)
    charts = []
    for title, note, patterns in CHARTS:
        named = [(name, label) for name in found for label in [_label(name, patterns)] if label]
        order = list(patterns)
        named.sort(key=lambda pair: next(i for i, p in enumerate(order) if re.fullmatch(p, pair[0])))
        curves = [_named(found.pop(name), label) for name, label in named]
        if title == "Loss" and not any(curve.heldout for curve in curves):
            note = POLICY_LOSS if run.method == "rft" else ""
        if any(not curve.constant or len(curve.points) == 1 or curve.heldout for curve in curves):
            charts.append(Chart(title, note, curves, marks(rang, [curve.name for curve in curves])))
    rest = [curve for name, curve in found.items() if name not in UNDRAWN and not curve.constant]
    return charts + [Chart(curve.label, "", [curve], marks(rang, [curve.name])) for curve in rest]


def constants(run: RunFiles) -> dict[str, float]:
    """Metrics that had one value at every step."""
    return {curve.name: curve.last for curve in _curves(run) if curve.constant and len(curve.points) > 1}


def curve_of(run: RunFiles, name: str) -> Curve | None:
    """One metric by its name, None if it was never measured."""
    return next((curve for curve in _curves(run) if curve.name == name), None)


def names_of(run: RunFiles) -> list[str]:
    """Every metric that was measured."""
    return [curve.name for curve in _curves(run)]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """An exponential moving average without the pull of its start, as Adam corrects its moments."""
    if len(points) < SMOOTH_FROM:
        return []
    keep = 1 - 2 / (max(3.0, len(points) / WINDOW) + 1)
    average, weight, result = 0.0, 0.0, []
    for step, value in points:
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        result.append((step, average / weight))
    return result


def thinned(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most `most` points: the lowest and the highest of each stretch, so that no spike is lost, and both ends."""
    if len(points) <= most:
        return list(points)
    stretches = (most - 2) // 2
    inner, kept = points[1:-1], [points[0]]
    for index in range(stretches):
        part = inner[index * len(inner) // stretches : (index + 1) * len(inner) // stretches]
        if part:
            ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
            kept += sorted(ends)
    return [*kept, points[-1]]


def _curves(run: RunFiles) -> Iterator[Curve]:
    series: dict[str, list[Point]] = {}
    for row in run.metrics:
        for name, value in {**row, **_derived(row)}.items():
            found = number(value)
            if found is not None and name != "step" and not (name.startswith(OF_TEXTS) and run.kind in NO_TEXTS):
                series.setdefault(name, []).append((float(row["step"]) + 1, found))
    for name, when in (("heldout_reward", "reward"), ("heldout_greedy", "greedy")):
        ends = _ends(run, when)
        if ends or name in series:
            merged = {step: value for step, value in series.pop(name, [])} | {s: e["estimate"] for s, e in ends.items()}
            bars = [(s, e["low"], e["high"]) for s, e in ends.items() if None not in (e["low"], e["high"])]
            yield Curve(name, _plain(name), sorted(merged.items()), heldout=True, bars=bars)
    for name, points in series.items():
        heldout = name.startswith(("heldout", "probe", "fitting"))  # measured now and then
        yield Curve(name, _plain(name), points, () if heldout else smoothed(points), heldout)


def _ends(run: RunFiles, metric: str) -> dict[float, Row]:
    """The evaluations before and after training, at the steps at which they were made."""
    ends = {0.0: run.before.get(metric), float(max(run.kept, 1)): run.after.get(metric)}
    return {step: found for step, found in ends.items() if found and number(found.get("estimate")) is not None}


def _derived(row: Row) -> dict[str, float]:
    decided, seconds = number(row.get("decisions", row.get("num_tokens"))), number(row.get("seconds"))
    return {"decisions_per_second": decided / seconds} if decided and seconds else {}


def _label(name: str, patterns: Mapping[str, str]) -> str:
    for pattern, label in patterns.items():
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(label)
    return ""


def _named(curve: Curve, label: str) -> Curve:
    return Curve(curve.name, label, curve.points, curve.smooth, curve.heldout, curve.bars)


def _plain(name: str) -> str:
    return name.replace("heldout", "held-out").replace("_", " ")
