"""the sections of a recipe: one small class each, with its defaults and their reasons"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from melior.cycles.methods import Single
from melior.data.formats import Reading
from melior.errors import ConfigError
from melior.evaluation import gates
from melior.policies import adapters
from melior.policies.reward_model import Reward
from melior.rewards.canaries import PROMPTS
from melior.rollouts.logged import Incomplete
from melior.trainers.distillation import CandidateDistillation, OnPolicyDistillation
from melior.trainers.logged import OffPolicy
from melior.trainers.loop import FitConfig
from melior.trainers.mixture import Anneal
from melior.trainers.online import Pairing
from melior.trainers.ppo import Ppo
from melior.trainers.preference import Dpo, Ipo, Orpo, Pairwise, SimPo
from melior.trainers.prospect import Kto
from melior.trainers.ratings import AdvantageWeighted
from melior.trainers.reinforcement import Reinforcement
from melior.trainers.supervised import Supervised
from melior.trainers.trackers import TrackerName
from melior.types import Sampling

STRICT = ConfigDict(extra="forbid")
Layout = Literal["auto", "forest", "padded"]
Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
GraderSpec = str | dict[str, Any]
Auto = Literal["auto"]
KindName = Literal["language", "classifier", "slate"]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


@validated(frozen=True, config=STRICT)
class LoRA(adapters.LoRA):
    """The adapter's settings, unknown keys refused; so are the next two."""


@validated(frozen=True, kw_only=True, config=STRICT)
class Outputs(Sampling):
    pass


@validated(frozen=True, kw_only=True, config=STRICT)
class Gate(gates.Gate):
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

    path: str | None = None  # a folder, a name that `melior pull` knows, a hub id, or a version: name@alias, ver_…
    kind: KindName = "language"  # classifiers and slate policies are made from the rows where they have no path
    lora: LoRA | Auto | None = "auto"  # "auto": r=16, or the adapter there is; null trains every weight
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
class Simulated:
    """Requests of a simulated shop, which answers what is shown: docs/banner.md."""

    banner: Literal["logit", "cascade"]  # how its visitors decide
    size: int = Field(ge=1)  # requests to learn from
    seed: int = 0  # of the shop and of its visitors
    points: dict[str, Any] | None = None  # event → what it earns; null: the shop's own


@validated(frozen=True, kw_only=True, config=STRICT)
class Data:
    """What is learnt from, and what is only ever measured on."""

    train: str | Generated | Simulated
    heldout: int | float | str = 0.1  # a number of rows, a share of the training file, or a file
    validation: int | float = 0.1  # of the training rows, set aside only where epochs or settings are chosen by them
    seed: int = 0  # of the split
    label: str = ""  # the column to decide, of a table, or where its name does not tell it
    text: str = ""  # the column of the text to classify, where it has another name
    image: str = ""  # the column that names pictures' files, where it has another name
    group: str = ""  # the column whose rows belong together (a patient, a user); "" is "group"
    drop: tuple[str, ...] = ()  # columns of a table that the policy must not read
    audit: tuple[str, ...] = ()  # columns by whose values held-out measures are told apart
    columns: dict[str, Literal["number", "text"]] = Field(default_factory=dict)  # of a table, where the rows mislead
    separator: str = ""  # between the labels of a cell, where a row has several
    names: tuple[str, ...] = ()  # of the columns, where a CSV file has no header
    catalogue: str | None = None  # a file of items, for slates; null: the items that requests bring

    @property
    def reading(self) -> Reading:
        """What the rows do not say of themselves."""
        shared = {field.name for field in fields(Reading)} & {field.name for field in fields(Data)}
        return Reading(**{name: getattr(self, name) for name in shared})


@validated(frozen=True, kw_only=True, config=STRICT)
class Grading:
    """The processes that graders run in."""

    processes: int = Field(default=1, ge=1)
    timeout_s: float = Field(default=10.0, gt=0)  # per output


@validated(frozen=True, kw_only=True, config=STRICT)
class Judging:
    """What models must have shown whose opinion is a reward, and what is tried on them while it is learnt."""

    require: Literal["accepted", "not_refused", "nothing"] = "accepted"  # by `melior judge`, of each judge
    reason: str = ""  # why nothing is required
    canaries: Literal["stop", "off"] = "stop"  # outputs that no judge should like, before the first step and on the way
    every: Count = 10  # steps
    prompts: Count = PROMPTS  # that each canary is tried on

    def __post_init__(self) -> None:
        if self.require == "nothing" and not self.reason.strip():
            raise ConfigError("judge.require is nothing, which needs a reason; write judge: {reason: …}")


