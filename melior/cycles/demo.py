"""the demonstration: a small model learns sums from examples, then from a verifier alone

    base ── evaluate ── SFT ── evaluate ── gate ── RFT ── evaluate ── gate ── promote

Two ordinary recipes, one after the other, and a gate of the promoted version against the base model. Everything is
kept in one folder, with a registry of its own, so that trying it touches nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from melior.cycles.ledger import record_evaluation, record_gate
from melior.cycles.recipe import Recipe, recipe_of
from melior.cycles.train import Outcome, Report, quiet, run_recipe
from melior.durable import write_file
from melior.errors import CheckpointError
from melior.evaluation.compare import compare
from melior.evaluation.evaluate import Evaluation
from melior.evaluation.gates import Gate, Verdict, decide
from melior.registry import Registry
from melior.store import Store

PROD = "prod"


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Every number of the demonstration. The evidence for them is in docs/experiments.md."""

    model: str = "smollm2-135m-instruct"
    name: str = "sums"  # of the versions in the demonstration's registry
    dataset: str = "chain_sum"
    config: Mapping[str, Any] = field(
        default_factory=lambda: {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    )
    heldout: int = 200  # items that never train; they are the same whatever the numbers below
    samples: int = 2  # of each held-out item, beside a greedy one
    temperature: float = 1.0  # of serving, evaluation and rollouts alike
    max_tokens: int = 12  # the longest sum has four characters
    lora_rank: int = 16

    demonstrations: int = 160  # few, so that there is something left to learn from rewards
    sft_batch: int = 16
    sft_epochs: int = 1
    sft_rate: float = 1e-3
    sft_warmup: int = 2  # steps

    tasks: int = 720  # different questions to sample from: prompts × steps, so none comes twice
    prompts: int = 16  # of a step
    group: int = 8  # samples of each prompt
    rft_steps: int = 45
    rft_rate: float = 1e-4  # constant; at 3e-4 the samples of a group became equal and the gain was lost
    divide_by_std: bool = True  # of a group: rare right answers to hard sums count for more
    checkpoint_every: int = 5  # steps: a kill costs at most these


@dataclass(frozen=True)
class Demo:
    """What the demonstration came to."""

    folder: Path
    summary: Mapping[str, Any]  # demo/summary.json
    sft: Outcome
    rft: Outcome
    over_base: Verdict  # of the last version that passed a gate, or else of the last one, over the base model

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """One per stage."""
        return {"base": self.sft.before, "sft": self.sft.after, "rft": self.rft.after}

    @property
    def candidate(self) -> str:
        """The stage whose policy was put before the gate against the base model."""
        return "rft" if self.rft.verdict.result == "promote" or self.sft.verdict.result != "promote" else "sft"


def run_demo(
    settings: DemoSettings | None = None, folder: str | Path = "demo", *, seed: int = 0, report: Report = quiet
) -> Demo:
    """The demonstration in a folder, from the start or from wherever it was stopped, to the same numbers.

    `seed` is that of training: adapter, row order and sampling. Held-out items and the samples drawn from them are
    the same for every seed, so that runs can be pooled item by item.

    Raises:
        ModelError: if the model was not pulled.
        CheckpointError: if the folder holds a demonstration with other settings.
    """
    settings, folder = settings or DemoSettings(), Path(folder).absolute()
    with Store.open(_database(folder)) as store:
        sft = run_recipe(sft_recipe(settings, folder, seed), folder / "sft", store=store, report=_named("SFT", report))
        recipe = rft_recipe(settings, folder, seed, sft.version_id)
        told = _named("RFT", report)
        rft = run_recipe(recipe, folder / "rft", store=store, report=told, before=sft.after)
        return _concluded(folder, settings, store, sft, rft)


def sft_recipe(settings: DemoSettings, folder: Path, seed: int) -> Recipe:
    """Learning by demonstration, as `melior train` would read it."""
    return recipe_of(
        {
            "method": "sft",
            **_shared(settings, seed, rows=settings.demonstrations),
            "model": {"path": settings.model, "lora": {"r": settings.lora_rank}},
            "sft": {"batch_size": settings.sft_batch, "epochs": settings.sft_epochs},
            "fit": {
                "learning_rate": settings.sft_rate,
                "warmup": settings.sft_warmup,
                "schedule": "cosine",
                "checkpoint_every": settings.checkpoint_every,
            },
            "save": {"name": settings.name, "folder": str(folder / "models" / "sft")},
        }
    )


def rft_recipe(settings: DemoSettings, folder: Path, seed: int, start: str) -> Recipe:
    """Learning from rewards, on from the version that the demonstrations made."""
    return recipe_of(
        {
            "method": "rft",
            **_shared(settings, seed, rows=settings.tasks),
            "model": {"path": start},
            "rft": {"prompts": settings.prompts, "divide_by_std": settings.divide_by_std},
            "fit": {
                "steps": settings.rft_steps,
                "learning_rate": settings.rft_rate,
                "schedule": "constant",
                "checkpoint_every": settings.checkpoint_every,
            },
            # It has a second gate to pass, over the base model.
            "save": {"name": settings.name, "folder": str(folder / "models" / "rft"), "promote": False},
        }
    )


def _shared(settings: DemoSettings, seed: int, *, rows: int) -> dict[str, Any]:
    """What both recipes must have in common for their evaluations to be compared."""
    train = {"reasoning_gym": settings.dataset, "size": rows, "config": dict(settings.config)}
    return {
        "data": {"train": train, "heldout": settings.heldout},
        "sampling": {"n": settings.group, "max_tokens": settings.max_tokens, "temperature": settings.temperature},
        "evaluate": {"n": settings.samples, "temperature": settings.temperature},
        "seed": seed,
    }


def _concluded(folder: Path, settings: DemoSettings, store: Store, sft: Outcome, rft: Outcome) -> Demo:
    """The last gate, the promotion, and the summary; read back where they were done before."""
    demo = Demo(folder, {}, sft, rft, over_base=sft.verdict)
    base_gate = sft.gate_id
    if demo.candidate == "rft":
        verdict = decide(compare(rft.after, sft.before), Gate())
        version = store.version(rft.version_id)
        after = record_evaluation(store, rft.after, version_id=version.id, dataset_id=version.dataset_id)
        dataset_id = store.version(sft.version_id).dataset_id
        before = record_evaluation(store, sft.before, base_model=version.base_model, dataset_id=dataset_id)
        base_gate = record_gate(store, verdict, candidate=after, baseline=before).id
        demo = replace(demo, over_base=verdict)
    path = folder / "summary.json"
    if path.is_file():  # finished before: whoever has rolled back since has the last word
        return replace(demo, summary=_read(path))
    promoted = "sft" if sft.promoted else None
    if demo.candidate == "rft" and demo.over_base.result == "promote" == rft.verdict.result:
        standing = Registry(store).current(settings.name, PROD)
        passed = rft.gate_id if standing else base_gate  # the gate that compared with what stands there now
        Registry(store).promote(rft.version_id, PROD, gate_id=passed, reason=rft.verdict.sentence)
        promoted = "rft"
    demo = replace(demo, summary=_summary(demo, f"{settings.name}@{PROD}", promoted))
    write_file(path, json.dumps(demo.summary, indent=1))
    return demo


def _summary(demo: Demo, alias: str, promoted: str | None) -> dict[str, Any]:
    """What summary.json holds. `tokens` are decisions: learnt from, or generated in rollouts and evaluations."""
    verdicts = (
        ("sft", "base", demo.sft.verdict),
        ("rft", "sft", demo.rft.verdict),
        (demo.candidate, "base", demo.over_base),
    )
    told = [
        {"candidate": candidate, "baseline": baseline, "result": verdict.result, "sentence": verdict.sentence}
        for candidate, baseline, verdict in verdicts
    ]
    base, sft, rft = demo.evaluations.values()
    return {
        "stages": [
            _stage("base", base, None, None, layout=demo.sft.layout),
            _stage("sft", sft, base, demo.sft),
            _stage("rft", rft, sft, demo.rft),
        ],
        "heldout_items": len(base.items),
        "gate": {**told[-1], "verdicts": told},
        "promoted": {"stage": promoted, "model": alias} if promoted else None,
    }


def _stage(
    name: str, measured: Evaluation, start: Evaluation | None, trained: Outcome | None, layout: str = ""
) -> dict[str, Any]:
    gain = compare(measured, start).gain.to_json() if start else {}
    reward = measured.reward.to_json()
    return {
        "name": name,
        "reward": reward["estimate"],
        "ci_low": reward["low"],
        "ci_high": reward["high"],
        "greedy": measured.greedy.estimate if measured.greedy else None,
        "gain": gain.get("estimate"),
        "gain_ci_low": gain.get("low"),
        "gain_ci_high": gain.get("high"),
        "tokens": measured.tokens + (trained.tokens if trained else 0),
        "seconds": round(measured.seconds + (trained.seconds if trained else 0.0), 1),
        "layout": trained.layout if trained else layout,
        "nodes": trained.nodes if trained else 0,
        "padded_tokens": trained.padded_tokens if trained else 0,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); remove it and run the demonstration again") from error


def _named(stage: str, report: Report) -> Report:
    return lambda what, done, total, note: report(f"{stage}: {what}", done, total, note)


def _database(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "melior.db"


__all__ = ["Demo", "DemoSettings", "rft_recipe", "run_demo", "sft_recipe"]
