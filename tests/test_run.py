"""Runs: what they leave behind, determinism, resuming, evaluating, stopping, tracking, the command line."""

import ast
import inspect
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from contextlib import closing
from dataclasses import asdict, fields, replace
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
from conftest import ROOT, with_all_scripts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

ppo = TASK = SMALL = None  # set by the fixture
pytestmark = pytest.mark.usefixtures("script")


def small_flags():
    return [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]


def start(*flags, script=None):
    return conftest.start(*flags, script=script or ppo.__file__)


@pytest.fixture
def run(run):
    return lambda *flags, script=None: run(*flags, script=script or ppo.__file__)


def weights(**flags):
    return torch.cat([p.detach().flatten() for p in ppo.train(ppo.Args(**(SMALL | flags))).parameters()])


def scalars(run_dir, tag):
    events = EventAccumulator(str(run_dir))
    events.Reload()
    values = {event.step: event.value for event in events.Scalars(tag)}
    assert len(values) == len(events.Scalars(tag))  # no step is there twice
    return values


@with_all_scripts
def test_same_seed_same_weights_to_the_bit_and_another_seed_others():
    first = weights()
    assert torch.equal(first, weights())
    assert not torch.equal(first, weights(seed=2))


CHANGES = {
    "total_timesteps": 320,
    "learning_rate": 5e-4,
    "num_envs": 8,
    "num_steps": 32,
    "anneal_lr": False,
    "gamma": 0.5,
}
CHANGES |= {"gae_lambda": 0.3, "num_minibatches": 2, "update_epochs": 3, "norm_adv": False, "clip_coef": 1e-3}
CHANGES |= {
    "clip_vloss": True,
    "ent_coef": 0.1,
    "vf_coef": 2.0,
    "max_grad_norm": 1e-3,
    "target_kl": 1e-6,
    "desired_kl": 1e-12,
    "anneal_clip_coef": True,
    "kl_coef": 1.0,
}
CHANGES |= {"norm_obs": False, "norm_reward": False, "env_id": "probe_envs:Sign-v0"}


@pytest.mark.parametrize("flag", CHANGES)
def test_every_flag_of_the_algorithm_changes_what_is_learned(flag):
    flags = {"env_id": "probe_envs:Countdown-v0"}
    if flag == "ent_coef" and ppo.__name__ == "ppo_continuous":
        flags["final_std"] = None  # the standard deviation is what an entropy bonus acts on
    unchanged, changed = weights(**flags), weights(**flags | {flag: CHANGES[flag]})
    assert changed.isfinite().all() and not torch.equal(changed, unchanged)


@with_all_scripts
def test_every_flag_is_read():
    tree = ast.parse(inspect.getsource(ppo))
    reads = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("args", "self.args", "self")
    }
    assert {field.name for field in fields(ppo.Args)} <= reads


@with_all_scripts
def test_learning_rate_falls_linearly_from_its_full_value_and_stays_without_the_flag():
    ppo.train(ppo.Args(**SMALL, desired_kl=0))
    (run_dir,) = Path("runs").iterdir()
    rates = scalars(run_dir, "learning_rate")
    assert list(rates) == [64, 128, 192, 256]
    assert list(rates.values()) == pytest.approx([ppo.Args().learning_rate * x for x in (1, 0.75, 0.5, 0.25)])
    ppo.train(ppo.Args(**SMALL, anneal_lr=False, desired_kl=0, seed=2))
    (other,) = set(Path("runs").iterdir()) - {run_dir}
    assert list(scalars(other, "learning_rate").values()) == pytest.approx([ppo.Args().learning_rate] * 4)


