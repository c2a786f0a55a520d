"""language models in a cycle: rows are tokens, and a context holds only so many"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from melior.cycles.kinds.base import Counts, Pace
from melior.cycles.likelihood import JUDGES, measured
from melior.cycles.models import Found
from melior.cycles.recipe import Recipe
from melior.cycles.rows import Rows
from melior.data.formats.rows import Reading
from melior.errors import ConfigError, DataError
from melior.evaluation.evaluate import Evaluation
from melior.policies.adapters import LoRA, is_adapter
from melior.policies.head import CHUNK
from melior.policies.language import LanguagePolicy
from melior.types import Sampling, Task

HEAD_COPIES = 3  # of a chunk's logits while their log-probs are taken: themselves, in higher precision, exponentials
# Where a range test does not tell, what TRL starts adapters and whole models at. From rewards: docs/experiments.md
# (three seeds), and TRL's default for GRPO; from preferences, TRL's default for whole models and fifty times it.
ADAPTERS = Pace(what="adapters", sft=2e-4, limits=(1e-5, 2e-3), rft=1e-4, dpo=5e-5)
WHOLE = Pace(what="whole models", sft=2e-5, limits=(1e-6, 1e-4), rft=1e-6, dpo=1e-6)


class Language:
    """What a cycle must know of language models."""

    judges: Mapping[str, str] = JUDGES

    def load(self, recipe: Recipe, found: Found, rows: Rows) -> LanguagePolicy:
        """The recipe's policy before its first step.

        Raises:
            ConfigError: if an adapter would be put on an adapter, or every weight of one trained.
            ModelError: if the model cannot be loaded.
        """
        model, adapter = recipe.model, recipe.adapter
        adapted = is_adapter(Path(found.path))
        if adapted and model.lora is None:
            raise ConfigError(
                f"{found.path} holds an adapter, so not every weight can train; merge it first, or use lora: auto"
            )
        if model.lora == "auto" and not adapted and model.train == "all":
            adapter = LoRA(seed=recipe.seed)
        return LanguagePolicy.load(
            found.path,
            adapter=adapter,
            layout=model.layout,
            dtype=model.dtype,
            template=model.template,
            max_length=model.max_length,
            gradient_checkpointing=model.gradient_checkpointing,
        )

    def pace(self, policy: LanguagePolicy) -> Pace:
        """Adapters learn faster than whole models."""
        return ADAPTERS if policy.adapted else WHOLE

    def check(self, policy: LanguagePolicy, tasks: Sequence[Task], sampling: Sampling) -> None:
        """Nothing, if every task leaves room for an answer.

        Raises:
            DataError: naming the first that does not.
        """
        long = [
            (task, length)
            for task in tasks
            if (length := len(policy.renderer.context(task.inputs))) + sampling.max_tokens > policy.max_length
        ]
        if long:
            task, length = long[0]
            raise DataError(
                f"{len(long)} of {len(tasks)} prompts are too long, first {task.id or 'without id'}: {length} tokens "
                f"and max_tokens={sampling.max_tokens} exceed the context of {policy.max_length}; shorten them, or "
                "lower it"
            )

    def reading(self, policy: LanguagePolicy, reading: Reading) -> Reading:
        """The same: rows say of themselves what they are."""
        return reading

    def counts(self, policy: LanguagePolicy, rows: Rows, recipe: Recipe, steps: Any) -> Counts:
        """Tokens by the policy's own tokenizer and template."""
        if recipe.way.samples:
            contexts = [len(policy.renderer.context(task.inputs)) for task in rows.train]
            most = recipe.rollouts.n * recipe.rollouts.max_tokens * min(recipe.section.prompts, len(rows.train))
            longest = max(contexts, default=0)
            return Counts(tokens=sum(contexts), decisions=most, longest=longest, context=policy.max_length)
        if recipe.method != "sft":
            batch, width = steps.batch, steps.batch.mask.sum(1).tolist()
            longest = max(len(read) + decided for read, decided in zip(batch.inputs, width, strict=True))
            dropped, tokens = getattr(steps, "dropped", 0), policy.cost(batch)
            return Counts(
                dropped_rows=dropped, tokens=tokens, decisions=sum(width), longest=longest, context=policy.max_length
            )
        turns = [policy.renderer.turns(row) for row in rows.train]
        lengths = [[len(turn.context) + len(turn.decisions) for turn in found] for found in turns]
        longest_of = [max(row, default=0) for row in lengths]
        batch = policy.encode(rows.train)
        learnt = batch.mask & (batch.weights != 0)
        dropped = len(rows.train) - len(set(batch.columns["examples"][learnt.any(1)].tolist()))
        over = sum(length > policy.max_length for length in longest_of)
        return Counts(
            dropped_rows=dropped,
            truncated_rows=max(0, over - dropped),
            tokens=sum(min(length, policy.max_length) for length in longest_of),
            decisions=int(learnt.sum()),
            longest=max(longest_of, default=0),
            context=policy.max_length,
        )

    def lengths(self, policy: LanguagePolicy, rows: Rows, steps: Any) -> Mapping[str, Sequence[float]]:
        """Tokens read and, where outputs are given, decided."""
        if rows.kind != "tasks":
            batch = steps.batch
            return {"read": [len(read) for read in batch.inputs], "decided": batch.mask.sum(1).tolist()}
        return {"read": [len(policy.renderer.context(task.inputs)) for task in rows.tasks]}

    def head_bytes(self, policy: LanguagePolicy) -> int:
        """One chunk's logits."""
        return HEAD_COPIES * CHUNK * int(policy.backbone.config.vocab_size) * torch.float32.itemsize

    def measure(self, policy: LanguagePolicy, rows: Sequence[Any], of: str = "demonstrations") -> Evaluation:
        """The likelihood of held-out demonstrations, or whether it moved towards what was preferred."""
        return measured(policy, rows, of)

    def tell(self, policy: LanguagePolicy, rows: Rows, recipe: Recipe, folder: Path) -> None:
        """Nothing more than every run tells."""
