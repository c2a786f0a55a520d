"""what methods say of their papers"""

from __future__ import annotations

import check_papers
import pytest
from check_papers import Method, faults, shown


def test_every_method_names_its_source_and_the_page_is_current():
    assert faults() == []


def cited(text: str) -> Method:
    return Method("losses/new.py", "new_loss", f"One value per pair.\n\nSource: {text}\n\nRaises:\n    ShapeError: no.")


def test_references_end_at_the_blank_line_and_semicolons_part_them():
    found = cited("Rafailov et al. 2023, arXiv:2305.18290, eq. 7; soft labels:\nMitchell 2023, a note.")
    assert found.references == ["Rafailov et al. 2023, arXiv:2305.18290, eq. 7", "soft labels: Mitchell 2023, a note"]
    assert found.papers == found.references


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Rafailov, arXiv:2305.18290.", "names no authors and year"),
        ("Rafailov et al. 2023, arXiv 2305.18290.", "an arXiv id that is none"),
        ("Rafailov et al. 2023, arXiv:230518290.", "an arXiv id that is none"),
    ],
)
def test_a_source_that_cannot_be_read_is_a_fault(monkeypatch, text, told):
    monkeypatch.setattr(check_papers, "methods", lambda: [cited(text)])
    monkeypatch.setattr(check_papers, "required", list)
    assert any(told in fault for fault in faults())


def test_a_public_loss_without_a_source_is_a_fault(monkeypatch):
    bare = Method("losses/new.py", "new_loss", "One value per pair.")
    monkeypatch.setattr(check_papers, "methods", lambda: [bare])
    monkeypatch.setattr(check_papers, "required", lambda: [bare.key])
    assert any("new_loss: has no Source" in fault for fault in faults())


def test_a_reference_is_shown_with_its_title_and_link():
    told = shown("Rafailov et al. 2023, arXiv:2305.18290, eq. 7")
    assert "*Direct Preference Optimization: Your Language Model is Secretly a Reward Model*" in told
    assert "(https://arxiv.org/abs/2305.18290), eq. 7" in told
