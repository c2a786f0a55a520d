"""what a metric of feedback measures, and whether a value is one of it

    boolean         true or false
    number          a finite number, from low to high where they are declared
    rating          a whole number from low to high
    comment         a text
    demonstration   a better output, of the kind that the decision's output is
    preference      {"chosen", "rejected"} and, at most one of them, "tie", "both_bad" or "skip"
    event           true, or {"position", "item", "time", "amount"}, each of them optional

`comment`, `demonstration`, `preference`, `click` and `purchase` are known without being declared. A name that nobody
declared takes what most teams begin with: true or false, a finite number, a text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from melior.errors import ConfigError, DataError
from melior.store.rows import Measure, MeasureType

BUILT_IN: Mapping[str, MeasureType] = {
    "comment": "comment",
    "demonstration": "demonstration",
    "preference": "preference",
    "click": "event",
    "purchase": "event",
}
MOST_BYTES = 1 << 20  # of a value as JSON: a demonstration of a quarter of a million words is none
MOST_DEPTH = 32  # of lists and objects within one another
PREFERENCE = ("chosen", "rejected", "tie", "both_bad", "skip", "strength", "reason", "side", "seconds", "page")
VERDICTS = ("tie", "both_bad", "skip")  # what else than choosing a person may say of two outputs
EVENT = ("position", "item", "time", "amount")


def built_in(name: str) -> Measure | None:
    """What a name measures that nobody need declare; None where it is no such name."""
    if name not in BUILT_IN:
        return None
    return Measure(id="", name=name, type=BUILT_IN[name], low=None, high=None, description="built in", created="")


def check_value(name: str, value: Any, measure: Measure | None) -> None:
    """Nothing, if the value is one of what the metric measures, or of what any undeclared name takes.

    Raises:
        DataError: with what it should be, and what it is.
    """
    check_size(name, value)
    if measure is not None:
        VALUES[measure.type](measure, value)
    elif not isinstance(value, bool | str) and not _finite(value):
        raise DataError(
            f"{name} is declared nowhere and takes true, false, a finite number or a text, not {_shown(value)}; "
            "declare what it measures, or use comment, demonstration, preference, click or purchase"
        )


def check_size(name: str, value: Any) -> None:
    """Nothing, if the value is JSON of a size and depth that a person or a system would send.

    Raises:
        DataError: if it is too large, too deep, or holds a number or a text that is none.
    """
    if value is None or isinstance(value, bool | int | float):
        return
    depth = _depth(value)
    if depth > MOST_DEPTH:
        raise DataError(f"the value of {name} is more than {MOST_DEPTH} lists and objects deep; send a flatter one")
    try:
        size = len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())  # which no lone surrogate survives
    except (TypeError, ValueError) as error:
        raise DataError(f"the value of {name} is not JSON ({error}); send finite numbers and text") from error
    if size > MOST_BYTES:
        raise DataError(f"the value of {name} is {size:,} bytes as JSON, and at most {MOST_BYTES:,} are kept")


def _depth(value: Any) -> int:
    """How deep lists and objects stand in one another; counted no further than is permitted."""
    depth, level = 0, [value]
    while depth <= MOST_DEPTH:
        inner = [one for one in level if isinstance(one, dict | list | tuple)]
        if not inner:
            break
        level = [part for one in inner for part in (one.values() if isinstance(one, dict) else one)]
        depth += 1
    return depth


# ---------------------------------------------------------------------- values of each type


def _boolean(measure: Measure, value: Any) -> None:
    if not isinstance(value, bool):
        raise DataError(f"{measure.name} is true or false, not {_shown(value)}")


def _number(measure: Measure, value: Any) -> None:
    if not _finite(value) or not _within(measure, value):
        raise DataError(f"{measure.name} is a number{_range(measure)}, not {_shown(value)}")


def _rating(measure: Measure, value: Any) -> None:
    if not _finite(value) or value != int(value) or not _within(measure, value):
        raise DataError(f"{measure.name} is a whole number{_range(measure)}, not {_shown(value)}")


def _comment(measure: Measure, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{measure.name} is a text, not {_shown(value)}")


def _demonstration(measure: Measure, value: Any) -> None:
    if value is None or value in ("", [], {}) or isinstance(value, bool | int | float):
        raise DataError(f"{measure.name} is a better output, not {_shown(value)}")


def _preference(measure: Measure, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise DataError(f'{measure.name} is {{"chosen": …, "rejected": …}}, not {_shown(value)}')
    _known(measure, value, PREFERENCE)
    said = [name for name in VERDICTS if value.get(name)]
    if len(said) > 1:
        raise DataError(f"{measure.name} says {said[0]} and {said[1]}; one of them is meant")
    if odd := [name for name in VERDICTS if not isinstance(value.get(name, False), bool)]:
        raise DataError(f"{odd[0]} of {measure.name} is true or false, not {_shown(value[odd[0]])}")
    missing = [name for name in ("chosen", "rejected") if value.get(name) in (None, "", [], {})]
    if missing and said != ["skip"]:
        raise DataError(f"{measure.name} has no {missing[0]}; send both outputs, also where they tie")
    if not said and value["chosen"] == value["rejected"]:
        raise DataError(f"chosen and rejected of {measure.name} are the same; a tie is said with tie: true")
    for name in ("strength", "seconds"):
        if name in value and (not _finite(value[name]) or value[name] < 0):
            raise DataError(f"{name} of {measure.name} is a number from 0, not {_shown(value[name])}")
    if value.get("side", "left") not in ("left", "right"):
        raise DataError(f"side of {measure.name} is where the chosen one stood, left or right")


def _event(measure: Measure, value: Any) -> None:
    if value is True:
        return
    if not isinstance(value, Mapping):
        raise DataError(
            f"{measure.name} is true or an object with {', '.join(EVENT)}, not {_shown(value)}; what did not happen is "
            "not sent"
        )
    _known(measure, value, EVENT)
    place = value.get("position")
    if place is not None and (isinstance(place, bool) or not isinstance(place, int) or place < 0):
        raise DataError(f"position of {measure.name} is a whole number, counted from 0, not {_shown(place)}")
    item = value.get("item")
    if item is not None and (isinstance(item, bool) or not isinstance(item, str | int) or item == ""):
        raise DataError(f"item of {measure.name} is the id of an item, not {_shown(item)}")
    if value.get("amount") is not None and not _finite(value["amount"]):
        raise DataError(f"amount of {measure.name} is a finite number, not {_shown(value['amount'])}")
    if value.get("time") is not None and not _is_time(value["time"]):
        raise DataError(f"time of {measure.name} is Unix seconds or ISO 8601 with a zone, not {_shown(value['time'])}")


VALUES: Mapping[MeasureType, Callable[[Measure, Any], None]] = {
    "boolean": _boolean,
    "number": _number,
    "rating": _rating,
    "comment": _comment,
    "demonstration": _demonstration,
    "preference": _preference,
    "event": _event,
}


def _known(measure: Measure, value: Mapping[str, Any], names: tuple[str, ...]) -> None:
    unknown = sorted(set(value).difference(names))
    if unknown:
        raise DataError(f"{measure.name} has {unknown[0]!r:.60}, which is none of {', '.join(names)}; use tags for it")


def _is_time(value: Any) -> bool:
    if not isinstance(value, str):
        return _finite(value)
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _finite(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _within(measure: Measure, value: float) -> bool:
    return (measure.low is None or value >= measure.low) and (measure.high is None or value <= measure.high)


def _range(measure: Measure) -> str:
    """`` from 1 to 5``, as far as it is bounded."""
    told = [f" {word} {bound:g}" for word, bound in (("from", measure.low), ("to", measure.high)) if bound is not None]
    return "".join(told)


def _shown(value: Any) -> str:
    """A value as a sentence can hold it."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:59] + "…"


