"""Whole trainings: in environments whose values are known, and what they leave behind."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import checkpoint, film, small, train, with_all_scripts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ppo_atari
import ppo_continuous


def learn(ppo, name, **flags):
    """The agent that a quick training in a probe leaves."""
    run = {"num_envs": 8, "num_steps": 32, "num_minibatches": 4, "update_epochs": 8, "target_kl": None}
    run |= {"total_timesteps": 10_000, "learning_rate": 5e-3, "gamma": 0.9}
    run |= {"norm_obs": False, "norm_reward": False}
    return train(ppo, ppo.Args(f"probe_envs:{name}-v0", **run | flags))[0]


@torch.no_grad()
def outputs(agent, *obs):
    return agent(torch.tensor(obs, dtype=torch.float64).view(len(obs), -1))


def values(agent, *obs):
    return outputs(agent, *obs)[1].tolist()


def modes(agent, *obs):
    """The likeliest actions, in [-1, 1]."""
    actions = outputs(agent, *obs)[0].mode.flatten()
    return (actions if actions.is_floating_point() else 2.0 * actions - 1).tolist()


def test_a_reward_that_only_a_time_limit_stops_is_worth_its_endless_sum(ppo):
    """V = 1/(1 - γ) = 10. Taking the limit of 5 steps for an end gives at most 1 + γ + ... + γ⁴ = 4.1."""
    assert values(learn(ppo, "Truncated", total_timesteps=20_000), 0.0) == pytest.approx([10.0], rel=0.02)


@pytest.mark.parametrize("clip_vloss", [False, True])
def test_a_reward_whose_episode_terminates_is_worth_itself(ppo, clip_vloss):
    assert values(learn(ppo, "Terminated", clip_vloss=clip_vloss), 0.0) == pytest.approx([1.0], rel=0.02)


def test_a_reward_one_step_away_is_discounted_once(ppo):
    assert values(learn(ppo, "Countdown"), 0.0, 1.0) == pytest.approx([0.9, 1.0], rel=0.03)


@pytest.mark.parametrize("norm", [False, True])
def test_the_observation_decides_the_action(ppo, norm):
    agent = learn(ppo, "Match", norm_obs=norm, norm_reward=norm)
    left, right = modes(agent, -1.0, 1.0)
    assert left < -0.3 and right > 0.3


def test_a_real_task_is_learned(ppo):
    """Random policies get about -1200 in Pendulum and 22 in CartPole."""
    args = ppo.Args("CartPole-v1", seed=2, total_timesteps=40_000)
    if ppo is ppo_continuous:
        flags = {"num_envs": 8, "num_steps": 256, "num_minibatches": 16, "gamma": 0.9}
        args = ppo.Args("Pendulum-v1", total_timesteps=40_000, **flags)
    _, path = train(ppo, args)
    assert np.mean(ppo.evaluate(path, args)) > (-400 if ppo is ppo_continuous else 300)


# ---- what a run leaves behind ---------------------------------------------------------------------


def weights(ppo, **flags):
    """The state after a small run."""
    agent, _ = train(ppo, small(ppo, **flags))
    return torch.cat([value.double().flatten() for value in agent.state_dict().values()])


def scalars(tag, folder="run"):
    """The values of a TensorBoard tag, by step."""
    events = EventAccumulator(folder).Reload()
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
CHANGES |= {"target_kl": 1e-9, "norm_obs": False, "norm_reward": False, "anneal_clip_coef": True}


def test_every_flag_of_the_algorithm_changes_what_is_learned(ppo):
    flags = {"env_id": "probe_envs:Countdown-v0", "clip_coef": 0.01, "target_kl": None}
    unchanged = weights(ppo, **flags)
    for flag, value in CHANGES.items():
        changed = weights(ppo, **flags | {flag: value})
        assert changed.isfinite().all() and not torch.equal(changed, unchanged), flag


@with_all_scripts
def test_learning_rate_and_epsilon_fall_linearly_only_with_their_flags(ppo, record):
    updates, falling = record(ppo, "update", copied=True), (1.0, 0.75, 0.5, 0.25)
    for lr_falls, clip_falls in ((True, False), (False, True)):
        updates.clear()
        flags = {"anneal_lr": lr_falls, "anneal_clip_coef": clip_falls}
        train(ppo, small(ppo, learning_rate=1e-3, clip_coef=0.2, **flags))
        _, optimizers, _, epsilons, _ = zip(*(call.args for call in updates))
        rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        np.testing.assert_allclose(np.array(rates) / 1e-3, falling if lr_falls else np.ones(4))
        np.testing.assert_allclose(np.array(epsilons) / 0.2, falling if clip_falls else np.ones(4))


def test_the_statistics_of_observations_move_only_between_updates(ppo, record):
    """So that each update starts with ratios of 1."""
    losses, flags = record(ppo, "ppo_loss"), {"num_minibatches": 1, "update_epochs": 1}
    agent, _ = train(ppo, small(ppo, env_id="probe_envs:Counter-v0", **flags))
    firsts = [(policy, batch) for policy, _, batch, *_ in (call.args for call in losses)]
    ratios = [(policy.log_prob(batch.actions) - batch.old_log_probs).exp() for policy, batch in firsts]
    torch.testing.assert_close(torch.stack(ratios), torch.ones(4, 64), rtol=0, atol=1e-5)
    assert agent.obs_stats.count == 256 and agent.obs_stats.mean[1] > 1


@with_all_scripts
def test_a_run_leaves_a_folder_with_a_checkpoint_and_logs(ppo, main):
    env_id = "probe_envs:Match-v0" if ppo is not ppo_atari else "Breakout"
    names = {"env_id": env_id, "num_envs": 4, "num_steps": 16, "total_timesteps": 300, "eval_episodes": 1}
    _, out = main(*[f"--{name.replace('_', '-')}={value}" for name, value in names.items()])
    assert "evaluation: 1 of 1 episodes, mean return " in out
    saved, folder = torch.load(checkpoint(), weights_only=True), checkpoint().parent
    assert saved["global_step"] == 256 and {name: saved["args"][name] for name in names} == names
    assert folder.name.startswith(f"{env_id.replace(':', '_')}__{ppo.__name__}__1__")
    assert {path.name.split(".")[0] for path in folder.iterdir()} == {"checkpoint", "events"}
    losses = "policy_loss value_loss entropy approx_kl clipfrac explained_variance"
    charts = "learning_rate SPS gradient_steps" + " action_std" * (ppo is ppo_continuous)
    for tag in [f"losses/{name}" for name in losses.split()] + [f"charts/{name}" for name in charts.split()]:
        found = scalars(tag, str(folder))
        assert list(found) == [64, 128, 192, 256] and np.isfinite(list(found.values())).all(), tag
    events = EventAccumulator(str(folder)).Reload()
    text = events.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    assert all(f"{name}={value!r}" in text for name, value in names.items())


def test_the_log_says_what_happened_in_a_batch(ppo, record):
    """Counter's episodes last 3 steps and pay 3 + 30 per episode before; all environments are in step."""
    updates = record(ppo, "update")
    flags = {"num_envs": 2, "num_steps": 30, "total_timesteps": 660, "target_kl": 1e-3, "num_minibatches": 4}
    train(ppo, small(ppo, env_id="probe_envs:Counter-v0", **flags))
    returns = [3.0 + 30 * i for i in range(110)]
    for i, step in enumerate(range(60, 661, 60)):
        batch, history = updates[i].args[2], updates[i].result
        so_far = returns[: 10 * i + 10]  # each twice
        assert scalars("charts/episodic_return")[step] == pytest.approx(np.mean(so_far[-10:]))
        assert scalars("charts/return_100")[step] == pytest.approx(np.mean(so_far[-50:]))
        assert scalars("charts/episodic_length")[step] == 3
        assert scalars("charts/gradient_steps")[step] == len(history)
        kls = [metrics["approx_kl"].item() for metrics in history]
        assert scalars("losses/approx_kl")[step] == pytest.approx(np.mean(kls), abs=1e-7)
        explained = 1 - np.var((batch.returns - batch.old_values).numpy()) / np.var(batch.returns.numpy())
        assert scalars("losses/explained_variance")[step] == pytest.approx(explained, abs=1e-4)
    assert min(len(call.result) for call in updates) < 40  # --target-kl ended some of 10 · 4 steps
    if ppo is ppo_continuous:
        assert scalars("charts/action_std")[60] == pytest.approx(0.6, rel=0.1)


