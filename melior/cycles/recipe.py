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

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from melior.cycles import sections
from melior.cycles.methods import WAYS, Method, Single, Way
from melior.cycles.sections import STRICT, Generated, GraderSpec, Simulated
from melior.cycles.wording import Lines, lines_of, sentence, stands_at, where_of
from melior.errors import ConfigError
from melior.policies import adapters
from melior.policies.classifier import Classifier
from melior.policies.freezing import check_preset, factors_of
from melior.policies.slate import Slate
from melior.trainers.alarms import Alarms
from melior.types import Sampling

SERVED = {"n": 1, "temperature": 0.0}  # classifiers and slates are served greedily where nobody says otherwise
GROUP = 8  # outputs of one prompt where a method that samples is not told: as GRPO has it, arXiv:2402.03300
PASSES = 4  # of ppo over each step's outputs, where nobody says otherwise: as InstructGPT has it, arXiv:2203.02155

# Said once, elsewhere: these fields of a section's class are no keys of the recipe.
WITHHELD = {
    ("fit", "folder"): "the run's folder is given when training, as --folder",
    ("fit", "evaluate_every"): "write evaluate.every",
    ("sampling", "seed"): "write seed, beside method",
    ("model", "lora", "seed"): "write seed, beside method",
}


@validated(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """One run, whole."""

    method: Method
    model: sections.Model
    data: sections.Data
    grader: GraderSpec | None = None  # the reward of rft, and what evaluations are graded by
    heldout_grader: GraderSpec | None = None  # evaluations' own, so that gaming the reward shows
    grading: sections.Grading = Field(default_factory=sections.Grading)
    judge: sections.Judging = Field(default_factory=sections.Judging)
    sampling: sections.Outputs = Field(default_factory=sections.Outputs)
    classifier: Classifier = Field(default_factory=Classifier)
    slate: Slate = Field(default_factory=Slate)
    sft: sections.Sft = Field(default_factory=sections.Sft)
    rft: sections.Rft = Field(default_factory=sections.Rft)
    off_policy: sections.FromLogs = Field(default_factory=sections.FromLogs)
    dpo: sections.FromPairs = Field(default_factory=sections.FromPairs)
    ipo: sections.FromPairsIpo = Field(default_factory=sections.FromPairsIpo)
    simpo: sections.FromPairsSimPo = Field(default_factory=sections.FromPairsSimPo)
    orpo: sections.FromPairsOrpo = Field(default_factory=sections.FromPairsOrpo)
    kto: sections.FromJudged = Field(default_factory=sections.FromJudged)
    online_dpo: sections.ByOnlinePairs = Field(default_factory=sections.ByOnlinePairs)
    awr: sections.FromRatings = Field(default_factory=sections.FromRatings)
    best_of: sections.ByBestOf = Field(default_factory=sections.ByBestOf)
    ppo: sections.ByPpo = Field(default_factory=sections.ByPpo)
    distill: sections.FromTeacher = Field(default_factory=sections.FromTeacher)
    on_policy_distill: sections.ByTeacher = Field(default_factory=sections.ByTeacher)
    reward_model: sections.ForRewards = Field(default_factory=sections.ForRewards)
    hybrid: sections.Hybrid = Field(default_factory=sections.Hybrid)
    fit: sections.Fit = Field(default_factory=sections.Fit)
    alarms: Alarms = Field(default_factory=Alarms)
    evaluate: sections.Evaluate = Field(default_factory=sections.Evaluate)
    gate: sections.Gate = Field(default_factory=sections.Gate)
    save: sections.Save = Field(default_factory=sections.Save)
    tune: sections.Tune = Field(default_factory=sections.Tune)
    report: sections.Report = Field(default_factory=sections.Report)
    seed: int = 0  # of adapter, row order and sampling

    def __post_init__(self) -> None:
        self._check_parts()
        if self.kind == "language" and self.model.path is None:
            raise ConfigError(
                "model.path is missing; only a classifier, a slate policy or a reward model can be made from rows alone"
            )
        if self.way.samples and self.way.graded and self.grader is None and isinstance(self.data.train, str):
            raise ConfigError(f"{self.lead} learns from what a grader says, and there is none; write grader:")
        if self.sampling.n < self.way.outputs:
            raise ConfigError(
                f"{self.lead} compares outputs of one input, so sampling.n must be 2 or more, got {self.sampling.n}"
            )
        check_preset(self.model.train)
        if self.data.validation < 0 or (isinstance(self.data.validation, float) and self.data.validation > 0.5):
            raise ConfigError(
                f"data.validation={self.data.validation} is no number of rows and no share up to half of the training "
                "rows; 0.1 is usual"
            )
        made = isinstance(self.data.train, Generated | Simulated)
        if made and (not isinstance(self.data.heldout, int) or not self.data.heldout):
            raise ConfigError(f"generated data holds out a number of rows, got data.heldout={self.data.heldout!r}")
        if isinstance(self.data.train, Simulated) and not (self.way.samples and self.model.kind == "slate"):
            raise ConfigError(
                f"a simulated shop answers slates as they are shown: it needs model.kind: slate and a method that "
                f"samples, such as rft; got {self.model.kind} and {self.method}"
            )
        if self.evaluate.temperature == 0 and self.evaluate.n != 1:
            raise ConfigError(f"evaluate.temperature=0 is one output per row, so n must be 1, got {self.evaluate.n}")
        if self.alarms.heldout and self.evaluate.every is None:
            raise ConfigError(f"alarms.heldout={self.alarms.heldout!r} is never measured; write evaluate.every")
        if self.fit.best_metric and self.evaluate.every is None:
            raise ConfigError(f"fit.best_metric={self.fit.best_metric!r} is never measured; write evaluate.every")

    def _check_parts(self) -> None:
        """Nothing, if a hybrid has parts, and what measures it is what its first part learns from."""
        if self.method != "hybrid":
            return
        if not self.hybrid.parts:
            raise ConfigError("a hybrid has parts, and there are none; write hybrid.parts: {sft: {method: sft}, …}")
        if "reward_model" in self.methods:
            raise ConfigError("a reward model decides nothing, so it is no part of a hybrid; train it by itself")
        name, lead = next((name, part) for name, part in self.hybrid.parts.items() if part.method == self.lead)
        if lead.data is not None:
            raise ConfigError(
                f"hybrid.parts.{name} learns from data.train, where rows are held out of as well; write "
                f"{lead.data} there"
            )

    @property
    def lead(self) -> Single:
        """The method that data.train is for: of a hybrid the first that learns from its own outputs, or the first."""
        if self.method != "hybrid":
            return self.method
        methods = [part.method for part in self.hybrid.parts.values()]
        return next((method for method in methods if WAYS[method].samples), methods[0])

    @property
    def kind(self) -> str:
        """What is trained: a policy of a kind, or a reward model."""
        return "reward_model" if self.method == "reward_model" else self.model.kind

    @property
    def methods(self) -> tuple[Single, ...]:
        """All of them."""
        return tuple(part.method for part in self.hybrid.parts.values()) or (self.lead,)

    @property
    def leading(self) -> Recipe:
        """The recipe of its leading method alone; but for a hybrid, the same."""
        return self if self.method != "hybrid" else replace(self, method=self.lead)

    def part(self, name: str) -> Recipe:
        """The recipe of one part of a hybrid alone."""
        share = self.hybrid.parts[name]
        data = self.data if share.data is None else replace(self.data, train=share.data)
        return replace(self, method=share.method, data=data)

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

    @property
    def way(self) -> Way:
        """What its method learns from, and what it needs for that."""
        return WAYS[self.lead]

    @property
    def section(self) -> Any:
        """The settings of its method; of a hybrid's leading one."""
        return getattr(self, self.lead)

    @property
    def shown(self) -> tuple[int, int]:
        """Rows of a step and epochs of a method that is shown rows."""
        return int(self.section.batch_size), int(self.section.epochs)

    @property
    def sampled(self) -> int:
        """Outputs of a step of a method that learns from its own, where there are tasks enough."""
        return int(self.section.prompts * self.sampling.n)

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
        """Every setting that has a say, as JSON; `recipe_of` reads it back."""
        told: dict[str, Any] = TypeAdapter(Recipe).dump_python(self, mode="json")
        others = {"classifier", "slate", "hybrid", *WAYS}
        for other in others - {"sft", "rft", self.method, *self.methods, self.model.kind}:
            del told[other]  # of other policies and methods
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
    lines = dict(lines_of(node, (), path)) if node else {}
    return recipe_of(raw, folder=path.parent, told=str(path), lines=lines)


def recipe_of(
    raw: Any,
    *,
    folder: Path | None = None,
    told: str = "the recipe",
    lines: Lines = None,
) -> Recipe:
    """The recipe a mapping describes; paths are relative to `folder`.

    Raises:
        ConfigError: naming the first wrong key, where it stands, and the nearest valid one.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{told} must hold sections such as method, model and data, found {type(raw).__name__}")
    for place, remedy in WITHHELD.items():
        if stands_at(raw, place):
            raise ConfigError(f"{where_of(told, place, lines)}: {'.'.join(place)} is no key here; {remedy}")
    try:
        return TypeAdapter(Recipe).validate_python(_absolute(_grouped(raw), (folder or Path.cwd()).absolute()))
    except ValidationError as error:
        raise ConfigError(sentence(error, raw, told, lines, Recipe, WITHHELD)) from error
    except ConfigError as error:
        raise ConfigError(f"{told}: {error}") from error


def _grouped(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same settings, with defaults that depend on others: rft's group, and serving without chance."""
    sampling, evaluate, model = (raw.get(key, {}) for key in ("sampling", "evaluate", "model"))
    made = dict(raw)
    ways = [WAYS[method] for method in _methods(raw) if method in WAYS]
    if any(way.outputs > 1 for way in ways) and isinstance(sampling, Mapping):
        made["sampling"] = {"n": GROUP, **sampling}
    fit = raw.get("fit", {})
    if raw.get("method") == "ppo" and isinstance(fit, Mapping):
        made["fit"] = {"passes": PASSES, **fit}
    gate = raw.get("gate", {})
    served = isinstance(model, Mapping) and model.get("kind", "language") != "language"
    served = served or raw.get("method") == "reward_model"
    if served and isinstance(gate, Mapping):  # the usual guards watch lengths, which others than texts have not
        made["gate"] = {"guards": [], **gate}
    if served and raw.get("method") != "off_policy" and isinstance(evaluate, Mapping):  # a log says little of the best
        made["evaluate"] = {**(SERVED if "temperature" not in evaluate else {}), **evaluate}
    return made


def _methods(raw: Mapping[str, Any]) -> list[Any]:
    """What is written as methods, right or wrong."""
    hybrid = raw.get("hybrid")
    parts = hybrid.get("parts") if isinstance(hybrid, Mapping) and raw.get("method") == "hybrid" else None
    shares = parts.values() if isinstance(parts, Mapping) else [raw]
    found = [share.get("method") for share in shares if isinstance(share, Mapping)]
    return [method for method in found if isinstance(method, str)]


def _absolute(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same settings with paths that stand wherever they are read."""
    made = {key: dict(value) if isinstance(value, Mapping) else value for key, value in raw.items()}
    data, model, save = (made.get(key) for key in ("data", "model", "save"))
    shares = _shares(made)
    places = ((data, "train"), (data, "heldout"), (data, "catalogue"), (save, "folder"), *((s, "data") for s in shares))
    for section, key in places:
        if isinstance(section, dict) and isinstance(section.get(key), str) and not _elsewhere(section[key]):
            section[key] = str(folder / Path(section[key]).expanduser())
    _absolute_model(model, "path", folder)
    for way in ("distill", "on_policy_distill"):
        _absolute_model(made.get(way), "teacher", folder)
    for key in ("grader", "heldout_grader"):
        if key in made:
            made[key] = absolute_grader(made[key], folder)
    return made


def _shares(made: dict[str, Any]) -> list[Any]:
    """The parts of a hybrid, as copies that stand in the settings."""
    parts = made["hybrid"].get("parts") if isinstance(made.get("hybrid"), dict) else None
    if not isinstance(parts, Mapping):
        return []
    made["hybrid"]["parts"] = {name: dict(s) if isinstance(s, Mapping) else s for name, s in parts.items()}
    return list(made["hybrid"]["parts"].values())


def _absolute_model(section: Any, key: str, folder: Path) -> None:
    """Makes the folder of a model absolute; names of models stay as they are."""
    if isinstance(section, dict) and isinstance(section.get(key), str) and section[key]:
        place = folder / Path(section[key]).expanduser()
        if place.is_dir() or section[key].startswith((".", "~")):
            section[key] = str(place)


def _elsewhere(source: str) -> bool:
    """Whether rows come from a name that means the same in every folder: a known data set, or one on a hub."""
    return source.startswith(("known:", "hub:"))


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
