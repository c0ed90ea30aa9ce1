"""What make_envs, collect, make_batch and update do, against what the probe environments are known to do."""

import copy
from dataclasses import replace

import numpy as np
import probe_envs
import pytest
import torch
from conftest import small, train
from test_training import values
from torch.distributions import Normal

import ppo_continuous


def set_up(ppo, env_id, **flags):
    args = ppo.Args(f"probe_envs:{env_id}-v0", **{"num_envs": 3, "num_steps": 8, **flags})
    torch.manual_seed(args.seed)
    envs = ppo.make_envs(args, args.num_envs)
    obs, _ = envs.reset(seed=list(range(args.num_envs)))
    return args, envs, ppo.Agent(envs, args), torch.as_tensor(obs)


def a_batch(ppo, env_id="Match", **flags):
    args, envs, agent, obs = set_up(ppo, env_id, **flags)
    return args, agent, ppo.make_batch(agent, ppo.collect(envs, agent, obs, args), args)


@pytest.mark.parametrize("env_id", ["Ragged", "Same"])
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_every_row_is_a_real_transition_of_its_own_environment(ppo, record, env_id, vectorization):
    """All is known from the observation; environments are never in step; those of Same share one array."""
    rollouts, estimates = record(ppo, "collect"), record(ppo, "compute_gae")
    args, envs, agent, obs = set_up(ppo, env_id, num_envs=3, num_steps=30, vectorization=vectorization)
    for _ in range(2):  # the second rollout goes on in mid-episode
        rollout = ppo.collect(envs, agent, obs, args)
        ppo.make_batch(agent, rollout, args)
        obs = rollout.next_obs
    envs.close()
    rollout = ppo.Rollout(*map(torch.cat, zip(*(call.result for call in rollouts))))
    next_values = torch.cat([call.args[1] for call in estimates])
    ended, cut_off = [], 0
    for n in range(3):
        rows = [*rollout.obs[:, n].tolist(), obs[n].tolist()]
        for t, (tag, step, length, kind) in enumerate(rows[:-1]):
            end = step + 1 == length
            terminated, truncated = end and kind != 1, end and kind != 0
            assert (rollout.terminated[t, n], rollout.truncated[t, n]) == (terminated, truncated)
            assert rollout.rewards[t, n] == pytest.approx(10 * tag + step, rel=1e-5)
            assert rollout.values[t, n] == pytest.approx(values(agent, rows[t])[0], rel=1e-5, abs=1e-7)
            if not terminated:
                following = values(agent, [tag, step + 1, length, kind])[0]
                assert next_values[t, n] == pytest.approx(following, rel=1e-5, abs=1e-7)
                cut_off += end
            if end:
                ended.append(length * 10 * tag + length * (length - 1) / 2)
            else:
                assert rows[t + 1] == pytest.approx([tag, step + 1, length, kind])
    assert sorted(envs.return_queue) == pytest.approx(sorted(ended)) and len(ended) > 30 and cut_off > 5


def test_a_batch_is_the_rollout_flattened_with_advantages_and_returns(ppo, record):
    estimates = record(ppo, "compute_gae")
    args, envs, agent, obs = set_up(ppo, "Counter", gae_lambda=0.5)
    rollout = ppo.collect(envs, agent, obs, args)
    batch = ppo.make_batch(agent, rollout, args)
    advantages = estimates[0].result
    for got, expected in zip(batch, (*rollout[:4], advantages, advantages + rollout.values), strict=True):
        assert torch.equal(got.unflatten(0, (8, 3)), expected)
    assert all(column.dtype == torch.float32 for column in batch[2:])


def test_a_batch_can_be_made_again_with_the_values_of_a_better_critic(ppo):
    """Log-probabilities stay; advantages follow, also where an episode was cut off."""
    args, envs, agent, obs = set_up(ppo, "Counter", gae_lambda=1.0, gamma=1.0, num_steps=11)
    rollout = ppo.collect(envs, agent, obs, args)
    first = ppo.make_batch(agent, rollout, args)
    with torch.no_grad():
        agent.critic[-1].bias += 7.0
    again = ppo.make_batch(agent, rollout._replace(values=rollout.values + 7.0), args)
    assert torch.equal(again.old_log_probs, first.old_log_probs)
    change = (again.returns - first.returns).view(11, 3)[:, 0].tolist()
    # 7 more where the rest of the episode ends in a bootstrapped value: episodes 0 and 3, of 1, 2 and 3
    assert change == pytest.approx([7.0] * 3 + [0.0] * 6 + [7.0] * 2, abs=1e-4)


