"""servers for tests"""

from live import live, server

__all__ = ["live", "server"]
