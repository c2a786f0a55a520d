"""the local models that graders ask, each loaded once; nothing else in this package leads to torch

Prompts hold text that the judged model wrote, so spellings of special tokens in it are broken up: they must not end a
turn or open another. A system message goes in front of the first user message where the template knows no such role.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from melior.errors import DataError, GraderError, MeliorError
from melior.rewards.asking import NUMBER, PARSE, SERVER, Judge, Messages, Said, Scale, Written, number_of
from melior.types import Demonstration, Sampling

if TYPE_CHECKING:
    from melior.policies.embeddings import Encoder
    from melior.policies.language import LanguagePolicy
    from melior.policies.reward_ensemble import RewardEnsemble

KEPT = 4  # judges held at once; more than a grader is likely to ask
DESCRIPTION = 0.75  # of the reasons is what was looked at, the rest what follows from it


class LocalJudge:
    """A language policy as a judge."""

    def __init__(self, policy: LanguagePolicy) -> None:
        self.policy = policy

    def score(self, conversations: Sequence[Messages], scale: Scale) -> list[Said]:
        """A number for each conversation; the answer's frame is ours, and its blanks are the model's."""
        reasons = scale.sampling.max_tokens - NUMBER
        description = math.ceil(DESCRIPTION * reasons)
        blanks = (
            ('{"steps": [{"description": "', description, ('"',)),
            ('", "conclusion": "', reasons - description, ('"',)),
            ('"}], "result": ', NUMBER, ("}", "\n")),
        )
        begun, written = [""] * len(conversations), []
        for given, tokens, stops in blanks:
            begun = [text + given for text in begun]
            settings = Sampling(**{**vars(scale.sampling), "max_tokens": max(1, tokens), "stop": stops})
            written.append(self.write(conversations, begun, settings))
            begun = [text + found.text.rstrip("\\") for text, found in zip(begun, written[-1], strict=True)]
        return [_scored(*parts) for parts in zip(*written, strict=True)]

    def choose(self, conversations: Sequence[Messages], labels: Sequence[str]) -> list[Said]:
        """The most probable of the labels, by the exact probability of each."""
        return [_chosen(labels, *found) for found in self.weigh(conversations, labels)]

    def write(self, conversations: Sequence[Messages], begun: Sequence[str], settings: Sampling) -> list[Written]:
        """How the model goes on with each begun answer; equal prompts are asked once and answer equally."""
        from melior.policies.engine import Request

        contexts = [
            self.policy.renderer.begun(self._messages(messages), text)
            for messages, text in zip(conversations, begun, strict=True)
        ]
        numbers = {context: number for number, context in enumerate(dict.fromkeys(contexts))}
        engine = self.policy.engine()
        answers: dict[int, Written] = {}
        for context, number in numbers.items():
            if error := self._too_long(len(context), settings.max_tokens):
                answers[number] = Written(error=error)
            else:
                engine.submit(Request(id=number, context=context, settings=settings))
        engine.run()
        lengths = {number: len(context) for context, number in numbers.items()}
        for sample in engine.collect():
            answers[sample.request] = Written(
                text=sample.text,
                complete=sample.finish != "length",
                prompt_tokens=lengths[sample.request],
                completion_tokens=len(sample.decisions),
            )
        return [answers[numbers[context]] for context in contexts]

    def weigh(self, conversations: Sequence[Messages], answers: Sequence[str]) -> list[tuple[list[float], Written]]:
        """The log-prob in nats of each answer to each conversation; answers share the prompt's computation."""
        import torch

        prompts = [self._messages(messages) for messages in conversations]
        found: list[tuple[list[float], Written]] = []
        rows: list[Demonstration] = []
        for messages in prompts:
            turns = [self.policy.renderer.turn(messages, answer) for answer in answers]
            longest = max(turns, key=lambda turn: len(turn.context) + len(turn.decisions))
            error = self._too_long(len(longest.context), len(longest.decisions))
            found.append(([], Written(error=error, prompt_tokens=len(longest.context), completion_tokens=1)))
            rows += [] if error else [Demonstration(messages, answer) for answer in answers]
        with torch.inference_mode():
            sums = iter([float(row.double().sum()) for row in self.policy.log_probs(rows)] if rows else [])
        return [([] if told.error else [next(sums) for _ in answers], told) for _, told in found]

    def _too_long(self, prompt: int, tokens: int) -> str:
        if prompt + tokens <= self.policy.max_length:
            return ""
        return (
            f"the judge's prompt of {prompt} tokens and its answer of {tokens} exceed its context of "
            f"{self.policy.max_length}; shorten the prompt, or ask a model with a longer context"
        )

    def _messages(self, messages: Messages) -> Any:
        """The conversation as this model's template takes it."""
        clean = [
            {"role": "system" if m["role"] == "developer" else m["role"], "content": self._broken_up(m["content"])}
            for m in messages
        ]
        if not self.policy.renderer.chat:
            return "\n\n".join(m["content"] for m in clean) + "\n\n"
        if self._knows_system:
            return clean
        told = [m["content"] for m in clean if m["role"] == "system"]
        rest = [m for m in clean if m["role"] != "system"]
        first = next(index for index, m in enumerate(rest) if m["role"] == "user")  # the judge's own instruction
        rest[first] = {"role": "user", "content": "\n\n".join([*told, rest[first]["content"]])}
        return rest

    def _broken_up(self, text: str) -> str:
        return self._special.sub(lambda token: f"{token[0][0]} {token[0][1:]}", text)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Spellings of special tokens, the longest first."""
        tokenizer = self.policy.renderer.tokenizer
        spellings = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        known = sorted((text for text in spellings if len(text.strip()) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, known)) or r"(?!)")

    @cached_property
    def _knows_system(self) -> bool:
        try:
            self.policy.renderer.context([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
        except DataError:
            return False
        return True


def _scored(description: Written, conclusion: Written, result: Written) -> Said:
    """A verdict out of three blanks."""
    usage = _usage(description, conclusion, result)
    if error := description.error or conclusion.error or result.error:
        return Said(error=error, kind=SERVER, usage=usage)
    reason = " ".join(text for part in (description, conclusion) if (text := part.text.strip()))
    value = number_of(result)
    if value is None:
        error = f"the judge's result is not a number but {result.text.strip()[:40]!r}"
        return Said(error=error, kind=PARSE, reason=reason, usage=usage)
    return Said(value=value, reason=reason, usage=usage)


def _chosen(labels: Sequence[str], log_probs: Sequence[float], written: Written) -> Said:
    """A verdict out of the labels' log-probs."""
    if written.error:
        return Said(error=written.error, kind=SERVER)
    best = max(range(len(labels)), key=lambda index: log_probs[index])
    share = 1 / math.fsum(math.exp(other - log_probs[best]) for other in log_probs)
    reason = f"{labels[best]} (probability {share:.2f} among the labels)"
    return Said(label=labels[best], share=share, reason=reason, usage=_usage(written))


