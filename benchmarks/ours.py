"""melior's side of the comparison: one measurement per process, one line of JSON"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pairs
import torch
import workload
from limit import Work, peak
from workload import Clock, Workload, check_groups, reward, tell

from melior.policies.language import LanguagePolicy
from melior.trainers.loop import FitConfig, fit
from melior.trainers.steps import Step
from melior.types import Demonstration, Preference, Record, Sampling, Score, Task


def main() -> None:
    """Runs one job."""
    parser = argparse.ArgumentParser()
    jobs = ["sft", "dpo", "reward", "dpo-short", "reward-short", "grpo", "replay", "peak", "profile"]
    parser.add_argument("job", choices=["prepare", *jobs])
    parser.add_argument("--workload", required=True)
    parser.add_argument("--model", default=workload.MODEL, help="prepare: a name or folder")
    parser.add_argument("--order", choices=["given", "length"], default="given")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--started", type=float, default=0.0)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--drawn", help="replay: file with the completions that TRL drew")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = Clock(args.started)
    if args.job == "prepare":
        prepare(Path(args.workload), args.model)
        return
    work = Workload.read(args.workload).of(args.job)
    job = args.job.removesuffix(workload.SHORT)
    if job == "sft":
        sft(work, args.order, args.steps, clock)
    elif job == "dpo":
        dpo(work, args.steps, clock)
    elif job == "reward":
        reward_model(work, args.steps, clock)
    elif job == "grpo":
        grpo(work, args.steps, clock)
    elif job == "replay":
        replay(work, json.loads(Path(args.drawn).read_text()), clock)
    elif job == "peak":
        tell(clock, peak=peak(LanguagePolicy.load(work.adapter)))
    else:
        profile(work)


def prepare(file: Path, model: str) -> None:
    """Draws rows and prompts, and makes the adapter that both sides start from."""
    from melior.data.reasoning import reasoning_demonstrations
    from melior.policies.adapters import LoRA
    from melior.policies.weights import resolve

    lora = LoRA(r=workload.LORA_RANK, alpha=workload.LORA_ALPHA, seed=workload.SEED)
    policy = LanguagePolicy.load(model, adapter=lora, layout="forest")
    adapter = file.parent / "adapter"
    policy.save(adapter)
    rows = []
    for name in workload.GENERATORS:
        for row in reasoning_demonstrations(name, workload.ROWS_PER_GENERATOR, seed=workload.SEED):
            turn = policy.renderer.turn(row.inputs, row.output)
            rows.append(
                {"inputs": row.inputs, "output": row.output, "context": turn.context, "decisions": turn.decisions}
            )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(workload.SEED)).tolist()
    prompts = []
    for name in workload.PROMPTS:
        (row,) = reasoning_demonstrations(name, 1, seed=workload.SEED + 1)
        prompts.append({"inputs": row.inputs, "context": policy.renderer.context(row.inputs)})
    told, found = pairs.preferences(workload.SEED)
    fitting = [pair for pair in map(policy_pair(policy), found) if uncut(pair)]
    head = torch.randn(policy.state_size, generator=torch.Generator().manual_seed(workload.SEED)) * workload.HEAD_STD
    Workload(
        model=str(resolve(model)),
        adapter=str(adapter),
        rows=[rows[place] for place in order],
        prompts=prompts,
        pairs=fitting[: workload.MOST_PAIRS],
        short_pairs=[pair for pair in fitting if len(pair["context"]) <= workload.SHORT_PROMPT][: workload.MOST_PAIRS],
        pairs_from=told,
        reward_head=head.tolist(),
    ).write(file)


def policy_pair(policy: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What adds to a pair the ids that both sides train."""

    def with_ids(pair: dict[str, Any]) -> dict[str, Any]:
        chosen, rejected = (policy.renderer.turn(pair["inputs"], pair[side]) for side in ("chosen", "rejected"))
        ids = {"context": chosen.context, "chosen_ids": chosen.decisions, "rejected_ids": rejected.decisions}
        return {**pair, **ids}

    return with_ids