def test_observations_are_scaled_by_what_was_seen_before_and_clipped(ppo):
    for norm_obs in (False, True):
        args, envs, agent, obs = set_up(ppo, "Counter", norm_obs=norm_obs)
        x = torch.tensor([[1.0, 1.0], [900.0, -900.0]], dtype=torch.float64)
        shown = x.clamp(-10, 10) if norm_obs else x  # no statistics yet: mean 0, variance 1
        torch.testing.assert_close(agent.preprocess(x), shown.float())
        seen = ppo.collect(envs, agent, obs, args).obs.reshape(-1, 2)
        agent.obs_stats.update(seen)
        scaled = ((x - seen.mean(0)) / seen.std(0, correction=0)).clamp(-10, 10) if norm_obs else x
        torch.testing.assert_close(agent.preprocess(x), scaled.float(), rtol=1e-4, atol=1e-5)


# ---- update ---------------------------------------------------------------------------------------


def one_update(ppo, **flags):
    """Metrics of each minibatch and the number of gradient steps of one update."""
    flags = {"num_envs": 8, "num_minibatches": 8, "update_epochs": 3, "target_kl": None} | flags
    args, agent, batch = a_batch(ppo, num_steps=32, **flags)
    optimizer, steps = torch.optim.Adam(agent.parameters(), 1e-3), []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    return ppo.update(agent, optimizer, batch, args.clip_coef, args), len(steps)


def test_target_kl_ends_an_update_before_the_step_that_is_past_it(ppo):
    history, steps = one_update(ppo)
    kls = [metrics["approx_kl"].item() for metrics in history]
    assert steps == len(kls) == 24  # K epochs of all minibatches
    target = sorted(kls)[16]
    allowed = next(i for i, kl in enumerate(kls) if kl > target)
    history, steps = one_update(ppo, target_kl=target)
    assert 1 < steps == allowed < 23 and [m["approx_kl"].item() for m in history] == kls[:allowed]
    history, steps = one_update(ppo, target_kl=1e-30)
    assert steps == len(history) == 1  # at the first minibatch π_θ is π_old, up to rounding


