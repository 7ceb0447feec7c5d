"""The size caps of the house: files to 500 lines, functions to 60. Prints each offender; exit 1 if any."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

FILE_CAP, FUNCTION_CAP = 500, 60


def offenders(path: Path) -> list[str]:
    """One line for the file and for each function of it that is above its cap."""
    text = path.read_text(encoding="utf-8")
    found = []
    if (lines := text.count("\n")) > FILE_CAP:
        found.append(f"{path}: {lines} lines (cap {FILE_CAP})")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > FUNCTION_CAP:
                found.append(f"{path}:{node.lineno}: {node.name} has {size} lines (cap {FUNCTION_CAP})")
    return found


def main() -> int:
    """Checks every Python file that git knows of or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", "*.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    files = [Path(name) for name in sorted(set(listed.stdout.splitlines()))]
    found = [line for path in files if path.is_file() for line in offenders(path)]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