@with_all_scripts
def test_the_clip_falls_linearly_only_with_its_flag(monkeypatch):
    seen, gradient = [], ppo.minibatch_gradient

    def gradient_fn(agent, batch, args, clip_coef, *rest):
        seen.append(clip_coef)
        return gradient(agent, batch, args, clip_coef, *rest)

    monkeypatch.setattr(ppo, "minibatch_gradient", gradient_fn)
    for flag, left in ((True, (1, 0.75, 0.5, 0.25)), (False, (1, 1, 1, 1))):
        seen.clear()
        ppo.train(ppo.Args(**SMALL, clip_coef=0.4, anneal_clip_coef=flag))
        assert seen[:: len(seen) // 4] == pytest.approx([0.4 * x for x in left])


@with_all_scripts
def test_beta_goes_on_from_the_checkpoint():
    flags = SMALL | {"kl_coef": 1.0, "kl_coef_target": 1e-12}  # every KL is above: it doubles
    ppo.train(ppo.Args(**flags))
    (run_dir,) = Path("runs").iterdir()
    ppo.train(ppo.Args(**flags | {"total_timesteps": 384, "resume": str(run_dir / "checkpoint.pt")}))
    assert list(scalars(run_dir, "kl_coef").values()) == [1, 2, 4, 8, 16, 32]


def test_beta_stays_above_zero_where_it_would_start_anew():
    ppo.train(ppo.Args(**SMALL, kl_coef=4e-99, kl_coef_target=1e9))  # every KL is below: it halves
    (path,) = Path("runs").glob("*/checkpoint.pt")
    assert torch.load(path)["optimizer"]["param_groups"][0]["kl_coef"] == 1e-99


def test_desired_kl_moves_the_learning_rate_within_the_schedule():
    ppo.train(ppo.Args(**SMALL, desired_kl=1e-12))  # every update is above
    ppo.train(ppo.Args(**SMALL, desired_kl=1e12, seed=2))  # every update is below: the schedule holds it
    full = ppo.Args().learning_rate
    expected = {
        1: [full, full / 1.5, full / 1.5**2, full * min(0.25, 1 / 1.5**3)],
        2: [full * x for x in (1, 0.75, 0.5, 0.25)],
    }
    for seed, rates in expected.items():
        (run_dir,) = Path("runs").glob(f"*__{seed}__*")
        assert list(scalars(run_dir, "learning_rate").values()) == pytest.approx(rates)


@with_all_scripts
def test_a_run_leaves_a_folder_with_a_checkpoint_and_logs(capsys):
    ppo.train(ppo.Args(**SMALL | {"total_timesteps": 300}))
    (run_dir,) = Path("runs").iterdir()
    env_id = SMALL["env_id"].replace(":", "_")
    assert re.fullmatch(rf"{env_id}__{ppo.__name__}__1__\d{{8}}-\d{{6}}-\d+", run_dir.name)
    assert {path.name.split(".")[0] for path in run_dir.iterdir()} == {"checkpoint", "events"}
    checkpoint = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    assert checkpoint["global_step"] == 256 and checkpoint["args"] == asdict(
        ppo.Args(**SMALL | {"total_timesteps": 300})
    )
    if ppo.__name__ != "ppo_atari":  # no game of Breakout is over so soon
        returns = scalars(run_dir, "episodic_return")
        assert list(returns) == [64, 128, 192, 256] and all(-1 <= x <= 1 for x in returns.values())
    for tag in (
        "policy_loss",
        "value_loss",
        "entropy",
        "approx_kl",
        "clip_fraction",
        "grad_norm",
        "explained_variance",
    ):
        assert np.isfinite(list(scalars(run_dir, tag).values())).all()
    out = capsys.readouterr().out
    assert "4 iterations of 64 steps" in out and "evaluation: return" in out


def test_checkpoint_every(monkeypatch):
    saved = []
    monkeypatch.setattr(ppo, "save_checkpoint", lambda *args: saved.append(args[-1]))
    ppo.train(ppo.Args(**SMALL | {"total_timesteps": 64 * 7, "checkpoint_every": 3}))
    assert saved == [3 * 64, 6 * 64, 7 * 64]


def test_a_checkpoint_is_replaced_only_by_a_whole_one(monkeypatch):
    ppo.train(ppo.Args(**SMALL))
    (path,) = Path("runs").glob("*/checkpoint.pt")
    before = path.read_bytes()
    args = ppo.Args(**SMALL)
    agent = ppo.Agent(ppo.make_envs(args, 1), args)
    optimizer = ppo.make_optimizer(agent, args)

    write = Path.write_bytes

    def write_half(path, _):
        write(path, b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="disk full"):
        ppo.save_checkpoint(path, agent, optimizer, args, 0)
    assert path.read_bytes() == before


@with_all_scripts
def test_a_killed_run_resumes_where_its_checkpoint_was_written(run):
    flags = [*small_flags(), "--total-timesteps=1000000", "--checkpoint-every=1", "--desired-kl=0"]
    process = start(*flags)
    path = wait_for("*/checkpoint.pt", process)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    before = torch.load(path, weights_only=True)
    step, total = before["global_step"], before["global_step"] + 128
    code, _, err = run("--resume", path, "--total-timesteps", total, "--checkpoint-every=1")
    assert code == 0, err
    after = torch.load(path, weights_only=True)
    assert after["global_step"] == total and after["args"] == before["args"] | {"total_timesteps": total}
    steps = [next(iter(c["optimizer"]["state"].values()))["step"].item() for c in (before, after)]
    steps_per_update = ppo.Args().num_minibatches * ppo.Args().update_epochs
    assert steps == [step / 64 * steps_per_update, total / 64 * steps_per_update]
    for name, tensor in after["agent"].items():
        assert not name.endswith("count") or tensor == total
    rates = scalars(path.parent, "learning_rate")
    assert rates[total] == pytest.approx(ppo.Args().learning_rate * (1 - (total - 64) / total))
    assert list(Path("runs").iterdir()) == [path.parent]  # it went on in the same folder


@with_all_scripts
def test_resuming_restores_weights_optimizer_and_statistics_to_the_bit():
    args = ppo.Args(**SMALL)
    agent = ppo.train(args)
    (path,) = Path("runs").glob("*/checkpoint.pt")
    saved = torch.load(path, weights_only=True)
    fresh = ppo.Agent(ppo.make_envs(args, 1), args)
    optimizer = ppo.make_optimizer(fresh, args)
    assert ppo.load_checkpoint(str(path), fresh, optimizer)["global_step"] == 256
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, agent.state_dict()[name])
    for state, expected in zip(optimizer.state_dict()["state"].values(), saved["optimizer"]["state"].values()):
        assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_a_resumed_run_is_the_same_each_time_and_does_not_draw_the_first_actions_again(monkeypatch):
    drawn, collect = [], ppo.collect

    def keep(*args):
        rollout, *rest = collect(*args)
        drawn.append(rollout.actions)
        return rollout, *rest

    monkeypatch.setattr(ppo, "collect", keep)
    ppo.train(ppo.Args(**SMALL))
    (path,) = Path("runs").glob("*/checkpoint.pt")
    agents = []
    for name in ("one", "other"):
        copy = Path(name, "checkpoint.pt")
        copy.parent.mkdir()
        shutil.copy(path, copy)
        torch.manual_seed(len(agents))
        agents.append(ppo.train(ppo.Args(**SMALL | {"total_timesteps": 320}, resume=str(copy))).state_dict())
    assert all(torch.equal(agents[0][name], agents[1][name]) for name in agents[0])
    assert len(drawn) == 6 and torch.equal(drawn[4], drawn[5]) and not torch.equal(drawn[0], drawn[4])


