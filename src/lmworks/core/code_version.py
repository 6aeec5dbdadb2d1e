"""Which code made an artifact: a hash over a module and every module of ours that it imports.

A step is made anew when its own code changed and left alone when some other stage's did. Imports are
read from the source, so nothing is executed; files beside a module (templates, C sources) count when the
module names them in a string. Knows nothing of stages.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT.name
RESOURCES = (".jinja", ".html", ".css", ".js", ".json", ".yaml", ".c", ".cpp", ".h")


def code_version(module: str) -> str:
    """Sixteen hex digits over the source of `module` and its transitive imports inside the package."""
    seen: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        if name not in seen and _file(name) is not None:
            seen.add(name)
            queue.extend(_imports(name))
    digest = hashlib.sha256()
    for name in sorted(seen):
        file = _file(name)
        assert file is not None
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
        for resource in _resources(name):
            digest.update(resource.name.encode() + b"\0" + resource.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _file(module: str) -> Path | None:
    """The source file of a module of ours, or None."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return None
    base = ROOT.joinpath(*parts[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _resources(module: str) -> tuple[Path, ...]:
    """Files named in strings of `module`, relative to its folder, that exist there."""
    file = _file(module)
    assert file is not None
    tree = ast.parse(file.read_text(encoding="utf-8"))
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    named = sorted(file.parent / s for s in strings if s.endswith(RESOURCES) and len(s) < 200 and "\n" not in s)
    return tuple(path for path in named if path.is_file())


@cache
def _imports(module: str) -> tuple[str, ...]:
    """Modules of ours named in `module`'s import statements and in its `"module:attribute"` tables."""
    file = _file(module)
    assert file is not None
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ":" in node.value:
            names.append(node.value.partition(":")[0])
    return tuple(n for n in names if n.split(".")[0] == PACKAGE)
