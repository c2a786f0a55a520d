"""the YAML of `melior train`, and errors that name the nearest key

    method: sft
    model: {path: smollm2-135m-instruct, lora: {r: 16}}
    data: {train: answers.jsonl, heldout: 0.1}
    sft: {batch_size: 16, epochs: 2}
    fit: {learning_rate: 1e-3, warmup: 2}

Only what differs from the defaults need be written: method, model and data are enough, for what is "auto" is chosen
from the model and the rows, once, with a reason (`auto.py`). Paths are relative to the recipe's own folder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from melior.errors import ConfigError
from melior.evaluation import gates
from melior.policies import adapters
from melior.policies.freezing import check_preset, factors_of
from melior.trainers.loop import FitConfig
from melior.trainers.reinforcement import Reinforcement
from melior.trainers.trackers import TrackerName
from melior.types import Sampling

STRICT = ConfigDict(extra="forbid")
Layout = Literal["auto", "forest", "padded"]
Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
GraderSpec = str | dict[str, Any]
Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
GROUP = 8  # outputs of one prompt where rft is not told: as GRPO has it, arXiv:2402.03300

# Said once, elsewhere: these fields of a section's class are no keys of the recipe.
WITHHELD = {
    ("fit", "folder"): "the run's folder is given when training, as --folder",
    ("fit", "evaluate_every"): "write evaluate.every",
    ("sampling", "seed"): "write seed, beside method",
    ("model", "lora", "seed"): "write seed, beside method",
}


@validated(frozen=True, config=STRICT)
class _LoRA(adapters.LoRA):
    """The adapter's settings, unknown keys refused; so are the next two."""


@validated(frozen=True, kw_only=True, config=STRICT)
class _Sampling(Sampling):
    pass


@validated(frozen=True, kw_only=True, config=STRICT)
class _Gate(gates.Gate):
    pass


@validated(frozen=True, kw_only=True, config=STRICT)
class Fit(FitConfig):
    """How training steps; what is "auto" is chosen before the first one."""

    learning_rate: Rate | Auto = "auto"  # type: ignore[assignment]
    rate_multiplier: float = Field(default=1.0, gt=0)  # of an automatic rate
    layer_decay: float = Field(default=1.0, gt=0, le=1)  # each block's rate over that of the block above it

    @property
    def config(self) -> FitConfig:
        """The settings that are the loop's own.

        Raises:
            ConfigError: if the rate was not chosen yet.
        """
        if self.learning_rate == "auto":
            raise ConfigError('fit.learning_rate is still "auto"; resolve() the recipe, or write a number')
        return FitConfig(**{field.name: getattr(self, field.name) for field in fields(FitConfig)})


@validated(frozen=True, kw_only=True, config=STRICT)
class Model:
    """What is trained."""

    path: str  # a folder, a name that `melior pull` knows, a hub id, or a version: name@alias, ver_…
    lora: _LoRA | Auto | None = "auto"  # "auto": r=16, or the adapter there is; null trains every weight
    train: str = "all"  # of what can train: all, head, no-embeddings, last-4 (any number of blocks)
    layout: Layout = "auto"
    dtype: Dtype = "auto"
    template: Literal["auto", "chat", "plain"] = "auto"
    max_length: int | None = Field(default=None, ge=1)  # tokens
    gradient_checkpointing: bool = False


@validated(frozen=True, kw_only=True, config=STRICT)
class Generated:
    """Rows of a reasoning-gym data set, whose answers its own verifier knows."""

    reasoning_gym: str
    size: int = Field(ge=1)
    config: dict[str, Any] = Field(default_factory=dict)


@validated(frozen=True, kw_only=True, config=STRICT)
class Data:
    """What is learnt from, and what is only ever measured on."""

    train: str | Generated
    heldout: int | float | str = 0.1  # a number of rows, a share of the training file, or a file
    validation: int | float = 0.1  # of the training rows, set aside only where epochs or settings are chosen by them
    seed: int = 0  # of the split


