"""which policy, from which data, passed which gate"""

from melior.registry.lineage import Lineage, Link
from melior.registry.registry import BASE, Registry

__all__ = ["BASE", "Lineage", "Link", "Registry"]
