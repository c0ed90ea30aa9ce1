"""What the README says can be done, can be done."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SCRIPTS

import ppo_continuous as ppo

README = (ROOT / "README.md").read_text()


def test_ci_runs_the_readmes_test_command():
    command = "pip install -r requirements.txt && python -m pytest"
    assert f"```\n{command}\n```" in README
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == command


def test_the_snippet_loads_a_trained_policy():
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in snippet.splitlines() if line]) == 5
    flags = {"num_envs": 2, "num_steps": 16, "total_timesteps": 32, "eval_episodes": 1}
    trained = ppo.train(ppo.Args("Pendulum-v1", **flags))
    (path,) = Path("runs").glob("*/checkpoint.pt")
    path.rename("checkpoint.pt")
    names = {}
    exec(snippet, names)
    obs, _ = names["envs"].reset(seed=0)
    with torch.no_grad():
        policy, value = names["agent"](torch.as_tensor(obs))
        # To rounding: a training's parameters are views of one vector, aligned in memory in another way.
        torch.testing.assert_close(policy.mode, trained(torch.as_tensor(obs))[0].mode)
    assert value.shape == (1,)
    names["envs"].step(policy.mode.numpy())


def test_every_flag_in_the_readme_exists():
    scripts = [importlib.import_module(name).Args for name in SCRIPTS]
    fields = {name.replace("_", "-") for args in scripts for name in args.__dataclass_fields__}
    flags = set(re.findall(r"--([a-z][a-z0-9-]+)", README)) - {"help", "logdir", "x", "no-x"}
    flags -= {"nproc-per-node", "nnodes", "node-rank", "master-addr"}  # torchrun's
    assert {flag.removeprefix("no-") for flag in flags} <= fields


def test_the_defaults_in_the_readme_are_the_scripts():
    switches = {"on": True, "off": False}
    rows = re.findall(r"^\| (`--[^|]*) \| ([^|]*) \|", README, re.M)
    assert len(rows) > 8
    for flags, defaults in rows:
        names = [flag.strip(" `-").replace("-", "_") for flag in flags.split(",")]
        texts = defaults.split(", ") if len(names) > 1 else [defaults]
        for name, text in zip(names, texts if len(texts) > 1 else texts * len(names), strict=True):
            expected = getattr(ppo.Args(), name)
            text = text.strip("` ").replace(",", "")
            shown = (
                switches.get(text, text) if not isinstance(expected, int | float) or text in switches else float(text)
            )
            assert shown == expected or (text == "off" and expected is None), name


@pytest.mark.parametrize("check", [["check"], ["format", "--check"]], ids=lambda words: words[0])
def test_ruff_is_content(check):
    done = subprocess.run([sys.executable, "-m", "ruff", *check, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
