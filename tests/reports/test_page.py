"""laws of the page: it is complete without a network, whatever a run lacks, and no text can become markup"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from folders import EVALUATION, RESULT, metrics, write_run

from melior.errors import DataError
from melior.reports.files import read_run
from melior.reports.page import page
from melior.reports.write import write_report

VOID = {"meta"}  # the others are closed in their tag, or hold a title
HOSTILE = (
    "<script>alert(1)</script>",
    "</textarea></pre></title></style></script><img src=x onerror=alert(2)>",
    '" onmouseover="alert(3)" x=\'',
    "<!-- --><svg onload=alert(4)>",
    "&lt;b&gt; &amp;&#60;script&#62;",
    "javascript:alert(5)",
)


class Parsed(HTMLParser):
    """The elements of a page, every one of which must be closed where it belongs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def parsed(folder: Path) -> Parsed:
    """The page of a folder, after what must hold of every page."""
    text = page(read_run(folder))
    found = Parsed(text)
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        assert "src" not in attributes and tag not in ("link", "img", "iframe", "object", "base", "form")
        assert str(attributes.get("href", "#")).startswith("#")
    assert [tag for tag, _ in found.elements].count("script") == 1
    assert "nan" not in re.findall(r"-?\bnan\b", text) and "Infinity" not in text
    named = [str(a["id"]) for _, a in found.elements if "id" in a]
    assert len(named) == len(set(named))
    return found


def policy_of(text: str) -> str:
    found = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert found
    return found.group(1)


def rft(folder: Path, **more: Any) -> Path:
    samples = [{"step": step, "inputs": "1 + 1 =", "output": "2", "reward": 1.0, "error": ""} for step in range(3)]
    edges = [0.0, 1.0, 2.0]
    drawn = [{"step": step, "ratio": {"edges": edges, "counts": [step, 3]}} for step in range(3)]
    files: dict[str, Any] = {
        "samples": samples,
        "histograms": drawn,
        "run": {"total": 3, "objective": {"name": "Reinforcement"}, "environment": {"python": "3.11", "packages": {}}},
        "evaluation_before": EVALUATION,
        "evaluation": {**EVALUATION, "examples": [{**EVALUATION["examples"][0], "greedy": "it is 2"}]},
        "result": RESULT,
    }
    return write_run(folder, metrics(3), **{**files, **more})


def test_a_finished_run_tells_its_story(tmp_path: Path) -> None:
    found = parsed(rft(tmp_path / "sums"))
    for told in ("sums", "finished", "0.2500", "+0.500 [0.400, 0.600]", "Promoted.", "ver_1", "Ratios"):
        assert told in found.text
    marked = [found.texts[i] for i, text in enumerate(found.texts) if text == "2"]
    assert marked, "the word that changed between before and after stands alone, marked"
    figures = [tag for tag, _ in found.elements].count("figure")
    plots = [a for tag, a in found.elements if tag == "svg" and a.get("role") == "img"]
    assert figures == 5 and all(a["aria-label"] for a in plots) and len(plots) > figures
    assert [tag for tag, _ in found.elements].count("desc") == len(plots)


def test_its_policy_admits_its_own_script_and_style_alone(tmp_path: Path) -> None:
    text = page(read_run(rft(tmp_path)))
    rules = policy_of(text)
    assert rules.startswith("default-src 'none'") and "unsafe" not in rules
    for tag in ("style", "script"):
        (body,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in rules
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_text_of_a_run_becomes_markup(tmp_path: Path, hostile: str) -> None:
    calm, wild = rft(tmp_path / "calm"), tmp_path / "wild"
    example = {"key": hostile, "inputs": hostile, "output": hostile, "value": 0.5, "greedy": hostile + " more"}
    row = {"step": 1, "inputs": [{"role": hostile, "content": hostile}] * 2, "output": hostile, "error": hostile}
    evaluation = {**EVALUATION, "grader": hostile, "examples": [example, {**example, "greedy": None}], "error": hostile}
    rft(
        wild,
        samples=[{**row, "reason": hostile, "parts": {hostile: 0.5}, "reward": None, "finish": hostile}],
        evaluation_before=evaluation,
        evaluation={**evaluation, "excluded": 1},
        result={**RESULT, "note": hostile, "run_id": hostile, "gate": {**RESULT["gate"], "sentence": hostile}},
        data={"source": hostile, hostile: hostile},
        status={"state": hostile, "error": hostile},
    )
    (wild / "metrics.jsonl").write_text((calm / "metrics.jsonl").read_text())
    (wild / "recipe.yaml").write_text(f"save: {{name: {hostile!r}}}\nmethod: rft\n")
    found = parsed(wild)
    allowed = {tag for tag, _ in parsed(calm).elements} | {"details", "summary", "b", "p", "pre", "ins", "ul", "li"}
    assert {tag for tag, _ in found.elements} <= allowed
    assert hostile in found.text


def test_characters_nobody_sees_are_named(tmp_path: Path) -> None:
    text = "a\u202eb\u2066c\x00d\x1b[31m\u200b e\U0001f469\u200d\U0001f680"
    sample = {"step": 0, "inputs": "x", "output": text, "reward": 1.0}
    found = page(read_run(rft(tmp_path, samples=[sample])))
    for hidden in "\u202e\u2066\x00\x1b\u200b":
        assert hidden not in found and f"[U+{ord(hidden):04X}]" in found
    assert "\U0001f469\u200d\U0001f680" in found


def test_half_characters_can_be_written(tmp_path: Path) -> None:
    path = write_report(rft(tmp_path, samples=[{"step": 0, "inputs": "x", "output": "\ud83d half", "reward": 1.0}]))
    assert "[U+D83D] half" in path.read_text(encoding="utf-8")


def test_a_huge_output_is_cut_and_says_so(tmp_path: Path) -> None:
    samples = [{"step": step, "inputs": "q" * 100_000, "output": "w" * 200_000, "reward": 0.0} for step in range(3)]
    found = page(read_run(rft(tmp_path, samples=samples)))
    assert "198,800 more characters" in found and len(found) < 400_000


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("state", ["running", "interrupted", "failed", "trained"])
def test_short_and_broken_runs_have_a_page(tmp_path: Path, steps: int, state: str) -> None:
    run = {"total": 5, "objective": {"name": "Supervised"}}
    folder = write_run(tmp_path, metrics(steps), run=run, status={"state": state, "error": "the disk is full\nmore"})
    found = parsed(folder)
    assert f"{steps} of 5" in found.text
    assert ("the disk is full" in found.text) == (state == "failed")


def test_values_that_are_no_numbers_are_gaps_and_are_told(tmp_path: Path) -> None:
    rows = metrics(6)
    rows[2]["loss"] = rows[3]["reward"] = None
    text = "".join(f"{__import__('json').dumps(row)}\n" for row in rows).replace('"grad_norm": 5.0', '"grad_norm": NaN')
    folder = write_run(tmp_path, [])
    (folder / "metrics.jsonl").write_text(text)
    found = parsed(folder)
    assert "loss was not a number at 1 of 6 steps" in found.text


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "histograms.jsonl", "result.json", "run.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]\n", b"\xff\xfe\x00", b'{"step": "x"}\n', b"null\n", b'{"step":1}']
)
def test_a_damaged_file_costs_no_more_than_itself(tmp_path: Path, name: str, content: bytes) -> None:
    folder = rft(tmp_path)
    (folder / name).write_bytes(content)
    assert "melior" in parsed(folder).text


