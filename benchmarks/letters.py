"""a small language model made here: a made-up text teaches it to copy, turn, rotate or sort the letters of a word"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from melior.policies.language import LanguagePolicy
from melior.trainers.loop import FitConfig, fit
from melior.trainers.supervised import Examples, supervised
from melior.types import Demonstration

ALPHABET = "abcdefgh"
LETTERS = 5  # of a word: 32,768 words
PRETRAINING = 6_000  # words of the made-up text
STEPS, BATCH, RATE = 600, 64, 3e-3  # of pre-training: it ends where sorting is known, but not well
KINDS: tuple[Callable[[str], str], ...] = (  # what the text does with a word, in turns
    lambda word: word,
    lambda word: word[::-1],
    lambda word: word[1:] + word[0],
    lambda word: "".join(sorted(word)),
)
SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}


def different_words(count: int, seed: int) -> list[str]:
    """`count` words, none twice, each followed by the sign that asks for an answer."""
    places = np.random.default_rng(seed).permutation(len(ALPHABET) ** LETTERS)[:count]
    digits = [[place // len(ALPHABET) ** k % len(ALPHABET) for k in range(LETTERS)] for place in places.tolist()]
    return ["".join(ALPHABET[digit] for digit in each) + "=" for each in digits]


def sorted_word(asked: str) -> str:
    """The letters of an asked word in order."""
    return KINDS[-1](asked.removesuffix("="))


def pretrained(words: Sequence[str], folder: Path) -> Path:
    """The folder of the model, trained there the first time."""
    if not folder.exists():
        policy = LanguagePolicy.load(untrained(folder.with_name("untrained")), dtype="float32")
        rows = [Demonstration(word, KINDS[n % len(KINDS)](word.removesuffix("="))) for n, word in enumerate(words)]
        epochs = -(-STEPS * BATCH // len(rows))
        steps = Examples(policy, rows, batch_size=BATCH, epochs=epochs)
        fit(policy, steps, supervised(), FitConfig(steps=STEPS, learning_rate=RATE, warmup=20))
        policy.save(folder)
    return folder


def untrained(folder: Path) -> Path:
    """A folder with random weights and a tokenizer of single letters."""
    ids = {token: number for number, token in enumerate(["</s>", "?", "=", *ALPHABET])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>", unk_token="?")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=len(ids), bos_token_id=None, eos_token_id=0, pad_token_id=0, **SIZE)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder
