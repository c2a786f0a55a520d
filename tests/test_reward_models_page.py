"""the page on reward models runs as it stands, and what it prints is what the page says of it"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melior.errors import ModelError
from melior.policies.texts import minilm

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reward-models.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        minilm()
    except ModelError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    shown = set(re.findall(r"(?<![\w.])\d*\.\d+", PAGE.read_text()))
    printed = [float(number) for number in re.findall(r"(?<![\w.])\d*\.\d+", capsys.readouterr().out)]
    assert all(any(abs(number - float(each)) < 0.02 * number for each in shown) for number in printed)
    liked, disliked = names["kind"].rewards([names["Demonstration"](names["asked"], each) for each in names["replies"]])
    assert liked > disliked and names["best"].output == names["replies"][0]
    assert np.corrcoef(names["expected"], names["stars"][150:])[0, 1] > 0.8
    known, strange = names["walking"].uncertainty([names["known"], names["strange"]])[:, 0].tolist()
    assert strange > 3 * known
    report = names["report"]
    assert report.measures["accuracy"].low > 0.7 and len(report.by_annotator) == 3
    assert (tmp_path / "models" / "walking").is_dir()