@validated(frozen=True, kw_only=True, config=STRICT)
class Sft(Supervised):
    """Learning by demonstration."""

    batch_size: Count | Auto = "auto"  # rows of a step
    epochs: Count | Auto = "auto"  # "auto": until the loss of validation rows stops falling
    class_weights: Literal["none", "balanced"] | dict[str, float] = "none"  # balanced: every label weighs the same

    @property
    def objective(self) -> Supervised:
        """The settings that are the objective's own."""
        return Supervised(**{field.name: getattr(self, field.name) for field in fields(Supervised)})


@validated(frozen=True, kw_only=True, config=STRICT)
class FromLogs(OffPolicy):
    """Learning from logged decisions."""

    batch_size: Count | Auto = "auto"  # large where there are many, since few of them earned anything
    epochs: Count = 3
    incomplete: Incomplete = "refuse"  # rows without usable propensities; "drop" leaves them out and counts them

    @property
    def objective(self) -> OffPolicy:
        """The settings that are the objective's own."""
        return OffPolicy(**{field.name: getattr(self, field.name) for field in fields(OffPolicy)})


@validated(frozen=True, kw_only=True, config=STRICT)
class Shown:
    """What all methods share that are shown pairs."""

    batch_size: Count = 16  # pairs of a step
    epochs: Count = 1

    @property
    def objective(self) -> Pairwise:
        """The settings that are the objective's own."""
        own = next(kind for kind in type(self).__mro__ if kind.__module__ == Pairwise.__module__)
        made: Pairwise = own(**{field.name: getattr(self, field.name) for field in fields(own)})
        return made


@validated(frozen=True, kw_only=True, config=STRICT)
class FromPairs(Shown, Dpo):
    """Learning from preferences."""


@validated(frozen=True, kw_only=True, config=STRICT)
class FromPairsIpo(Shown, Ipo):
    """The same, towards a finite gap."""


@validated(frozen=True, kw_only=True, config=STRICT)
class FromPairsSimPo(Shown, SimPo):
    """The same, without a reference."""


@validated(frozen=True, kw_only=True, config=STRICT)
class FromPairsOrpo(Shown, Orpo):
    """Demonstrations and preferences at once, without a reference."""


@validated(frozen=True, kw_only=True, config=STRICT)
class FromJudged(Kto):
    """Learning from outputs called good or bad, one by one."""

    threshold: float = 0.5  # ratings above it are good
    balance: bool = True  # good and bad have the same say in all
    batch_size: Count = 16  # outputs of a step
    epochs: Count = 1

    @property
    def objective(self) -> Kto:
        """The settings that are the objective's own."""
        return Kto(**{field.name: getattr(self, field.name) for field in fields(Kto)})


@validated(frozen=True, kw_only=True, config=STRICT)
class FromRatings(AdvantageWeighted):
    """Learning from ratings."""

    batch_size: Count = 16
    epochs: Count = 3

    @property
    def weighing(self) -> AdvantageWeighted:
        """The settings that say how ratings become weights."""
        return AdvantageWeighted(**{field.name: getattr(self, field.name) for field in fields(AdvantageWeighted)})


@validated(frozen=True, kw_only=True, config=STRICT)
class Sampled:
    """What all methods share that learn from outputs of their own."""

    prompts: int = Field(default=16, ge=1)  # of a step; each is sampled sampling.n times
    baseline: int = Field(default=64, ge=0)  # training prompts sampled before the first step; 0 skips it
    hopeless: Literal["refuse", "train"] = "refuse"  # where that baseline shows nothing to learn from


@validated(frozen=True, kw_only=True, config=STRICT)
class Rft(Reinforcement, Sampled):
    """Learning from rewards."""

    resample: int = Field(default=0, ge=0)  # further draws that replace groups whose rewards are all equal

    @property
    def objective(self) -> Reinforcement:
        """The settings that are the objective's own."""
        return Reinforcement(**{field.name: getattr(self, field.name) for field in fields(Reinforcement)})


@validated(frozen=True, kw_only=True, config=STRICT)
class ByPpo(Ppo, Sampled):
    """Learning from rewards with a value function; fit.passes and fit.minibatches say how often a step is gone over."""

    shared: bool = True  # whether the values' gradient reaches the policy's own states

    @property
    def objective(self) -> Ppo:
        """The settings that are the objective's own."""
        return Ppo(**{field.name: getattr(self, field.name) for field in fields(Ppo)})