@validated(frozen=True, kw_only=True, config=STRICT)
class Grading:
    """The processes that graders run in."""

    processes: int = Field(default=1, ge=1)
    timeout_s: float = Field(default=10.0, gt=0)  # per output


@validated(frozen=True, kw_only=True, config=STRICT)
class Sft:
    """Learning by demonstration."""

    batch_size: Count | Auto = "auto"  # rows of a step
    epochs: Count | Auto = "auto"  # "auto": until the loss of validation rows stops falling


@validated(frozen=True, kw_only=True, config=STRICT)
class Rft(Reinforcement):
    """Learning from rewards."""

    prompts: int = Field(default=16, ge=1)  # of a step; each is sampled sampling.n times
    resample: int = Field(default=0, ge=0)  # further draws that replace groups whose rewards are all equal
    baseline: int = Field(default=64, ge=0)  # training prompts sampled before the first step; 0 skips it
    hopeless: Literal["refuse", "train"] = "refuse"  # where that baseline shows nothing to learn from

    @property
    def objective(self) -> Reinforcement:
        """The settings that are the objective's own."""
        return Reinforcement(**{field.name: getattr(self, field.name) for field in fields(Reinforcement)})


@validated(frozen=True, kw_only=True, config=STRICT)
class Evaluate:
    """How held-out rows are measured, before and after training."""

    items: int | None = Field(default=None, ge=1)  # the first so many held-out rows; null takes all
    n: int = Field(default=2, ge=1)  # samples of each, beside a greedy one
    temperature: float = Field(default=1.0, gt=0)  # the one it will be served with
    seed: int = 0
    every: int | None = Field(default=None, ge=1)  # steps; null measures before and after only


@validated(frozen=True, kw_only=True, config=STRICT)
class Save:
    """Where the trained policy goes."""

    name: str | None = None  # of the model in the registry; null: the model's name and the method
    folder: str | None = None  # null: "model" in the run's folder
    alias: str = "prod"
    promote: bool = True  # where the gate says so, and never otherwise


@validated(frozen=True, kw_only=True, config=STRICT)
class Range:
    """Numbers between two, both included."""

    low: float
    high: float
    log: bool = False  # as many between 1e-5 and 1e-4 as between 1e-4 and 1e-3
    step: float | None = Field(default=None, gt=0)


@validated(frozen=True, kw_only=True, config=STRICT)
class Tune:
    """How `melior tune` looks for better settings; training itself does not read it."""

    trials: int = Field(default=20, ge=2)  # the first of them is the recipe as it stands
    space: dict[str, Range | list[Any]] | None = None  # setting → range or choices; null: the method's own
    pruner: Literal["median", "halving", "none"] = "median"
    looks: int = Field(default=4, ge=1)  # measurements of a trial before its last, at which it may be given up
    level: float = Field(default=0.95, gt=0, lt=1)  # of the whole search, however many trials it has
    seeds: int = Field(default=3, ge=1)  # fresh ones, with which best and default are trained anew to confirm
    seed: int = 0  # of the search


@validated(frozen=True, kw_only=True, config=STRICT)
class Report:
    """Where a run's numbers go beside its own folder, which always has them."""

    to: tuple[TrackerName, ...] = ()
    project: str = "melior"  # what the trackers call the set of runs this one belongs to
    samples: bool = False  # whether outputs go there too; they may hold what people wrote


