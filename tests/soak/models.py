"""two small models that a server under load answers with: one that talks at random, one that labels"""

from __future__ import annotations

import sys
from pathlib import Path

from melior.registry import Registry
from melior.store import Store
from melior.types import Demonstration, Record

TALKS, LABELS, EPISODE = "talk@prod", "label@prod", "soak"
OTHER = "talk-otherwise"  # the folder of another version of what talks
CHAT = {"model": TALKS, "messages": [{"role": "user", "content": "the cat sat"}], "max_tokens": 8}
LABEL = {"model": LABELS, "input": {"height": 2.0, "colour": "red"}}


def register(database: str, folder: Path) -> None:
    """Makes both, promotes them, and has one decision in the log, of an episode that feedback can be about."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tiny import tiny_folder

    from melior.policies.classifier import Classifier, ClassifierPolicy

    rows = [Demonstration({"height": float(i % 7), "colour": ("red", "blue")[i % 2]}, ["no", "yes"][i % 2])
            for i in range(40)]  # fmt: skip
    ClassifierPolicy.make(Classifier(labels=("no", "yes")), rows).save(folder / "label")
    for seed, name in enumerate(("talk", OTHER)):
        (folder / name).mkdir(parents=True)
        tiny_folder(folder / name, "llama", max_position_embeddings=4_096, seed=seed)
    with Store.open(database) as store:
        store.add_records([Record(inputs="q", output="a")], episode_id=EPISODE)
        registry = Registry(store)
        for name in ("talk", "label"):
            version = registry.register(name, folder / name, method="sft", base_model="none")
            registry.promote(version.id, force=True, reason="first")
