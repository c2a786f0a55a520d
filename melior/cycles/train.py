"""one run of a recipe, from rows to a version in the registry

    load ── split ── measure ── fit ── measure ── save ── register ── gate ── promote

Every step leaves its result in the run's folder before the next begins, so the same call goes on wherever the last one
was stopped, to the same numbers:

    recipe.yaml  resolved.json  run.json  metrics.jsonl  samples.jsonl  checkpoints/  best/
    baseline.json  data.json  evaluation-before.json  heldout.jsonl  evaluation.json  model/  result.json  report.html
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from melior.cycles.auto import Resolved, check_rows, is_settled, resolve
from melior.cycles.baseline import Baseline, declared_bounds, judged, sample_baseline
from melior.cycles.folders import alone, claim
from melior.cycles.judges import Canaries, check_judges
from melior.cycles.kept import Kept
from melior.cycles.ledger import record_evaluation, record_gate
from melior.cycles.lesson import Lesson, check_tasks, lesson, load_trainable, noticing
from melior.cycles.measures import Measures, headline, kept, read_evaluation
from melior.cycles.models import Found, find_model
from melior.cycles.plan import Plan, plan_run
from melior.cycles.recipe import Recipe, load_recipe
from melior.cycles.rows import Rows, load_rows
from melior.cycles.sections import Generated, Simulated
from melior.cycles.story import tell_data, tell_heldout
from melior.durable import write_file
from melior.errors import StoreError
from melior.evaluation.compare import compare
from melior.evaluation.evaluate import Evaluation
from melior.evaluation.gates import Verdict, decide
from melior.evaluation.overfitting import overfitting
from melior.registry import Registry
from melior.reports.write import Reporter
from melior.store import Store
from melior.store.rows import Dataset, Version
from melior.trainers.accuracy import Known
from melior.trainers.loop import Run, fit
from melior.trainers.trackers import trackers_of

Report = Callable[[str, int, int, str], None]  # what is going on, how much is done, of how much, a note


def quiet(what: str, done: int, total: int, note: str) -> None:
    """Reports nothing."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to."""

    folder: Path
    run_id: str
    version_id: str
    before: Evaluation
    after: Evaluation
    verdict: Verdict  # on the trained policy against the one it started from
    gate_id: str
    promoted: bool
    note: str = ""  # why a policy that passed its gate was not promoted
    steps: int = 0
    step: int = 0  # after which the saved policy was as it is; less than `steps` where the best one was restored
    skipped: int = 0  # updates whose loss or gradient was not finite
    dropped: int = 0  # training rows without a decision inside the context
    passed_over: Mapping[str, int] = field(default_factory=dict)  # what could not be read or used of rows, how often
    stopped: str = ""  # why training ended early
    alarms: tuple[Mapping[str, Any], ...] = ()  # that rang, in order
    choices: tuple[str, ...] = ()  # what "auto" became, with reasons
    warning: str = ""  # of over-fitting
    tokens: int = 0  # decisions learnt from, or generated (rft), in training
    seconds: float = 0.0  # of training; the evaluations carry their own
    baseline: Mapping[str, Any] | None = None  # of rft: what the policy earned on training tasks before its first step
    kind: str = "language"  # of the policy
    layout: str = ""
    nodes: int = 0  # tokens computed in training passes, prefixes shared
    padded_tokens: int = 0  # what padded rows would have computed

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings; the evaluations in brief."""
        return {
            **{name: value for name, value in vars(self).items() if name not in ("before", "after", "verdict")},
            "folder": str(self.folder),
            "before": headline(self.before),
            "after": headline(self.after),
            "gate": self.verdict.to_json(),
        }

    @classmethod
    def read(cls, folder: Path) -> Outcome:
        """The outcome of the finished run in a folder."""
        fields = json.loads((folder / "result.json").read_text())
        verdict = Verdict.from_json(fields.pop("gate"))
        fields["choices"], fields["alarms"] = (tuple(fields.get(name, ())) for name in ("choices", "alarms"))
        before, after = (read_evaluation(folder / name) for name in ("evaluation-before.json", "evaluation.json"))
        return cls(**{**fields, "folder": folder, "before": before, "after": after, "verdict": verdict})


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    store: Store,
    report: Report = quiet,
    before: Evaluation | None = None,
    anyway: bool = False,
    announce: Callable[[Plan], None] | None = None,
) -> Outcome:
    """What the recipe came to; called again with the same recipe and folder it goes on where it stopped.

    `before`: the starting policy's evaluation on the same rows, where it is known already. `anyway`: train even where
    the baseline of an rft run shows nothing to learn from. `announce` is given the plan of a run that starts; making
    one takes a few micro-batches, so without it there is none.

    Raises:
        MeliorError: for whatever is wrong with settings, rows, model or grader, in one sentence.
        KeyboardInterrupt: after Ctrl-C; training has written a checkpoint.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        claim(folder, recipe)
        if (folder / "result.json").is_file():
            check_rows(folder, load_rows(recipe))
            outcome = Outcome.read(folder)
            store.finish_run(outcome.run_id, metrics=outcome.to_json())  # a kill may have come in between
            return outcome
        return _Cycle(recipe, folder, store, report, anyway, announce).run(before)


