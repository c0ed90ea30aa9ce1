"""Whole trainings: in environments whose values are known, and what they leave behind."""

import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import checkpoint, small, start, with_all_scripts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ppo_continuous


def train(ppo, name, total_timesteps=10_000, **flags):
    defaults = {"num_envs": 8, "num_steps": 32, "num_minibatches": 4, "update_epochs": 8}
    defaults |= {
        "learning_rate": 5e-3,
        "gamma": 0.9,
        "norm_obs": False,
        "norm_reward": False,
        "eval_episodes": 1,
        "target_kl": None,
    }
    return ppo.train(ppo.Args(f"probe_envs:{name}-v0", total_timesteps=total_timesteps, **(defaults | flags)))


@torch.no_grad()
def values(agent, *obs):
    return agent(torch.tensor(obs, dtype=torch.float64)[:, None])[1].tolist()


@torch.no_grad()
def modes(agent, *obs):
    """The likeliest actions, in [-1, 1]."""
    actions = agent(torch.tensor(obs, dtype=torch.float64)[:, None])[0].mode.flatten()
    return (actions if actions.is_floating_point() else 2.0 * actions - 1).tolist()


def test_a_reward_that_only_a_time_limit_stops_is_worth_its_endless_sum(ppo):
    """V = 1/(1 - γ) = 10. Taking the limit of 5 steps for an end gives at most 1 + γ + ... + γ⁴ = 4.1."""
    assert values(train(ppo, "Truncated", 20_000), 0.0) == pytest.approx([10.0], rel=0.02)


@pytest.mark.parametrize("clip_vloss", [False, True])
def test_a_reward_whose_episode_terminates_is_worth_itself(ppo, clip_vloss):
    assert values(train(ppo, "Terminated", clip_vloss=clip_vloss), 0.0) == pytest.approx([1.0], rel=0.02)


def test_a_reward_one_step_away_is_discounted_once(ppo):
    assert values(train(ppo, "Countdown"), 0.0, 1.0) == pytest.approx([0.9, 1.0], rel=0.03)


@pytest.mark.parametrize("norm", [False, True])
def test_the_observation_decides_the_action(ppo, norm):
    agent = train(ppo, "Match", norm_obs=norm, norm_reward=norm)
    left, right = modes(agent, -1.0, 1.0)
    assert left < -0.3 and right > 0.3


def test_a_real_task_is_learned(ppo):
    """Random policies get about -1200 in Pendulum and 22 in CartPole."""
    args = ppo.Args("CartPole-v1", seed=2, total_timesteps=40_000)
    if ppo is ppo_continuous:
        flags = {"num_envs": 8, "num_steps": 256, "num_minibatches": 16, "gamma": 0.9}
        args = ppo.Args("Pendulum-v1", total_timesteps=40_000, **flags)
    ppo.train(args)
    assert np.mean(ppo.evaluate(checkpoint(), args)) > (-400 if ppo is ppo_continuous else 300)


# ---- what a run leaves behind ---------------------------------------------------------------------


