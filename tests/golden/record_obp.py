"""records what the obp package says of the Open Bandit sample, for tests/test_off_policy.py to agree with

Run by hand, in an environment of its own that has obp 0.4.1 (which pulls scikit-learn, matplotlib and more), with
MELIOR_DATA naming the folder that holds obd_small:

    python tests/golden/record_obp.py

Writes tests/golden/obp.json: estimates, and the version of obp that gave them. No row of the data is kept.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from obp.ope import (
    DirectMethod,
    DoublyRobust,
    DoublyRobustWithShrinkage,
    InverseProbabilityWeighting,
    SelfNormalizedDoublyRobust,
    SelfNormalizedInverseProbabilityWeighting,
    SlateIndependentIPS,
    SlateRewardInteractionIPS,
    SlateStandardIPS,
    SwitchDoublyRobust,
)

ITEMS, POSITIONS = 80, 3
SHRINKAGE, SWITCH = 5.0, 1.5
LOGS = ("random_all", "bts_all")


def read(log: str) -> dict[str, np.ndarray]:
    folder = Path(os.environ.get("MELIOR_DATA", Path(__file__).parents[2] / "../shared/data")) / "obd_small"
    with gzip.open(folder / f"{log}.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        "action": np.array([int(row["item_id"]) for row in rows]),
        "position": np.array([int(row["position"]) - 1 for row in rows]),
        "reward": np.array([float(row["click"]) for row in rows]),
        "pscore": np.array([float(row["propensity_score"]) for row in rows]),
    }


def target() -> np.ndarray:  # [A, P]
    """A policy that prefers some items, others at each position: a softmax of a sine."""
    items, positions = np.arange(ITEMS)[:, None], np.arange(POSITIONS)[None, :]
    chances = np.exp(np.sin(items * (1.0 + positions)))
    return chances / chances.sum(0)


def click_rates(log: dict[str, np.ndarray]) -> np.ndarray:  # [A, P]
    """Smoothed: one click in two hundred shows is seen before."""
    shown, clicked = np.zeros((ITEMS, POSITIONS)), np.zeros((ITEMS, POSITIONS))
    np.add.at(shown, (log["action"], log["position"]), 1)
    np.add.at(clicked, (log["action"], log["position"]), log["reward"])
    return (clicked + 1) / (shown + 200)


def single(log: dict[str, np.ndarray]) -> dict[str, float]:
    rows = len(log["reward"])
    logged: dict[str, Any] = {name: log[name] for name in ("reward", "action", "pscore", "position")}
    chosen = {"action_dist": np.broadcast_to(target(), (rows, ITEMS, POSITIONS))}
    model = {"estimated_rewards_by_reg_model": np.broadcast_to(click_rates(log), (rows, ITEMS, POSITIONS))}
    weighted = {
        "ips": InverseProbabilityWeighting(),
        "snips": SelfNormalizedInverseProbabilityWeighting(),
    }
    modelled = {
        "dr": DoublyRobust(),
        "sndr": SelfNormalizedDoublyRobust(),
        "switch_dr": SwitchDoublyRobust(tau=SWITCH),
        "dr_shrinkage": DoublyRobustWithShrinkage(lambda_=SHRINKAGE),
    }
    found = {name: each.estimate_policy_value(**logged, **chosen) for name, each in weighted.items()}
    found |= {name: each.estimate_policy_value(**logged, **chosen, **model) for name, each in modelled.items()}
    found["dm"] = DirectMethod().estimate_policy_value(position=log["position"], **chosen, **model)
    return {name: float(value) for name, value in found.items()}


def slates(log: dict[str, np.ndarray]) -> dict[str, float]:
    """The i-th rows of all positions taken for one slate, whose positions are decided independently."""
    places = [np.flatnonzero(log["position"] == position) for position in range(POSITIONS)]
    rows = np.stack([place[: min(map(len, places))] for place in places], axis=1)  # [S, P]
    behavior = log["pscore"][rows]
    evaluation = target()[log["action"][rows], log["position"][rows]]
    common = {
        "slate_id": np.repeat(np.arange(len(rows)), POSITIONS),
        "reward": log["reward"][rows].ravel(),
        "position": np.tile(np.arange(POSITIONS), len(rows)),
    }

    def whole(chances: np.ndarray) -> np.ndarray:
        return np.repeat(chances.prod(1), POSITIONS)

    def so_far(chances: np.ndarray) -> np.ndarray:
        return chances.cumprod(1).ravel()

    found = {
        "standard": SlateStandardIPS(len_list=POSITIONS).estimate_policy_value(
            **common, pscore=whole(behavior), evaluation_policy_pscore=whole(evaluation)
        ),
        "cascade": SlateRewardInteractionIPS(len_list=POSITIONS).estimate_policy_value(
            **common, pscore_cascade=so_far(behavior), evaluation_policy_pscore_cascade=so_far(evaluation)
        ),
        "independent": SlateIndependentIPS(len_list=POSITIONS).estimate_policy_value(
            **common,
            pscore_item_position=behavior.ravel(),
            evaluation_policy_pscore_item_position=evaluation.ravel(),
        ),
    }
    return {name: float(value) for name, value in found.items()}


def main() -> None:
    told: dict[str, Any] = {"package": "obp", "version": version("obp"), "shrinkage": SHRINKAGE, "switch": SWITCH}
    for name in LOGS:
        log = read(name)
        told[name] = {"rows": len(log["reward"]), "clicks": int(log["reward"].sum())}
        told[name] |= {"single": single(log), "slates": slates(log)}
    (Path(__file__).parent / "obp.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