def test_ten_thousand_steps_are_a_small_page(tmp_path: Path) -> None:
    chance = [{"step": step, "length": {"edges": [0, 1, 2, 4], "counts": [step % 3, 2, 5]}} for step in range(10_000)]
    extra = {f"custom/{index}": 0.1 * index for index in range(10)}
    rows = metrics(10_000, **extra)
    for row in rows:
        row.update({name: value + row["step"] % 11 for name, value in extra.items()})
    folder = write_run(tmp_path, rows, histograms=chance, run={"total": 10_000, "objective": {"name": "Reinforcement"}})
    assert write_report(folder).stat().st_size < 2_000_000
    parsed(folder)


def test_a_spike_survives_thinning(tmp_path: Path) -> None:
    from melior.reports.curves import curve_of, thinned

    rows = metrics(10_000)
    rows[5_003]["loss"] = 99.0
    curve = curve_of(read_run(write_run(tmp_path, rows)), "loss")
    assert curve is not None
    kept = thinned(curve.points)
    assert (5_004.0, 99.0) in kept and len(kept) <= 320 and kept == sorted(kept)
    assert (kept[0], kept[-1]) == (curve.points[0], curve.points[-1])


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"heldout_loss": value} for value in (1.0, 0.5, 0.8)], "lowest after step 2"),
        ([{"policy/sampler_gap": 0.1}] * 3, "differ by 0.1000 nats"),
        ([{"completions/clipped_ratio": 0.6}] * 3, "60% of completions are cut"),
        ([{"frac_reward_zero_std": 0.95}] * 3, "equal rewards"),
        ([{"skipped": 1.0}, {"skipped": 0.0}, {"skipped": 1.0}], "2 steps had a loss or gradient that was not finite"),
        ([{"grader_errors": 2.0}] * 3, "6 gradings failed"),
    ],
)
def test_what_should_not_be_missed_is_said(tmp_path: Path, rows: Sequence[dict[str, Any]], told: str) -> None:
    from melior.reports.findings import findings

    made = [{**row, **more} for row, more in zip(metrics(3), rows, strict=True)]
    calm = write_run(tmp_path / "calm", metrics(3), status={"state": "trained"})
    assert findings(read_run(calm)) == []
    (found,) = findings(read_run(write_run(tmp_path / "run", made, status={"state": "trained"})))
    assert told in found


def test_what_came_of_restored_weights_stands_where_they_were_made(tmp_path: Path) -> None:
    from melior.reports.curves import curve_of
    from melior.reports.findings import findings

    rows = [{**row, "heldout_loss": loss} for row, loss in zip(metrics(3), (1.0, 0.5, 0.8), strict=True)]
    status = {"state": "trained", "best_step": 2, "best_value": 0.5}
    folder = write_run(tmp_path, rows, status=status, evaluation=EVALUATION, run={"total": 3})
    (told,) = findings(read_run(folder))
    assert "after step 2 " in told and "the weights from there are kept" in told
    curve = curve_of(read_run(folder), "heldout_reward")
    assert curve is not None and curve.points == [(2.0, 0.25)]


def test_steps_whose_bins_differ_are_counted(tmp_path: Path) -> None:
    drawn = [{"step": step, "reward": {"edges": [-step, 0, 1], "counts": [2, 3]}} for step in (1, 2, 2, 3, 3, 3)]
    drawn = [{**row, "step": index} for index, row in enumerate(drawn)]
    assert "3 of 6 steps had other bins" in parsed(rft(tmp_path / "wild", histograms=drawn)).text
    assert "other bins" not in parsed(rft(tmp_path / "calm", histograms=drawn[3:])).text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run"):
        read_run(tmp_path)
