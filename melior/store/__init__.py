"""every decision, score and piece of feedback, in SQL"""

from melior.store.database import default_database
from melior.store.store import Store

__all__ = ["Store", "default_database"]
