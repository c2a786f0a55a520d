"""melior chat: talk to a model as it will be served"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from melior.cli.output import JSON, STORE, say, say_json, shown, told, warn
from melior.errors import DataError

if TYPE_CHECKING:
    from melior.policies.language import LanguagePolicy
    from melior.types import Sampling

HALF = "\N{REPLACEMENT CHARACTER}"  # what a character looks like before its last byte has come


@told
def chat(
    model: str = typer.Argument(..., help="A folder, a pulled name, a hub id, name@alias or ver_…"),
    message: str = typer.Option(None, "--message", "-m", help="Ask this and stop."),
    system: str = typer.Option(None, "--system", help="What the model is told first."),
    max_tokens: int = typer.Option(256, "--max-tokens", min=1, help="Of an answer."),
    temperature: float = typer.Option(0.0, "--temperature", min=0.0, help="0 is the most probable answer."),
    seed: int = typer.Option(0, "--seed", help="Of the samples."),
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Talk to a model; /new forgets the conversation, /exit or Ctrl-D leaves.

    \b
    melior chat smollm2-135m-instruct
    melior chat sums@prod --store demo/melior.db --message "State the final answer to the following: 4 + 8 ="
    """
    from melior.cycles.models import find_model
    from melior.policies.language import LanguagePolicy
    from melior.store import Store
    from melior.types import Sampling

    with Store.open(store) as opened:
        found = find_model(model, opened)
    policy = LanguagePolicy.load(found.path)
    settings = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    talk = Talk(policy, settings, system)
    if message is not None:
        answer = "".join(talk.answer(message))
        say_json({"message": message, "answer": answer}) if as_json else say(shown(answer))
        return
    _converse(talk)


class Talk:
    """A conversation with a policy."""

    def __init__(self, policy: LanguagePolicy, settings: Sampling, system: str | None = None) -> None:
        """Raises DataError if a system message is given to a model without a chat template."""
        if system is not None and not policy.renderer.chat:
            raise DataError("this model has no chat template, so it takes no system message; leave --system out")
        self.policy, self.settings = policy, settings
        self.opening: list[dict[str, str]] = [{"role": "system", "content": system}] if system is not None else []
        self.messages = list(self.opening)

    def forget(self) -> None:
        """Begins anew."""
        self.messages = list(self.opening)

    def answer(self, message: str) -> Iterator[str]:
        """The answer as it is decided, piece by piece; a model without a chat template goes on with the text.

        Raises:
            DataError: if the conversation has no room left for an answer.
        """
        said = [*self.messages, {"role": "user", "content": message}]
        text = ""
        for piece in stream(self.policy, said if self.policy.renderer.chat else message, self.settings):
            text += piece
            yield piece
        self.messages = [*said, {"role": "assistant", "content": text}]


def stream(policy: LanguagePolicy, inputs: Any, settings: Sampling) -> Iterator[str]:
    """The text of one sample in pieces, as its tokens are decided."""
    from melior.policies.engine import Request

    context = policy.renderer.context(inputs)
    if len(context) + settings.max_tokens > policy.max_length:
        raise DataError(
            f"{len(context)} tokens and an answer of {settings.max_tokens} exceed the context of {policy.max_length}; "
            "begin anew with /new, or lower --max-tokens"
        )
    engine = policy.engine()
    engine.submit(Request(id=0, context=context, settings=settings))
    told_so_far = ""
    while engine.step():
        text = policy.renderer.text(engine.rows[0].decisions) if engine.rows else ""
        if text.startswith(told_so_far) and not text.endswith(HALF):
            yield text[len(told_so_far) :]
            told_so_far = text
    whole = engine.collect()[0].text
    yield whole[len(told_so_far) :]


def _converse(talk: Talk) -> None:
    """Reads lines until there are no more."""
    asks = sys.stdin.isatty()
    if asks:
        say("/new forgets the conversation, /exit leaves")
    while True:
        try:
            line = input("> " if asks else "").strip()
        except (EOFError, KeyboardInterrupt):
            if asks:
                say()
            return
        if line == "/exit":
            return
        if line == "/new":
            talk.forget()
        elif line:
            _print_answer(talk, line)


def _print_answer(talk: Talk, line: str) -> None:
    try:
        for piece in talk.answer(line):
            print(shown(piece), end="", flush=True)
        say()
    except KeyboardInterrupt:
        say(" …")
    except DataError as error:
        warn(f"melior: {error}")
