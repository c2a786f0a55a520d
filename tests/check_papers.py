"""Checks that methods name their papers, and that docs/papers.md tells which.

A docstring's `Source:` ends at a blank line and holds references with semicolons between them: a paper names authors
and a year ("Rafailov et al. 2023, arXiv:2305.18290, eq. 7"), perhaps behind a colon that says what is taken from it
("soft labels: Mitchell 2023, …"); anything else is a note on the paper before it. A `Source:` that names no paper may
stand in the packages of DOCUMENTED, whose sources are pages of other projects. Titles stand in docs/papers.json, by
arXiv id or doi, as their authors wrote them.

Run with --write to put the current table into docs/papers.md.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE, TITLES = ROOT / "docs" / "papers.md", ROOT / "docs" / "papers.json"
GROUND = ("losses/", "advantages.py", "off_policy.py")  # every public function there needs a source
OBJECTIVES = "trainers/"  # every objective there does
UNSOURCED = {  # what needs none, and why
    "advantages.py:whiten": "a mean taken away, a deviation divided by",
    "losses/likelihood.py:nll_loss": "the definition of likelihood",
    "losses/value.py:value_loss": "half a squared error",
    "losses/value.py:explained_variance": "a share of a variance",
    "off_policy.py:output_weights": "a ratio of probabilities; the estimators that read it are sourced",
    "off_policy.py:prefix_log_weights": "the logarithm of prefix_weights, which is sourced",
    "off_policy.py:slate_gram": "probabilities, added up; pseudo_inverse_weights, which reads them, is sourced",
    "off_policy.py:uniform_gram": "the same in closed form",
    "off_policy.py:slate_marginals": "probabilities, added up",
    "off_policy.py:overlap": "means and deviations of weights",
    "off_policy.py:unsupported_share": "probabilities, added up",
    "trainers/reward_model.py:BradleyTerry": "losses/reward.py, which it minimises, is sourced",
    "trainers/reward_model.py:OnRatings": "losses/reward.py, which it minimises, is sourced",
    "trainers/supervised.py:Supervised": "the likelihood of demonstrations",
}
DOCUMENTED = ("data/", "rewards/", "outbound/", "rollouts/banner/", "cli/")  # formats, protocols, kernels
REFERENCE = re.compile(r"(?P<authors>[^\W\d_][\w.'’ &,\-]*?)(?: et al\.)?,? (?P<year>(?:1[89]|20)\d\d)\b")
ODD_ID = re.compile(r"arxiv(?!:\d{4}\.\d{4,5}\b)", re.IGNORECASE)
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})\b")
DOI = re.compile(r"doi:(10\.\d{4,9}/[^\s,;()]+)")


@dataclass(frozen=True)
class Method:
    """Something in melior whose docstring can name a source."""

    file: str  # under melior/
    name: str  # empty for a module
    docstring: str

    @property
    def key(self) -> str:
        return f"{self.file}:{self.name}"

    @property
    def about(self) -> str:
        """The docstring's first line."""
        return self.docstring.partition("\n")[0].strip()

    @cached_property
    def references(self) -> list[str]:
        """What its `Source:` lists, each in one line."""
        found = re.search(r"(?:^|\n)[ ]*Source: (.*?)(?:\n\s*\n|\Z)", self.docstring, re.DOTALL)
        return [part for part in re.split(r";\s+", " ".join(found[1].split()).rstrip(".")) if part] if found else []

    @property
    def papers(self) -> list[str]:
        """Those of its references that name authors and a year."""
        return [part for part in self.references if REFERENCE.search(part)]


def main() -> int:
    """Exit status 1 and one line per fault."""
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    found = faults()
    untitled = sorted(
        {name for method in methods() for part in method.references for name in ids(part)} - set(titles())
    )
    print("\n".join(found) or "papers: every method names its source, and docs/papers.md tells all of them")
    if untitled:
        print(f"without a title in docs/papers.json: {', '.join(untitled)}")
    return 1 if found else 0


