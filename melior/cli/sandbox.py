"""melior sandbox: how far Python of others is confined on this machine"""

from __future__ import annotations

from typing import Any

from melior.cli.output import JSON, say, say_json, told

FLAG, ALLOW = "--allow-unsandboxed", "MELIOR_ALLOW_UNSANDBOXED"
MEANS = {
    "L1": "a limit on time alone: for your own code; graders of type python are refused",
    "L2": "no network, processes, other files or privileges, by Landlock and a filter of system calls",
    "L3": "L2, in namespaces where no network, no other process and no other file exists",
}
USERS = {
    "own": "a user of its own, whose id nobody else has",
    "root without capabilities": "root without capabilities, as Python itself cannot be read by another user",
    "same": "the user of this command",
}


@told
def sandbox(as_json: bool = JSON) -> None:
    """Try the sandbox for graders of type python, and say which level holds and why no higher one does.

    \b
    melior sandbox
    melior sandbox --json
    """
    from melior.rewards.isolation import detected

    found: dict[str, Any] = detected().to_json()
    if as_json:
        say_json(found)
        return
    level = found["level"]
    say(f"level {level}: {MEANS[level]}")
    if level != "L1":
        say(f"code runs as {USERS[found['user']]}; Landlock version {found['landlock_abi']}")
    for higher, reason in found["reasons"].items():
        say(f"not {higher}: {reason}")
