"""several adapters of one model in one decode batch: what a token costs, and what memory, beside a model for each

python benchmarks/mixed_adapters.py --model smollm2-135m-instruct --adapters 4 --rows 8 --tokens 24
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from melior.policies.adapters import LoRA
from melior.policies.engine import Request
from melior.policies.language import LanguagePolicy
from melior.policies.mixing import Mixture, read_adapter
from melior.types import Sampling

PROMPT = "Write a short story about a cat that learns to sail."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    policy = LanguagePolicy.load(asked.model)
    names = mixed(policy, asked.model, asked.adapters)
    small = sum(t.numel() for p in policy.backbone.mixture.adapters[names[0]].values() for t in (p.down, p.up))
    print(f"model {sum(p.numel() for p in policy.parameters()) / 1e6:.1f} M numbers, each adapter {small / 1e6:.2f} M")
    cases = {
        "no adapter": [[""] * asked.rows],
        "one adapter": [[names[0]] * asked.rows],
        f"{len(names)} adapters in one batch": [[names[row % len(names)] for row in range(asked.rows)]],
        f"{len(names)} adapters one after another": [[name] * (asked.rows // len(names)) for name in names],
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}  # for a token
    for turn in range(asked.rounds + 1):  # interleaved: a busy machine is so for all; the first is not counted
        for name, batches in cases.items():
            begun = time.perf_counter()
            decided = sum(decode(policy, batch, asked.tokens) for batch in batches)
            if turn:
                seconds[name].append((time.perf_counter() - begun) / decided)
    alone = statistics.median(seconds["no adapter"])
    for name, found in seconds.items():
        middle = statistics.median(found)
        spread = f"{1e3 * min(found):.1f} to {1e3 * max(found):.1f}"
        print(f"{name:<34} {1e3 * middle:6.1f} ms a token ({spread}), {middle / alone:.2f} times no adapter")


def mixed(policy: LanguagePolicy, model: str, count: int) -> list[str]:
    """Names of so many random adapters that the policy's model has from now on."""
    policy.backbone.mixture = mixture = Mixture(policy.backbone.inner)
    with tempfile.TemporaryDirectory() as folder:
        trained = LanguagePolicy.load(model, adapter=LoRA(r=16))
        for number in range(count):
            generator = torch.Generator().manual_seed(number)
            for _, parameter in trained.candidates():
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.01
            trained.save(Path(folder) / str(number))
            mixture.add(f"adapter {number}", read_adapter(Path(folder) / str(number), policy.backbone.device))
    return list(mixture.adapters)


def decode(policy: LanguagePolicy, adapters: list[str], tokens: int) -> int:
    """Tokens decided for one request per adapter named, all in one batch."""
    engine = policy.engine()
    context = policy.renderer.context(PROMPT)
    how = Sampling(max_tokens=tokens)
    for number, name in enumerate(adapters):
        engine.submit(Request(id=number, context=context, settings=how, adapter=name, first_sample=number))
    engine.run()
    return engine.tokens


if __name__ == "__main__":
    main()
