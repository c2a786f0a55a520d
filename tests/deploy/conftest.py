"""servers for tests of what stands around them"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))

from live import live

__all__ = ["live"]