def faults() -> list[str]:
    """One line for each source that is missing or unreadable, and for a page that is out of date."""
    found = []
    for method in methods():
        where = f"melior/{method.key}"
        if "Source:" in method.docstring and not method.references:
            found.append(f"{where}: its Source cannot be read; begin a line with it")
        elif method.references and not method.papers and not method.file.startswith(DOCUMENTED):
            found.append(f"{where}: {'; '.join(method.references)!r} names no authors and year")
        odd = [part for part in method.references if ODD_ID.search(part)]
        found += [f"{where}: {part!r} has an arXiv id that is none; write arXiv:2305.18290" for part in odd]
    known = {method.key: method for method in methods()}
    for key in required():
        if not known[key].papers and key not in UNSOURCED:
            found.append(f"melior/{key}: has no Source; name the paper, or say in UNSOURCED why it needs none")
    found += [f"tests/check_papers.py: UNSOURCED names {key}, which is gone" for key in UNSOURCED if key not in known]
    if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        found.append("docs/papers.md: out of date; run python tests/check_papers.py --write")
    return found


def ids(reference: str) -> list[str]:
    """arXiv ids and dois in a reference."""
    return ARXIV.findall(reference) + DOI.findall(reference)


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the package, by its path under melior/."""
    for file in sorted((ROOT / "melior").rglob("*.py")):
        yield file.relative_to(ROOT / "melior").as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def methods() -> list[Method]:
    """Modules, classes and functions with a docstring."""
    found = []
    for file, module in modules():
        found.append(Method(file, "", ast.get_docstring(module) or ""))
        found += [Method(file, name, ast.get_docstring(node) or "") for name, node in defined(module)]
    return found


Defined = ast.FunctionDef | ast.ClassDef


def defined(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Defined]]:
    """Functions and classes by their dotted names; what functions hold inside is their own affair."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield f"{prefix}{child.name}", child
        if isinstance(child, ast.ClassDef):
            yield from defined(child, f"{prefix}{child.name}.")


def required() -> list[str]:
    """Keys of what must name a source: public functions of the ground floor, and objectives."""
    found, classes = [], {}
    for file, module in modules():
        public = [node for node in module.body if isinstance(node, Defined) and not node.name.startswith("_")]
        if file.startswith(GROUND):
            found += [f"{file}:{node.name}" for node in public if isinstance(node, ast.FunctionDef)]
        if file.startswith(OBJECTIVES):
            classes.update({node.name: (file, node) for node in module.body if isinstance(node, ast.ClassDef)})

    def bases(node: ast.ClassDef) -> list[str]:
        return [base.id for base in node.bases if isinstance(base, ast.Name)]

    def has(node: ast.ClassDef, name: str) -> bool:
        own = any(isinstance(part, ast.FunctionDef) and part.name == name for part in node.body)
        return own or any(has(classes[base][1], name) for base in bases(node) if base in classes)

    for name, (file, node) in classes.items():
        if not name.startswith("_") and "Protocol" not in bases(node) and has(node, "counts") and has(node, "loss"):
            found.append(f"{file}:{name}")
    return found


def titles() -> dict[str, str]:
    """Title by arXiv id or doi."""
    found: dict[str, str] = json.loads(TITLES.read_text(encoding="utf-8"))
    return found


def page() -> str:
    """The table as docs/papers.md holds it."""
    lines = [
        "# Papers",
        "",
        "What melior takes from which paper, by package. Written by `python tests/check_papers.py --write` from the "
        "`Source:` lines of docstrings and the titles in [papers.json](papers.json); do not edit.",
    ]
    package = ""
    for method in methods():
        if not method.papers:
            continue
        found = method.file.partition("/")[0]
        if found != package:
            lines += ["", f"## {found}", "", "| where | what | from |", "|---|---|---|"]
            package = found
        where = f"[{method.name or Path(method.file).name}](../melior/{method.file})"
        lines.append(f"| {where} | {cell(method.about)} | {'; '.join(map(shown, method.references))} |")
    return "\n".join(lines) + "\n"


def shown(reference: str) -> str:
    """A reference with its titles and links."""
    known = titles()
    found = cell(reference)
    for name in ids(reference):
        kind, address = (
            ("arXiv", "https://arxiv.org/abs/") if ARXIV.match(f"arXiv:{name}") else ("doi", "https://doi.org/")
        )
        title = f"*{cell(known[name])}*, " if name in known else ""
        found = found.replace(f"{kind}:{name}", f"{title}[{kind}:{name}]({address}{name})")
    return found


def cell(text: str) -> str:
    """Text that a table can hold."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