def uncut(pair: dict[str, Any]) -> bool:
    """Whether neither side is cut."""
    return len(pair["context"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"])) <= workload.LONGEST


class InOrder:
    """Steps over rows as they stand: the other side trains the same rows in the same step."""

    def __init__(self, policy: Any, rows: Sequence[dict[str, Any]]) -> None:
        self.batch = policy.encode([Demonstration(row["inputs"], row["output"]) for row in rows])
        for row, context, (decisions, _) in zip(rows, self.batch.inputs, self.batch.outputs, strict=True):
            assert [*context, *decisions] == row["context"] + row["decisions"], "both sides must train the same ids"
        self.total = -(-len(rows) // workload.BATCH)

    def __call__(self, index: int) -> Step:
        start = index * workload.BATCH
        return Step(self.batch.select(range(start, min(start + workload.BATCH, len(self.batch)))))

    def fingerprint(self) -> str:
        return "in order"


def config(**settings: Any) -> FitConfig:
    """The optimizer that the other side has, at a constant rate."""
    return FitConfig(
        learning_rate=workload.LEARNING_RATE,
        schedule="constant",
        weight_decay=0.0,
        betas=workload.BETAS,
        epsilon=workload.EPSILON,
        max_grad_norm=workload.CLIP_NORM,
        **settings,
    )


def sft(work: Workload, order: str, steps: int, clock: Clock) -> None:
    """Supervised fine-tuning of the rows."""
    from melior.trainers.supervised import Supervised

    rows = work.rows[: steps * workload.BATCH]
    chosen = replace(work, rows=rows)
    chosen = chosen.by_length() if order == "length" else chosen
    policy = LanguagePolicy.load(work.adapter)
    counted = Work(policy)
    stream = InOrder(policy, chosen.rows)
    clock.begin()
    run = fit(policy, stream, Supervised(), config(), on_step=lambda *_: clock.tick())
    report(clock, run, counted, rows=len(rows), tokens=chosen.tokens, padded=policy.backbone.padded_tokens)


class PairsInOrder:
    """Steps over pairs as they stand, as `Pairs` would make them of a shuffled epoch."""

    def __init__(self, encoded: Any, found: Sequence[dict[str, Any]]) -> None:
        batch, kept, dropped = encoded
        assert not dropped and batch.groups.tolist() == [number // 2 for number in range(2 * len(kept))]
        for row, (context, decided) in enumerate(zip(batch.inputs, batch.outputs, strict=True)):
            pair, side = found[row // 2], "rejected_ids" if row % 2 else "chosen_ids"
            assert [*context, *decided[0]] == pair["context"] + pair[side], "both sides must train the same ids"
        self.batch, self.total = batch, len(kept) // workload.PAIRS

    def __call__(self, index: int) -> Step:
        return Step(self.batch.select(range(2 * index * workload.PAIRS, 2 * (index + 1) * workload.PAIRS)))

    def fingerprint(self) -> str:
        return "pairs in order"


def preference_rows(work: Workload, steps: int) -> tuple[list[dict[str, Any]], list[Preference]]:
    """The pairs of so many steps, with their ids and as melior's rows."""
    found = work.pairs[: steps * workload.PAIRS]
    return found, [Preference(pair["inputs"], pair["chosen"], pair["rejected"]) for pair in found]


def dpo(work: Workload, steps: int, clock: Clock) -> None:
    """Preferences, reference log-probs computed within each step as on the other side."""
    from melior.trainers.pairs import encode_pairs
    from melior.trainers.preference import Dpo

    policy = LanguagePolicy.load(work.adapter)
    counted = Work(policy)
    found, rows = preference_rows(work, steps)
    stream = PairsInOrder(encode_pairs(policy, rows), found)
    clock.begin()
    run = fit(policy, stream, Dpo(beta=workload.BETA), config(), on_step=lambda *_: clock.tick())
    tokens = sum(map(workload.pair_tokens, found))
    report(clock, run, counted, rows=len(rows), tokens=tokens, padded=policy.backbone.padded_tokens)


def reward_model(work: Workload, steps: int, clock: Clock) -> None:
    """A reward model on the language model's states, from the head that the other side starts from."""
    from melior.policies.reward_model import RewardModel
    from melior.trainers.reward_model import bradley_terry

    policy = LanguagePolicy.load(work.adapter)
    counted = Work(policy)
    model = RewardModel.on(policy)
    with torch.no_grad():
        model.heads.weight.copy_(torch.tensor([work.reward_head]))
    found, rows = preference_rows(work, steps)
    stream = PairsInOrder(rated(model, rows), found)
    clock.begin()
    run = fit(model, stream, bradley_terry(), config(), on_step=lambda *_: clock.tick())
    tokens = sum(map(workload.pair_tokens, found))
    report(clock, run, counted, rows=len(rows), tokens=tokens, padded=policy.backbone.padded_tokens)


def rated(model: Any, rows: Sequence[Preference]) -> Any:
    """Encoded pairs that teach a reward model's only head."""
    from melior.trainers.pairs import encode_pairs

    batch, *others = encode_pairs(model, rows)
    return batch.with_columns(heads=torch.zeros(len(batch), dtype=torch.long)), *others


class Hashed:
    """The benchmark's reward as a grader."""

    name = "hash"

    def grade(self, records: Sequence[Record]) -> list[Score]:
        assert all(len(record.decisions or ()) == workload.COMPLETION for record in records), "a completion ended early"
        rewards = [reward(record.decisions or ()) for record in records]
        check_groups(rewards)
        return [Score(value=value, name=self.name) for value in rewards]


def grpo(work: Workload, steps: int, clock: Clock) -> None:
    """Reinforcement: sample, grade, one update, as often as asked."""
    from melior.trainers.reinforcement import Rollouts

    policy = LanguagePolicy.load(work.adapter)
    policy.renderer.stop_ids = frozenset()  # every completion has its full length, as on the other side
    counted = Work(policy)
    tasks = [Task(prompt["inputs"]) for prompt in work.prompts]
    for task, prompt in zip(tasks, work.prompts, strict=True):
        assert list(policy.renderer.context(task.inputs)) == prompt["context"], "both sides must read the same prompt"
    sampling = Sampling(n=workload.GROUP, max_tokens=workload.COMPLETION, temperature=1.0, seed=workload.SEED)
    stream = Rollouts(policy, tasks, Hashed(), sampling, prompts=len(tasks), seed=workload.SEED)
    clock.begin()
    run = fit(policy, stream, objective(), config(steps=steps), on_step=lambda *_: clock.tick())
    report(
        clock, run, counted, rows=len(tasks) * workload.GROUP, collect=[row["seconds_collect"] for row in run.metrics]
    )


def objective() -> Any:
    """GRPO as the other side has it by default: normalised rewards, averaged over all decisions."""
    from melior.trainers.reinforcement import Reinforcement

    return Reinforcement(
        estimator="group_relative",
        divide_by_std=True,
        aggregate="decisions",
        clip_low=workload.CLIP,
        clip_high=workload.CLIP,
        beta=0.0,
        entropy=0.0,
    )


def replay(work: Workload, drawn: Sequence[dict[str, Any]], clock: Clock) -> None:
    """One update on the very completions that TRL drew: loss and gradient norm must be TRL's."""
    policy = LanguagePolicy.load(work.adapter)
    records = [
        Record(
            inputs=work.prompts[row["prompt"]]["inputs"],
            output="",
            group=str(row["prompt"]),
            context=tuple(work.prompts[row["prompt"]]["context"]),
            decisions=tuple(row["ids"]),
            sampling=Sampling(temperature=1.0),
        )
        for row in drawn
    ]
    rewards = torch.tensor([row["reward"] for row in drawn], dtype=torch.float64)
    step = Step(policy.encode(records)).with_columns(rewards=rewards)

    class Once:
        total = 1

        def __call__(self, index: int) -> Step:
            return step

        def fingerprint(self) -> str:
            return "once"

    clock.begin()
    run = fit(policy, Once(), objective(), config(), on_step=lambda *_: clock.tick())
    tell(clock, losses=[row["loss"] for row in run.metrics], grad_norms=[row["grad_norm"] for row in run.metrics])


def report(clock: Clock, run: Any, counted: Work, **found: Any) -> None:
    """One line about a finished run."""
    tell(
        clock,
        losses=[row["loss"] for row in run.metrics],
        grad_norms=[row["grad_norm"] for row in run.metrics],
        flops=counted.flops / len(run.metrics),
        nodes=counted.nodes / len(run.metrics),
        versions={name: version(name) for name in ("melior", "torch", "transformers", "peft")},
        **found,
    )


def profile(work: Workload) -> None:
    """Prints where one step of each job spends its time, as JSON."""
    from melior.policies.reward_model import RewardModel
    from melior.trainers.pairs import encode_pairs
    from melior.trainers.preference import Dpo
    from melior.trainers.reinforcement import Rollouts
    from melior.trainers.reward_model import bradley_terry
    from melior.trainers.supervised import Supervised

    policy = LanguagePolicy.load(work.adapter)
    model = RewardModel.on(policy)
    found, preferred = preference_rows(work, 1)
    policy.renderer.stop_ids = frozenset()
    sampling = Sampling(n=workload.GROUP, max_tokens=workload.COMPLETION, temperature=1.0, seed=workload.SEED)
    tasks = [Task(prompt["inputs"]) for prompt in work.prompts]
    tables = {}
    for job, trained, stream, aim in (
        ("sft", policy, InOrder(policy, work.rows[: workload.BATCH]), Supervised()),
        ("dpo", policy, PairsInOrder(encode_pairs(policy, preferred), found), Dpo(beta=workload.BETA)),
        ("reward", model, PairsInOrder(rated(model, preferred), found), bradley_terry()),
        ("grpo", policy, Rollouts(policy, tasks, Hashed(), sampling, prompts=len(tasks)), objective()),
    ):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as watched:
            fit(trained, stream, aim, config(steps=1))
        events = sorted(watched.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        tables[job] = [
            {
                "name": event.key,
                "calls": event.count,
                "seconds": event.self_cpu_time_total / 1e6,
                "share": event.self_cpu_time_total / total,
            }
            for event in events[:14]
        ]
    print(json.dumps({"profile": tables}), flush=True)


if __name__ == "__main__":
    main()
