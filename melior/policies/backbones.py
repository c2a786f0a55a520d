"""pre-trained models as melior sees them: states per token, a head, and the layout that fits"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import melior.policies.lean  # noqa: F401  (first: it makes the next imports lighter)

# isort: split
import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from melior.errors import ConfigError, LayoutError, ModelError
from melior.policies.forest import grow
from melior.policies.head import Head
from melior.policies.loading import ONE_AT_A_TIME
from melior.policies.mixing import Mixture
from melior.policies.norms import fuse_norms
from melior.policies.weights import resolve

__all__ = ["CausalBackbone", "LayoutName", "load_backbone", "resolve"]

log = logging.getLogger(__name__)

LayoutName = Literal["auto", "forest", "padded"]
ATTENTION = "melior_forest"
DIGEST_SAMPLES = 4096  # of each tensor: a trained tensor differs nearly everywhere
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.1}  # nats


class Plan(Protocol):
    """How a row of tokens attends: over its forest when training, over its cache when decoding."""

    def attend(
        self,
        layer: int,
        queries: Tensor,  # [1, H, N, hd]
        keys: Tensor,  # [1, Hkv, N, hd]
        values: Tensor,  # [1, Hkv, N, hd]
        *,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:  # [1, N, H, hd]
        ...


def planned_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    plan: Plan | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers' models call; the plan travels as a keyword of the forward pass."""
    if plan is None:
        raise LayoutError("This model does not hand the attention plan to its layers; load it with layout='padded'")
    if others.get("s_aux") is not None:
        raise LayoutError("This model uses attention sinks, which the forest does not know; use layout='padded'")
    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer = module.layer_idx
    return plan.attend(layer, query, key, value, scaling=scaling, window=sliding_window, softcap=softcap), None


AttentionInterface.register(ATTENTION, planned_attention)


