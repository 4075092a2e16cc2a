"""The names of weakenings: one table, which the code and the page keep to."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from enhanced_agent_bus.weakenings import WEAKENINGS

ROOT: Final = Path(__file__).resolve().parent.parent.parent
NAMING: Final = frozenset({"weakenings", "_weakenings", "security_state", "_unwitnessed"})


def named(tree: ast.AST) -> Iterator[str]:
    """The words in what names weakenings: properties and attributes of that name, and a server's weaknesses."""
    for node in ast.walk(tree):
        where: ast.AST | None = None
        if isinstance(node, ast.FunctionDef) and node.name in NAMING:
            where = ast.Module(node.body[1:] if ast.get_docstring(node) else node.body, [])
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(one, ast.Name) and one.id in NAMING for one in targets):
                where = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Weakness":
            where = node.args[0]
        if where is not None:
            for found in ast.walk(where):
                if isinstance(found, ast.Constant) and isinstance(found.value, str):
                    yield found.value


def test_every_weakening_is_in_the_table_and_none_besides() -> None:
    """What the code can name has a meaning and a remedy, and nothing else has."""
    found = set()
    for module in (ROOT / "enhanced_agent_bus").rglob("*.py"):
        found |= set(named(ast.parse(module.read_text(encoding="utf-8"))))
    assert found - {"folder", "weakenings"} == set(WEAKENINGS)


def test_the_page_says_the_same() -> None:
    """A row for each, in the words of the table."""
    page = (ROOT / "docs" / "reference" / "weakenings.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{name}` | {one.meaning} | {one.remedy} |" for name, one in WEAKENINGS.items()]