def resume(folder: Path, *, store: Store, report: Report = quiet) -> Outcome:
    """The outcome of the run in a folder, gone on with.

    Raises:
        ConfigError: if there is no run.
    """
    return run_recipe(load_recipe(folder / "recipe.yaml"), folder, store=store, report=report)


class _Cycle:
    """The state of one run."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        store: Store,
        report: Report,
        anyway: bool = False,
        announce: Callable[[Plan], None] | None = None,
    ) -> None:
        self.recipe, self.folder, self.store, self.report = recipe, folder, store, report
        self.announce = announce
        self.anyway = anyway or (recipe.way.samples and recipe.section.hopeless == "train")
        self.found = find_model(recipe.model.path, store)
        self.name = _name(recipe, self.found)  # before hours are spent
        self.page = Reporter(folder)
        self.passed_over: Counter[str] = Counter()  # of the rows that are learnt from, each read once

    def run(self, before: Evaluation | None) -> Outcome:
        recipe = self.recipe
        self.report("reading rows", 0, 1, "")
        rows = load_rows(recipe)
        check_judges(recipe, self.store)
        with Measures(recipe, rows, self.store) as measures, Canaries(recipe, rows.train, self.store) as self.canaries:
            self.report("loading the model", 0, 1, "")
            policy = load_trainable(recipe, self.found, rows)
            self.passed_over = Counter(policy.noticed)
            _, asked = noticing(policy, lambda: check_tasks(recipe, policy, rows, measures))
            self.passed_over += asked if recipe.way.samples else Counter()
            dataset = self._dataset(rows)
            run_id = self._open_run(dataset.id)
            try:
                outcome = self._trained(policy, rows, measures, run_id, dataset.id, before)
            except KeyboardInterrupt:
                self.store.finish_run(run_id, status="cancelled")
                self.page.update(force=True, state="interrupted")
                raise
            except BaseException as error:
                self.store.finish_run(run_id, status="failed", error=str(error) or type(error).__name__)
                self.page.update(force=True, state="failed", error=str(error) or type(error).__name__)
                raise
        write_file(self.folder / "result.json", json.dumps(_stored(outcome), indent=1))
        self.page.update(force=True, state="finished", error="")
        self.store.finish_run(run_id, metrics=outcome.to_json())
        return outcome

    def _trained(
        self, policy: Any, rows: Rows, measures: Measures, run: str, dataset: str, known: Evaluation | None
    ) -> Outcome:
        recipe, folder = self.recipe, self.folder

        def measured(when: str) -> Evaluation:
            measure = measures.baseline if when == "before" else measures.evaluation
            return measure(policy, lambda done, total: self.report(f"evaluating {when}", done, total, ""))

        resolved = self._resolved(policy, rows)
        taught, read = noticing(policy, lambda: lesson(resolved, recipe, policy, rows, measures, folder))
        self.passed_over += read
        if self.announce and not (folder / "run.json").exists():
            self.announce(plan_run(resolved, taught, policy, rows, measures))
        baseline = self._baseline(policy, rows, measures)
        self._try_canaries()
        before = kept(folder / "evaluation-before.json", lambda: known or measured("before"))
        tell_data(folder, rows, taught.leading, policy, measures.kind)
        self.page.update(force=True, state="running", error="")
        keeps = self._keeps(policy, taught, rows, run, dataset)
        done = self._fit(policy, taught, measures, keeps)
        after = kept(folder / "evaluation.json", lambda: measured("after"))
        self.report("saving", 0, 1, "")
        measures.kind.tell(policy, rows, recipe, folder)
        place = Path(recipe.save.folder) if recipe.save.folder else folder / "model"
        policy.save(place)
        self.report("saving", 1, 1, str(place))
        if keeps is not None:
            keeps.let_go(done.best_step or done.steps)  # it is what was just saved
        outcome = self._judged(place, before, after, run, dataset, done)
        return replace(
            outcome,
            steps=done.steps,
            step=done.best_step or done.steps,
            skipped=done.skipped,
            stopped=done.stopped,
            alarms=tuple(breach.to_json() for breach in done.breaches),
            dropped=getattr(taught.leading, "dropped", 0),
            passed_over={**self.passed_over, **getattr(taught.leading, "excluded", {})},
            choices=tuple(map(str, resolved.choices)),
            warning=overfitting(done.metrics, restored=done.best_step is not None),
            tokens=int(_total(done, "num_tokens" if recipe.way.samples else "decisions")),
            seconds=_total(done, "seconds"),
            baseline=baseline.to_json() if baseline else None,
            kind=policy.kind,
            layout=policy.layout,
            nodes=int(_total(done, "nodes")),
            padded_tokens=int(_total(done, "padded_tokens")),
        )

    def _baseline(self, policy: Any, rows: Rows, measures: Measures) -> Baseline | None:
        """What a method that samples starts from; measured once, and looked at again whenever the run goes on."""
        recipe, grader = self.recipe, measures.reward
        if not recipe.way.samples or not recipe.section.baseline or grader is None:
            return None

        def measure() -> Evaluation:
            return sample_baseline(
                policy,
                rows.train,
                grader,
                recipe.rollouts,
                prompts=recipe.section.baseline,
                seed=recipe.seed,
                grader=grader.name,
                progress=lambda done, total: self.report("sampling a baseline", done, total, ""),
            )

        bounds = declared_bounds(recipe.reward_grader)
        sampled = kept(self.folder / "baseline.json", measure)
        found = judged(sampled, prompts_per_step=recipe.section.prompts, bounds=bounds)
        if not self.anyway and not (self.folder / "metrics.jsonl").exists():  # once begun, it was decided
            found.check(recipe.lead)
        self.report("baseline", 1, 1, found.sentence)
        return found

    def _try_canaries(self) -> None:
        """Tries canaries on the judges of a run that has not begun; what nobody can try is told."""
        for name in self.canaries.unwatched:
            self.report(
                "canaries", 1, 1, f"not tried on {name}: nobody knows from which score on it calls an output good"
            )
        if self.canaries.judges and not (self.folder / "metrics.jsonl").exists():
            self.report("trying canaries on the judge", 0, 1, "")
            self.canaries.check()

    def _resolved(self, policy: Any, rows: Rows) -> Resolved:
        """The recipe without anything automatic, told as it is chosen."""
        if not is_settled(self.recipe):
            self.report("choosing settings", 0, 1, "")
        resolved = resolve(self.recipe, policy, rows, self.folder)
        for choice in resolved.choices:
            self.report(
                f"chosen: {choice.setting}",
                1,
                1,
                f"{choice.value:.4g}" if isinstance(choice.value, float) else f"{choice.value}",
            )
        return resolved

    def _keeps(self, policy: Any, taught: Lesson, rows: Rows, run_id: str, dataset_id: str) -> Kept | None:
        """What keeps the policy on the way, if that is asked for."""
        recipe = self.recipe
        every = taught.config.evaluate_every if recipe.way.samples else taught.leading.per_epoch
        if not recipe.save.checkpoints or every is None:
            return None
        registry, start = Registry(self.store), self.found.version

        def register(place: Path, step: int) -> Version:
            return registry.register(
                self.name,
                place,
                method=recipe.method,
                base_model=None if start else self.found.base_model,
                parent=start.id if start else None,
                run_id=run_id,
                dataset_id=dataset_id,
                metrics={"step": step},
            )

        measure: Callable[[Any], Mapping[str, float]] = lambda policy: {}  # noqa: E731  rewards are measured anyway
        if recipe.method == "sft" and recipe.kind == "language":
            measure = Known(policy, rows.train, rows.validation or rows.heldout)
        return Kept(self.folder, recipe.save.checkpoints, every, self.store, register, measure)

    def _fit(self, policy: Any, taught: Lesson, measures: Measures, keeps: Kept | None) -> Run:
        last = dict(policy.computed)

        def on_step(done: int, total: int, metrics: dict[str, float]) -> None:
            nonlocal last
            metrics |= {name: float(now - last[name]) for name, now in policy.computed.items()}
            last = dict(policy.computed)
            if self.canaries.due(done):
                metrics |= self.canaries.metrics(done)
            if measures.latest is not None:
                tell_heldout(self.folder, done, measures.latest)
                measures.latest = None
            if keeps is not None:
                metrics.update({**keeps.see(policy, done), **metrics})
            self.report("training", done, total, _note(metrics))

        wanted = self.recipe.report
        return fit(
            taught.trainable,
            taught.steps,
            taught.objective,
            taught.config,
            evaluation=taught.evaluation,
            on_step=on_step,
            alarms=self.recipe.alarms,
            trackers=trackers_of(wanted.to, wanted.project),
            track_samples=wanted.samples,
        )

    def _judged(
        self, place: Path, before: Evaluation, after: Evaluation, run_id: str, dataset_id: str, done: Run
    ) -> Outcome:
        """Registers what was saved, puts it before the gate, and promotes it if it passed and no alarm stopped it."""
        registry, start, recipe = Registry(self.store), self.found.version, self.recipe
        version = registry.register(
            self.name,
            place,
            method=recipe.method,
            base_model=None if start else self.found.base_model,
            parent=start.id if start else None,
            run_id=run_id,
            dataset_id=dataset_id,
            metrics=headline(after),
        )
        first = {"version_id": start.id} if start else {"base_model": self.found.base_model}
        rows = (
            record_evaluation(self.store, after, version_id=version.id, dataset_id=dataset_id),
            record_evaluation(self.store, before, **first, dataset_id=dataset_id),
        )
        comparison = compare(after, before)
        guards = tuple(guard for guard in recipe.gate.guards if after.greedy or guard.metric in comparison.differences)
        verdict = decide(comparison, replace(recipe.gate, guards=guards))
        gate = record_gate(self.store, verdict, candidate=rows[0], baseline=rows[1])
        promoted, note = False, ""
        alarm = next((breach.alarm for breach in done.breaches if breach.why == done.stopped), "")
        if verdict.result == "promote" and recipe.save.promote and alarm:
            note = (
                f"it passed its gate and was not promoted, since alarm {alarm} stopped its training; look at its "
                f"report and its outputs, and then promote {version.id} yourself, or not"
            )
        elif verdict.result == "promote" and recipe.save.promote:
            try:
                registry.promote(version.id, recipe.save.alias, gate_id=gate.id, reason=verdict.sentence)
                promoted = True
            except StoreError as error:
                note = self._passed_but(error)
        return Outcome(
            folder=self.folder,
            run_id=run_id,
            version_id=version.id,
            before=before,
            after=after,
            verdict=verdict,
            gate_id=gate.id,
            promoted=promoted,
            note=note,
        )

    def _passed_but(self, error: StoreError) -> str:
        """Why a version that passed its gate is not promoted: mostly since it was not compared with what serves."""
        held = self.store.alias(self.name, self.recipe.save.alias)
        start = self.found.version
        if held is None or (start is not None and held.version_id == start.id):
            return str(error)
        serving = f"{self.name}@{self.recipe.save.alias}"
        return (
            f"not promoted: it was compared with {start.id if start else 'the base model'}, and {serving} is "
            f"{held.version_id}; train from that (model.path: {serving}), or give this one a save.name of its own"
        )

    def _dataset(self, rows: Rows) -> Dataset:
        """The data set these rows are: the export of a log, where they were made from one, or else one of their own."""
        known = self.store.dataset_of(rows.origin, rows.kind) if rows.origin else None
        return known or self.store.add_dataset(rows.fingerprint, kind=rows.kind, path=rows.source, rows=len(rows.train))

    def _open_run(self, dataset_id: str) -> str:
        """The store's row of this run, opened again if it was there."""
        for run in reversed(self.store.runs()):
            if run.folder == str(self.folder) and run.status != "succeeded":
                return self.store.reopen_run(run.id).id
        start = self.found.version
        run = self.store.add_run(
            self.recipe.method,
            self.recipe.to_dict(),
            self.folder,
            base_model=self.found.base_model,
            base_version=start.id if start else None,
            dataset_id=dataset_id,
        )
        return run.id


