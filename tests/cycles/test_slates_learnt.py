"""what a slate policy learnt is written so that its page can be drawn"""

from __future__ import annotations

import json
from pathlib import Path

from melior.cycles.kinds.learnt import tell_learnt
from melior.policies.slate import SlatePolicy
from melior.policies.slate_network import Slate
from melior.reports.slates import slates_section
from melior.types import Interaction, Item, SlateRequest

ITEMS = [Item(name) for name in ("tent", "stove", "lamp", "mug")]
REQUESTS = [SlateRequest(history=(Interaction("tent", "click"),)), SlateRequest()]


def test_pairs_and_histories_reach_the_page(tmp_path: Path) -> None:
    policy = SlatePolicy.make(Slate(positions=2, width=8), ITEMS, REQUESTS)
    tell_learnt(policy, REQUESTS, tmp_path)
    told = json.loads((tmp_path / "slates.json").read_text())
    assert len(told["pairs"]) == 12 and told["after"]["rows"] == [item.id for item in ITEMS]
    assert "one click of" in told["after"]["what"]
    assert "stove" in slates_section(told)


def test_what_was_never_shown_is_left_out(tmp_path: Path) -> None:
    tell_learnt(SlatePolicy.make(Slate(positions=2), ITEMS[:2], REQUESTS), REQUESTS, tmp_path)
    assert not (tmp_path / "slates.json").exists()  # two items have nothing to be compared with
    plain = SlatePolicy.make(Slate(positions=2, combinations=False), ITEMS, REQUESTS)
    tell_learnt(plain, REQUESTS[1:], tmp_path)
    told = json.loads((tmp_path / "slates.json").read_text())
    assert not told["pairs"] and told["after"] is None
