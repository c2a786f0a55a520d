"""the service recipe: two judges that share no opening, the expected best of k, and it runs whole"""

from __future__ import annotations

import json
import math
import sys
from html import unescape
from importlib import import_module
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tiny import tiny_folder

from melior.data.known_parts import data_folder
from melior.errors import ModelError
from melior.policies.texts import minilm

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RECIPES))
    return import_module("service")


def needs_data() -> None:
    if not (data_folder() / "taskmaster_reward").is_dir():
        pytest.skip("needs the data of MELIOR_DATA")


def test_the_best_of_k_is_the_mean_over_all_choices_of_k(service: ModuleType) -> None:
    drawn = np.random.default_rng(0)
    proxy, judged = drawn.normal(size=(3, 6)), drawn.normal(size=(3, 6))
    for k in (1, 2, 4, 6):
        chosen = [
            [judged[row, max(places, key=lambda place: proxy[row, place])] for row in range(3)]
            for places in combinations(range(6), k)
        ]
        assert service.best_of(proxy, judged, k) == pytest.approx(np.mean(chosen, axis=0))


def test_the_nats_of_the_best_of_k_are_those_of_an_order_statistic(service: ModuleType) -> None:
    """The rank u of the best of k among all outputs has density k u^(k-1); its KL from a uniform one is the bound."""
    u = (np.arange(200_000) + 0.5) / 200_000
    for k in (1, 2, 8):
        density = k * u ** (k - 1)
        assert service.spent(k) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-3)


def test_no_opening_is_shared_and_dialogs_end_with_the_customer(service: ModuleType) -> None:
    needs_data()
    rows = service.Rows.read(service.Settings())
    groups = [{row.group for row in part} for part in (rows.proxy, rows.gold, rows.asked)]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert not any(row.item["call"] for row in [*rows.proxy, *rows.gold])
    assert len(rows.asked) / 3228 == pytest.approx(0.25, abs=0.01)
    dialogs = rows.dialogs(32)
    assert len(dialogs) == 32 and all(dialog[-1]["role"] == "user" for dialog in dialogs)


def test_a_gold_that_falls_is_told(service: ModuleType) -> None:
    needs_data()
    drawn = np.random.default_rng(1)
    proxy = drawn.normal(size=(30, 8))
    settings = service.Settings()
    rows = service.Rows.read(settings)
    report = service.reward_report(Told(), rows.gold[:100])
    told = {}
    for name, gold in {"rises": proxy, "falls": -proxy, "nothing": drawn.normal(size=(30, 8))}.items():
        found = service.Outcome(
            dialogs=[[]] * 30, answers=[], proxy=proxy, gold=gold, reports={"gold": report}, seconds=0.0
        )
        told[name] = found.sentence
        assert math.isfinite(found.kept.estimate)
    assert "rises too" in told["rises"] and "falls" in told["falls"] and "beyond chance" in told["nothing"]


class Told:
    """A reward model that likes long answers."""

    names = ("reward",)

    def rewards(self, examples: list) -> np.ndarray:
        return np.array([[float(len(each.output))] for each in examples])


def test_it_runs_whole_with_a_tiny_model(
    service: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_data()
    try:
        minilm()
    except ModelError as error:
        pytest.skip(str(error))
    model = tiny_folder(tmp_path / "tiny", "llama")
    monkeypatch.setattr(sys, "argv", ["service", "--quick", "--model", str(model), "--out", str(tmp_path / "out")])
    service.main()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    page = unescape((tmp_path / "out" / "report.html").read_text())
    assert summary["sentence"] in page and summary["sentence"] in capsys.readouterr().out
    assert set(summary["gains"]["gold"]) == {"2", "4"} and len(summary["answers"]) == 3
