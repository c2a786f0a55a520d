"""which policy, from which data, passed which gate"""

from melior.registry.lineage import Lineage, Link
from melior.registry.registry import BASE, PROD, Registry

__all__ = ["BASE", "PROD", "Lineage", "Link", "Registry"]
