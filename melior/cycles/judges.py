"""judges as rewards: which ones a recipe asks, whether they have shown what they are worth, and canaries as it learns

What a judge is worth is an evaluation in the store, of the judge's model, found again by the judge's fingerprint: its
kind, prompt, settings and model. Another prompt is another judge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melior.cycles.measures import open_pool
from melior.cycles.methods import WAYS
from melior.cycles.models import Found, find_model
from melior.cycles.recipe import Recipe
from melior.errors import ConfigError, TrainingError
from melior.evaluation.judges import JudgeReport
from melior.registry.files import fingerprint, hash_files
from melior.rewards import asking, judge, pairs
from melior.rewards.canaries import LIMIT, Tried, canaries, lowest, passing_line
from melior.rewards.workers import GraderPool
from melior.store import Store, rows
from melior.types import Record, Task

ASKED = ("score_model", "label_model", "pair_model")  # judges by words: each prompt makes another one
LEARNED = "learned"  # a reward model, which has a report and a gate of its own
PEOPLE = "people"  # who evaluates a judge, in the place of a grader's name
FRAME = (judge.DATA, asking.SCORE, asking.LABEL, asking.LABEL_IN_JSON, pairs.PROMPT, pairs.CRITERION)
METRIC = "canaries/"


def judges_in(spec: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every judge in a grader's setting, with its name."""
    if not isinstance(spec, Mapping):
        return
    named = str(spec.get("name") or name or spec.get("type"))
    if spec.get("type") in (*ASKED, LEARNED):
        yield named, spec
    parts = spec.get("graders")
    for part, inner in (parts if isinstance(parts, Mapping) else {}).items():
        yield from judges_in(inner, str(part))
    if "grader" in spec:
        yield from judges_in(spec["grader"], named)


def fingerprint_of(spec: Mapping[str, Any], store: Store) -> str:
    """A judge's own: the same wherever its model stands, whatever it is called and whatever it compares with."""
    told = {key: value for key, value in spec.items() if key not in ("name", "model", "pass_threshold", "reference")}
    made = {**told, "model": _identity(spec.get("model"), store)[0], "frame": FRAME}
    return hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode()).hexdigest()


def record_report(
    store: Store, spec: Mapping[str, Any], report: JudgeReport, *, dataset_id: str | None = None
) -> rows.Evaluation:
    """The store's row of what a judge is worth."""
    model: dict[str, Any] = dict(_identity(spec.get("model"), store)[1])
    summary = {**report.to_json(), "fingerprint": fingerprint_of(spec, store)}
    return store.add_evaluation(grader=PEOPLE, values={}, summary=summary, dataset_id=dataset_id, **model)


