"""sample held-out tasks, grade them, and say how good with what certainty

A failing grading is excluded and counted, never 0. An item with no graded sample left is `missing`. Every number that
can differ between two policies stands in `values`, a mapping metric → item → samples, so that a comparison or a guard
on a new metric needs its name and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from melior.data.formats import as_json
from melior.errors import ConfigError, DataError, GraderError
from melior.metrics import pass_at_k
from melior.statistics import LEVEL, Bounds, ByItem, Interval, bootstrap_mean, wilson
from melior.types import Record, Sampling, Score, Task

REWARD, GREEDY, TRUNCATED, TOKENS = "reward", "greedy", "truncated", "tokens"
UNIT: Bounds = (0.0, 1.0)

Progress = Callable[[int, int], None]  # outputs done, outputs in all


class Samples(Protocol):
    """What is evaluated: anything that samples as a policy does."""

    def sample(self, inputs: Sequence[Any], settings: Sequence[Sampling]) -> list[Record]: ...


class Grades(Protocol):
    """What grades: one score per record, in order."""

    def grade(self, records: Sequence[Record]) -> list[Score]: ...


@dataclass(frozen=True)
class Example:
    """One item with an output, for people to read."""

    key: str
    inputs: Any
    output: Any
    value: float | None
    greedy: Any = None
    greedy_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a policy did on a fixed set of items."""

    sampling: Sampling
    grader: str
    items: tuple[str, ...]  # every item key, in order
    fingerprint: str  # of the items' contents
    values: Mapping[str, ByItem]  # metric → item → one value per graded sample
    bounds: Mapping[str, Bounds]  # metric → where its values can lie, if known
    clusters: Mapping[str, str] = field(default_factory=dict)  # item → conversation or user, where given
    reward: Interval
    greedy: Interval | None = None
    pass_at: Mapping[int, float] = field(default_factory=dict)  # k → share, over items with k graded samples
    missing: tuple[str, ...] = ()  # items without a graded sample
    excluded: int = 0  # failed gradings
    graded: int = 0
    error: str = ""  # the first failed grading's
    tokens: int = 0  # decisions generated in all
    seconds: float = 0.0
    truncated: float = 0.0  # share of sampled outputs cut by max_tokens
    mean_tokens: float | None = None  # of a sampled output; None where the policy does not record decisions
    examples: tuple[Example, ...] = ()
    effective: float | None = None  # rows that an estimate from a log rests on; None where each item was measured
    notes: tuple[str, ...] = ()  # what a reader of the numbers should know, a sentence each

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and mappings; `from_json` reads them back."""
        return {
            **asdict(self),
            "sampling": asdict(self.sampling),
            "reward": self.reward.to_json(),
            "greedy": self.greedy.to_json() if self.greedy else None,
            "pass_at": {str(k): share for k, share in self.pass_at.items()},
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Evaluation:
        """The evaluation that `to_json` wrote.

        Raises:
            DataError: if a field is missing or unknown.
        """
        try:
            return cls(**{**fields, **_restored(fields)})
        except (KeyError, TypeError) as error:
            raise DataError(f"not an evaluation written by melior ({error}); evaluate again") from error


def evaluate(
    policy: Samples,
    tasks: Sequence[Task],
    graders: Grades,
    sampling: Sampling,
    *,
    greedy: bool = True,
    progress: Progress | None = None,
    batch: int = 32,
    success: float = 1.0,
    grader: str = "",
    examples: int = 5,
) -> Evaluation:
    """The policy's rewards on the tasks: `sampling.n` samples an item, and one greedy output beside them.

    Args:
        batch: tasks sampled and graded at once. The seed is the same for all, as a sample does not depend on its
            batch mates; so equal inputs of two items in different batches draw the same samples.
        success: the reward from which on pass@k counts an output as solved.
        grader: what to call the grader when evaluations are compared; the name on its scores by default.

    Raises:
        ConfigError: if `batch` is below 1.
        DataError: if there are no tasks, or two share a key.
        GraderError: if no output could be graded.
    """
    if batch < 1:
        raise ConfigError(f"evaluation needs a batch of 1 task or more, got {batch}")
    started = time.monotonic()
    keys, fingerprint = _keys(tasks)
    settings = [sampling] + [_greedy(sampling)] * greedy
    total, done = len(tasks) * sum(each.n for each in settings), 0
    outputs: list[list[_Output]] = [[] for _ in settings]
    for start in range(0, len(tasks), batch):
        part, names = tasks[start : start + batch], keys[start : start + batch]
        for each, collected in zip(_graded(policy, part, names, graders, settings), outputs, strict=True):
            collected += each
        done += len(part) * sum(each.n for each in settings)
        if progress:
            progress(done, total)
    sampled, best = outputs[0], outputs[1] if greedy else []
    clusters = {key: task.group for key, task in zip(keys, tasks, strict=True) if task.group}
    summary = _summary(sampling, sampled, best, keys, clusters)
    return Evaluation(
        **summary,
        sampling=sampling,
        grader=grader or "+".join(sorted({output.score.name for output in sampled if output.score.name})),
        items=tuple(keys),
        fingerprint=fingerprint,
        pass_at=_pass_at(summary["values"][REWARD], sampling.n, success),
        seconds=time.monotonic() - started,
        examples=_examples(sampled, best, keys[:examples]),
    )


def item_key(task: Task) -> str:
    """The task's id, or a hash of its inputs and item: the same in every process."""
    return task.id or _content_hash(task)