# ---------------------------------------------------------------------- values that fit what was decided


def check_output(name: str, value: Any, output: Any) -> None:
    """Nothing, if a better output could have been decided in place of this one, as far as their kinds tell.

    Raises:
        DataError: if it is of another kind.
    """
    if isinstance(output, list):
        ids = value if isinstance(value, list) else None
        if ids is None or not all(isinstance(id, str | int) and not isinstance(id, bool) for id in ids):
            raise DataError(f"{name} is of a decision that is a list, and no list of ids or labels: {_shown(value)}")
        if len(set(map(str, ids))) < len(ids):
            raise DataError(f"{name} holds something twice: {_shown(value)}")
    elif isinstance(output, str) and not isinstance(value, str) and not _messages(value):
        raise DataError(f"{name} is of a decision that is a text, and neither a text nor messages: {_shown(value)}")


def _messages(value: Any) -> bool:
    """Whether it is an assistant's message, or a list of messages that begins with one."""
    told = value if isinstance(value, list) else [value]
    roles = [one.get("role") if isinstance(one, Mapping) else None for one in told]
    return bool(roles) and None not in roles and roles[0] == "assistant"


def check_shown(name: str, event: Any, output: Any) -> None:
    """Nothing, if the event names no place, or one that was shown.

    Raises:
        DataError: if its item or position was not shown, or the two disagree.
    """
    if not isinstance(event, Mapping):
        return
    place, item = event.get("position"), event.get("item")
    shown = [str(one) for one in output] if isinstance(output, list) else [str(output)]
    if item is not None and str(item) not in shown:
        raise DataError(f"a {name} of {item!r} is told of a decision that did not show it: {_shown(shown)}")
    if place is not None and place >= len(shown):
        raise DataError(f"a {name} is told at position {place}, and {len(shown)} were shown, counted from 0")
    if place is not None and item is not None and shown[place] != str(item):
        raise DataError(f"a {name} of {item!r} is told at position {place}, where {shown[place]!r} was shown")


# ---------------------------------------------------------------------- declarations


def check_declaration(name: str, type: MeasureType, low: float | None, high: float | None) -> None:
    """Nothing, if a metric can be declared so.

    Raises:
        ConfigError: if the name is built in, or the range is none.
    """
    if name in BUILT_IN:
        raise ConfigError(f"{name} is built in and means {BUILT_IN[name]}; declare another name")
    bounds = [bound for bound in (low, high) if bound is not None]
    if type not in ("number", "rating"):
        if bounds:
            raise ConfigError(f"a {type} has no range; leave low and high out of {name}, or declare a number")
        return
    if not all(map(_finite, bounds)):
        raise ConfigError(f"low and high of {name} are finite numbers, not {_shown(low)} and {_shown(high)}")
    if low is not None and high is not None and low >= high:
        raise ConfigError(f"low of {name} is {low:g} and not below high, {high:g}")
    if type == "rating" and (len(bounds) < 2 or any(bound != int(bound) for bound in bounds)):
        raise ConfigError(f"rating {name} needs low and high, whole numbers, such as 1 and 5")
