"""requests to other machines: the one client that makes them"""

from melior.outbound.addresses import Rules, operator_rules
from melior.outbound.client import Limits, Outbound

__all__ = ["Limits", "Outbound", "Rules", "operator_rules"]