@pytest.mark.parametrize("num_minibatches", [4, 5])
def test_each_epoch_sees_each_transition_once(ppo, record, num_minibatches):
    flags = {"num_envs": 4, "num_minibatches": num_minibatches, "update_epochs": 3, "target_kl": None}
    args, agent, batch = a_batch(ppo, **flags)
    losses = record(ppo, "ppo_loss")
    batch = batch._replace(returns=torch.arange(32.0))
    ppo.update(agent, torch.optim.Adam(agent.parameters()), batch, args.clip_coef, args)
    minibatches = [call.args[2].returns for call in losses]
    n = num_minibatches
    epochs = [torch.cat(minibatches[i : i + n]).tolist() for i in range(0, len(losses), n)]
    assert len(epochs) == 3 and all(sorted(epoch) == list(range(32)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(32))
    sizes = [*map(len, minibatches)]
    assert max(sizes) - min(sizes) <= 1  # no small rest


@pytest.mark.parametrize("norm_adv", [False, True])
def test_advantages_are_standardised_in_each_minibatch_and_only_with_the_flag(ppo, norm_adv):
    args, agent, batch = a_batch(ppo, num_steps=16, norm_adv=norm_adv, ent_coef=0.0)
    batch = batch._replace(advantages=torch.arange(48.0))
    shift, scale = (23.5, np.std(np.arange(48), ddof=1)) if norm_adv else (0.0, 1.0)
    weights = (torch.arange(48.0) - shift) / scale
    log_probs = agent(batch.obs)[0].log_prob(batch.actions)
    expected = torch.autograd.grad(-(weights * log_probs).mean(), agent.actor[-1].weight)[0]
    ppo.ppo_loss(*agent(batch.obs), batch, args.clip_coef, args)[0].backward()
    torch.testing.assert_close(agent.actor[-1].weight.grad, expected, rtol=1e-3, atol=1e-4)


def test_gradients_longer_than_max_grad_norm_are_shortened_to_it_together(ppo):
    found = {}
    for limit in (1e9, 1e-3):
        flags = {"max_grad_norm": limit, "num_minibatches": 1, "update_epochs": 2, "target_kl": None}
        args, agent, batch = a_batch(ppo, **flags)
        optimizer = torch.optim.SGD(agent.parameters(), lr=0.0)
        torch.manual_seed(0)  # the epochs are two: no gradient is left over from the first
        ppo.update(agent, optimizer, batch, args.clip_coef, args)
        found[limit] = torch.cat([p.grad.flatten() for p in agent.parameters()])
    assert found[1e9].norm() > 0.01
    torch.testing.assert_close(found[1e-3], found[1e9] * (1e-3 / found[1e9].norm()), rtol=1e-4, atol=1e-9)


# ---- the environments -----------------------------------------------------------------------------


def test_what_environments_say_in_info_is_not_gathered(ppo):
    """Gathering it takes 5 % of a MuJoCo training, and arrays whose shapes differ cannot be."""
    _, envs, _, _ = set_up(ppo, "Info", num_envs=2)
    action = np.zeros((2, 1)) if ppo is ppo_continuous else np.zeros(2, dtype=int)
    assert set().union(*(envs.step(action)[-1] for _ in range(7))) <= {
        "episode", "_episode", "final_obs", "_final_obs", "final_info", "_final_info"
    }  # fmt: skip


def test_actions_are_stored_as_sampled_and_sent_rescaled_to_the_bounds():
    """Echo shows what it was sent, matrices in bounds that are lopsided."""
    args, envs, agent, obs = set_up(ppo_continuous, "Echo", num_steps=64)
    rollout = ppo_continuous.collect(envs, agent, obs, args)
    assert rollout.actions.shape == (64, 3, 3) and (rollout.actions.abs() > 1).any()
    inputs = agent.preprocess(rollout.obs.flatten(0, 1))
    with torch.no_grad():
        mean = agent.actor(inputs).view(64, 3, 3)
    by_hand = Normal(mean, agent.log_std.exp()).log_prob(rollout.actions).sum(-1).detach()
    torch.testing.assert_close(rollout.log_probs, by_hand, rtol=1e-5, atol=1e-5)
    low, high = probe_envs.Echo.low, probe_envs.Echo.high
    sent = low + (high - low) * (rollout.actions[:-1].clamp(-1, 1).numpy() + 1) / 2
    np.testing.assert_allclose(rollout.obs[1:].flatten(2).numpy(), sent, atol=1e-6)


@pytest.mark.parametrize("action", [-1.0, 1.0, 0.3, 99.0])
def test_no_rounding_leads_past_the_bounds(action):
    """In float32, -0.2 + 0.3 · (1 + 1)/2 is above 0.1; the probe refuses what its space does not contain."""
    _, envs, _, _ = set_up(ppo_continuous, "Lopsided")
    envs.step(np.full((3, 1), action, dtype=np.float32))


FLAT = {
    "DictObs": lambda obs: [obs["x"][0], *np.eye(3)[obs["y"]]],
    "TupleObs": lambda obs: [*obs[0], *obs[1].flatten()],
    "DiscreteObs": lambda obs: np.eye(4)[obs],
    "MultiDiscreteObs": lambda obs: [*np.eye(2)[obs[0]], *np.eye(3)[obs[1]]],
    "MultiBinaryObs": lambda obs: obs,
    "MatrixObs": lambda obs: obs.flatten(),
}


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_observations_of_any_space_of_numbers_become_a_vector(ppo, name, vectorization):
    """In reset, step, and where an episode was cut off: each observation is drawn from its space by seed."""
    args, envs, agent, obs = set_up(ppo, name, num_envs=2, num_steps=6, vectorization=vectorization)
    rollout = ppo.collect(envs, agent, obs, args)
    space = copy.deepcopy(probe_envs.SAMPLED[name])
    for n in range(2):
        space.seed(n)
        drawn = [FLAT[name](space.sample()) for _ in range(9)]  # 3 + the first of each of 2 new episodes
        expected = [drawn[i] for i in (0, 1, 2, 4, 5, 6)]
        np.testing.assert_allclose(rollout.obs[:, n].flatten(1), expected, rtol=1e-6)
        np.testing.assert_allclose(rollout.final_obs[n::2].flatten(1), [drawn[3], drawn[7]], rtol=1e-6)
        np.testing.assert_allclose(rollout.next_obs[n].flatten(), drawn[8], rtol=1e-6)
    envs.close()


def test_env_kwargs_reach_training_evaluation_and_film(ppo, record):
    made = record(probe_envs.Probe, "__init__")
    args = small(ppo, num_envs=2, env_kwargs={"reward": "dense", "speed": 3, "ends": False, "g": 9.8})
    _, path = train(ppo, args)
    saved = ppo.load_checkpoint(path)["args"]
    assert saved.env_kwargs == args.env_kwargs
    assert [type(value) for value in saved.env_kwargs.values()] == [str, int, bool, float]
    ppo.evaluate(path, replace(args, capture_video=True))
    assert len(made) >= 3 and all(args.env_kwargs.items() <= call.kwargs.items() for call in made)
