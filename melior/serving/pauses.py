"""what was imported is not garbage, and the collector of garbage need not look for it there

A full collection of a server that has torch and its like imported looks at half a million objects, and answers nobody
for a third of a second. What has been imported by then lives as long as the process, and is left out of all later ones.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module


def spare_all() -> None:
    """No collection looks at anything again that is held now."""
    gc.collect()
    gc.freeze()


def spare_imports(*modules: str) -> None:
    """Imports modules; where one was new, no collection looks at anything again that is held now."""
    if any(module not in sys.modules for module in modules):
        for module in modules:
            import_module(module)
        gc.freeze()