@with_all_scripts
def test_a_resumed_run_starts_environments_of_its_own_and_takes_back_what_was_logged_since(monkeypatch):
    ppo.train(ppo.Args(**SMALL))
    (path,) = Path("runs").glob("*/checkpoint.pt")
    torch.save(torch.load(path, weights_only=True) | {"global_step": 128}, path)
    seeds, env_seeds = [], ppo.env_seeds
    monkeypatch.setattr(ppo, "env_seeds", lambda *args: seeds.append(args) or env_seeds(*args))
    ppo.train(ppo.Args(**SMALL, resume=str(path)))
    assert seeds == [(1, 128, 4), (1, -1, 2)]
    assert list(scalars(path.parent, "approx_kl")) == [64, 128, 192, 256]


def test_the_logged_return_is_the_mean_of_the_last_100_episodes():
    with closing(ppo.Logger(ppo.Args(**SMALL), 0)) as logger:
        logger.log({"approx_kl": 0.0}, [], 64)
        logger.log({"approx_kl": 0.0}, [float(x) for x in range(60)], 128)
        logger.log({"approx_kl": 0.0}, [float(x) for x in range(60, 150)], 192)
    assert scalars(logger.run_dir, "episodic_return") == {128: 29.5, 192: 99.5}


def test_train_compiles_only_when_told_and_uses_adam_as_baselines_does(monkeypatch):
    compiled, epsilons, adam = [], [], torch.optim.Adam
    monkeypatch.setattr(torch, "compile", lambda f, mode=None: compiled.append(f) or f)
    monkeypatch.setattr(
        torch.optim, "Adam", lambda *args, **kwargs: epsilons.append(kwargs["eps"]) or adam(*args, **kwargs)
    )
    ppo.train(ppo.Args(**SMALL))
    assert compiled == []
    ppo.train(ppo.Args(**SMALL, compile=True, seed=2))
    assert compiled == [ppo.act, ppo.minibatch_gradient] and epsilons == [1e-5, 1e-5]


