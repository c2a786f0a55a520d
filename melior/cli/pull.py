"""melior pull: fetch a model or a known data set once"""

from __future__ import annotations

import typer

from melior.cli.output import JSON, say, say_json, told, warn


@told
def pull(
    name: str = typer.Argument(
        ..., help="A name melior knows (smollm2-135m-instruct, known:german-credit) or a hub id (owner/name)."
    ),
    as_json: bool = JSON,
) -> None:
    """Fetch a model or a known data set into MELIOR_HOME and verify its checksum.

    \b
    melior pull smollm2-135m-instruct
    melior pull known:german-credit
    """
    if name.startswith("known:"):
        _data_set(name, as_json)
        return
    from melior.policies import weights

    there = (weights.home() / "models" / name).is_dir()
    warn(f"{'verifying' if there else 'fetching'} {name} …")
    folder = weights.pull(name)
    if as_json:
        say_json({"name": name, "folder": folder})
    else:
        say(f"{name} is in {folder}")


def _data_set(name: str, as_json: bool) -> None:
    """Fetches a known data set where it is nowhere, and says what it is and where it lies."""
    from melior.data import known_sets

    warn(f"looking for {name} …")
    told, places = known_sets.described(name), known_sets.pull(name)
    if as_json:
        say_json({**told, "splits": places})
        return
    say(f"{name}: {told['about']}\nlicence {told['licence']}; cite {told['cite']}")
    for split, place in places.items():
        part = f"{name}@{split}" if len(places) > 1 else name
        say(f"{part} is in {place}" if place else f"{part} comes with scikit-learn")
