"""a policy with a value function: what is still to be earned, told beside every decision's log-prob

policy = ActorCritic.make(LanguagePolicy.load("smollm2-135m-instruct", adapter=LoRA()))
fit(policy, Rollouts(policy, tasks, grader, Sampling(n=4)), ppo(), FitConfig(steps=100, minibatches=4, passes=2))
policy.save("answers")  # also the folder of the plain policy: chat and serving load it as they load any other
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from melior.durable import durable_folder, verify_folder
from melior.errors import ModelError
from melior.policies import parameters
from melior.policies.base import LOG_PROBS, Batch, ParameterGroup, Policy, Rates, Scored, State, Want
from melior.policies.freezing import Share
from melior.policies.kinds import load_policy
from melior.types import Record, Sampling

FILE, WEIGHTS, CRITIC = "value.json", "value.safetensors", "critic"  # beside the plain policy's own files


class ActorCritic:
    """A policy, and a value function that reads the states its decisions are made from, in the same forward pass.

    The value function is linear in the states: of the policy itself (a shared trunk, which `detach` keeps it from
    changing), or of a `critic`, a second policy that encodes as this one does and then trains as a whole. Everything
    but values is the policy's. Parameters of the value function are named "value.…", those of the critic "critic.…".
    """

    def __init__(self, policy: Policy, head: nn.Linear, *, critic: Policy | None = None, detach: bool = False) -> None:
        self.policy, self.critic, self.head, self.detach = policy, critic, head, detach
        self.kind, self.discrete = policy.kind, policy.discrete
        # A run goes on only from the weights it began with.
        begun = [getattr(part, "origin", "") for part in (policy, critic)]
        self.origin = _digest([*begun, parameters.digest(head.named_parameters())])

    @classmethod
    def make(cls, policy: Policy, *, critic: Policy | None = None, detach: bool = False) -> ActorCritic:
        """The policy with a fresh value function, which expects 0 everywhere.

        Raises:
            ModelError: if the critic encodes other decisions than the policy.
        """
        if critic is not None and (critic.kind, critic.vocabulary) != (policy.kind, policy.vocabulary):
            raise ModelError(
                f"The critic decides otherwise than the policy ({critic.kind} {critic.vocabulary}, {policy.kind} "
                f"{policy.vocabulary}); make both of the same base"
            )
        reads = critic or policy
        head = nn.Linear(reads.state_size, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return cls(policy, _beside(head, reads), critic=critic, detach=detach)

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str = "auto", policy: Policy | None = None, critic: Policy | None = None
    ) -> ActorCritic:
        """What `save` wrote; `policy` and `critic` stand for their parts of the folder where they were loaded already.

        Raises:
            ModelError: if the folder holds no value function.
            CheckpointError: if its files are not those that were written.
        """
        folder = Path(folder)
        if not (folder / FILE).is_file():
            raise ModelError(f"{folder} holds no {FILE}, so no value function; make one with ActorCritic.make(policy)")
        verify_folder(folder)
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
        policy = policy or load_policy(folder, device=device)
        if told["critic"]:
            critic = critic or load_policy(folder / CRITIC, device=device)
        head = nn.Linear(told["state_size"], 1)
        tensors = load_file(folder / WEIGHTS)
        head.to(tensors["weight"].dtype).load_state_dict(tensors)
        return cls(policy, _beside(head, critic or policy), critic=critic, detach=told["detach"])

    def save(self, folder: str | Path) -> None:
        """Writes the plain policy, and beside it the value function in files of its own, atomically."""
        told = {"state_size": self.head.in_features, "detach": self.detach, "critic": self.critic is not None}
        with durable_folder(Path(folder)) as draft:
            self.policy.save(draft)
            if self.critic is not None:
                self.critic.save(draft / CRITIC)
            (draft / FILE).write_text(json.dumps(told, indent=1), encoding="utf-8")
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.head.state_dict().items()}
            save_file(tensors, draft / WEIGHTS)

    # ------------------------------------------------------------------ scoring

    def score(self, batch: Batch, want: frozenset[Want] = LOG_PROBS) -> Scored:
        """What the policy says, and where values are wanted [B, T + 1] of them, 0 behind a row's last place.

        A value stands for what is still to be earned before decision t, and behind a row's last of n decisions at n.
        """
        if Want.VALUES not in want:
            return self.policy.score(batch, want)
        rest = want - {Want.VALUES}
        if self.critic is None:
            scored = self.policy.score(batch, rest | {Want.STATES})
            states = scored.states
        else:
            scored = self.policy.score(batch, rest) if rest else Scored(torch.zeros(batch.mask.shape))
            states = self.critic.score(batch, frozenset({Want.STATES})).states
        assert states is not None
        values = self._values(states, batch.mask)
        return replace(scored, values=values, states=scored.states if Want.STATES in want else None)

    def _values(self, states: Tensor, mask: Tensor) -> Tensor:  # [B, T + 1, D], [B, T] -> [B, T + 1]
        states = states.detach() if self.detach else states
        values = self.head(states.to(self.head.weight))[:, :, 0]
        known = torch.arange(states.shape[1]) <= mask.cpu().sum(1, keepdim=True)
        return torch.where(known.to(values.device), values, 0.0)

    # ------------------------------------------------------------------ parameters

    def candidates(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything that can train: of the policy, of the value function, of the critic."""
        yield from self.policy.candidates()
        for name, parameter in self.head.named_parameters():
            yield f"value.{name}", parameter
        for name, parameter in self.critic.candidates() if self.critic is not None else ():
            yield f"{CRITIC}.{name}", parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of them, frozen ones and those under an adapter too."""
        yield from self.policy.parameters()
        yield from self.head.parameters()
        yield from self.critic.parameters() if self.critic is not None else ()

    def state(self) -> State:
        """Trainable tensors by name."""
        return parameters.state_of(self.candidates())

    def load_state(self, state: State) -> None:
        """Overwrites the trainable tensors, in place."""
        parameters.load_state(self.candidates(), state)

    def freeze(self, factors: Mapping[str, float]) -> dict[str, float]:
        """Takes out of training whatever the factors give 0, and returns the factors that still have a say.

        Raises:
            ConfigError: for a pattern that is no regular expression or matches no parameter.
        """
        return parameters.freeze(self.candidates(), factors)

    def parameter_groups(self, rates: Rates) -> list[ParameterGroup]:
        """Trainable parameters by learning rate and weight decay; vectors (norms, biases) never decay.

        Raises:
            ConfigError: for a pattern that is no regular expression, or matches no trainable parameter.
        """
        return parameters.parameter_groups(self.candidates(), rates)

    @property
    def share(self) -> Share:
        """How many of the parameters train."""
        return parameters.share(self.parameters())

    def fingerprint(self) -> str:
        """Of policy, critic and trainable shapes: what must agree for a checkpoint to fit."""
        shapes = {name: list(tensor.shape) for name, tensor in self.state().items()}
        critic = None if self.critic is None else self.critic.fingerprint()
        return _digest([self.policy.fingerprint(), critic, self.detach, shapes])

    # ------------------------------------------------------------------ the policy's own

    @property
    def adapted(self) -> bool:
        """Whether an adapter trains, on weights that stay."""
        return self.policy.adapted

    @property
    def layout(self) -> str:
        """How rows are laid out."""
        return self.policy.layout

    @property
    def state_size(self) -> int:
        """D of the policy's states."""
        return self.policy.state_size

    @property
    def vocabulary(self) -> str:
        """A fingerprint of what decision ids mean."""
        return self.policy.vocabulary

    @property
    def noticed(self) -> Counter[str]:
        """What was passed over while rows were read, and how often."""
        return self.policy.noticed

    @property
    def computed(self) -> Mapping[str, int]:
        """What training passes have cost so far."""
        own = {f"{CRITIC}_{name}": count for name, count in (self.critic.computed if self.critic else {}).items()}
        return {**self.policy.computed, **own}

    def encode(self, examples: Sequence[Any]) -> Batch:
        """The policy's batch of a whole step."""
        return self.policy.encode(examples)

    def cut(self, batch: Batch, budget: int | None = None) -> Iterator[list[int]]:
        """Rows of micro-batches, as the policy cuts them."""
        return self.policy.cut(batch, budget)

    def cost(self, batch: Batch) -> int:
        """What `cut` holds against its budget."""
        return self.policy.cost(batch)

    def perturb(self, batch: Batch, key: Sequence[int]) -> Batch:
        """The batch as plain SFT shows it."""
        return self.policy.perturb(batch, key)

    def likeliest(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """Ids and log-probs [B, T, K] of the k likeliest decisions at each place."""
        return self.policy.likeliest(batch, k)

    def log_probs(self, examples: Sequence[Any]) -> list[Tensor]:
        """One tensor [T] of nats per example, in order."""
        return self.policy.log_probs(examples)

    def reference_log_probs(self, batch: Batch, budget: int | None = None) -> Tensor:
        """Log-probs [B, T] of the policy as it was loaded or made."""
        return self.policy.reference_log_probs(batch, budget)

    def reference_fingerprint(self) -> str:
        """Of all that decides what `reference_log_probs` says."""
        return self.policy.reference_fingerprint()

    def sample(self, inputs: Sequence[Any], settings: Sampling | Sequence[Sampling], *, step: int = 0) -> list[Record]:
        """The policy's samples."""
        return self.policy.sample(inputs, settings, step=step)


@torch.no_grad()
def values_of(policy: Any, batch: Batch, budget: int | None = None) -> Tensor:  # [B, T + 1] float64
    """Values of a whole batch without gradients, in micro-batches; log-probs are not computed.

    Raises:
        ModelError: if the policy has no value function.
    """
    width = batch.mask.shape[1] + 1
    result = torch.zeros(len(batch), width, dtype=torch.float64)
    for rows in policy.cut(batch, budget):
        part = batch.select(rows)
        values = policy.score(part, frozenset({Want.VALUES})).values
        if values is None or values.shape != (len(part), part.mask.shape[1] + 1):
            raise ModelError("This policy has no value function; wrap it: ActorCritic.make(policy)")
        result[rows, : values.shape[1]] = values.double().cpu()
    return result


def _beside(head: nn.Linear, policy: Policy) -> nn.Linear:
    """The head where the policy computes, in its precision, which a head never takes below fp32."""
    weight = next(policy.parameters())
    return head.to(weight.device, torch.promote_types(weight.dtype, torch.float32))


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
