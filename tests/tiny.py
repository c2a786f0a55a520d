"""tiny random models with a tiny tokenizer, saved as folders; every family melior's layouts must agree on"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.overrides import TorchFunctionMode
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Writes a begin token, trims every text, and refuses a system message, as Gemma's does.
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Writes a begin token and trims, as Llama 3's does.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Shows tools and writes their calls, as Hermes' and Qwen's do.
HERMES = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for call in m.tool_calls or [] %}{% if m['content'] or not loop.first %}\n{% endif %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "gemma": GEMMA, "llama3": LLAMA3, "hermes": HERMES}
STOPS = {"chatml": "<|im_end|>", "hermes": "<|im_end|>", "gemma": "<end_of_turn>", "llama3": "<|eot_id|>"}
SPECIAL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
]  # fmt: skip
VOCABULARY = 299  # tokens the tokenizer knows
ROWS = 303  # rows of the models' matrices: more than tokens, as in most models, and no multiple of 256

SMALL: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}
SLIDING = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
CAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0}
CONFIGS: dict[str, Any] = {
    "llama": lambda **more: LlamaConfig(**{**SMALL, **more}),
    "smollm": lambda **more: LlamaConfig(**{**SMALL, "tie_word_embeddings": True, "rope_theta": 1e5, **more}),
    "qwen2": lambda **more: Qwen2Config(**{**SMALL, **more}),
    "qwen3": lambda **more: Qwen3Config(**{**SMALL, **more}),
    "mistral": lambda **more: MistralConfig(**{**SMALL, "sliding_window": 5, **more}),
    "gemma2": lambda **more: Gemma2Config(
        **{**SMALL, **SLIDING, "query_pre_attn_scalar": 8, **CAPPED, **more}
    ),
    "gemma3": lambda **more: Gemma3TextConfig(**{**SMALL, **SLIDING, "query_pre_attn_scalar": 8, **more}),
    "gpt2": lambda **more: GPT2Config(
        **{"vocab_size": ROWS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0,
           "eos_token_id": 1, **more}
    ),
    "mamba": lambda **more: MambaConfig(
        **{"vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "bos_token_id": 0,
           "eos_token_id": 1, "pad_token_id": 1, **more}
    ),
}  # fmt: skip
FORESTS = ["llama", "smollm", "qwen2", "qwen3", "mistral", "gemma2", "gemma3"]  # the forest fits these


def tiny_tokenizer(template: str | None = "chatml", *, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that writes digits one by one; padding is the end token, as in many chat models."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    corpus = ["the cat sat on the mat and the hat of the man", "what is the answer to that, user and assistant"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=SPECIAL[2:],
    )
    tokenizer.chat_template = TEMPLATES[template] if template else None
    return tokenizer


def tiny_model(family: str, *, seed: int = 0, **config: Any) -> Any:
    """A random model whose every tensor matters: wide logits, norms away from one, biases away from zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[family](**config), dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "A_log" not in name:
                    parameter.normal_(0, 0.2)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tiny_folder(
    folder: Path, family: str, template: str | None = "chatml", *, adds_bos: bool = False, **config: Any
) -> Path:
    """A model folder as people have them: weights, config, tokenizer."""
    model = tiny_model(family, **config)
    if template and "eos_token_id" not in config:
        model.generation_config.eos_token_id = tiny_tokenizer(template).convert_tokens_to_ids(STOPS[template])
    model.save_pretrained(str(folder))
    tiny_tokenizer(template, adds_bos=adds_bos).save_pretrained(str(folder))
    return folder


class AllDouble(TorchFunctionMode):
    """Inside, fp64 stays fp64: transformers casts norms and eager softmaxes to fp32, which hides errors below 1e-7."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        doubled = bool(args) and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64
        to_single = function is torch.Tensor.to and args[1:] == (torch.float32,)
        if doubled and (to_single or function is torch.Tensor.float):
            return args[0]
        if doubled and kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)


def tiny_encoder(folder_of: Callable[..., Path]) -> Path:
    """A folder with a random text encoder whose every dropout is on, beside the tiny models."""
    folder = folder_of("llama").parent / "tiny-encoder"
    if not folder.exists():
        config = BertConfig(
            vocab_size=ROWS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            BertModel(config).save_pretrained(str(folder))
        tiny_tokenizer(None).save_pretrained(str(folder))
    return folder
