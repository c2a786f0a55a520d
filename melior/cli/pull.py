"""melior pull: fetch a model once"""

from __future__ import annotations

import typer

from melior.cli.output import JSON, say, say_json, told, warn


@told
def pull(
    name: str = typer.Argument(..., help="A name melior knows (smollm2-135m-instruct) or a hub id (owner/name)."),
    as_json: bool = JSON,
) -> None:
    """Fetch a model into MELIOR_HOME and verify its checksum.

    \b
    melior pull smollm2-135m-instruct
    """
    from melior.policies import weights

    there = (weights.home() / "models" / name).is_dir()
    warn(f"{'verifying' if there else 'fetching'} {name} …")
    folder = weights.pull(name)
    if as_json:
        say_json({"name": name, "folder": folder})
    else:
        say(f"{name} is in {folder}")
