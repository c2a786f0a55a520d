"""a run killed at any instant ends bitwise where it would have ended; `make soak` kills more"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "soak" / "kills.py"


def test_killed_runs_end_where_they_would_have_ended() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--kills", "28"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["kills"] >= 28
    assert told["faults"] == []
    assert {"forward pass", "at a random time"} <= told["where"].keys()
