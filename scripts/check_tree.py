"""The shape of the tree: short files with an opening docstring, honest names, no module name used twice in a package.

Knows nothing of what the code does.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 400
MODEL, MOST_MODEL_LINES = ("models", "nn"), 7000
"""The one Transformer with all its families, counted without blank lines, comments and docstrings, and without the
file formats of quantized weights (`quantiz*`)."""
FORMATS = "quantiz"
FAMILIES = Path("src/lmworks/models/families")
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip
REFUSED_NAMES = {"utils", "util", "common", "misc", "helpers", "helper"}
CODE = {".py", ".c", ".cpp", ".h", ".js", ".css", ".html", ".sh"}


def code_lines(text: str) -> int:
    """Lines of a Python file that hold code: no blank ones, comments or docstrings."""
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            held.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            held.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(held)


def tracked_files() -> list[Path]:
    """Files git knows or would add; every file when this is not a git checkout."""
    asked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = asked.stdout.splitlines() if asked.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*")]
    return [Path(name) for name in names if (ROOT / name).is_file()]


def problems(files: list[Path]) -> list[str]:
    """One sentence per broken rule."""
    found = []
    for file in files:
        if file.suffix not in CODE:
            continue
        text = (ROOT / file).read_text(encoding="utf-8", errors="replace")
        if (lines := text.count("\n")) > MOST_LINES:
            found.append(f"{file}: {lines} lines, at most {MOST_LINES}: split it by concept")
        if refused := REFUSED_NAMES & {*file.parts[:-1], file.stem}:
            found.append(f"{file}: the name {refused.pop()!r} says nothing: name it after what it holds")
        if file.suffix == ".py" and file.parts[0] in {"src", "scripts"} and not ast.get_docstring(ast.parse(text)):
            found.append(f"{file}: no opening docstring (what it is for, what it does not know)")
        if file.parent == FAMILIES and re.search(r"^\s*(from|import) torch", text, re.MULTILINE):
            found.append(f"{file}: imports torch; a family is data and has no modules of its own")
    folders = {("src", "lmworks", part) for part in MODEL}
    model = [f for f in files if f.suffix == ".py" and f.parts[:3] in folders and not f.stem.startswith(FORMATS)]
    if (lines := sum(code_lines((ROOT / f).read_text(encoding="utf-8")) for f in model)) > MOST_MODEL_LINES:
        found.append(f"{' and '.join(MODEL)}: {lines} lines of code, at most {MOST_MODEL_LINES}: families are data")
    tests: dict[str, Path] = {}
    for file in files:
        if file.parts[0] == "tests" and file.name.startswith("test_"):
            if file.name in tests:
                found.append(f"{file}: has the name of {tests[file.name]}; pytest needs unique names")
            tests[file.name] = file
    return found


if __name__ == "__main__":
    said = problems(tracked_files())
    print("\n".join(said) or "The tree is in shape.")
    sys.exit(bool(said))