def weights(ppo, **flags):
    """The state after a small run, without an evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "evaluate", lambda *_: None)
        agent = ppo.train(small(ppo, **flags))
    return torch.cat([value.double().flatten() for value in agent.state_dict().values()])


def scalars(tag):
    """The values of a TensorBoard tag, by step, of the only run."""
    events = EventAccumulator(str(checkpoint().parent))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars(tag)}
    assert len(found) == len(events.Scalars(tag))  # no step is there twice
    return found


@with_all_scripts
def test_the_same_seed_gives_the_same_weights_to_the_bit_and_another_seed_others(ppo):
    first = weights(ppo)
    assert torch.equal(first, weights(ppo))
    assert not torch.equal(first, weights(ppo, seed=2))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_it_does_so_where_environments_draw_from_global_generators(ppo, vectorization):
    flags = {"env_id": "probe_envs:Global-v0", "vectorization": vectorization, "num_envs": 2}
    assert torch.equal(weights(ppo, **flags), weights(ppo, **flags))


CHANGES = {"total_timesteps": 320, "learning_rate": 5e-4, "num_envs": 8, "num_steps": 32, "anneal_lr": False}
CHANGES |= {"gamma": 0.5, "gae_lambda": 0.3, "num_minibatches": 3, "update_epochs": 3, "norm_adv": False}
CHANGES |= {"clip_coef": 1e-3, "clip_vloss": True, "ent_coef": 0.1, "vf_coef": 2.0, "max_grad_norm": 1e-3}
CHANGES |= {"target_kl": 1e-9, "norm_obs": False, "norm_reward": False}


def test_every_flag_of_the_algorithm_changes_what_is_learned(ppo):
    flags = {"env_id": "probe_envs:Countdown-v0", "clip_coef": 0.01, "target_kl": None}
    unchanged = weights(ppo, **flags)
    for flag, value in CHANGES.items():
        changed = weights(ppo, **flags | {flag: value})
        assert changed.isfinite().all() and not torch.equal(changed, unchanged), flag


def test_the_learning_rate_falls_linearly_only_with_its_flag(ppo, monkeypatch):
    seen, update = [], ppo.update

    def spy(agent, optimizer, batch, args):
        seen.append(optimizer.param_groups[0]["lr"])
        return update(agent, optimizer, batch, args)

    monkeypatch.setattr(ppo, "update", spy)
    for on in (True, False):
        seen.clear()
        ppo.train(small(ppo, learning_rate=1e-3, anneal_lr=on))
        assert seen == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4] if on else [1e-3] * 4)


def test_the_statistics_of_observations_move_only_between_updates(ppo, monkeypatch):
    """So that each update starts with ratios of 1."""
    ratios, update = [], ppo.update

    def spy(agent, optimizer, batch, *rest):
        with torch.no_grad():
            ratios.append((agent(batch.obs)[0].log_prob(batch.actions) - batch.old_log_probs).exp())
        return update(agent, optimizer, batch, *rest)

    monkeypatch.setattr(ppo, "update", spy)
    agent = ppo.train(small(ppo, env_id="probe_envs:Counter-v0"))
    torch.testing.assert_close(torch.stack(ratios), torch.ones(4, 64), rtol=0, atol=1e-5)
    assert agent.obs_stats.count == 256 and agent.obs_stats.mean[1] > 1


@with_all_scripts
def test_a_run_leaves_a_folder_with_a_checkpoint_and_logs(ppo, capsys):
    args = small(ppo, total_timesteps=300)
    ppo.train(args)
    saved = torch.load(checkpoint(), weights_only=True)
    assert saved["global_step"] == 256 and saved["args"] == vars(args)
    assert checkpoint().parent.name.startswith(f"{args.env_id.replace(':', '_')}__{ppo.__name__}__1__")
    assert {path.name.split(".")[0] for path in checkpoint().parent.iterdir()} == {"checkpoint", "events"}
    for tag in ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm"):
        assert list(scalars(tag)) == [64, 128, 192, 256] and np.isfinite(list(scalars(tag).values())).all()
    out = capsys.readouterr().out
    assert f"checkpoint: {checkpoint()}\n" in out
    assert f"evaluation: {args.eval_episodes} episodes, return " in out


def test_the_logged_return_is_the_mean_of_the_last_100_episodes(ppo):
    run = ppo.Run(small(ppo))
    history = [{"approx_kl": torch.tensor(0.0)}]
    run.record(0, history, [])
    run.record(1, history, [float(x) for x in range(60)])
    run.record(2, history, [float(x) for x in range(60, 150)])
    run.close()
    run.writer.close()
    (path,) = Path("runs").iterdir()
    events = EventAccumulator(str(path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("episodic_return")] == [(128, 29.5), (192, 99.5)]


def test_six_runs_in_a_second_have_six_folders(ppo):
    for _ in range(6):
        ppo.Run(small(ppo)).close()
    assert len(list(Path("runs").iterdir())) == 6


@pytest.mark.parametrize("where", ["NanObs", "NanReward", "InfReward"])
def test_what_is_not_finite_stops_the_run_before_it_is_saved(ppo, where):
    """An environment may refuse an action of NaN first."""
    errors = (FloatingPointError, RuntimeError, AssertionError)
    with pytest.raises(errors, match=r"not finite at step 128|nan"):
        ppo.train(small(ppo, env_id=f"probe_envs:{where}-v0", total_timesteps=640))
    assert not list(Path("runs").glob("*/checkpoint.pt"))


def test_resuming_restores_all_to_the_bit_and_goes_on_in_the_same_folder(ppo):
    agent = ppo.train(small(ppo))
    saved, before = torch.load(checkpoint(), weights_only=True), copy.deepcopy(agent.state_dict())
    run = ppo.Run(small(ppo, total_timesteps=384, resume=str(checkpoint())))
    assert run.first_iteration == 4 and run.path == checkpoint()
    assert all(torch.equal(value, before[name]) for name, value in run.agent.state_dict().items())
    states = (state["state"].values() for state in (run.optimizer.state_dict(), saved["optimizer"]))
    for state, expected in zip(*states):
        assert expected["step"] > 0 and all(torch.equal(state[key], expected[key]) for key in expected)
    assert all(torch.equal(x, saved["reward_scaler"][k]) for k, x in run.reward_scaler.state_dict().items())
    run.close()
    whole = checkpoint().read_bytes()
    for _ in range(2):  # then once more, as after a kill: the log is ahead of the checkpoint
        checkpoint().write_bytes(whole)
        ppo.train(small(ppo, total_timesteps=384, resume=str(checkpoint())))
    assert list(scalars("approx_kl")) == [64, 128, 192, 256, 320, 384]
    assert torch.load(checkpoint(), weights_only=True)["global_step"] == 384


def test_a_resumed_run_is_the_same_each_time_and_does_not_draw_the_first_actions_again(ppo, monkeypatch):
    drawn, collect = [], ppo.collect
    monkeypatch.setattr(ppo, "collect", lambda *args: drawn.append(collect(*args)) or drawn[-1])
    ppo.train(small(ppo))
    agents = []
    for name in ("one", "other"):
        Path(name).mkdir()
        shutil.copy(checkpoint(), name)
        torch.manual_seed(len(agents))
        agents.append(ppo.train(small(ppo, total_timesteps=320, resume=f"{name}/checkpoint.pt")).state_dict())
    assert all(torch.equal(agents[0][name], agents[1][name]) for name in agents[0])
    first, resumed, again = (drawn[i][0].actions for i in (0, 4, 5))
    assert torch.equal(resumed, again) and not torch.equal(resumed, first)


def test_a_killed_run_has_a_whole_checkpoint_and_goes_on_from_it(ppo):
    """Killed without a warning, also while a checkpoint is being written."""
    args = small(ppo, total_timesteps=10**6)
    names = ("env_id", "num_envs", "num_steps", "total_timesteps", "threads")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in vars(args).items() if name in names]
    process = start(ppo.__file__, *flags, "--eval-episodes=1")
    while not list(Path("runs").glob("*/checkpoint.pt")):
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    step = torch.load(checkpoint(), weights_only=True)["global_step"]
    assert step % 640 == 0
    last = ppo.load_checkpoint(checkpoint())["args"]
    ppo.train(ppo.Args(**vars(last) | {"resume": str(checkpoint()), "total_timesteps": step + 64}))
    assert torch.load(checkpoint(), weights_only=True)["global_step"] == step + 64


def test_a_checkpoint_is_replaced_only_by_a_whole_one(ppo, monkeypatch):
    ppo.train(small(ppo))
    before = checkpoint().read_bytes()

    def half(state, path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        ppo.train(small(ppo, total_timesteps=384, resume=str(checkpoint())))
    assert checkpoint().read_bytes() == before


def test_an_evaluation_repeats_plays_whole_episodes_and_leaves_nothing(ppo):
    args = small(ppo, env_id="probe_envs:Ragged-v0", eval_episodes=7)
    ppo.train(args)
    files = sorted(Path().rglob("*"))
    first = ppo.evaluate(checkpoint(), args)
    assert first == ppo.evaluate(checkpoint(), args) and len(first) == 7 == len(set(first))
    assert first != ppo.evaluate(checkpoint(), replace(args, seed=2**40))
    assert sorted(Path().rglob("*")) == files


def test_an_evaluation_plays_the_likeliest_actions(ppo):
    agent = train(ppo, "Match", total_timesteps=10_240)
    assert modes(agent, 1.0)[0] > 0.3
    args = ppo.load_checkpoint(checkpoint())["args"]
    assert ppo.evaluate(checkpoint(), ppo.Args(**vars(args) | {"eval_episodes": 50})) == [1.0] * 50


def test_a_film_is_made_beside_the_checkpoint(ppo):
    imageio = pytest.importorskip("imageio")
    ppo.train(small(ppo, env_id="probe_envs:Truncated-v0", eval_episodes=1, capture_video=True))
    films = sorted((checkpoint().parent / "videos").glob("*.mp4"))
    frames = np.stack([frame for frame in imageio.get_reader(films[0])])  # noqa: C416
    assert len(frames) == 6 and frames.std(0).max() > 20


def test_the_std_of_the_policy_is_learned_from_its_first_value():
    agent = ppo_continuous.train(small(ppo_continuous, initial_std=0.5))
    assert 1e-6 < abs(agent.log_std.item() - math.log(0.5)) < 0.5
