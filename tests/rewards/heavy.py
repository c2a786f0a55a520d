"""counts what a worker must not have imported"""

import sys
from typing import Any

HEAVY = ("torch", "transformers", "numpy", "scipy", "pydantic", "sqlalchemy")


def imported(sample: dict[str, Any], item: dict[str, Any]) -> float:
    return float(sum(name in sys.modules for name in HEAVY))
