"""one model is made at a time: meanwhile transformers patches its own classes and torch's default type

Two threads that did so at once would put back each other's patches in the wrong order, and a process whose
`tie_weights` has become a function that does nothing loads no model with a tied head ever again.
"""

from __future__ import annotations

from threading import RLock

ONE_AT_A_TIME = RLock()
