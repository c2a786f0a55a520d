"""how many tokens an example has, told by the tokenizer alone: no weights are read"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from melior.data.chat import Renderer, Template
from melior.errors import ModelError
from melior.types import Demonstration, Preference, Rated, Task


@dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of an example as training lays them out, the longer side of a preference; it can be pickled."""

    folder: str
    template: Template = "auto"

    def __call__(self, example: Demonstration | Preference | Rated | Task) -> int:
        """Tokens of the context and of what is decided behind it, the stop token included."""
        if isinstance(example, Task):
            return len(self._renderer.context(example.inputs))
        if isinstance(example, Preference):
            return max(self._turn(example.inputs, side) for side in (example.chosen, example.rejected))
        if isinstance(example, Rated):
            return self._turn(example.inputs, example.output)
        turns = self._renderer.turns(example)
        return max((len(turn.context) + len(turn.decisions) for turn in turns), default=0)

    def _turn(self, inputs: Any, output: Any) -> int:
        turn = self._renderer.turn(inputs, output)
        return len(turn.context) + len(turn.decisions)

    @cached_property
    def _renderer(self) -> Renderer:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{self.folder} has no usable tokenizer; pull the model, or name its folder") from error
        return Renderer(tokenizer, self.template)
