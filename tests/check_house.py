"""Checks what no linter knows: banned calls, namesakes among the tests, and the README's tree of captions.

Run with --write to put the current tree into README.md.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- tree -->", "<!-- /tree -->"
BANNED_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
BANNED_CALLS = {
    ("torch", "load"),
    ("torch", "save"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("numpy", "load"),
    ("np", "load"),
}
BANNED_NAMES = {"eval", "exec"}
# One file each may make a banned call, if it says in so many words that nothing but numbers is built: weights that a
# package ships as a pickle, whose sha256 is known, and arrays that people bring.
SAFE_CALLS = {
    ("melior/policies/lite0.py", ("torch", "load")): ("weights_only", True),
    ("melior/data/readers/arrays.py", ("np", "load")): ("allow_pickle", False),
}


def main() -> int:
    """Exit status 1 and one line per fault."""
    if "--write" in sys.argv:
        write_tree()
    faults = [fault for file in sorted((ROOT / "melior").rglob("*.py")) for fault in banned(file)]
    faults += [f"{file.relative_to(ROOT)}: has no caption" for file in modules() if not caption(file)]
    faults += namesakes()
    readme = (ROOT / "README.md").read_text()
    if START not in readme or readme.split(START)[1].split(END)[0].strip() != fenced().strip():
        faults.append("README.md: the tree is out of date; run python tests/check_house.py --write")
    print("\n".join(faults) or "house: no banned calls, every module has a caption, the README's tree is current")
    return 1 if faults else 0


def banned(file: Path) -> Iterator[str]:
    """Imports and calls that could run what they read."""
    for node in ast.walk(ast.parse(file.read_text())):
        where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] in BANNED_MODULES:
                    yield f"{where}: imports {name}; use safetensors or JSON"
        called = node.func if isinstance(node, ast.Call) else None
        owner = called.value if isinstance(called, ast.Attribute) else None
        name = (owner.id, called.attr) if isinstance(owner, ast.Name) else None  # type: ignore[union-attr]
        if name in BANNED_CALLS and not says(node, SAFE_CALLS.get((str(file.relative_to(ROOT)), name))):
            yield f"{where}: calls {ast.unparse(node.func)}; use safetensors or a safe loader"  # type: ignore[attr-defined]
        if isinstance(called, ast.Name) and called.id in BANNED_NAMES:
            yield f"{where}: calls {called.id}"


def says(call: ast.AST, wanted: tuple[str, bool] | None) -> bool:
    """Whether a call has the keyword with the very value."""
    keywords = call.keywords if isinstance(call, ast.Call) else []
    return any((k.arg, k.value.value) == wanted for k in keywords if isinstance(k.value, ast.Constant))


def namesakes() -> list[str]:
    """Test files of one name: pytest refuses to collect the second."""
    named: dict[str, list[str]] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        named.setdefault(file.name, []).append(str(file.relative_to(ROOT)))
    return [f"{' and '.join(files)}: test files need names of their own" for files in named.values() if len(files) > 1]


def modules() -> list[Path]:
    """Every module of the package but the migrations, which are numbered and not read as a tree."""
    return [file for file in sorted((ROOT / "melior").rglob("*.py")) if "migrations" not in file.parts]


def caption(file: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


def tree() -> str:
    """The package as the README shows it."""
    lines = [f"{'melior/':<24}{caption(ROOT / 'melior' / '__init__.py')}"]
    top = ROOT / "melior"
    for file in sorted(top.glob("*.py")):
        if file.name != "__init__.py":
            lines.append(f"├── {file.name:<20}{caption(file)}")
    for package in sorted(entry for entry in top.iterdir() if (entry / "__init__.py").is_file()):
        lines.append(f"├── {package.name + '/':<20}{caption(package / '__init__.py')}")
        for entry in sorted(package.iterdir()):
            inside = (entry / "__init__.py") if entry.is_dir() else entry
            if (
                inside.is_file()
                and inside.suffix == ".py"
                and "migrations" not in entry.parts
                and entry != package / "__init__.py"
            ):
                name = f"{entry.name}/" if entry.is_dir() else entry.name
                lines.append(f"│   ├── {name:<16}{' ' if len(name) >= 16 else ''}{caption(inside)}")
    return "\n".join(lines)


def fenced() -> str:
    return f"```\n{tree()}\n```"


def write_tree() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(START)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{START}\n{fenced()}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
