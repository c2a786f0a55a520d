"""a server's collector of garbage looks at what requests leave, and never at what was imported"""

from __future__ import annotations

import json
import subprocess
import sys

IMPORTED = """
import gc, json, sys
from melior.serving.pauses import spare_imports
gc.collect()
before = len(gc.get_objects())
spare_imports("melior.serving.pauses")
known = gc.get_freeze_count()
spare_imports("melior.serving.pauses", "graphlib")
print(json.dumps([before, known, gc.get_freeze_count(), len(gc.get_objects()), "graphlib" in sys.modules]))
"""

SERVED = """
import gc, json
from melior.serving import drain
drain.Draining.run = lambda self: print(json.dumps([gc.get_freeze_count(), len(gc.get_objects())])) or exit()
drain.serve_until_stopped(lambda *_: None, None, "127.0.0.1", 0)
"""


def told(program: str) -> list[int]:
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found: list[int] = json.loads(ran.stdout)
    return found


def test_what_a_new_import_brings_is_left_out_and_a_known_one_changes_nothing() -> None:
    before, known, spared, left, imported = told(IMPORTED)
    assert known == 0 and imported
    assert spared >= 0.9 * before and left < 0.1 * before


def test_a_server_starts_with_everything_left_out() -> None:
    spared, left = told(SERVED)
    assert spared > 50_000 > 100 * left