def test_resuming_restores_all_to_the_bit_and_goes_on_in_a_folder_of_its_own(ppo, record):
    agent, path = train(ppo, small(ppo))
    saved, before, whole = torch.load(path, weights_only=True), agent.state_dict(), path.read_bytes()
    updates = record(ppo, "update", copied=True)
    args = small(ppo, total_timesteps=384, resume=str(path), learning_rate=1e-5, anneal_lr=False)
    _, resumed = train(ppo, args, "resumed")
    assert len(updates) == 2
    agent, optimizer, *_ = updates[0].args
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
    assert optimizer.param_groups[0]["lr"] == 1e-5  # the new one, not the checkpoint's
    for name, expected in saved["optimizer"]["state"].items():
        state = optimizer.state_dict()["state"][name]
        assert expected["step"] > 0 and all(torch.equal(state[key], expected[key]) for key in expected)
    after = torch.load(resumed, weights_only=True)
    assert after["global_step"] == 384 and after["args"]["resume"] is None and path.read_bytes() == whole
    assert after["reward_stats"]["count"] == 384 and saved["reward_stats"]["count"] == 256
    assert list(scalars("losses/approx_kl", "resumed")) == [320, 384]


def test_a_resumed_run_is_the_same_each_time_and_does_not_draw_the_first_actions_again(ppo, record):
    rollouts = record(ppo, "collect")
    _, path = train(ppo, small(ppo))
    agents = []
    for name in ("one", "other"):
        torch.manual_seed(len(agents))
        agents.append(train(ppo, small(ppo, total_timesteps=320, resume=str(path)), name)[0].state_dict())
    assert all(torch.equal(agents[0][name], agents[1][name]) for name in agents[0])
    first, resumed, again = (rollouts[i].result.actions for i in (0, 4, 5))
    assert torch.equal(resumed, again) and not torch.equal(resumed, first)


