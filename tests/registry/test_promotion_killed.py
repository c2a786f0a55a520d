"""a promotion that is killed at any moment is done or not begun, on both databases, and can be rolled back"""

from __future__ import annotations

from pathlib import Path

from promoter import promoting

from melior.registry import Registry
from melior.store import Store


def test_it_is_the_whole_old_or_the_whole_new_version(url: str, store: Store, tmp_path: Path) -> None:
    registry, versions = Registry(store), []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
        versions.append(registry.register("sums", tmp_path / name, method="sft", base_model="little"))
    first, second = versions
    registry.promote(first.id, force=True, reason="test")
    outcomes: list[tuple[bool, bool]] = []
    with promoting(url) as promote:
        while not outcomes or not outcomes[-1][0]:
            assert len(outcomes) < 200
            done = promote(len(outcomes), second, first)
            held = store.alias("sums", "prod")
            assert held is not None and held.version_id in (first.id, second.id)
            event = store.alias_event(held.event_id)
            assert event.version_id == held.version_id, "the alias and the log of it agree"
            assert event == registry.history("sums")[-1]
            outcomes.append((done, held.version_id == second.id))
            if outcomes[-1][1]:
                assert event.gate_id and store.gate(event.gate_id).candidate_id == second.id
                assert registry.rollback("sums") == first
    moved = [after for _, after in outcomes]
    assert moved == sorted(moved) and outcomes[-1] == (True, True) and (False, True) in outcomes
    assert moved.count(False) > 10, "killed at many moments before it was done"