def test_a_finished_run_can_be_resumed_for_longer_and_explicit_flags_win(run):
    ppo.train(ppo.Args(**SMALL, gamma=0.8))
    (path,) = Path("runs").glob("*/checkpoint.pt")
    code, _, err = run("--resume", path, "--total-timesteps", 384, "--gae-lambda", 0.5)
    assert code == 0, err
    args = torch.load(path, weights_only=True)["args"]
    assert (args["gamma"], args["gae_lambda"], args["total_timesteps"]) == (0.8, 0.5, 384)
    assert list(scalars(path.parent, "learning_rate")) == [64, 128, 192, 256, 320, 384]


@with_all_scripts
def test_a_full_disk_costs_one_line_and_leaves_the_last_checkpoint_whole(monkeypatch, capsys):
    ppo.train(ppo.Args(**SMALL))
    (path,) = Path("runs").glob("*/checkpoint.pt")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(sys, "argv", ["x.py", "--resume", str(path), "--total-timesteps", "512"])
    with pytest.raises(SystemExit) as ended:
        ppo.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: [Errno 28] No space left on device"
    assert path.read_bytes() == before


def test_flags_that_shape_the_optimizer_can_be_given_to_a_resumed_run():
    """A penalty that the run did not have; in ppo_continuous.py, a learned std in place of the scheduled one."""
    ppo.train(ppo.Args(**SMALL))
    (path,) = Path("runs").glob("*/checkpoint.pt")
    args = ppo.load_checkpoint(str(path))["args"]
    changes = {"resume": str(path), "total_timesteps": 512, "kl_coef": 0.5, "kl_coef_target": 1e-9}
    changes |= {"final_std": None} if ppo.__name__ == "ppo_continuous" else {}
    agent = ppo.train(replace(args, **changes))
    assert all(p.isfinite().all() for p in agent.parameters())
    betas = list(scalars(path.parent, "kl_coef").values())
    assert betas == [0, 0, 0, 0, 0.5, 1, 2, 4]  # doubled by every update, as no KL is that small
    if ppo.__name__ == "ppo_continuous":
        assert agent.log_std.item() != pytest.approx(np.log(args.initial_std), abs=1e-6)


def test_a_checkpoint_from_before_there_was_a_penalty_goes_on():
    ppo.train(ppo.Args(**SMALL))
    (path,) = Path("runs").glob("*/checkpoint.pt")
    checkpoint = torch.load(path)
    del checkpoint["args"]["kl_coef"], checkpoint["optimizer"]["param_groups"][0]["kl_coef"]
    torch.save(checkpoint, path)
    args = ppo.load_checkpoint(str(path))["args"]
    ppo.train(replace(args, resume=str(path), total_timesteps=320, kl_coef=0.5))
    assert scalars(path.parent, "kl_coef")[320] == 0.5 and torch.load(path)["global_step"] == 320


def test_a_resumed_run_with_another_batch_does_not_go_past_the_total():
    ppo.train(ppo.Args(**SMALL))  # 256 steps
    (path,) = Path("runs").glob("*/checkpoint.pt")
    args = ppo.load_checkpoint(str(path))["args"]
    ppo.train(replace(args, resume=str(path), total_timesteps=512, num_steps=40))  # batches of 160
    assert torch.load(path)["global_step"] == 416


def test_a_checkpoint_scores_the_same_in_another_process(run, capsys):
    ppo.train(ppo.Args(TASK, total_timesteps=1024, num_envs=4, eval_episodes=3))
    expected = capsys.readouterr().out.splitlines()[-1]
    (path,) = Path("runs").glob("*/checkpoint.pt")
    code, out, _ = run("--evaluate", path)
    assert code == 0 and out.splitlines()[-1] == expected and expected.startswith("evaluation: return ")
    other = run("--evaluate", path, "--no-eval-greedy")[1].splitlines()[-1]
    assert other != expected and run("--evaluate", path, "--no-eval-greedy")[1].splitlines()[-1] == other
    assert "5 episodes" in run("--evaluate", path, "--eval-episodes=5")[1]
    assert len(list(Path("runs").iterdir())) == 1  # evaluating makes no run