@validated(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """One run, whole."""

    method: Literal["sft", "rft"]
    model: Model
    data: Data
    grader: GraderSpec | None = None  # the reward of rft, and what evaluations are graded by
    heldout_grader: GraderSpec | None = None  # evaluations' own, so that gaming the reward shows
    grading: Grading = Field(default_factory=Grading)
    sampling: _Sampling = Field(default_factory=_Sampling)
    sft: Sft = Field(default_factory=Sft)
    rft: Rft = Field(default_factory=Rft)
    fit: Fit = Field(default_factory=Fit)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    gate: _Gate = Field(default_factory=_Gate)
    save: Save = Field(default_factory=Save)
    tune: Tune = Field(default_factory=Tune)
    report: Report = Field(default_factory=Report)
    seed: int = 0  # of adapter, row order and sampling

    def __post_init__(self) -> None:
        if self.method == "rft" and self.grader is None and isinstance(self.data.train, str):
            raise ConfigError("rft learns from a grader's rewards, and there is none; write grader:")
        if self.method == "rft" and self.sampling.n < 2:
            raise ConfigError(
                f"rft compares outputs of one input, so sampling.n must be 2 or more, got {self.sampling.n}"
            )
        check_preset(self.model.train)
        if self.data.validation < 0 or (isinstance(self.data.validation, float) and self.data.validation > 0.5):
            raise ConfigError(
                f"data.validation={self.data.validation} is no number of rows and no share up to half of the training "
                "rows; 0.1 is usual"
            )
        if isinstance(self.data.train, Generated) and not isinstance(self.data.heldout, int):
            raise ConfigError(f"generated data holds out a number of rows, got data.heldout={self.data.heldout!r}")
        if self.fit.best_metric and self.evaluate.every is None:
            raise ConfigError(f"fit.best_metric={self.fit.best_metric!r} is never measured; write evaluate.every")

    @property
    def evaluation_grader(self) -> GraderSpec | None:
        """What held-out outputs are graded by; None measures the likelihood of the demonstrations instead."""
        if self.heldout_grader is not None:
            return self.heldout_grader
        return self.reward_grader

    @property
    def reward_grader(self) -> GraderSpec | None:
        """The grader named, or a generated data set's own verifier."""
        if self.grader is None and isinstance(self.data.train, Generated):
            return {"type": "reasoning_gym", "dataset": self.data.train.reasoning_gym}
        return self.grader

    @property
    def adapter(self) -> adapters.LoRA | None:
        """The fresh adapter that is asked for in so many words, with this run's seed."""
        lora = self.model.lora
        return adapters.LoRA(**{**vars(lora), "seed": self.seed}) if isinstance(lora, adapters.LoRA) else None

    @property
    def watched(self) -> bool:
        """Whether rows set aside say when training stops, or which weights are kept: the gate's rows must not."""
        return self.method == "sft" and (self.sft.epochs == "auto" or self.fit.best_metric is not None)

    def factors(self, names: Sequence[str]) -> dict[str, float]:
        """Learning-rate factors by pattern of parameters with these names; 0 is what does not train.

        Raises:
            ConfigError: if what should train is not there.
        """
        return factors_of(names, train=self.model.train, layer_decay=self.fit.layer_decay, rates=self.fit.rates)

    @property
    def rollouts(self) -> Sampling:
        """How outputs are sampled to learn from."""
        return Sampling(**{**vars(self.sampling), "seed": self.seed})

    @property
    def evaluation(self) -> Sampling:
        """How outputs are sampled to be measured: as served, the same for every seed of training."""
        measured = {"n": self.evaluate.n, "temperature": self.evaluate.temperature, "seed": self.evaluate.seed}
        return Sampling(**{**vars(self.sampling), **measured})

    @property
    def digest(self) -> str:
        """Eight characters that differ where recipes do, wherever they report to."""
        told = {name: value for name, value in self.to_dict().items() if name != "report"}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]

    def to_dict(self) -> dict[str, Any]:
        """Every setting, as JSON; `recipe_of` reads it back."""
        told: dict[str, Any] = TypeAdapter(Recipe).dump_python(self, mode="json")
        for *path, key in WITHHELD:
            section: Any = told
            for part in path:
                section = section.get(part) if isinstance(section, dict) else None
            if isinstance(section, dict):
                section.pop(key, None)
        return told

    def to_yaml(self) -> str:
        """The resolved recipe as a file that `load_recipe` reads back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file, its paths made absolute.

    Raises:
        ConfigError: if the file cannot be read, or a key or value is wrong; says where.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start + 1}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where} is not YAML: {getattr(error, 'problem', None) or error}") from error
    lines = dict(_lines(node, (), path)) if node else {}
    return recipe_of(raw, folder=path.parent, told=str(path), lines=lines)


def recipe_of(
    raw: Any,
    *,
    folder: Path | None = None,
    told: str = "the recipe",
    lines: Mapping[tuple[Any, ...], int] | None = None,
) -> Recipe:
    """The recipe a mapping describes; paths are relative to `folder`.

    Raises:
        ConfigError: naming the first wrong key, where it stands, and the nearest valid one.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{told} must hold sections such as method, model and data, found {type(raw).__name__}")
    for place, remedy in WITHHELD.items():
        if _at(raw, place):
            raise ConfigError(f"{_where(told, place, lines)}: {'.'.join(place)} is no key here; {remedy}")
    try:
        return TypeAdapter(Recipe).validate_python(_absolute(_grouped(raw), (folder or Path.cwd()).absolute()))
    except ValidationError as error:
        raise ConfigError(_told(error, raw, told, lines)) from error
    except ConfigError as error:
        raise ConfigError(f"{told}: {error}") from error