def _name(recipe: Recipe, found: Found) -> str:
    """What the version will be called: as asked, as its parent, or by model and method."""
    if recipe.save.name:
        return recipe.save.name
    if found.version is not None:
        return found.version.name
    told = Path(found.base_model).name if found.path else f"{_source(recipe)}-{recipe.kind}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{told}-{recipe.method}").lstrip(".-_") or recipe.method


def _source(recipe: Recipe) -> str:
    """What the rows are called, for a policy that was made from them."""
    train = recipe.data.train
    if isinstance(train, Generated):
        return train.reasoning_gym
    if isinstance(train, Simulated):
        return f"banner-{train.banner}"
    return re.split(r"[:@#.]", Path(train.removeprefix("known:")).name)[0]


def _note(metrics: Mapping[str, float]) -> str:
    shown = [
        name
        for name in ("reward", "loss", "heldout_reward", "heldout_loss")
        if math.isfinite(metrics.get(name, math.nan))
    ]
    return ", ".join(f"{name.replace('_', ' ')} {metrics[name]:.3f}" for name in shown)


def _total(run: Run, name: str) -> float:
    return math.fsum(row.get(name, 0.0) for row in run.metrics)


def _stored(outcome: Outcome) -> dict[str, Any]:
    """The outcome without its evaluations, which have files of their own."""
    told = outcome.to_json()
    for name in ("before", "after", "folder"):
        told.pop(name)
    return told


__all__ = ["Outcome", "Report", "load_trainable", "quiet", "resume", "run_recipe"]
