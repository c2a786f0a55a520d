"""better settings for a recipe, and a claim that noise cannot make

    default ── trials (pruned) ── best on the search's rows ── best and default anew, fresh seeds ── claim

Rows are set aside from the training rows for the search; the recipe's held-out rows are looked at once, at the end.
Each trial is a run in a folder of its own, without a version and without a gate. The search is kept in SQLite: killed
anywhere and started again, it goes on with the trial it was at.

    recipe.yaml  trials.db  default/  trial-001/ …  confirm/default-1/ best-1/ …  tune.json  best.yaml

Source: Bergstra et al. 2011, NeurIPS 24 (TPE, which proposes settings); Golovin et al. 2017, KDD (the median rule).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from melior.cycles.auto import check_rows, resolve
from melior.cycles.folders import alone, claim
from melior.cycles.lesson import lesson, load_trainable
from melior.cycles.measures import Measures, kept
from melior.cycles.models import Found, find_model
from melior.cycles.recipe import Recipe, recipe_of
from melior.cycles.rows import MOST_ASIDE, Rows, load_rows, task_of
from melior.cycles.sections import Range
from melior.durable import write_file
from melior.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from melior.evaluation.compare import Comparison, compare
from melior.evaluation.evaluate import Evaluation
from melior.evaluation.search import candidate, corrected, judged
from melior.policies.adapters import is_adapter
from melior.statistics import Interval
from melior.store import Store
from melior.trainers.loop import fit

Report = Callable[[str, int, int, str], None]
Space = Mapping[str, Range | list[Any]]

LEAST_ROWS = 30  # of the search: from here on intervals are tested
FRESH = 1000  # added to the recipe's seed for runs that confirm
STARTUP = 4  # trials drawn at random before the search learns from them, and before any is given up
ADAPTER_RATES, WHOLE_RATES = (1e-5, 5e-3), (1e-6, 5e-4)
ADAPTER_RFT, WHOLE_RFT = (1e-5, 1e-3), (1e-7, 1e-5)
LANGUAGE_RATES, OTHER_RATES = (1e-7, 1e-3), (1e-5, 1e-2)  # of preferences and logs; of classifiers and slates
MEASURING = ("tune", "data", "gate", "evaluate", "save", "grader", "heldout_grader", "grading", "method", "seed")
INSIDE = 2**0.5 - 1  # of a range: irrational, so no whole number lies there
# Another model, or other tokens of the same row, and log-probs per decision cannot be compared.
UNLIKE = ("model.path", "model.template", "model.max_length")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting that was tried; number 0 is the recipe as it stands."""

    number: int
    settings: Mapping[str, Any]
    state: str  # finished, pruned, failed
    reward: Interval | None = None  # on the search's rows
    difference: Interval | None = None  # to the default's, corrected for how many were tried
    folder: Path
    why: str = ""  # it was given up

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        told = {**vars(self), "folder": str(self.folder), "settings": dict(self.settings)}
        for name in ("reward", "difference"):
            interval = getattr(self, name)
            told[name] = interval.to_json() if interval else None
        return told


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What a search came to."""

    folder: Path
    trials: tuple[Trial, ...]
    best: int | None  # the trial that is better than the default, None where noise explains the best of them
    gain: Interval | None  # on rows and seeds the search never saw
    sentence: str
    recipe: Path  # the best recipe, ready to train
    search_rows: int
    confirm_rows: int
    measure: str = field(default="reward")

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {
            **vars(self),
            "folder": str(self.folder),
            "recipe": str(self.recipe),
            "gain": self.gain.to_json() if self.gain else None,
            "trials": [trial.to_json() for trial in self.trials],
        }

    @classmethod
    def read(cls, folder: Path) -> Tuning:
        """What the finished search in a folder came to."""
        told = json.loads((folder / "tune.json").read_text(encoding="utf-8"))
        trials = tuple(_trial_of(trial) for trial in told.pop("trials"))
        places = {"folder": Path(told.pop("folder")), "recipe": Path(told.pop("recipe"))}
        return cls(**{**told, **places, "trials": trials, "gain": _interval(told["gain"])})


def tune(recipe: Recipe, folder: Path, *, store: Store, report: Report = lambda *_: None) -> Tuning:
    """Better settings for the recipe, if there are any beyond noise; the same call goes on where it was stopped.

    Raises:
        ConfigError: if Optuna is not installed, or a setting of the space is no key or takes no such value.
        DataError: if there are too few training rows to set some aside.
        CheckpointError: if the folder holds the search of another recipe, or of other rows.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        claim(folder, recipe)
        if (folder / "tune.json").is_file():
            check_rows(folder / "default", search_rows(recipe))
            return Tuning.read(folder)
        with ExitStack() as stack:
            return _Search(recipe, folder, store, report, stack).run()


