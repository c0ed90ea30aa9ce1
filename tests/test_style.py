"""The rules that keep a script readable: its size, its functions', no globals, no imports of ours."""

import ast

import pytest
from conftest import ROOT
from conftest import SCRIPTS as NAMES

SCRIPTS = [ROOT / f"{name}.py" for name in NAMES]
BLOCKS = (ast.For, ast.While, ast.If, ast.With, ast.Try, ast.FunctionDef, ast.ClassDef)


def nesting(node, depth=0):
    """How deep statements are nested; elif does not count as deeper."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        elif_ = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        deepest = max(deepest, nesting(child, depth + (isinstance(child, BLOCKS) and not elif_)))
    return deepest


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_sizes(script):
    lines = script.read_text().splitlines()
    assert len(lines) <= 595 and max(map(len, lines)) <= 120
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 30, node.name
            assert nesting(node) <= 4, node.name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_stands_alone_and_has_no_globals(script):
    tree = ast.parse(script.read_text())
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.If)
    assert all(isinstance(node, kinds) for node in tree.body[1:]) and isinstance(tree.body[0], ast.Expr)
    assert not any(isinstance(node, ast.Global | ast.Nonlocal) for node in ast.walk(tree))
    ours = {path.stem for path in ROOT.glob("*.py")}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not ours & {name.split(".")[0] for name in names}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_function_and_class_says_what_it_is(script):
    public = [node for node in ast.parse(script.read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert [node.name for node in public if node.name != "Args" and not ast.get_docstring(node)] == []
