"""one renderer for training and serving: same ids, one begin token at most, exact assistant masks"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import SPECIAL, STOPS, TEMPLATES, tiny_tokenizer

from melior.data.chat import Renderer
from melior.errors import ConfigError, DataError, ModelError
from melior.types import Demonstration

FAMILIES = list(TEMPLATES)
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "what is 12 + 7?"},
    {"role": "assistant", "content": "19, of course"},
    {"role": "user", "content": "and the cat?"},
    {"role": "assistant", "content": "on the mat\nor the hat"},
]
RENDERERS = {family: Renderer(tiny_tokenizer(family)) for family in FAMILIES}
PLAIN = Renderer(tiny_tokenizer(None))


def decoded(renderer: Renderer, ids: tuple[int, ...]) -> str:
    return str(renderer.tokenizer.decode(list(ids), skip_special_tokens=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stop_token_is_what_the_template_writes(family: str) -> None:
    renderer = RENDERERS[family]
    assert renderer.tokenizer.convert_ids_to_tokens(renderer.stop_id) == STOPS[family]
    assert renderer.stop_ids == {renderer.stop_id}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_training_reads_what_serving_reads(family: str, adds_bos: bool) -> None:
    """The context of a training turn is the server's prompt, and that is what transformers' own template gives."""
    tokenizer = tiny_tokenizer(family, adds_bos=adds_bos)
    renderer = Renderer(tokenizer)
    for prompt in (CHAT[:1], CHAT[:3]):
        served = renderer.context(prompt)
        assert renderer.turn(prompt, "any answer").context == served
        own = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert list(served) == list(own)
    turns = renderer.turns(Demonstration(CHAT))
    assert [turn.context for turn in turns] == [renderer.context(CHAT[:1]), renderer.context(CHAT[:3])]


@pytest.mark.parametrize("family", [*FAMILIES, None])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_there_is_at_most_one_begin_token(family: str | None, adds_bos: bool) -> None:
    tokenizer = tiny_tokenizer(family, adds_bos=adds_bos)
    renderer = Renderer(tokenizer)
    turn = renderer.turn("hello" if family is None else CHAT[:3], "the mat")
    begins = [*turn.context, *turn.decisions].count(tokenizer.bos_token_id)
    assert begins == (1 if family in ("gemma", "llama3") or (family is None and adds_bos) else 0)
    assert tokenizer.bos_token_id not in turn.decisions
    if family is None and adds_bos:
        assert renderer.context("<s>hello") == renderer.context("hello")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_learned_is_the_assistants_text_and_its_stop_token(family: str) -> None:
    """Also in a tokenizer whose padding is its end token; the texts of all others are never decisions."""
    renderer = RENDERERS[family]
    assert renderer.tokenizer.pad_token_id == renderer.tokenizer.eos_token_id
    turns = renderer.turns(Demonstration(CHAT))
    assert [decoded(renderer, turn.decisions) for turn in turns] == [
        f"19, of course{STOPS[family]}",
        f"on the mat\nor the hat{STOPS[family]}",
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_context_and_decisions_spell_the_whole_conversation(family: str) -> None:
    renderer = RENDERERS[family]
    last = renderer.turns(Demonstration(CHAT))[-1]
    whole = renderer.tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert whole.startswith(decoded(renderer, last.context + last.decisions))
    assert whole.removeprefix(decoded(renderer, last.context + last.decisions)).strip() == ""


def test_turns_of_weight_zero_are_context_only() -> None:
    renderer = RENDERERS["chatml"]
    messages = [CHAT[0], {**CHAT[1], "weight": 0}, CHAT[2], {**CHAT[3], "weight": 1}]
    (turn,) = renderer.turns(Demonstration(messages))
    assert decoded(renderer, turn.decisions) == "on the mat\nor the hat<|im_end|>"
    assert "19, of course" in decoded(renderer, turn.context)
    assert turn == renderer.turns(Demonstration(CHAT))[1]


def test_system_prompts_are_read_where_the_template_has_them() -> None:
    messages = [{"role": "system", "content": "be the cat"}, *CHAT[:1]]
    assert "be the cat" in decoded(RENDERERS["chatml"], RENDERERS["chatml"].context(messages))
    with pytest.raises(DataError, match=r"system, user.*System role not supported"):
        RENDERERS["gemma"].context(messages)


@pytest.mark.parametrize("family", ["gemma", "llama3"])
def test_a_template_that_trims_is_learned_as_it_trims(family: str) -> None:
    renderer = RENDERERS[family]
    assert decoded(renderer, renderer.turn("hi", "  the mat \n").decisions) == f"the mat{STOPS[family]}"
    assert (
        decoded(RENDERERS["chatml"], RENDERERS["chatml"].turn("hi", "  the mat \n").decisions)
        == "  the mat \n<|im_end|>"
    )


texts = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)


@given(texts.filter(lambda text: not any(token in text for token in SPECIAL)))
def test_text_survives_the_round_trip(text: str) -> None:
    for renderer in (RENDERERS["chatml"], PLAIN):
        turn = renderer.turn("hi", text)
        assert renderer.text(turn.decisions) == text
        assert turn.decisions[-1] == renderer.stop_id
        assert renderer.stop_id not in turn.decisions[:-1]


def test_text_keeps_what_was_not_stopped() -> None:
    renderer = RENDERERS["chatml"]
    turn = renderer.turn("hi", "the mat")
    assert renderer.text(turn.decisions[:-1]) == "the mat"
    assert renderer.text(()) == ""


def test_digits_are_read_one_by_one() -> None:
    assert len(PLAIN.context("1234567")) == 7


def test_a_string_is_one_user_message() -> None:
    renderer = RENDERERS["chatml"]
    assert renderer.context("hi") == renderer.context([{"role": "user", "content": "hi"}])
    assert renderer.turn("hi", "yo") == renderer.turn("hi", {"role": "assistant", "content": "yo"})


def test_plain_text_ends_with_the_end_token() -> None:
    turn = PLAIN.turn("the cat ", "sat")
    assert decoded(PLAIN, turn.context) == "the cat "
    assert decoded(PLAIN, turn.decisions) == "sat</s>"
    chat_used_plainly = Renderer(tiny_tokenizer("chatml"), "plain")
    assert chat_used_plainly.turn("the cat ", "sat") == turn


def test_known_stops_stop_too() -> None:
    renderer = Renderer(tiny_tokenizer("chatml"), stop_ids=[1, 3])
    assert renderer.stop_ids == {1, 3}
    assert renderer.stop_id == 3
    assert Renderer(tiny_tokenizer(None), stop_ids=[5]).stop_id == 5


def test_the_fingerprint_tells_tokenizers_templates_and_stops_apart() -> None:
    base = tiny_tokenizer("chatml")
    more = tiny_tokenizer("chatml")
    more.add_tokens(["<extra>"])
    renderers = [
        Renderer(base),
        Renderer(base, "plain"),
        Renderer(base, stop_ids=[1]),
        Renderer(tiny_tokenizer("llama3")),
        Renderer(tiny_tokenizer("chatml", adds_bos=True)),
        Renderer(more),
    ]
    assert len({renderer.fingerprint for renderer in renderers}) == len(renderers)
    assert Renderer(tiny_tokenizer("chatml")).fingerprint == Renderer(base).fingerprint


@pytest.mark.parametrize("inputs", [7, [], ["text"], [{"content": "no role"}], {"tools": []}])
def test_odd_inputs_are_refused(inputs: Any) -> None:
    with pytest.raises(DataError, match="text or a list of messages"):
        RENDERERS["chatml"].context(inputs)


@pytest.mark.parametrize("output", [None, 7, {"role": "assistant"}, {"role": "assistant", "content": None}])
def test_odd_outputs_are_refused(output: Any) -> None:
    with pytest.raises(DataError, match="text or an assistant message"):
        RENDERERS["chatml"].turn("hi", output)


def test_messages_need_a_template() -> None:
    with pytest.raises(DataError, match="no chat template"):
        PLAIN.context(CHAT)
    with pytest.raises(ModelError, match="chat template"):
        Renderer(tiny_tokenizer(None), "chat")
    with pytest.raises(ConfigError, match="template"):
        Renderer(tiny_tokenizer(None), "alpaca")  # type: ignore[arg-type]


def test_a_model_without_any_end_is_refused() -> None:
    tokenizer = tiny_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no stop token"):
        _ = Renderer(tokenizer).stop_id
