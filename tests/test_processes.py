"""Two processes, as torchrun starts them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, checkpoint

# Trains as one process of two, and keeps the seeds that it was given and where it ended.
TRAIN = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch, torch.distributed as dist, {script} as ppo
from conftest import small
seeds, actions, rows, make_envs, collect = [], [], [], ppo.make_envs, ppo.collect
def spy(args, num_envs, *rest):
    envs = make_envs(args, num_envs, *rest)
    reset = envs.reset
    envs.reset = lambda *, seed: seeds.append(seed) or reset(seed=seed)
    return envs
def keep(*args):
    rollout, *rest = collect(*args)
    actions.append(rollout.actions)
    rows.append(rollout.obs.flatten(0, 1))
    return rollout, *rest
ppo.make_envs, ppo.collect = spy, keep
ppo.evaluate = lambda *_: print("evaluation: ")
agent = ppo.train(small(ppo, compile={compile}, num_minibatches=4, target_kl={target_kl}, **{flags}))
state = {{name: value.detach() for name, value in agent.state_dict().items()}}
torch.save((seeds[0], actions, torch.cat(rows), state), f"{{dist.get_rank()}}.pt")
"""


def torchrun(*command):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *map(str, command)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("compile_", [False, True])
@pytest.mark.parametrize("ppo", ["ppo_continuous"], indirect=True)
def test_two_processes_have_one_policy_and_environments_of_their_own(ppo, compile_):
    flags = {"env_id": "probe_envs:Ragged-v0"}
    code = TRAIN.format(root=str(ROOT), script=ppo.__name__, compile=compile_, target_kl=0.001, flags=flags)
    Path("train.py").write_text(code)
    done = torchrun("train.py")
    assert done.returncode == 0, done.stderr[-3000:]
    (seeds, actions, rows, state), (other_seeds, other_actions, other_rows, other_state) = (
        torch.load(f"{rank}.pt") for rank in (0, 1)
    )
    assert len({*seeds, *other_seeds}) == 4 == len(seeds) + len(other_seeds)
    assert not torch.equal(actions[0], other_actions[0])
    for name, value in state.items():
        assert torch.equal(value, other_state[name]), name  # to the bit
    every = torch.cat([rows, other_rows]).double()  # statistics are of the whole
    torch.testing.assert_close(state["obs_stats.mean"], every.mean(0))
    torch.testing.assert_close(state["obs_stats.var"], every.var(0, correction=0))
    assert torch.load(checkpoint(), weights_only=True)["global_step"] == 256  # written once, by the first
    assert done.stdout.count("evaluation: ") == 1


@pytest.mark.parametrize("ppo", ["ppo_discrete"], indirect=True)
def test_a_process_that_dies_ends_the_run(ppo):
    Path("die.py").write_text(
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        f"import os, torch.distributed as dist, {ppo.__name__} as ppo\nfrom conftest import small\n"
        "make_batch, calls = ppo.make_batch, []\n"
        "def die(*args):\n    calls.append(1)\n"
        "    if len(calls) == 2 and dist.get_rank() == 1: os._exit(7)\n    return make_batch(*args)\n"
        "ppo.make_batch = die\nppo.train(small(ppo, num_minibatches=4))\n"
    )
    done = torchrun("die.py")
    assert done.returncode != 0 and "evaluation" not in done.stdout


@pytest.mark.parametrize("ppo", ["ppo_discrete"], indirect=True)
def test_environments_that_cannot_be_shared_out_cost_one_line(ppo):
    done = torchrun(ppo.__file__, "--num-envs", 3)
    assert done.returncode != 0 and "error: num_envs 3: not a multiple of 2 processes" in done.stderr
    assert not Path("runs").exists()