@dataclass(frozen=True)
class _Output:
    key: str
    record: Record
    score: Score

    @property
    def value(self) -> float | None:
        value = self.score.value
        return value if value is not None and math.isfinite(value) else None


def _keys(tasks: Sequence[Task]) -> tuple[list[str], str]:
    if not tasks:
        raise DataError("0 tasks to evaluate; give at least one")
    keys = [item_key(task) for task in tasks]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(
            f"{len(keys) - len(set(keys))} of {len(keys)} tasks repeat another's key, first {twice!r}; "
            "drop repeats or give each an id"
        )
    contents = sorted(f"{key} {_content_hash(task)}" for key, task in zip(keys, tasks, strict=True))
    return keys, hashlib.sha256("\n".join(contents).encode()).hexdigest()


def _content_hash(task: Task) -> str:
    content = json.dumps([task.inputs, dict(task.item)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _greedy(sampling: Sampling) -> Sampling:
    return replace(sampling, n=1, temperature=0.0, top_k=0, top_p=1.0)


def _graded(
    policy: Samples, tasks: Sequence[Task], keys: Sequence[str], graders: Grades, settings: Sequence[Sampling]
) -> list[list[_Output]]:
    """Outputs of the tasks under each setting. All settings of an input are asked for side by side, so that a policy
    need read it only once."""
    asked = [(index, each) for index in range(len(tasks)) for each in range(len(settings))]
    records = policy.sample([tasks[index].inputs for index, _ in asked], [settings[each] for _, each in asked])
    owners = [(index, each) for index, each in asked for _ in range(settings[each].n)]
    if len(records) != len(owners):
        raise DataError(f"the policy gave {len(records)} records where {len(owners)} were asked for; it must give all")
    records = [
        replace(record, item=tasks[index].item, group=keys[index])
        for (index, _), record in zip(owners, records, strict=True)
    ]
    scores = graders.grade(records)
    if len(scores) != len(records):
        raise GraderError(f"the grader gave {len(scores)} scores for {len(records)} records; it must give one each")
    outputs: list[list[_Output]] = [[] for _ in settings]
    for (index, each), record, score in zip(owners, records, scores, strict=True):
        outputs[each].append(_Output(keys[index], record, score))
    return outputs


def _summary(
    sampling: Sampling,
    sampled: Sequence[_Output],
    best: Sequence[_Output],
    keys: Sequence[str],
    clusters: Mapping[str, str],
) -> dict[str, Any]:
    """Every field of an evaluation that is counted from its outputs."""
    both = [*sampled, *best]
    failed = [output for output in both if output.value is None]
    if all(output.value is None for output in sampled):
        first = next((output.score.error for output in failed if output.score.error), "no error given")
        raise GraderError(f"{len(sampled)} of {len(sampled)} gradings failed, first with: {first}; mend the grader")
    lengths = [len(o.record.decisions) for o in both if o.record.decisions is not None]
    cut = [float(output.record.finish == "length") for output in sampled]
    values = _values(sampled, best)
    bounds = _bounds(values, max(sampling.max_tokens, *lengths, 0))
    return {
        "values": values,
        "bounds": bounds,
        "clusters": clusters,
        "reward": bootstrap_mean(values[REWARD], bounds=bounds.get(REWARD), clusters=clusters),
        "greedy": _greedy_interval(values[GREEDY], bounds.get(GREEDY), clusters) if values.get(GREEDY) else None,
        "missing": tuple(key for key in keys if key not in values[REWARD]),
        "excluded": len(failed),
        "graded": len(both) - len(failed),
        "error": next((output.score.error for output in failed if output.score.error), ""),
        "tokens": sum(lengths),
        "truncated": sum(cut) / len(cut),
        "mean_tokens": _mean([x for values_of in values.get(TOKENS, {}).values() for x in values_of]),
    }


def _values(sampled: Sequence[_Output], best: Sequence[_Output]) -> dict[str, ByItem]:
    """Metric → item → values; a metric nobody measured is absent."""
    values: dict[str, ByItem] = {
        REWARD: _by_item([(o.key, o.value) for o in sampled]),
        GREEDY: _by_item([(o.key, o.value) for o in best]),
        TRUNCATED: _by_item([(o.key, float(o.record.finish == "length")) for o in sampled]),
        TOKENS: _by_item([(o.key, None if (d := o.record.decisions) is None else float(len(d))) for o in sampled]),
    }
    return {name: by_item for name, by_item in values.items() if by_item}


def _bounds(values: Mapping[str, ByItem], longest: int) -> dict[str, Bounds]:
    """Metric → where its values can lie; rewards that were all seen within [0, 1] are taken to stay there."""
    bounds: dict[str, Bounds] = {TRUNCATED: UNIT, TOKENS: (0.0, float(longest))}
    rewards = [x for name in (REWARD, GREEDY) for found in values.get(name, {}).values() for x in found]
    return bounds | {REWARD: UNIT, GREEDY: UNIT} if all(0 <= x <= 1 for x in rewards) else bounds


def _by_item(pairs: Sequence[tuple[str, float | None]]) -> dict[str, tuple[float, ...]]:
    gathered: dict[str, list[float]] = {}
    for key, value in pairs:
        if value is not None:
            gathered.setdefault(key, []).append(float(value))
    return {key: tuple(found) for key, found in gathered.items()}


def _greedy_interval(by_item: ByItem, bounds: Bounds | None, clusters: Mapping[str, str]) -> Interval:
    """Wilson's interval for right-or-wrong rewards of independent items, the bootstrap for all others."""
    values = [found[0] for found in by_item.values()]
    if not clusters and set(values) <= {0.0, 1.0}:
        return wilson(int(sum(values)), len(values), level=LEVEL)
    return bootstrap_mean(by_item, bounds=bounds, clusters=clusters)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _pass_at(rewards: ByItem, n: int, success: float) -> dict[int, float]:
    """pass@k for k = 1, 2, 4 … n."""
    shares: dict[int, float] = {}
    for k in sorted({2**power for power in range(n.bit_length())} | {n}):
        counts = [(len(found), sum(x >= success for x in found)) for found in rewards.values() if len(found) >= k]
        if counts:
            shares[k] = math.fsum(pass_at_k(samples, solved, k) for samples, solved in counts) / len(counts)
    return shares


def _examples(sampled: Sequence[_Output], best: Sequence[_Output], keys: Sequence[str]) -> tuple[Example, ...]:
    first = {output.key: output for output in reversed(sampled)}
    greedy = {output.key: output for output in best}
    return tuple(
        Example(
            key,
            as_json(first[key].record.inputs),
            as_json(first[key].record.output),
            first[key].value,
            as_json(greedy[key].record.output) if key in greedy else None,
            greedy[key].value if key in greedy else None,
        )
        for key in keys
    )


def _restored(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields JSON cannot hold, from what it holds instead."""
    return {
        "sampling": Sampling(**fields["sampling"]),
        "items": tuple(fields["items"]),
        "values": {
            name: {key: tuple(found) for key, found in by_item.items()} for name, by_item in fields["values"].items()
        },
        "bounds": {name: (low, high) for name, (low, high) in fields["bounds"].items()},
        "reward": Interval.from_json(fields["reward"]),
        "greedy": Interval.from_json(fields["greedy"]) if fields["greedy"] else None,
        "pass_at": {int(k): share for k, share in fields["pass_at"].items()},
        "missing": tuple(fields["missing"]),
        "notes": tuple(fields.get("notes", ())),
        "examples": tuple(Example(**example) for example in fields["examples"]),
    }
