"""The scripts are one text wherever they can be, so that a diff between two of them shows what differs, and no more."""

import ast
import itertools
import re

import pytest
from conftest import ROOT, SCRIPTS

SHARED = "RunningMeanStd layer_init mlp Rollout Batch compute_gae ppo_loss collect make_batch minibatch_loss update"
SHARED += " train evaluate env_seeds save_checkpoint load_checkpoint Logger UserError check main"
DIFFERENT = "Args make_envs Agent check_env"


def definitions(name):
    """Source of each top-level function and class, with its decorators and the comment above it."""
    text = (ROOT / f"{name}.py").read_text()
    lines, found = text.splitlines(), {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
            while lines[start - 1].startswith("#"):
                start -= 1
            found[node.name] = "\n".join(lines[start : node.end_lineno])
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_definition_is_declared_shared_or_different(name):
    assert set(definitions(name)) == {*SHARED.split(), *DIFFERENT.split()}


@pytest.mark.parametrize("one, other", itertools.combinations(SCRIPTS, 2))
def test_what_is_shared_is_shared_to_the_byte(one, other):
    ours, theirs = definitions(one), definitions(other)
    assert list(ours) == list(theirs)  # and stands in the same order
    for name in SHARED.split():
        assert ours[name] == theirs[name], name


@pytest.mark.parametrize("one, other", itertools.combinations(SCRIPTS, 2))
def test_flags_differ_in_their_defaults_alone(one, other):
    def without_defaults(name):
        return re.sub(r" = [^#]*  #", "  #", re.sub(r"(?m)^    env_id.*$", "", definitions(name)["Args"]))

    assert without_defaults(one) == without_defaults(other)
