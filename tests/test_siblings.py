"""The scripts are one text wherever they can be, so that a diff between two of them shows what differs, and no more."""

import ast
import itertools
import re

import pytest
from conftest import ROOT, SCRIPTS

SHARED = "Isolate RunningMeanStd mlp Rollout Batch compute_gae ppo_loss act collect make_batch make_optimizer"
SHARED += " minibatch_gradient update train evaluate env_seeds save_checkpoint load_checkpoint Logger UserError"
SHARED += " check main prepare gather average"
DIFFERENT = "Args make_envs Agent check_env"
NOT_IN_ATARI = {"RunningMeanStd", "mlp", "Isolate"}
ONLY_IN_ATARI = {"CountGames", "layer_init"}
FLAGS_OF_ATARI = {"protocol", "bf16"}
FLAGS_NOT_OF_ATARI = {"norm_obs", "norm_reward", "vectorization"}
FLAGS_OF_CONTINUOUS = {"initial_std", "final_std"}
SAID_IN_OTHER_WORDS = {"env_id", "clip_vloss", "ent_coef", "device", "threads", "eval_greedy"}
PAIRS = pytest.mark.parametrize("one, other", list(itertools.combinations(SCRIPTS, 2)))


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
    declared = {*SHARED.split(), *DIFFERENT.split()}
    if name == "ppo_atari":
        declared = declared - NOT_IN_ATARI | ONLY_IN_ATARI
    assert set(definitions(name)) == declared


@PAIRS
def test_what_is_shared_is_shared_to_the_byte(one, other):
    ours, theirs = definitions(one), definitions(other)
    both = [name for name in ours if name in theirs]
    assert both == [name for name in theirs if name in ours]  # in the same order
    for name in set(SHARED.split()) & set(both):
        assert ours[name] == theirs[name], name


@PAIRS
def test_the_files_are_the_same_outside_of_the_definitions(one, other):
    """But for the first lines, which name the packages, the docstring's title and example, and imports of networks."""

    def rest(name):
        text = (ROOT / f"{name}.py").read_text()
        for source in definitions(name).values():
            text = text.replace(source, "")
        text = re.sub(r"(?s)# dependencies.*?# ///", "", text).replace("\n", "\n ")
        kinds = r"(for (continuous|discrete) actions|for Atari games)|python ppo_.*"
        text = re.sub(kinds + r"|from (torch.dist|typing).*", "", text)
        return [line for line in text.split("\n") if line.strip() and "import partial" not in line]

    assert rest(one) == rest(other)


@PAIRS
def test_flags_differ_in_their_defaults_alone_but_for_those_declared(one, other):
    def flags(name):
        lines = re.findall(r"(?m)^    (\w+)(:.*?) = [^#]*  (# .*)$", definitions(name)["Args"])
        return {flag: (kind, comment) for flag, kind, comment in lines}

    ours, theirs = flags(one), flags(other)
    if one == "ppo_continuous":
        ours = {flag: said for flag, said in ours.items() if flag not in FLAGS_OF_CONTINUOUS}
    if other == "ppo_atari":
        assert (set(theirs) - set(ours), set(ours) - set(theirs)) == (FLAGS_OF_ATARI, FLAGS_NOT_OF_ATARI)
    else:
        assert list(ours) == list(theirs)
    both = [flag for flag in ours if flag in theirs]
    assert both == [flag for flag in theirs if flag in ours] and len(both) > 25
    assert {flag for flag in both if ours[flag] != theirs[flag]} <= SAID_IN_OTHER_WORDS