class _Search:
    """The state of one search."""

    def __init__(self, recipe: Recipe, folder: Path, store: Store, report: Report, stack: ExitStack) -> None:
        self.optuna = _optuna()
        self.recipe, self.folder, self.report = recipe, folder, report
        self.found = find_model(recipe.model.path, store)
        self.space = space_of(recipe, self.found)
        check_space(recipe, self.space)
        self.rows = search_rows(recipe)
        self.search = stack.enter_context(Measures(recipe, self.rows))
        whole = load_rows(recipe)
        self.confirm_rows = replace(self.rows, heldout=whole.heldout, tasks=whole.tasks)
        self.confirm = stack.enter_context(Measures(recipe, self.confirm_rows))

    def run(self) -> Tuning:
        settings = self.recipe.tune
        self.report("trials", 0, settings.trials, "default")
        default = self._run(self.recipe, self.folder / "default", self.rows, self.search)
        trials = [self._told(0, {}, default, self.folder / "default")]
        study = self._study()
        evaluations: dict[int, Evaluation] = {}
        for number in range(1, settings.trials):
            self.report("trials", number, settings.trials, _best_so_far(trials))
            trial, evaluation = self._trial(study, number)
            trials.append(trial)
            if evaluation is not None:
                evaluations[number] = evaluation
        self.report("trials", settings.trials, settings.trials, _best_so_far(trials))
        comparisons = {number: compare(found, default) for number, found in evaluations.items()}
        return self._concluded(trials, comparisons)

    def _concluded(self, trials: list[Trial], comparisons: Mapping[int, Comparison]) -> Tuning:
        level = self.recipe.tune.level
        intervals = corrected(comparisons, level=level, tried=len(trials) - 1)
        trials = [replace(trial, difference=intervals.get(trial.number)) for trial in trials]
        best = candidate(intervals)
        pairs = self._confirm(trials[best].settings) if best is not None else []
        found = judged(intervals, pairs, level=level)
        path = self.folder / "best.yaml"
        settled = with_settings(self.recipe, trials[found.best].settings if found.best is not None else {})
        write_file(path, f"# {found.sentence}\n{settled.to_yaml()}")
        made = Tuning(
            folder=self.folder,
            trials=tuple(trials),
            best=found.best,
            gain=found.gain,
            sentence=found.sentence,
            recipe=path,
            search_rows=len(self.rows.heldout),
            confirm_rows=len(self.confirm_rows.heldout),
            measure=self.search.name,
        )
        write_file(self.folder / "tune.json", json.dumps(made.to_json(), indent=1))
        return made

    def _confirm(self, settings: Mapping[str, Any]) -> list[Comparison]:
        """Both settings trained anew with each fresh seed, compared on rows the search never saw."""
        pairs, total = [], self.recipe.tune.seeds
        for turn in range(1, total + 1):
            self.report("confirming", 2 * turn - 2, 2 * total, f"seed {turn}")
            fresh = replace(self.recipe, seed=self.recipe.seed + FRESH + turn)
            place = self.folder / "confirm"
            runs = [
                self._run(made, place / f"{name}-{turn}", self.confirm_rows, self.confirm)
                for name, made in (("default", fresh), ("best", with_settings(fresh, settings)))
            ]
            pairs.append(compare(runs[1], runs[0]))
        self.report("confirming", 2 * total, 2 * total, "")
        return pairs

    # ------------------------------------------------------------------ trials

    def _study(self) -> Any:
        settings = self.recipe.tune
        pruners = self.optuna.pruners
        pruner = {
            "median": lambda: pruners.MedianPruner(n_startup_trials=STARTUP),
            "halving": lambda: pruners.SuccessiveHalvingPruner(reduction_factor=2),
            "none": pruners.NopPruner,
        }[settings.pruner]()
        storage = f"sqlite:///{self.folder / 'trials.db'}"
        return self.optuna.create_study(
            study_name="tune", storage=storage, direction="maximize", pruner=pruner, load_if_exists=True
        )

    def _trial(self, study: Any, number: int) -> tuple[Trial, Evaluation | None]:
        """The trial of a number: read back, gone on with, or made."""
        place = self.folder / f"trial-{number:03d}"
        frozen = study.get_trials(deepcopy=False)
        states = self.optuna.trial.TrialState
        if number <= len(frozen) and frozen[number - 1].state != states.RUNNING:
            return self._read(number, frozen[number - 1], place)
        # A seed of its own for every proposal: a search that goes on must not repeat its first ones.
        seed = self.recipe.tune.seed * 100_003 + number
        study.sampler = self.optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
        # One that was stopped in the middle has its settings, and its folder goes on.
        begun = number <= len(frozen)
        trial = self.optuna.trial.Trial(study, frozen[number - 1]._trial_id) if begun else study.ask()
        settings = self._suggested(trial)
        try:
            evaluation = self._run(with_settings(self.recipe, settings), place, self.rows, self.search, trial)
        except self.optuna.TrialPruned:
            study.tell(trial, state=states.PRUNED)
            _forget(place)
            return Trial(number=number, settings=settings, state="pruned", folder=place), None
        except NonFiniteError as error:
            trial.set_user_attr("why", str(error))
            study.tell(trial, state=states.FAIL)
            _forget(place)
            return Trial(number=number, settings=settings, state="failed", folder=place, why=str(error)), None
        study.tell(trial, evaluation.reward.estimate)
        return self._told(number, settings, evaluation, place), evaluation

    def _read(self, number: int, frozen: Any, place: Path) -> tuple[Trial, Evaluation | None]:
        states = self.optuna.trial.TrialState
        settings = dict(frozen.params)
        if frozen.state == states.COMPLETE:
            evaluation = kept(place / "evaluation.json", _missing(place))
            return self._told(number, settings, evaluation, place), evaluation
        state = "pruned" if frozen.state == states.PRUNED else "failed"
        why = str(frozen.user_attrs.get("why", ""))
        return Trial(number=number, settings=settings, state=state, folder=place, why=why), None

    def _suggested(self, trial: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, values in self.space.items():
            if isinstance(values, Range):
                found[key] = _drawn(trial, key, values, whole=_is_count(self.recipe, key, values))
            else:
                found[key] = trial.suggest_categorical(key, list(values))
        return found

    def _told(self, number: int, settings: Mapping[str, Any], evaluation: Evaluation, place: Path) -> Trial:
        return Trial(number=number, settings=settings, state="finished", reward=evaluation.reward, folder=place)

    def _run(
        self, recipe: Recipe, folder: Path, rows: Rows, measures: Measures, trial: Any | None = None
    ) -> Evaluation:
        """The evaluation of the recipe's policy once trained; raises TrialPruned where it lags behind the others."""
        path = folder / "evaluation.json"
        if path.is_file():
            return kept(path, _missing(folder))
        folder.mkdir(parents=True, exist_ok=True)
        claim(folder, recipe)
        policy = load_trainable(recipe, self.found, rows)
        resolved = resolve(recipe, policy, rows, folder)
        taught = lesson(resolved, recipe, policy, rows, measures, None)
        total = taught.config.steps or taught.steps.total or 1
        looks = recipe.tune.looks
        if trial is not None and resolved.recipe.evaluate.every is None:
            every = max(1, math.ceil(total / (looks + 1)))
            watched = with_settings(resolved.recipe, {"evaluate.every": every})
            taught = lesson(replace(resolved, recipe=watched), recipe, policy, rows, measures, None)
        config = replace(taught.config, folder=folder)
        told: set[int] = set()

        def on_step(done: int, whole: int, metrics: dict[str, float]) -> None:
            value = _progress(recipe, metrics)
            if trial is None or value is None or done == whole:
                return
            look = round(done / whole * (looks + 1))
            if look in told:  # a recipe may look more often than the search
                return
            told.add(look)
            trial.report(value, look)
            if trial.should_prune():
                raise self.optuna.TrialPruned(f"given up at look {look} of {looks}: it lagged behind other trials")

        fit(policy, taught.steps, taught.objective, config, evaluation=taught.evaluation, on_step=on_step)
        found = kept(path, lambda: measures.evaluation(policy))
        _forget(folder)
        return found


def search_rows(recipe: Recipe) -> Rows:
    """The recipe's rows with some of the training side in the place of the held-out ones.

    Raises:
        DataError: if there are too few.
    """
    rows = load_rows(recipe, aside=False)
    share = recipe.data.validation
    wanted = share if isinstance(share, int) else min(MOST_ASIDE, max(LEAST_ROWS, round(share * len(rows.train))))
    wanted = max(LEAST_ROWS, wanted)
    made = rows.set_aside(wanted, recipe.data.seed)
    if not made.validation:
        smaller = ", or a smaller data.validation" if wanted > LEAST_ROWS else ""
        raise DataError(
            f"{len(rows.train)} training rows are too few to set {wanted} of them aside for a search; "
            f"it takes at least {2 * wanted}{smaller}"
        )
    aside = made.validation
    watched = aside if recipe.watched else []
    return replace(made, heldout=aside, tasks=[task_of(row) for row in aside], validation=watched)


def space_of(recipe: Recipe, found: Found) -> Space:
    """The settings to try: the recipe's own space, or what matters most for its method."""
    if recipe.tune.space is not None:
        return recipe.tune.space
    if recipe.model.kind != "language" or recipe.method not in ("sft", "rft"):
        low, high = LANGUAGE_RATES if recipe.model.kind == "language" else OTHER_RATES
        own: Space = {} if recipe.way.samples else {f"{recipe.lead}.batch_size": [16, 64, 256]}
        own = {"rft.divide_by_std": [False, True]} if recipe.method == "rft" else own
        return {"fit.learning_rate": Range(low=low, high=high, log=True), **own}
    fresh = (recipe.model.lora == "auto" and recipe.model.train == "all") or recipe.adapter is not None
    adapted = fresh or is_adapter(Path(found.path))
    if recipe.method == "sft":
        low, high = ADAPTER_RATES if adapted else WHOLE_RATES
        return {"fit.learning_rate": Range(low=low, high=high, log=True), "sft.batch_size": [8, 16, 32]}
    low, high = ADAPTER_RFT if adapted else WHOLE_RFT
    return {"fit.learning_rate": Range(low=low, high=high, log=True), "rft.divide_by_std": [False, True]}


def check_space(recipe: Recipe, space: Space) -> None:
    """Nothing, if every setting is a key of the recipe and takes the values at its ends.

    Raises:
        ConfigError: naming the setting.
    """
    if not space:
        raise ConfigError("tune.space has 0 settings to try; name one, such as fit.learning_rate")
    for key, values in space.items():
        if key.partition(".")[0] in MEASURING or key in UNLIKE:
            raise ConfigError(f"tune.space.{key} changes what is measured, not how well it is learnt; leave it out")
        if isinstance(values, Range):
            _check_range(key, values)
        ends = [values.low, values.high] if isinstance(values, Range) else values
        if len(ends) < 2:
            raise ConfigError(f"tune.space.{key} has {len(ends)} values; a search needs 2 or more")
        for end in ends:
            with_settings(recipe, {key: end})
        if isinstance(values, Range) and (values.step or 1.0) % 1 and _is_count(recipe, key, values):
            raise ConfigError(f"tune.space.{key} takes whole numbers, and has step: {values.step}; write a whole one")


def _check_range(key: str, values: Range) -> None:
    if not values.low < values.high:
        raise ConfigError(f"tune.space.{key} goes from {values.low} to {values.high}; low must be below high")
    if values.log and values.low <= 0:
        raise ConfigError(f"tune.space.{key} has log: true and begins at {values.low}; begin above 0")
    if values.log and values.step is not None:
        raise ConfigError(f"tune.space.{key} has log: true and step: {values.step}; write one of the 2")


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with settings replaced, named as in `fit.learning_rate`.

    Raises:
        ConfigError: if there is no such key, or it takes no such value.
    """
    told = recipe.to_dict()
    for key, value in settings.items():
        *path, last = key.split(".")
        section: Any = told
        for part in path:
            if section.get(part) == "auto" and part == "lora":
                section[part] = {}
            if not isinstance(section.get(part), dict):
                raise ConfigError(f"tune.space.{key} is no setting of a recipe: {part} holds none; see docs/tuning.md")
            section = section[part]
        section[last] = value
    return recipe_of(told, told="tune.space")


def _drawn(trial: Any, key: str, values: Range, *, whole: bool) -> float | int:
    if whole:
        step = int(values.step or 1)
        return int(trial.suggest_int(key, int(values.low), int(values.high), step=step, log=values.log))
    return float(trial.suggest_float(key, values.low, values.high, log=values.log, step=values.step))


def _is_count(recipe: Recipe, key: str, values: Range) -> bool:
    """Whether a setting refuses a number between the ends that is not whole."""
    try:
        with_settings(recipe, {key: values.low + (values.high - values.low) * INSIDE})
    except ConfigError:
        return True
    return False


def _forget(folder: Path) -> None:
    """Removes the checkpoints of a run that was measured or given up: nothing goes on from them, and they are large."""
    for name in ("checkpoints", "best"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _progress(recipe: Recipe, metrics: Mapping[str, float]) -> float | None:
    """What a trial is judged by on its way: the loss for demonstrations, as it is cheap; else the reward."""
    if recipe.method == "sft":
        return -metrics["heldout_loss"] if "heldout_loss" in metrics else None
    return metrics.get("heldout_reward")


def _best_so_far(trials: Sequence[Trial]) -> str:
    found = [trial.reward.estimate for trial in trials if trial.reward]
    return f"default {found[0]:.3f}, best {max(found):.3f}" if found else ""


def _missing(folder: Path) -> Callable[[], Evaluation]:
    def refuse() -> Evaluation:
        raise CheckpointError(f"{folder} has lost its evaluation.json; remove the search's folder and start again")

    return refuse


def _interval(told: Mapping[str, Any] | None) -> Interval | None:
    return Interval.from_json(told) if told else None


def _trial_of(told: Mapping[str, Any]) -> Trial:
    intervals = {name: _interval(told[name]) for name in ("reward", "difference")}
    return Trial(**{**told, **intervals, "folder": Path(told["folder"])})


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError("melior tune needs Optuna; pip install 'melior[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


__all__ = ["Trial", "Tuning", "check_space", "search_rows", "space_of", "tune", "with_settings"]
