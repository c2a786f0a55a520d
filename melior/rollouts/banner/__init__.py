"""the banner of five: a simulated shop whose rates come from real data, and in which items work together

world = Banner("logit")
records = world.log(logging_policy(world), 10_000, seed=0)     # slates, propensities, events
world.expected(requests, slates)                        # exact expected points: for evaluation alone
"""

from melior.rollouts.banner.baselines import (
    Ranking,
    SoftmaxPopularity,
    best_slates,
    logging_policy,
    marginal_ranking,
    popularity,
)
from melior.rollouts.banner.world import Banner

__all__ = [
    "Banner",
    "Ranking",
    "SoftmaxPopularity",
    "best_slates",
    "logging_policy",
    "marginal_ranking",
    "popularity",
]