def load_backbone(
    folder: str | Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> tuple[CausalBackbone, Any]:
    """Model and tokenizer of a folder or hub id.

    Raises:
        ModelError: if either is missing or broken, in one sentence.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in DTYPES:
        raise ConfigError(f'dtype must be "auto", "float32", "bfloat16", "float16" or "float64", got "{dtype}"')
    name = str(folder)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        with ONE_AT_A_TIME:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=DTYPES[dtype],
                attn_implementation=_wanted_attention(config),
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
        model, report = loaded
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"Cannot load a causal language model from {name}: {_first_line(error)}") from error
    if report["missing_keys"]:
        lacking = sorted(report["missing_keys"])
        raise ModelError(
            f"The weights of {name} lack {len(lacking)} tensors, first {lacking[0]}; fetch or save them anew"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{name} has no usable tokenizer; copy tokenizer.json and tokenizer_config.json into it"
        ) from error
    if not len(tokenizer) or len(tokenizer) > model.get_input_embeddings().num_embeddings:
        rows = model.get_input_embeddings().num_embeddings
        raise ModelError(
            f"{name}: the tokenizer knows {len(tokenizer)} tokens, the model {rows}; they do not belong together"
        )
    return CausalBackbone(fuse_norms(model.to(device))), tokenizer


class CausalBackbone:
    """A transformers causal language model, with or without a PEFT adapter."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.native: str = self.config._attn_implementation  # what padded rows attend with
        self.layout: Literal["forest", "padded"] = "padded"
        self.side: Literal["right", "left"] = "right"  # of the padding
        self.nodes = 0  # tokens computed since the start, and what padded rows would have cost
        self.padded_tokens = 0
        self.mixture: Mixture | None = None  # of adapters, where several share this model

    # ------------------------------------------------------------------ what it is

    @property
    def inner(self) -> Any:
        """The transformers model itself, adapter layers in place."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def adapted(self) -> bool:
        return isinstance(self.model, PeftModel)

    @property
    def config(self) -> Any:
        return self.inner.config.get_text_config()

    @property
    def device(self) -> torch.device:
        return self.inner.get_input_embeddings().weight.device

    @property
    def head_dtype(self) -> torch.dtype:
        """Of log-probs: float32, or float64 for a model of that dtype."""
        return torch.float64 if self.inner.dtype == torch.float64 else torch.float32

    @cached_property
    def head(self) -> Head:
        layer = self.inner.get_output_embeddings()
        if isinstance(layer, torch.nn.Module) and hasattr(layer, "base_layer"):
            raise ModelError("An adapter on the output head is not supported; leave lm_head out of its targets")
        config = self.config
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        return Head(layer.weight, layer.bias, getattr(config, "final_logit_softcapping", None), scale)

    @property
    def max_length(self) -> int:
        return int(getattr(self.config, "max_position_embeddings", None) or 1 << 20)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        stops = getattr(self.inner.generation_config, "eos_token_id", None)
        return () if stops is None else tuple(stops) if isinstance(stops, list) else (stops,)

    @property
    def architecture(self) -> str:
        config = self.config
        return f"{config.model_type}:{config.hidden_size}x{config.num_hidden_layers}:{config.vocab_size}"

    def adapted_by(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """Inside, row i of a pass is computed with the adapter names[i]; one name is for all rows, "" is none."""
        return nullcontext() if self.mixture is None else self.mixture.rows(names)

    def trainable(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trainable parameters by name."""
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def candidates(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """What can train at all, frozen or not: the adapter where there is one, else everything."""
        named = self.model.named_parameters()
        return ((name, p) for name, p in named if not self.adapted or "lora_" in name)

    def digest(self, *, adapter: bool = True) -> str:
        """Of the weights: `DIGEST_SAMPLES` of each tensor, evenly spaced, so that large models take no longer.

        Rounded to bfloat16, so that it is the same however the weights were loaded.
        """
        told = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict(keep_vars=True).items()):
            if not adapter and "lora_" in name:
                continue
            flat = tensor.detach().reshape(-1)
            sampled = flat[:: max(1, flat.numel() // DIGEST_SAMPLES)].to("cpu", torch.bfloat16)
            told.update(f"{name}{list(tensor.shape)}".encode())
            told.update(sampled.view(torch.int16).numpy().tobytes())
        return told.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Adapter in PEFT's format, or the whole model."""
        self.model.save_pretrained(str(folder))

    def save_merged(self, folder: Path) -> None:
        """The whole model with the adapter folded in; the policy itself stays as it is."""
        if not self.adapted:
            return self.save(folder)
        base = {name: tensor for name, tensor in self.inner.state_dict().items() if ".base_layer." in name}
        kept = {name: tensor.clone() for name, tensor in base.items()}
        self.model.merge_adapter()
        try:
            state = {}
            for name, tensor in self.inner.state_dict().items():
                if ".lora_" not in name:
                    state[name.replace(".base_layer.", ".")] = tensor
            self.inner.save_pretrained(str(folder), state_dict=state)
        finally:
            self.model.unmerge_adapter()
            for name, tensor in base.items():
                tensor.copy_(kept[name])  # subtracting what was added does not give the same bits

    # ------------------------------------------------------------------ deterministic forward passes

    def make_deterministic(self, gradient_checkpointing: bool = False) -> None:
        """Train mode, so that gradient checkpointing works, with every dropout at zero."""
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for name in ("attention_dropout", "dropout", "activation_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        if gradient_checkpointing:
            self.inner.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()

    def states(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, list[np.ndarray]]:
        """Final hidden states [N, D], and for each sequence the index of each of its tokens into them."""
        self.padded_tokens += max(map(len, sequences), default=0) * len(sequences)
        if self.layout == "padded":
            return self._padded(sequences)
        forest = grow(sequences).to(self.device)
        self.nodes += len(forest)
        return self.body(forest.tokens, forest.positions, forest.plan), forest.paths

    def body(self, tokens: Tensor, positions: Tensor, plan: Plan) -> Tensor:
        """Final hidden states [N, D] of a row of tokens [N] that attends by a plan."""
        hidden = self.inner.get_decoder()(
            input_ids=tokens[None], position_ids=positions[None], use_cache=False, plan=plan
        ).last_hidden_state
        return hidden[0]

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, list[np.ndarray]]:
        width = max(map(len, sequences))
        tokens = torch.zeros(len(sequences), width, dtype=torch.long)
        real = torch.zeros(len(sequences), width, dtype=torch.long)
        paths = []
        for row, sequence in enumerate(sequences):
            start = 0 if self.side == "right" else width - len(sequence)
            tokens[row, start : start + len(sequence)] = torch.tensor(sequence)
            real[row, start : start + len(sequence)] = 1
            paths.append(row * width + np.arange(start, start + len(sequence)))
        self.nodes += tokens.numel()
        if self.side == "right":
            real.fill_(1)  # causal attention never looks right, and padding that sees nothing would compute NaN
        positions = (real.cumsum(1) - 1).clamp(min=0)
        with self._attention(self.native):
            hidden = self.inner.get_decoder()(
                input_ids=tokens.to(self.device),
                attention_mask=real.to(self.device),
                position_ids=positions.to(self.device),
                use_cache=False,
            ).last_hidden_state
        return hidden.reshape(-1, hidden.shape[-1]), paths

    # ------------------------------------------------------------------ which layout

    def choose_layout(self, wanted: LayoutName) -> None:
        """Checks that head and forest reproduce the model's own logits, then fixes the layout.

        Raises:
            LayoutError: if "forest" is asked for and does not fit, with the difference in nats.
            ModelError: if the head is not one melior knows.
        """
        if wanted not in ("auto", "forest", "padded"):
            raise ConfigError(f'layout must be "auto", "forest" or "padded", got "{wanted}"')
        tolerance = PROBE_TOLERANCE[self.inner.dtype]
        reason = ""
        with torch.no_grad(), self._small_windows():
            sequences = _probe_sequences(self.config.vocab_size)
            own = self._own_log_probs(sequences)
            if wanted != "padded":
                reason = self._forest_misfit(sequences, own, tolerance)
            if reason or wanted == "padded":
                self.layout = "padded"
                gap = _largest_gap(own, self._probe(sequences))
                if not gap <= tolerance:
                    raise ModelError(
                        f"melior's head differs from the model's own logits by {gap:.2g} nats; it is not supported"
                    )
        if wanted == "padded":
            return
        if reason and wanted == "forest":
            raise LayoutError(f"The forest layout does not fit {self.architecture}: {reason}; use layout='padded'")
        self.layout = "padded" if reason else "forest"
        if reason:
            log.warning("layout padded: the forest does not fit %s: %s", self.architecture, reason)
        else:
            self.inner.set_attn_implementation(ATTENTION)
            log.info("layout forest: checked against the model's own forward pass")

    def _forest_misfit(self, sequences: list[list[int]], own: list[Tensor], tolerance: float) -> str:
        """Why the forest layout does not fit, or an empty string."""
        try:
            self.inner.set_attn_implementation(ATTENTION)
            self.layout = "forest"
            gap = _largest_gap(own, self._probe(sequences))
            return "" if gap <= tolerance else f"log-probs differ by {gap:.2g} nats"
        except (TypeError, ValueError, RuntimeError, AttributeError, LayoutError) as error:
            return _first_line(error)
        finally:
            self.layout = "padded"
            self.inner.set_attn_implementation(self.native)

    def _own_log_probs(self, sequences: list[list[int]]) -> list[Tensor]:
        rows = []
        for sequence in sequences:
            logits = self.inner(input_ids=torch.tensor([sequence], device=self.device), use_cache=False).logits[0]
            rows.append(torch.log_softmax(logits.to(self.head_dtype), -1))
        return rows

    def _probe(self, sequences: list[list[int]]) -> list[Tensor]:
        states, paths = self.states(sequences)
        self.nodes = self.padded_tokens = 0
        return [
            torch.log_softmax(self.head.logits(states[torch.from_numpy(path).to(self.device)]), -1) for path in paths
        ]

    @contextmanager
    def _attention(self, name: str) -> Iterator[None]:
        before = self.config._attn_implementation
        if before != name:
            self.inner.set_attn_implementation(name)
        try:
            yield
        finally:
            if before != name:
                self.inner.set_attn_implementation(before)

    @contextmanager
    def _small_windows(self) -> Iterator[None]:
        """Sliding windows cut to 6 tokens for the probe, which would else have to be longer than the real ones."""
        holders = [
            m for m in (self.config, *self.inner.modules()) if isinstance(getattr(m, "sliding_window", None), int)
        ]
        before = [holder.sliding_window for holder in holders]
        for holder in holders:
            holder.sliding_window = 6
        try:
            yield
        finally:
            for holder, window in zip(holders, before, strict=True):
                holder.sliding_window = window


def _probe_sequences(vocabulary: int) -> list[list[int]]:
    """Sequences that share prefixes of several depths, and one that shares nothing."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(0, vocabulary, (60,), generator=generator).tolist()
    stem = draw[:9]
    return [stem + draw[9:20], stem + draw[20:26], [*stem, *draw[9:13], *draw[26:40]], draw[40:60]]


def _largest_gap(first: list[Tensor], second: list[Tensor]) -> float:
    """The largest difference of probable tokens' log-probs; improbable tokens are ill-conditioned."""
    gaps = []
    for a, b in zip(first, second, strict=True):
        top = a.topk(min(20, a.shape[-1]), -1).indices
        gaps.append(float((a.gather(-1, top) - b.gather(-1, top)).abs().max()))
    return max(gaps)


def _wanted_attention(config: Any) -> str | None:
    """Eager where the model caps its attention logits, which SDPA silently does not; else what transformers chooses."""
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return "eager" if capped else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
