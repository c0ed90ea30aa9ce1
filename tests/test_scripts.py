"""The scripts are one text wherever they can be, stand alone, and stay within the budgets of the design."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT, SCRIPTS, start

PATHS = [ROOT / f"{name}.py" for name in SCRIPTS]
SHARED = "Rollout Batch collect compute_gae make_batch ppo_loss compute_gradient update"
SHARED_BY_MLPS = "TidyEnv RunningMeanStd RewardScaler mlp train"


def definitions(path):
    """The source of each top-level function and class, with its decorators."""
    text = path.read_text()
    lines = text.splitlines()
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


def test_what_is_shared_is_shared_to_the_byte():
    continuous, discrete, atari = map(definitions, PATHS)
    for name in SHARED.split():
        assert continuous[name] == discrete[name] == atari[name], name
    for name in SHARED_BY_MLPS.split():
        assert continuous[name] == discrete[name], name
    assert list(continuous) == list(discrete)  # in the same order


def length(node):
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", PATHS, ids=SCRIPTS)
def test_a_script_stays_within_its_budgets(path):
    source = path.read_text()
    lines, nodes = source.splitlines(), list(ast.walk(ast.parse(source)))
    top = {node.name: node for node in ast.parse(source).body if hasattr(node, "name")}
    assert len(lines) <= 560 and len(source.encode()) <= 27_050
    assert top["train"].end_lineno - top["Rollout"].lineno < 185 and length(top["train"]) <= 25
    assert max(length(node) for node in nodes if isinstance(node, ast.FunctionDef)) <= 40
    assert max(map(len, lines)) <= 110 and sum(len(line) > 100 for line in lines) <= 40
    assert sum(isinstance(node, ast.AnnAssign) for node in top["Args"].body) <= 33
    ternaries = [node for node in nodes if isinstance(node, ast.IfExp)]
    nested = [node for node in ternaries if any(child in ternaries for child in list(ast.walk(node))[1:])]
    private = re.findall(r"torch\._(?!dynamo\.config\.trace_autograd_ops)", source)
    assert len(re.findall(r"# noqa|:=|__import__", source)) + len(nested) + len(private) <= 2


@pytest.mark.parametrize("path", PATHS, ids=SCRIPTS)
def test_a_copy_alone_in_a_folder_says_what_it_can_do(path):
    """Also where there are no Greek letters, as in pipes on Windows."""
    Path("mine.py").write_text(path.read_text())
    process = start("mine.py", "--help", PYTHONIOENCODING="ascii")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "--clip-coef" in out and "the discount" in out, err
    assert [item.name for item in Path().iterdir()] == ["mine.py"]  # nothing happens on import