def test_a_checkpoint_is_replaced_only_by_a_whole_one(ppo, monkeypatch):
    _, path = train(ppo, small(ppo))
    before = path.read_bytes()

    def half(state, path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        train(ppo, small(ppo))
    assert path.read_bytes() == before


def test_an_evaluation_repeats_plays_whole_episodes_and_leaves_nothing(ppo):
    args = small(ppo, env_id="probe_envs:Ragged-v0", eval_episodes=7)
    _, path = train(ppo, args)
    files = sorted(Path().rglob("*"))
    first = ppo.evaluate(path, args)
    assert first == ppo.evaluate(path, args) and len(first) == 7 == len(set(first))
    assert first != ppo.evaluate(path, replace(args, seed=2**31 - 1))
    assert sorted(Path().rglob("*")) == files


def test_an_evaluation_plays_the_likeliest_actions_or_samples_as_the_script_says(ppo):
    """A policy that matches the sign four times in five, and its mean or mode always."""
    agent, path = train(ppo, small(ppo))
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.zero_()
        agent.norm_obs = False
        first, last = agent.actor[0], agent.actor[4]
        first.weight[0, 0] = agent.actor[2].weight[0, 0] = 9.0
        if ppo is ppo_continuous:
            last.weight[0, 0] = 0.84 * math.exp(agent.log_std.item())  # Φ(0.84) = 0.8
        else:
            last.weight[1, 0] = math.log(4)  # 2 log 2: σ(log 4) = 0.8
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"agent": agent.state_dict()}, path)
    args = small(ppo, norm_obs=False, eval_episodes=400)
    mean = np.mean(ppo.evaluate(path, args))
    assert mean == 1.0 if ppo is ppo_continuous else mean == pytest.approx(0.6, abs=0.12)


@pytest.mark.parametrize("episodes", [1, 3])
def test_a_film_shows_each_episode_that_was_evaluated(ppo, episodes):
    args = small(ppo, env_id="probe_envs:Truncated-v0", eval_episodes=episodes, capture_video=True)
    _, path = train(ppo, args)
    ppo.evaluate(path, args)
    films = sorted((path.parent / "videos").glob("*.mp4"))
    assert len(films) == episodes
    for path in films:
        frames = film(path)
        assert len(frames) == 6 and frames.std(0).max() > 20


def test_the_std_of_the_policy_is_learned_from_its_first_value():
    agent, _ = train(ppo_continuous, small(ppo_continuous, initial_std=0.5))
    assert 1e-6 < abs(agent.log_std.item() - math.log(0.5)) < 0.5
