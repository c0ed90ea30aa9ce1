"""Several processes, as torchrun starts them: each test starts two, joined by gloo."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, start, with_all_scripts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ppo = KIND = SMALL = None  # set by the fixture
pytestmark = pytest.mark.usefixtures("script")

# Trains as its process of several, and keeps what it was given, what it collected, what it shared and where it ended.
TRAIN = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch, {script} as ppo
kept = {{"seeds": [], "rollouts": [], "gathered": [], "returns": []}}
make_envs, collect, gather = ppo.make_envs, ppo.collect, ppo.gather
def keep_seeds(args, num_envs=None, **kwargs):
    envs = make_envs(args, num_envs, **kwargs)
    reset = envs.reset
    envs.reset = lambda seed: (None if num_envs else kept["seeds"].extend(seed)) or reset(seed=seed)
    return envs
def keep_rollouts(*args):
    rollout, obs, returns = collect(*args)
    kept["rollouts"].append(tuple(map(torch.as_tensor, rollout)))
    kept["returns"].append(returns)
    return rollout, obs, returns
def keep_gathered(*args):
    rollout = gather(*args)
    kept["gathered"].append(tuple(map(torch.as_tensor, rollout)))
    return rollout
ppo.make_envs, ppo.collect, ppo.gather = keep_seeds, keep_rollouts, keep_gathered
args = ppo.Args(**{flags!r})
kept["agent"] = ppo.train(args).state_dict()
torch.save(kept, f"{{args.rank}}.pt")
"""

# One update on rows that depend on nothing but their number; keeps each gradient that the optimizer was given.
UPDATE = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch, {script} as ppo
args = ppo.Args(**{flags!r})
ppo.prepare(args)
envs = ppo.make_envs(args)
agent = ppo.Agent(envs, args)
optimizer, gradients = ppo.make_optimizer(agent, args), []
step = optimizer.step
def keep():
    gradients.append(torch.cat([group["params"][0].grad for group in optimizer.param_groups]))
    step()
optimizer.step = keep
generator = torch.Generator().manual_seed(5)
B, space = args.batch_size, envs.single_observation_space
with torch.no_grad():
    obs = torch.randn(B, *space.shape, generator=generator)
    policy, values = agent(obs)
    actions = policy.sample()
    if args.world_size > 1:
        ppo.dist.broadcast(actions, 0)
    noise = torch.randn(3, B, generator=generator)
    batch = ppo.Batch(obs, actions, policy.log_prob(actions) + 0.1 * noise[0], values, 5 * noise[1] + 2, noise[2])
metrics = ppo.update(agent, optimizer, batch, args)
torch.save((gradients, metrics), f"{{args.world_size}}-{{args.rank}}.pt")
"""


def environments(processes):
    """What torchrun would set for each of them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    return [address | {"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(processes)} for i in range(processes)]


def run_together(code, processes=2):
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, env=os.environ | env, **pipes) for env in environments(processes)]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * processes, outputs
    return outputs


def start_together(*flags):
    return [start(*flags, script=ppo.__file__, env=env) for env in environments(2)]


def flags(**more):
    return {**SMALL, "num_minibatches": 4, "env_id": KIND.small, **more}


def as_flags(values):
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


@with_all_scripts
def test_two_processes_learn_as_one(request):
    adaptive = {"kl_coef": 1.0, "kl_coef_target": 1e-4, "desired_kl": 1e-3, "target_kl": 1.0}
    code = TRAIN.format(root=str(ROOT), script=ppo.__name__, flags=flags(**adaptive))
    (out, _), (silence, errors) = run_together(code)
    first, second = (torch.load(f"{rank}.pt") for rank in (0, 1))
    for name, tensor in first["agent"].items():
        assert torch.equal(tensor, second["agent"][name]), name
    assert sorted(first["seeds"] + second["seeds"]) == sorted(ppo.env_seeds(1, 0, 4)) and len(first["seeds"]) == 2
    for mine, yours, ours in zip(first["rollouts"], second["rollouts"], first["gathered"], strict=True):
        for one, other, both in zip(mine, yours, ours):
            assert torch.equal(torch.cat([one, other], 1), both) and one.dtype == both.dtype
        assert mine[1].shape[:2] == (16, 2) and not torch.equal(mine[1], yours[1])  # actions
    assert all(torch.equal(x, y) for x, y in zip(first["gathered"][-1], second["gathered"][-1]))
    if "obs_stats.mean" in first["agent"]:
        seen = torch.cat([rollout[0].flatten(0, 1) for rollout in first["gathered"]]).double()
        assert first["agent"]["obs_stats.count"] == len(seen) == 256
        torch.testing.assert_close(first["agent"]["obs_stats.mean"], seen.mean(0))
    (run_dir,) = Path("runs").iterdir()  # the second process leaves nothing, and says nothing
    assert "evaluation: return" in out and silence == "" and "steps" not in errors
    logged = EventAccumulator(str(run_dir)).Reload()
    pairs = zip(first["returns"], second["returns"])
    returns = [x for mine, yours in pairs for x in mine + yours]
    if ppo.__name__ != "ppo_atari":  # where no game ends so soon
        assert len(returns) == 256
        assert logged.Scalars("episodic_return")[-1].value == pytest.approx(np.mean(returns[-100:]))