def test_evaluate_counts_the_first_episode_of_each_environment_from_seeds_of_its_own():
    args = ppo.Args("probe_envs:Ragged-v0", eval_episodes=20, seed=3)
    obs, _ = ppo.make_envs(args, 20).reset(seed=ppo.env_seeds(3, -1, 20))
    expected = [length * 10 * tag + length * (length - 1) / 2 for tag, _, length, _ in obs]
    agent = ppo.Agent(ppo.make_envs(args, 1), args)
    assert ppo.evaluate(agent, args, Path()).tolist() == pytest.approx(expected)


def test_evaluate_plays_one_whole_episode_in_each_environment_with_frozen_statistics():
    args = ppo.Args("probe_envs:Counter-v0", eval_episodes=4)
    agent = ppo.Agent(ppo.make_envs(args, 1), args)
    before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    assert ppo.evaluate(agent, args, Path()).tolist() == [3.0] * 4
    assert all(torch.equal(before[name], tensor) for name, tensor in agent.state_dict().items())


def test_capture_video_leaves_a_film_that_moves():
    import imageio

    args = ppo.Args(**SMALL | {"env_id": "probe_envs:Truncated-v0"}, capture_video=True)
    ppo.check(args)
    assert ppo.evaluate(ppo.Agent(ppo.make_envs(args, 1), args), args, Path("here")).shape == (1,)
    (film,) = Path("here/videos").glob("*.mp4")
    frames = np.stack([frame for frame in imageio.get_reader(film)])  # noqa: C416
    assert len(frames) >= 5 and len(np.unique(frames.mean((1, 2, 3)))) > 2


