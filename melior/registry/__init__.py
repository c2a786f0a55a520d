"""which policy, from which data, passed which gate"""

from melior.registry.lineage import Lineage, Link
from melior.registry.registry import Registry

__all__ = ["Lineage", "Link", "Registry"]
