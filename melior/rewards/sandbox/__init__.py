"""what user code may do, enforced by the kernel"""

from melior.rewards.sandbox.levels import Confinement, Isolation, Level

__all__ = ["Confinement", "Isolation", "Level"]