def wait_for(pattern, process):
    while not (found := list(Path("runs").glob(pattern))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return found[0]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint_of_its_last_iteration_and_the_usual_status(signum):
    fast = ["--num-minibatches=1", "--update-epochs=1", "--checkpoint-every=100", "--total-timesteps=10000000"]
    process = start(*small_flags(), *fast)
    path = wait_for("*/checkpoint.pt", process)
    process.send_signal(signum)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signum
    assert f"{signum.name}: stopping after this iteration" in err and "Traceback" not in err
    assert torch.load(path, weights_only=True)["global_step"] == max(scalars(path.parent, "approx_kl"))


@pytest.mark.parametrize("signum, status", [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_second_signal_stops_at_once(signum, status):
    process = start("--env-id=probe_envs:Truncated-v0", "--num-steps=10000000", "--total-timesteps=160000000")
    wait_for("*/events*", process)
    time.sleep(1)
    process.send_signal(signum)
    time.sleep(0.5)
    assert process.poll() is None  # the first one waits for an iteration, which here takes many minutes
    process.send_signal(signum)
    _, err = process.communicate(timeout=20)
    assert process.returncode == status and "Traceback" not in err


def test_a_signal_also_closes_the_environments(monkeypatch):
    """Those that run a simulator would leave it behind."""
    closed, make_envs = [], ppo.make_envs

    def that_say_so(*args, **kwargs):
        envs = make_envs(*args, **kwargs)
        close = envs.close
        envs.close = lambda: closed.append(True) or close()
        return envs

    monkeypatch.setattr(ppo, "make_envs", that_say_so)
    monkeypatch.setattr(ppo, "collect", lambda *args, f=ppo.collect: signal.raise_signal(signal.SIGTERM) or f(*args))
    with pytest.raises(SystemExit, match="143"):
        ppo.train(ppo.Args(**SMALL))
    assert closed == [True] and list(Path("runs").glob("*/checkpoint.pt"))


def test_handlers_of_signals_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    ppo.train(ppo.Args(**SMALL))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@with_all_scripts
def test_track_gives_weights_and_biases_the_flags_and_all_that_tensorboard_gets(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **kwargs: calls.append(kwargs)))
    monkeypatch.setattr(ppo, "SummaryWriter", lambda *a, **k: calls.append("writer") or SummaryWriter(*a, **k))
    ppo.train(ppo.Args(**SMALL, track=True, wandb_project_name="project"))
    init, writer = calls  # in this order: wandb looks for writers that are made after it
    (run_dir,) = Path("runs").iterdir()
    assert (
        writer == "writer" and init["sync_tensorboard"] and init["project"] == "project" and init["resume"] == "allow"
    )
    assert init["id"] == run_dir.name and json.loads(json.dumps(init["config"]))["seed"] == 1
    monkeypatch.chdir(run_dir)
    ppo.train(ppo.Args(**SMALL, track=True, resume="checkpoint.pt"))
    assert calls[2]["id"] == init["id"]


@with_all_scripts
def test_weights_and_biases_itself_gets_the_metrics_without_a_network(run, monkeypatch):
    """Its own file of the run, written offline, has to name the metrics and their last step."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    code, _, err = run(*small_flags(), "--track")
    (path,) = Path("wandb").glob("offline-run-*/run-*.wandb")
    written = path.read_bytes()
    assert code == 0 and "warning" not in err, err
    assert all(name in written for name in (b"approx_kl", b"learning_rate", b"explained_variance"))


def test_a_failing_wandb_costs_one_warning_and_nothing_else(monkeypatch, capsys):
    def init(**_):
        raise RuntimeError("no network")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    expected = weights()
    assert torch.equal(weights(track=True), expected)
    assert capsys.readouterr().err.count("warning: going on without Weights & Biases: no network") == 1


def test_without_track_wandb_is_not_touched(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    ppo.train(ppo.Args(**SMALL))


@pytest.mark.parametrize("env_id, what", [("NanReward", "reward"), ("InfReward", "reward"), ("NanObs", "observation")])
def test_what_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(run, env_id, what):
    flags = [f"--env-id=probe_envs:{env_id}-v0", "--num-envs=2", "--num-steps=8", "--checkpoint-every=1"]
    code, _, err = run(*flags, "--num-minibatches=2")
    last = err.splitlines()[-1]
    assert code == 1 and "Traceback" not in err and last.startswith("error:") and what in last
    assert last.endswith("at step 40")  # the 20th step of both environments
    (path,) = Path("runs").glob("*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 32
    assert all(tensor.isfinite().all() for tensor in checkpoint["agent"].values())


def test_a_loss_that_is_not_finite_stops_the_run(monkeypatch):
    gradient = ppo.minibatch_gradient

    def broken(*args):
        value, metrics = gradient(*args)
        return value * torch.nan, metrics

    monkeypatch.setattr(ppo, "minibatch_gradient", broken)
    with pytest.raises(FloatingPointError, match="is nan at step 64"):
        ppo.train(ppo.Args(**SMALL))
    assert not list(Path("runs").glob("*/checkpoint.pt"))


@with_all_scripts
def test_the_file_runs_alone_from_an_empty_folder(run, empty_folder):
    script = shutil.copy(ppo.__file__, empty_folder / "my_ppo.py")
    code, out, err = run(f"--env-id={TASK}", "--total-timesteps=2048", "--eval-episodes=1", script=script)
    assert code == 0, err
    (run_dir,) = Path("runs").iterdir()
    assert run_dir.name.startswith(f"{TASK}__my_ppo__1__") and "evaluation: return " in out
    assert {path.name for path in empty_folder.iterdir()} <= {"my_ppo.py", "runs", "MUJOCO_LOG.TXT"}


@with_all_scripts
def test_importing_does_nothing(empty_folder):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv.append('--nonsense'); import {ppo.__name__}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == "" and not list(empty_folder.iterdir())


@with_all_scripts
def test_help_names_every_flag_with_its_comment(run):
    code, out, _ = run("--help")
    text = " ".join(out.replace("│", " ").split())
    assert code == 0
    comments = re.findall(r"^    (\w+): .* = .*?  # (.*)$", inspect.getsource(ppo.Args), re.M)
    assert [name for name, _ in comments] == [field.name for field in fields(ppo.Args)]
    for name, comment in comments:
        assert f"--{name.replace('_', '-')}" in text and comment in text


@with_all_scripts
def test_every_switch_can_be_switched_both_ways():
    switches = [field.name for field in fields(ppo.Args) if field.type is bool]
    assert len(switches) >= 8
    for flag in switches:
        name = flag.replace("_", "-")
        assert getattr(ppo.tyro.cli(ppo.Args, args=[f"--{name}"]), flag) is True
        assert getattr(ppo.tyro.cli(ppo.Args, args=[f"--no-{name}"]), flag) is False
