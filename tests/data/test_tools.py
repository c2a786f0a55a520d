"""tools and tool calls reach the template, are learnt, or are refused; never lost in silence"""

from __future__ import annotations

from typing import Any

import pytest
from tiny import tiny_tokenizer

from melior.data.chat import Renderer
from melior.data.splits import input_key
from melior.errors import DataError
from melior.types import Demonstration, Task

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = {"role": "user", "content": "what is 1 + 2?"}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "3"}
ANSWER = {"role": "assistant", "content": "3, the answer"}


def call(arguments: Any, content: str | None = None) -> dict[str, Any]:
    function = {"name": "add", "arguments": arguments}
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = TOOL_TEMPLATE
    return Renderer(tokenizer)


def text(renderer: Renderer, ids: tuple[int, ...]) -> str:
    return str(renderer.tokenizer.decode(list(ids), skip_special_tokens=False))


def test_tools_stand_in_the_context_and_calls_are_learnt(renderer: Renderer) -> None:
    inputs = {"messages": [USER, call('{"a": 1}'), RESULT, ANSWER], "tools": [TOOL]}
    first, second = renderer.turns(Demonstration(inputs))
    assert '"name": "add"' in text(renderer, first.context)
    assert text(renderer, first.decisions) == '<call>add {"a": 1}</call><|im_end|>'
    assert text(renderer, second.context).endswith("<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n")
    assert text(renderer, second.decisions) == "3, the answer<|im_end|>"
    assert first.context == renderer.context({"messages": [USER], "tools": [TOOL]})


def test_arguments_as_text_and_as_an_object_are_the_same(renderer: Renderer) -> None:
    inputs = {"messages": [USER], "tools": [TOOL]}
    turns = {
        renderer.turn(inputs, call(arguments, content))
        for arguments in ('{"a": 1}', {"a": 1})
        for content in (None, "")
    }
    assert len(turns) == 1
    broken = renderer.turn(inputs, call('{"a": '))  # a model's own broken call is shown as it is
    assert "add" in text(renderer, broken.decisions)


def test_several_turns_of_an_output_are_learnt_and_the_inputs_are_not(renderer: Renderer) -> None:
    inputs = {"messages": [USER, ANSWER, USER], "tools": [TOOL]}
    turns = renderer.turns(Demonstration(inputs, [call("{}"), RESULT, ANSWER]))
    assert [text(renderer, turn.decisions) for turn in turns] == [
        "<call>add {}</call><|im_end|>",
        "3, the answer<|im_end|>",
    ]


def test_a_template_without_tools_refuses_them() -> None:
    blind = Renderer(tiny_tokenizer("chatml"))
    assert not blind.shows_tools
    with pytest.raises(DataError, match="does not show tools and 1 are given"):
        blind.context({"messages": [USER], "tools": [TOOL]})
    with pytest.raises(DataError, match="does not write the 1 tool calls"):
        blind.turn([USER], call("{}"))
    assert blind.context({"messages": [USER], "tools": []}) == blind.context([USER])
    with pytest.raises(DataError, match="cannot write tool calls"):
        Renderer(tiny_tokenizer(None)).turn("hi", call("{}"))


def test_tools_are_part_of_the_input() -> None:
    bare, armed = Task([USER]), Task({"messages": [USER], "tools": [TOOL]})
    assert input_key(bare) != input_key(armed)
    assert input_key(Task({"messages": [USER]})) == input_key(bare) == input_key(Task(USER["content"]))
    whole = Demonstration({"messages": [USER, ANSWER], "tools": [TOOL]})
    assert input_key(whole) == input_key(armed)


def test_a_text_without_a_prompt_is_learnt_from_its_first_word() -> None:
    for family in ("chatml", None):
        tokenizer = tiny_tokenizer(family)
        (turn,) = Renderer(tokenizer).turns(Demonstration(None, "<s>the cat sat"))
        assert turn.context == (tokenizer.bos_token_id,)
        assert tokenizer.decode(list(turn.decisions[:-1])) == "the cat sat"
        assert turn.decisions[-1] in Renderer(tokenizer).stop_ids
    assert input_key(Demonstration(None, "a")) != input_key(Demonstration(None, "b"))


def test_calls_in_the_old_wording_are_refused_and_do_not_vanish(renderer: Renderer) -> None:
    old = {"role": "assistant", "content": "", "function_call": {"name": "add", "arguments": "{}"}}
    for inputs, output in (([USER], old), ([USER, old, USER], ANSWER)):
        with pytest.raises(DataError, match=r"1 messages have function_call, .* write tool_calls"):
            renderer.turn(inputs, output)
    with pytest.raises(DataError, match="cannot write tool calls"):
        Renderer(tiny_tokenizer(None)).turn("hi", old)
