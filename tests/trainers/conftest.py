"""the tiny language policy that a test may train"""

from probes import learner

__all__ = ["learner"]
