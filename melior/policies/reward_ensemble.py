"""several reward models of one kind: what they agree on, and how far they do not

Source: Coste et al. 2023, arXiv:2310.02743 (ensembles against reward over-optimisation).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from melior.durable import durable_folder, verify_folder
from melior.errors import ConfigError, ModelError
from melior.policies.kinds import FILE, kind_of
from melior.policies.reward_model import RewardModel

ENSEMBLE = "reward_ensemble"


class RewardEnsemble:
    """Members with the same heads. Their rewards are comparable once each is in the same unit: see `centre`."""

    kind = ENSEMBLE

    def __init__(self, members: Sequence[RewardModel]) -> None:
        """Raises ConfigError for no member, or members with other heads than the first."""
        if not members or any(member.names != members[0].names for member in members):
            told = [list(member.names) for member in members]
            raise ConfigError(f"An ensemble has one or more members with the same heads, got {told}")
        self.members = tuple(members)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> RewardEnsemble:
        """The ensemble of a folder that `save` wrote; a single reward model is an ensemble of one.

        Raises:
            ModelError: if the folder holds neither; CheckpointError if it is damaged.
        """
        folder = Path(path)
        if not (folder / FILE).is_file() or kind_of(folder) != ENSEMBLE:
            return cls([RewardModel.load(folder, device=device)])
        verify_folder(folder)
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls([RewardModel.load(folder / name, device=device) for name in told["members"]])

    def save(self, folder: str | Path) -> None:
        """Writes every member, atomically."""
        names = [f"member-{number}" for number in range(len(self.members))]
        with durable_folder(Path(folder)) as draft:
            (draft / FILE).write_text(json.dumps({"kind": self.kind, "members": names}, indent=1), encoding="utf-8")
            for name, member in zip(names, self.members, strict=True):
                member.save(draft / name)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the heads."""
        return self.members[0].names

    def member_rewards(self, examples: Sequence[Any]) -> Tensor:  # [M, N, H] fp64
        """What each member says of each output."""
        return torch.stack([member.rewards(examples) for member in self.members])

    def rewards(self, examples: Sequence[Any]) -> Tensor:  # [N, H] fp64
        """The members' mean."""
        return self.member_rewards(examples).mean(0)

    def uncertainty(self, examples: Sequence[Any]) -> Tensor:  # [N, H] fp64
        """The members' standard deviation; 0 where there is one."""
        return self.member_rewards(examples).std(0, correction=0)

    def rescale(self, head: str, *, location: float, spread: float) -> None:
        """Every member's reward r of a head becomes `location + spread × r`, and so does their mean.

        Raises:
            ConfigError: for a head that there is not, or that is told in grades; ModelError for a spread not above 0.
        """
        for member in self.members:
            member.rescale(head, location=location, spread=spread)

    def centre(self, examples: Sequence[Any]) -> None:
        """Gives every member's heads the mean 0 over these outputs, so that only what they tell apart is compared.

        Preferences leave a reward's origin free, and every member would have its own.

        Raises:
            ModelError: if a member's rewards of these outputs are not finite.
        """
        for number, member in enumerate(self.members):
            means = member.rewards(examples).nanmean(0)
            if not bool(torch.isfinite(means).all()):
                raise ModelError(f"Member {number} gives no finite reward to any of {len(examples)} outputs")
            for place, name in enumerate(member.names):
                if name not in member.heads.levels:
                    member.rescale(name, location=-float(means[place]), spread=1.0)


def load_rewards(path: str | Path, *, device: str = "auto") -> RewardEnsemble:
    """The reward model or ensemble of a folder, as an ensemble.

    Raises:
        ModelError: if there is none, naming what there is.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}; give one that RewardModel.save or RewardEnsemble.save wrote")
    return RewardEnsemble.load(folder, device=device)