def report_on(store: Store, spec: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The newest report on a judge, as JSON; None where nobody has tried it."""
    wanted, model = fingerprint_of(spec, store), _identity(spec.get("model"), store)[1]
    found = [row.summary for row in store.evaluations(**model) if row.grader == PEOPLE]
    return next((told for told in reversed(found) if told.get("fingerprint") == wanted), None)


def _identity(model: Any, store: Store) -> tuple[str, dict[str, str]]:
    """What tells a model from others, and which policy the store files it under."""
    if isinstance(model, Mapping):
        name = f"{model.get('model')} at {model.get('endpoint')}"
        return name, {"base_model": name}
    found: Found = find_model(str(model), store)
    if found.version is not None:
        return found.version.fingerprint, {"version_id": found.version.id}
    folder = Path(found.path)
    return fingerprint(hash_files(folder)) if folder.is_dir() else found.path, {"base_model": found.path}


def check_judges(recipe: Recipe, store: Store) -> None:
    """Nothing, if every judge that the recipe learns from may be a reward.

    Raises:
        ConfigError: naming the first that may not, and what to do.
    """
    asked = recipe.judge
    for name, spec in _rewarding(recipe):
        told = report_on(store, spec)
        if told is not None and not told["accepted"] and asked.require != "nothing":
            raise ConfigError(
                f"the reward asks the judge {name}, and it was tried: {told['sentence']} Ask another one; to learn "
                "from it all the same, write judge: {require: nothing, reason: …}"
            )
        if told is None and asked.require == "accepted" and spec["type"] != LEARNED:
            raise ConfigError(
                f"the reward asks the judge {name}, and nobody has shown what it is worth; try it on what people said "
                "(melior judge JUDGE PAIRS), or write judge: {require: nothing, reason: …}"
            )


def _rewarding(recipe: Recipe) -> list[tuple[str, Mapping[str, Any]]]:
    """The judges that the recipe learns from, by name."""
    learns = any(WAYS[method].samples or WAYS[method].graded for method in recipe.methods)
    return list(judges_in(recipe.reward_grader)) if learns else []


@dataclass(frozen=True)
class _Watched:
    """A judge in force, and from which score on it calls an output good."""

    name: str
    pool: GraderPool
    line: float
    least: float | None


class Canaries:
    """The canaries of one run: tried on prompts that it learns from, others each time. Close it."""

    def __init__(self, recipe: Recipe, tasks: Sequence[Task], store: Store) -> None:
        self.settings, self.seed = recipe.judge, recipe.seed
        self.tasks = tasks
        self.unwatched: list[str] = []  # judges of which nobody knows what they call good
        self._stack = ExitStack()
        self.judges: list[_Watched] = []
        if self.settings.canaries == "off" or recipe.kind != "language":
            return
        for name, spec in _rewarding(recipe):
            line = _line(spec, store)
            if line is None:
                self.unwatched.append(name)
            else:
                pool = self._stack.enter_context(open_pool(dict(spec), recipe.grading, store))
                self.judges.append(_Watched(name, pool, line, lowest(spec)))

    def close(self) -> None:
        """Ends the judges' processes."""
        self._stack.close()

    def __enter__(self) -> Canaries:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def due(self, done: int) -> bool:
        """Whether they are tried after so many steps."""
        return bool(self.judges) and done % self.settings.every == 0

    def metrics(self, done: int) -> dict[str, float]:
        """The share of prompts on which each canary was accepted, by the judge that accepts it most."""
        found: dict[str, float] = {}
        for each in self.judges:
            for tried in self._tried(each, done):
                if tried.prompts:
                    found[METRIC + tried.name] = max(found.get(METRIC + tried.name, 0.0), tried.rate)
        return found

    def check(self) -> None:
        """Nothing, if no judge falls for a canary before the first step.

        Raises:
            TrainingError: naming the judge and the canary.
        """
        for each in self.judges:
            worst = max(self._tried(each, 0), key=lambda tried: tried.rate)
            if worst.rate > LIMIT:
                raise TrainingError(
                    f"the judge {each.name} accepts the canary {worst} (limit {LIMIT:.0%}), so that is what a policy "
                    "would learn; mend its prompt, or write judge: {canaries: off} if such an answer is good"
                )

    def _tried(self, watched: _Watched, done: int) -> list[Tried]:
        drawn = sorted(range(len(self.tasks)), key=lambda place: _drawn(self.seed, done, place))
        tasks = [self.tasks[place] for place in drawn[: self.settings.prompts]]
        texts = [canaries(task.inputs) for task in tasks]
        names = list(texts[0]) if texts else []
        flat = [
            Record(inputs=task.inputs, output=made[name], item=task.item)
            for name in names
            for task, made in zip(tasks, texts, strict=True)
        ]
        values = iter([score.value for score in watched.pool.grade(flat)])
        found = []
        for name in names:
            known = [value for value in (next(values) for _ in tasks) if value is not None]
            accepted = sum(value >= watched.line and value != watched.least for value in known)
            found.append(Tried(name=name, prompts=len(known), accepted=accepted))
        return found


def _line(spec: Mapping[str, Any], store: Store) -> float | None:
    """From which score on a judge calls an output good: as it says, as it was tried, or the middle of its range."""
    if (own := passing_line(spec)) is not None:
        return own
    told = report_on(store, spec)
    if told is not None and told.get("line") is not None:
        return float(told["line"])
    if spec["type"] == LEARNED:
        return None
    low, high = spec.get("range") or (0.0, 1.0)
    return (float(low) + float(high)) / 2


def _drawn(seed: int, done: int, place: int) -> bytes:
    return hashlib.sha256(f"canaries {seed} {done} {place}".encode()).digest()