def test_two_processes_have_the_gradient_of_one():
    for processes in (1, 2):
        run_together(UPDATE.format(root=str(ROOT), script=ppo.__name__, flags=flags(kl_coef=0.5)), processes)
    gradients, metrics = torch.load("1-0.pt")
    for name in ("2-0.pt", "2-1.pt"):
        of_two, metrics_of_two = torch.load(name)
        assert len(of_two) == len(gradients) == 4 * ppo.Args().update_epochs
        for one, two in list(zip(gradients, of_two))[:4]:  # later ones inherit what rounding did to the weights
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
        assert metrics == pytest.approx(metrics_of_two, rel=1e-3)
    assert torch.equal(torch.load("2-0.pt")[0][-1], torch.load("2-1.pt")[0][-1])


def test_a_signal_to_one_process_ends_all_after_the_same_iteration():
    signum = signal.SIGINT if ppo.__name__ == "ppo_continuous" else signal.SIGTERM
    processes = start_together(*as_flags(flags(total_timesteps=10**8, num_envs=2, num_minibatches=1)))
    while not list(Path("runs").glob("*/checkpoint.pt")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[1].send_signal(signum)
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [128 + signum] * 2, outputs
    (path,) = Path("runs").glob("*/checkpoint.pt")
    assert torch.load(path)["global_step"] % 32 == 0 and "Traceback" not in outputs[0][1] + outputs[1][1]


def test_under_torchrun_only_a_second_ctrl_c_stops_at_once(monkeypatch):
    """A scheduler sends SIGTERM to all processes, and torchrun, which got it too, sends them another one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ppo.dist, "destroy_process_group", lambda: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background may ignore
    with closing(ppo.Logger(ppo.Args(**flags()), 0)) as logger:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert logger.signals == [signal.SIGTERM] * 3
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_a_process_that_dies_ends_the_others_with_one_line():
    first, second = start_together(*as_flags(flags(total_timesteps=10**8)))
    while not list(Path("runs").glob("*/checkpoint.pt")):
        assert first.poll() is None
        time.sleep(0.05)
    second.kill()
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 1 and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: lost another process of this run"), errors


def test_a_checkpoint_of_one_process_goes_on_with_two_under_torchrun_and_back():
    ppo.train(ppo.Args(**flags()))
    (path,) = Path("runs").glob("*/checkpoint.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ppo.__file__]
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [*command, f"--resume={path}", "--total-timesteps=512"], capture_output=True, env=env, timeout=100
    )
    assert done.returncode == 0, done.stderr.decode()
    assert torch.load(path)["global_step"] == 512
    args = ppo.load_checkpoint(str(path))["args"]
    ppo.train(ppo.replace(args, resume=str(path), total_timesteps=768))
    assert torch.load(path)["global_step"] == 768 and len(list(Path("runs").iterdir())) == 1


@with_all_scripts
def test_shares_have_to_be_equal(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ppo.UserError, match="3 processes: must divide --num-envs 4 and minibatches of 16 steps"):
        ppo.train(ppo.Args(**flags()))
    with pytest.raises(ppo.UserError, match="3 processes: must divide --num-envs 6 and minibatches of 8 steps"):
        ppo.train(ppo.Args(**flags(num_envs=6, num_minibatches=12)))
    assert not Path("runs").exists()