def _grouped(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same settings, with a group to compare within where rft was not told how many outputs it has."""
    sampling = raw.get("sampling", {})
    if raw.get("method") != "rft" or not isinstance(sampling, Mapping):
        return raw
    return {**raw, "sampling": {"n": GROUP, **sampling}}


def _absolute(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same settings with paths that stand wherever they are read."""
    made = {key: dict(value) if isinstance(value, Mapping) else value for key, value in raw.items()}
    data, model, save = (made.get(key) for key in ("data", "model", "save"))
    for section, key in ((data, "train"), (data, "heldout"), (save, "folder")):
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = str(folder / Path(section[key]).expanduser())
    if isinstance(model, dict) and isinstance(model.get("path"), str):
        place = folder / Path(model["path"]).expanduser()
        if place.is_dir() or model["path"].startswith((".", "~")):
            model["path"] = str(place)
    for key in ("grader", "heldout_grader"):
        if key in made:
            made[key] = absolute_grader(made[key], folder)
    return made


def absolute_grader(spec: Any, folder: Path) -> Any:
    """A grader's setting with the files of its functions and the folders of its judges made absolute."""
    if isinstance(spec, str):
        file, _, name = spec.rpartition(":")
        if spec.endswith(".py") and "://" not in spec:
            return str(folder / Path(spec).expanduser())
        return f"{folder / Path(file).expanduser()}:{name}" if file.endswith(".py") and "://" not in spec else spec
    if isinstance(spec, Mapping):
        places = ("function", "grader", "lambda")
        inner = {key: absolute_grader(value, folder) for key, value in spec.items() if key in places}
        parts, model = spec.get("graders"), spec.get("model")
        if isinstance(model, str) and (folder / Path(model).expanduser()).is_dir():
            inner["model"] = str(folder / Path(model).expanduser())  # a judge
        if isinstance(parts, Mapping):
            inner["graders"] = {name: absolute_grader(part, folder) for name, part in parts.items()}
        return {**spec, **inner}
    return spec


# ---------------------------------------------------------------------- telling what is wrong


def _told(error: ValidationError, raw: Any, told: str, lines: Mapping[tuple[Any, ...], int] | None) -> str:
    """The most telling of the errors, in one sentence."""
    problems = error.errors(include_url=False)
    unknown = [p for p in problems if p["type"] in ("unexpected_keyword_argument", "extra_forbidden")]
    problem = (unknown or problems)[0]
    place = _place(problem["loc"], raw)
    where, dotted = _where(told, place, lines), ".".join(map(str, place))
    if unknown:
        return f"{where}: unknown key {dotted!r}{_nearest(place)}"
    if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{where}: {dotted} is missing; it has no default"
    told_so = problem["msg"][0].lower() + problem["msg"][1:]
    if any(p["type"] == "literal_error" and p["ctx"]["expected"] == "'auto'" for p in problems[:3]):
        told_so += ', or be "auto"'
    return f"{where}: {dotted} is {problem['input']!r:.60}, but {told_so}"


def _place(loc: tuple[Any, ...], raw: Any) -> tuple[Any, ...]:
    """Pydantic's location without the names of union members: the keys that a reader finds in the file."""
    place: list[Any] = []
    known = {key for path, _ in _keys(Recipe, ()) for key in path}
    for part in loc:
        inside = (isinstance(raw, Mapping) and part in raw) or (isinstance(raw, list) and isinstance(part, int))
        if inside:
            raw = raw[part]
            place.append(part)
        elif part in known:
            place.append(part)
    return tuple(place)


def _nearest(place: tuple[Any, ...]) -> str:
    """The valid key most like an unknown one, in its own section first."""
    keys = [path for path, _ in _keys(Recipe, ()) if path not in WITHHELD]
    section, key = tuple(part for part in place[:-1] if not isinstance(part, int)), str(place[-1])
    own = [path[-1] for path in keys if path[:-1] == section]
    if near := difflib.get_close_matches(key, own, n=1, cutoff=0.75):
        return f", did you mean {'.'.join((*section, near[0]))!r}?"
    exact = [path for path in keys if path[-1] == key]
    others = exact or [path for path in keys if difflib.get_close_matches(key, [path[-1]], n=1, cutoff=0.75)]
    if others:
        best = max(others, key=lambda path: difflib.SequenceMatcher(None, key, path[-1]).ratio())
        return f", did you mean {'.'.join(best)!r}?"
    if near := difflib.get_close_matches(key, own, n=1, cutoff=0.5):
        return f", did you mean {'.'.join((*section, near[0]))!r}?"
    return f"; the keys here are {', '.join(own)}" if own else ""


def _keys(kind: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every valid key with its place, sections included."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        yield (*path, field.name), hints[field.name]
        for member in _members(hints[field.name]):
            if is_dataclass(member):
                yield from _keys(member, (*path, field.name))


def _members(hint: Any) -> Iterator[Any]:
    if get_origin(hint) in (Union, type(int | str), tuple):
        for inner in get_args(hint):
            yield from _members(inner)
    else:
        yield hint


def _at(raw: Any, place: tuple[str, ...]) -> bool:
    for part in place:
        if not isinstance(raw, Mapping) or part not in raw:
            return False
        raw = raw[part]
    return True


def _where(told: str, place: tuple[Any, ...], lines: Mapping[tuple[Any, ...], int] | None) -> str:
    found = (lines or {}).get(place)
    return told if found is None else f"{told}:{found}"


def _lines(node: Any, path: tuple[Any, ...], file: Path) -> Iterator[tuple[tuple[Any, ...], int]]:
    """The line of every key; a key written twice is an error, since YAML would keep the last in silence."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ConfigError(
                    f"{file}:{line}: {key.value} was written in line {seen[key.value]} already; remove one"
                )
            seen[key.value] = line
            yield (*path, key.value), line
            yield from _lines(value, (*path, key.value), file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*path, index), file)


def difference(first: Recipe, second: Recipe) -> str:
    """The first setting in which two recipes differ, in words; empty where they agree but for where they report to."""
    ours, theirs = dict(_flat(first.to_dict(), ())), dict(_flat(second.to_dict(), ()))
    for key in dict.fromkeys((*ours, *theirs)):
        if key.split(".")[0] != "report" and ours.get(key) != theirs.get(key):
            return f"{key} is {ours.get(key)!r} there, {theirs.get(key)!r} here"
    return ""


def _flat(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, (*path, str(key)))
    else:
        yield ".".join(path), value


__all__ = ["Recipe", "difference", "load_recipe", "recipe_of"]
