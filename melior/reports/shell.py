"""the frame of every page: one file, nothing from elsewhere, and a policy that admits its own style and script alone"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from melior.reports.text import escaped

Section = tuple[str, str, str]  # its anchor, its title, its body as HTML


def shell(title: str, head: str, sections: Sequence[Section], foot: str) -> str:
    """A page of sections; those without a body are left out. `head`, bodies and `foot` are HTML."""
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; style-src 'sha256-{_digest(style)}'; script-src 'sha256-{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{escaped(label)}</a>' for name, label, _ in shown)
    bodies = "".join(
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{escaped(label)}</h2>{body}</section>'
        for name, label, body in shown
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta name="referrer" content="no-referrer"><title>{escaped(title)}</title><style>{style}</style></head>'
        f'<body><a class="skip" href="#main">Skip to the content</a>{head}<nav aria-label="Sections">{links}</nav>'
        f'<main id="main">{bodies}</main><footer>{foot}</footer><script>{script}</script></body></html>\n'
    )


@cache
def _asset(name: str) -> str:
    return files("melior.reports").joinpath(name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
