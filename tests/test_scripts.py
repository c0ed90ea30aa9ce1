"""The scripts are one text wherever they can be, stand alone, and stay within the budgets of the design."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT, SCRIPTS, start

PATHS = [ROOT / f"{name}.py" for name in SCRIPTS]
SHARED = "save_checkpoint load_checkpoint"  # beside all that is between the algorithm's headline and train
SHARED_BY_MLPS = "RunningMeanStd RewardScaler mlp train main"


def definitions(path):
    """The source of each top-level function and class, with its decorators."""
    text = path.read_text()
    lines, found = text.splitlines(), {}
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
    assert list(continuous) == [name for name in discrete if name != "flatten"]  # in the same order
    texts = map(Path.read_text, PATHS)
    algorithms = {text[text.index("# ---- The algorithm") : text.index("def train(")] for text in texts}
    assert len(algorithms) == 1


@pytest.mark.parametrize("path", PATHS, ids=SCRIPTS)
def test_a_script_stays_within_its_budgets(path):
    source = path.read_text()
    lines, nodes = source.splitlines(), list(ast.walk(ast.parse(source)))
    top = {node.name: node for node in ast.parse(source).body if hasattr(node, "name")}
    most = (420, 20_550) if path.stem == "ppo_atari" else (430, 21_050)
    assert len(lines) <= most[0] and len(source.encode()) <= most[1]
    assert top["train"].end_lineno - top["Rollout"].lineno < 185
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert max(node.end_lineno - node.lineno + 1 for node in functions) <= 40
    assert max(map(len, lines)) <= 110 and sum(len(line) > 100 for line in lines) <= 25
    assert sum(isinstance(node, ast.AnnAssign) for node in top["Args"].body) <= 32
    ternaries = [node for node in nodes if isinstance(node, ast.IfExp)]
    nested = [node for node in ternaries if any(child in ternaries for child in list(ast.walk(node))[1:])]
    dense = re.findall(r"# noqa|# fmt: skip|:=|__import__|torch\._", source)
    assert len(dense) + len(nested) <= 2


@pytest.mark.parametrize("path", PATHS, ids=SCRIPTS)
def test_a_copy_alone_in_a_folder_says_what_it_can_do(path):
    """Also where there are no Greek letters, as in pipes on Windows."""
    Path("mine.py").write_text(path.read_text())
    process = start("mine.py", "--help", PYTHONIOENCODING="ascii")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "--clip-coef" in out and "discount" in out, err
    assert [item.name for item in Path().iterdir()] == ["mine.py"]  # nothing happens on import
