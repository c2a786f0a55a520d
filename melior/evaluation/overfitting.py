"""what evaluations made while training say about over-fitting: one rule for runs, their pages and their notes"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

WORSE = 0.02  # of the best held-out loss: a smaller rise is noise
LOOKS = 3  # evaluations it takes where the loss of training rows was not measured beside them
PROBED = ("probe_loss", "fitting_gap", "fitting_gap_low", "fitting_gap_high")
REMEDY = "stop there and keep those weights: sft.epochs: auto in a recipe, best_metric in FitConfig"


def overfitting(metrics: Sequence[Mapping[str, float]], *, restored: bool) -> str:
    """What the evaluations of a run say about over-fitting, in a sentence; empty where nothing speaks against it.

    It is over-fitting when held-out loss rose from its lowest point by more than noise. Where the loss of training rows
    was measured beside it (`probe_loss`), that must have fallen or kept still, and the gap must be beyond chance.
    """
    seen = [row for row in metrics if math.isfinite(row.get("heldout_loss", math.nan))]
    probed = [row for row in seen if all(math.isfinite(row.get(name, math.nan)) for name in PROBED)]
    looks = probed or seen
    if len(looks) < (2 if probed else LOOKS):
        return ""
    low, last = min(looks, key=lambda row: row["heldout_loss"]), looks[-1]
    rise = last["heldout_loss"] - low["heldout_loss"]
    if rise <= WORSE * abs(low["heldout_loss"]):
        return ""
    told = (
        f"over-fitting: held-out loss was lowest after step {int(low['step']) + 1} ({low['heldout_loss']:.3f}) and "
        f"rose by {rise:.3f}"
    )
    if probed:
        fall = low["probe_loss"] - last["probe_loss"]
        if fall < 0 or not last["fitting_gap_low"] > 0:
            return ""
        gap = f"{last['fitting_gap']:.3f} [{last['fitting_gap_low']:.3f}, {last['fitting_gap_high']:.3f}]"
        told += f" while training rows' fell by {fall:.3f} (gap {gap})"
    return f"{told}; {'the weights from there are kept' if restored else REMEDY}"