def _usage(*parts: Written) -> dict[str, int]:
    prompt, completion = sum(p.prompt_tokens for p in parts), sum(p.completion_tokens for p in parts)
    return {"prompt_tokens": prompt, "completion_tokens": completion}


def judge(model: str, grader: str) -> Judge:
    """The model of that name or folder.

    Raises:
        GraderError: if it cannot be loaded, with the grader's name.
    """
    try:
        return _loaded(model)
    except MeliorError as error:
        raise GraderError(f"grader {grader} asks the model {model!r}: {error}", "model_grader_server_error") from error


@lru_cache(maxsize=KEPT)
def _loaded(model: str) -> LocalJudge:
    from melior.policies.language import LanguagePolicy

    return LocalJudge(LanguagePolicy.load(model))


def reward_model(model: str, grader: str) -> RewardEnsemble:
    """The reward model or ensemble of that folder.

    Raises:
        GraderError: if it cannot be loaded, with the grader's name.
    """
    try:
        return _loaded_rewards(model)
    except MeliorError as error:
        raise GraderError(f"grader {grader} reads the model {model!r}: {error}") from error


@lru_cache(maxsize=KEPT)
def _loaded_rewards(model: str) -> RewardEnsemble:
    from melior.policies.reward_ensemble import load_rewards

    return load_rewards(model)


@lru_cache(maxsize=1)
def encoder() -> Encoder:
    """The sentence encoder of all-MiniLM-L6-v2.

    Raises:
        GraderError: if its package is not installed, naming the extra.
    """
    from melior.policies.embeddings import Encoder, packaged

    try:
        return Encoder.load(packaged())
    except MeliorError as error:
        raise GraderError(str(error)) from error