@validated(frozen=True, kw_only=True, config=STRICT)
class ByOnlinePairs(Dpo, Sampled):
    """Learning from preferences between outputs of its own, which a grader has."""

    pairing: Pairing = "best_worst"
    scale: float = Field(default=1.0, gt=0)  # of "soft": the difference of scores that is a preference of e to 1

    @property
    def objective(self) -> Dpo:
        """The settings that are the objective's own."""
        return Dpo(**{field.name: getattr(self, field.name) for field in fields(Dpo)})


@validated(frozen=True, kw_only=True, config=STRICT)
class Weighing(AdvantageWeighted):
    """The settings of awr, where something else is weighed so."""


@validated(frozen=True, kw_only=True, config=STRICT)
class ByBestOf(Sampled):
    """Learning from the best of its own outputs."""

    keep: Count | None = 1  # outputs of a prompt that are imitated; null: all that are good enough, or weighed
    at_least: float | None = None  # the reward from which on an output is good enough
    weighted: Weighing | None = None  # imitates the better ones more
    contrast: bool = False  # leaves prompts out whose outputs are equally good


@validated(frozen=True, kw_only=True, config=STRICT)
class FromTeacher(CandidateDistillation):
    """Learning what a teacher would decide at every place of the rows."""

    teacher: str = ""  # a model, as in model.path
    k: Count = 32  # of the teacher's likeliest decisions
    batch_size: Count = 16
    epochs: Count = 3

    @property
    def objective(self) -> CandidateDistillation:
        """The settings that are the objective's own."""
        own = fields(CandidateDistillation)
        return CandidateDistillation(**{field.name: getattr(self, field.name) for field in own})


@validated(frozen=True, kw_only=True, config=STRICT)
class ByTeacher(OnPolicyDistillation, Sampled):
    """Learning what a teacher thinks of its own outputs."""

    teacher: str = ""  # a model, as in model.path
    baseline: int = Field(default=0, ge=0)  # the teacher has something to say whatever the rewards are

    @property
    def objective(self) -> OnPolicyDistillation:
        """The settings that are the objective's own."""
        own = fields(OnPolicyDistillation)
        return OnPolicyDistillation(**{field.name: getattr(self, field.name) for field in own})


@validated(frozen=True, kw_only=True, config=STRICT)
class ForRewards(Reward):
    """Learning what people prefer, or how they rate; what it is made of, where it stands on no policy."""

    scale: Literal["auto", "number", "yes_no", "grades"] = "auto"  # of ratings: grades where levels are given
    centring: float = Field(default=0.0, ge=0)  # keeps the rewards of pairs around 0; .01 is usual
    batch_size: Count = 16  # pairs, or rated outputs, of a step
    epochs: Count = 2

    @property
    def made(self) -> Reward:
        """The settings that are the model's own."""
        return Reward(**{field.name: getattr(self, field.name) for field in fields(Reward)})


@validated(frozen=True, config=STRICT)
class Annealed(Anneal):
    """A weight that changes while the run goes on."""


@validated(frozen=True, kw_only=True, config=STRICT)
class Share:
    """One part of a hybrid; the settings of its method stand in that method's own section."""

    method: Single
    data: str | None = None  # rows to learn from; null: those of data.train
    weight: Annotated[float, Field(ge=0)] | Annealed = 1.0  # of its loss in the sum
    every: Count = 1  # steps from one of its turns to the next
    offset: int = Field(default=0, ge=0)  # the step of its first turn


@validated(frozen=True, kw_only=True, config=STRICT)
class Hybrid:
    """Several methods in one run."""

    parts: dict[str, Share] = Field(default_factory=dict)  # a name for each


@validated(frozen=True, kw_only=True, config=STRICT)
class Evaluate:
    """How held-out rows are measured, before and after training."""

    items: int | None = Field(default=None, ge=1)  # the first so many held-out rows; null takes all
    n: int = Field(default=2, ge=1)  # samples of each, beside a greedy one
    temperature: float = Field(default=1.0, ge=0)  # the one it will be served with; 0, the best output alone, has n=1
    seed: int = 0
    every: int | None = Field(default=None, ge=1)  # steps; null measures before and after only


@validated(frozen=True, kw_only=True, config=STRICT)
class Save:
    """Where the trained policy goes."""

    name: str | None = None  # of the model in the registry; null: the model's name and the method
    folder: str | None = None  # null: "model" in the run's folder
    alias: str = "prod"
    promote: bool = True  # where the gate says so, and never otherwise
    # the newest so many policies at the ends of epochs (of a method that samples: at measurements) that can answer too
    checkpoints: int = Field(default=0, ge=0)


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
