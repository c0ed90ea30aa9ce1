"""What make_envs, collect, make_batch and update do, against what the probe environments are known to do."""

import copy

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import ppo_continuous


def set_up(ppo, env_id, **flags):
    args = ppo.Args(f"probe_envs:{env_id}-v0", **{"num_envs": 3, "num_steps": 8, **flags})
    torch.manual_seed(args.seed)
    envs = ppo.make_envs(args, args.num_envs)
    obs, _ = envs.reset(seed=list(range(args.num_envs)))
    return args, envs, ppo.Agent(envs, args), obs


def a_batch(ppo, env_id="Match", **flags):
    args, envs, agent, obs = set_up(ppo, env_id, **flags)
    rollout, _, _ = ppo.collect(envs, agent, obs, args)
    return args, agent, ppo.make_batch(rollout, ppo.compute_gae(rollout, args.gamma, args.gae_lambda))


def value(agent, *obs):
    with torch.no_grad():
        return agent(torch.tensor(obs, dtype=torch.float64))[1].numpy()


def gradients(agent):
    return torch.cat([p.grad.flatten() for p in agent.parameters()])


def test_every_row_is_a_real_transition_and_next_values_are_of_the_state_that_followed(ppo):
    """Counter ends every third step, in turn by truncation, by termination and by both."""
    args, envs, agent, obs = set_up(ppo, "Counter", num_steps=11)
    rollout, obs, episode_returns = ppo.collect(envs, agent, obs, args)
    for t in range(11):
        episode, step = divmod(t, 3)
        last = step == 2
        assert (rollout.obs[t].numpy() == [step, episode]).all()
        assert (rollout.rewards[t] == 10 * episode + step).all()
        assert (rollout.done[t] == last).all()
        assert (rollout.terminated[t] == (last and episode % 3 != 0)).all()
        np.testing.assert_allclose(rollout.values[t], value(agent, [step, episode]).repeat(3), rtol=1e-5)
        if not rollout.terminated[t].any():
            following = value(agent, [step + 1, episode]).repeat(3)
            np.testing.assert_allclose(rollout.next_values[t], following, rtol=1e-5)
    assert (obs == [2, 3]).all()  # the next rollout goes on in the middle of the episode
    assert episode_returns == [3.0] * 3 + [33.0] * 3 + [63.0] * 3
    rollout, _, episode_returns = ppo.collect(envs, agent, obs, args)
    assert (rollout.obs[0].numpy() == [2, 3]).all() and episode_returns[:3] == [93.0] * 3


@pytest.mark.parametrize("env_id", ["Ragged", "Same"])
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_each_environment_gets_its_own_ends_values_and_returns(ppo, env_id, vectorization):
    """All is known from the observation; environments are never in step; Same re-uses one array."""
    args, envs, agent, obs = set_up(ppo, env_id, num_envs=3, num_steps=60, vectorization=vectorization)
    rollout, last_obs, episode_returns = ppo.collect(envs, agent, obs, args)
    envs.close()
    ended, cut_off = [], 0
    for n in range(3):
        rows = [*rollout.obs[:, n].tolist(), last_obs[n].tolist()]
        for t, (tag, step, length, kind) in enumerate(rows[:-1]):
            end = step + 1 == length
            assert rollout.rewards[t, n] == pytest.approx(10 * tag + step, rel=1e-5)
            assert (rollout.done[t, n], rollout.terminated[t, n]) == (end, end and kind != 1)
            if not rollout.terminated[t, n]:
                following = value(agent, [tag, step + 1, length, kind])[0]
                assert rollout.next_values[t, n] == pytest.approx(following, rel=1e-4, abs=1e-6)
                cut_off += end
            if end:
                ended.append(length * 10 * tag + length * (length - 1) / 2)
            else:
                assert rows[t + 1] == pytest.approx([tag, step + 1, length, kind])
    assert sorted(episode_returns) == pytest.approx(sorted(ended)) and len(ended) > 30 and cut_off > 5


def test_a_batch_is_the_rollout_flattened_with_advantages_and_returns(ppo):
    args, envs, agent, obs = set_up(ppo, "Counter", gae_lambda=0.5)
    rollout, _, _ = ppo.collect(envs, agent, obs, args)
    advantages = ppo.compute_gae(rollout, args.gamma, 0.5)
    batch = ppo.make_batch(rollout, advantages)
    expected = (*rollout[:4], advantages, advantages + rollout.values)
    for row in range(24):
        t, n = divmod(row, 3)
        assert all(torch.equal(column[row], of_steps[t, n]) for column, of_steps in zip(batch, expected))
    assert all(column.dtype == torch.float32 for column in batch[2:])


def test_observations_are_scaled_by_what_was_seen_before_and_clipped(ppo):
    for norm_obs in (False, True):
        args, envs, agent, obs = set_up(ppo, "Counter", norm_obs=norm_obs)
        x = torch.tensor([[1.0, 1.0], [900.0, -900.0]], dtype=torch.float64)
        shown = x.clamp(-10, 10) if norm_obs else x  # no statistics yet: mean 0, variance 1
        torch.testing.assert_close(agent(x)[1], agent.critic(shown.float()).squeeze(-1))
        seen = ppo.collect(envs, agent, obs, args)[0].obs.reshape(-1, 2)
        agent.obs_stats.update(seen)
        scaled = ((x - seen.mean(0)) / seen.std(0, correction=0)).clamp(-10, 10) if norm_obs else x
        expected = agent.critic(scaled.float()).squeeze(-1)
        torch.testing.assert_close(agent(x)[1], expected, rtol=1e-4, atol=1e-5)


# ---- update ---------------------------------------------------------------------------------------


def one_update(ppo, **flags):
    """Metrics of each minibatch, the number of gradient steps, and the agent, of one update."""
    flags = {"num_envs": 8, "num_minibatches": 8, "update_epochs": 3, "target_kl": None} | flags
    args, agent, batch = a_batch(ppo, num_steps=32, **flags)
    optimizer, steps = torch.optim.Adam(agent.parameters(), 1e-3), []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    return ppo.update(agent, optimizer, batch, args), len(steps), agent


def test_target_kl_ends_an_update_before_the_step_that_is_past_it(ppo):
    history, steps, _ = one_update(ppo)
    kls = [metrics["approx_kl"].item() for metrics in history]
    assert steps == len(kls) == 24  # K epochs of all minibatches
    target = sorted(kls)[16]
    allowed = next(i for i, kl in enumerate(kls) if kl > target)
    history, steps, _ = one_update(ppo, target_kl=target)
    assert 1 < steps == allowed < 23 and [m["approx_kl"].item() for m in history] == kls[: allowed + 1]
    _, steps, _ = one_update(ppo, target_kl=0.0)
    assert steps <= 1  # 0 is a target, too, and not the absence of one


def test_without_a_clip_the_ratio_is_free(ppo):
    flags = {"update_epochs": 20, "num_minibatches": 2}
    free, clipped = (one_update(ppo, clip_coef=c, **flags)[0][-1]["approx_kl"] for c in (float("inf"), 0.2))
    assert clipped < 0.5 * free


@pytest.mark.parametrize("num_minibatches", [4, 5])
def test_each_epoch_sees_each_transition_once(ppo, monkeypatch, num_minibatches):
    flags = {"num_envs": 4, "num_minibatches": num_minibatches, "update_epochs": 3, "target_kl": None}
    args, agent, batch = a_batch(ppo, **flags)
    seen, compute_gradient = [], ppo.compute_gradient
    spy = lambda a, b, *c: seen.append(b.returns.tolist()) or compute_gradient(a, b, *c)  # noqa: E731
    monkeypatch.setattr(ppo, "compute_gradient", spy)
    batch = batch._replace(returns=torch.arange(32.0))
    ppo.update(agent, torch.optim.Adam(agent.parameters()), batch, args)
    n = num_minibatches
    epochs = [[row for rows in seen[i : i + n] for row in rows] for i in range(0, 3 * n, n)]
    assert len(epochs) == 3 and all(sorted(epoch) == list(range(32)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(32))
    sizes = [len(rows) for rows in seen]
    assert max(sizes) - min(sizes) <= 1  # no small rest


@pytest.mark.parametrize("norm_adv", [False, True])
def test_advantages_are_standardised_in_each_minibatch_and_only_with_the_flag(ppo, norm_adv):
    args, agent, batch = a_batch(ppo, num_steps=16, norm_adv=norm_adv, max_grad_norm=1e9)
    batch = batch._replace(advantages=torch.arange(48.0))
    shift, scale = (23.5, np.std(np.arange(48), ddof=1)) if norm_adv else (0.0, 1.0)
    weights = (torch.arange(48.0) - shift) / scale
    log_probs = agent(batch.obs)[0].log_prob(batch.actions)
    expected = torch.autograd.grad(-(weights * log_probs).mean(), agent.actor[-1].weight)[0]
    ppo.compute_gradient(agent, batch, args)
    torch.testing.assert_close(agent.actor[-1].weight.grad, expected, rtol=1e-3, atol=1e-4)


def test_gradients_longer_than_max_grad_norm_are_shortened_to_it_together(ppo):
    found = {}
    for limit in (1e9, 1e-3):
        args, agent, batch = a_batch(ppo, max_grad_norm=limit)
        for _ in range(2):  # no gradient is left over from before
            metrics = ppo.compute_gradient(agent, batch, args)
        found[limit] = gradients(agent)
        before = found[1e9].norm().item()
        assert metrics["grad_norm"].item() == pytest.approx(before, rel=1e-5)
    assert found[1e9].norm() > 0.01
    torch.testing.assert_close(found[1e-3], found[1e9] * (1e-3 / found[1e9].norm()), rtol=1e-4, atol=1e-9)


def test_a_parameter_without_a_gradient_is_no_error(ppo):
    args, agent, batch = a_batch(ppo)
    agent.unused = torch.nn.Parameter(torch.ones(3))
    ppo.update(agent, torch.optim.Adam(agent.parameters()), batch, args)
    assert agent.unused.grad is None and (agent.unused == 1).all()


def test_a_compiled_update_moves_the_weights_as_an_eager_one_does():
    """Also that they move at all: a gradient lost in compiling would go unnoticed."""
    ppo = ppo_continuous
    flags = {"clip_vloss": True, "ent_coef": 0.01, "target_kl": None, "num_minibatches": 2}
    states = []
    for compile_ in (False, True):
        args, agent, batch = a_batch(ppo, num_steps=16, update_epochs=2, **flags)
        start = copy.deepcopy(agent.state_dict())
        args = ppo.Args(**vars(args) | {"compile": compile_})
        optimizer = torch.optim.Adam(agent.parameters(), 1e-2, eps=1e-2, fused=True)  # no noise blown up
        torch.manual_seed(0)
        for _ in range(3):
            ppo.update(agent, optimizer, batch, args)
        states.append(agent.state_dict())
    for name, _ in agent.named_parameters():
        assert (states[0][name] - start[name]).abs().max() > 1e-4, name
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_compiled_acting_samples_from_the_policy_as_the_seed_says(ppo):
    args, _, agent, obs = set_up(ppo, "Match", compile=True)
    obs = torch.as_tensor(obs).repeat(2000, 1)
    act, policy = ppo.compiled(agent.act, args), agent(obs)[0]
    actions, log_probs, values = act(obs)
    torch.testing.assert_close(log_probs, policy.log_prob(actions), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values, agent(obs)[1])
    samples = policy.log_prob(policy.sample((20,)))
    assert abs(log_probs.mean() - samples.mean()) < 5 * (samples.var() / len(obs)).sqrt() + 1e-4  # -entropy
    torch.manual_seed(5)
    first, second = act(obs)[0], act(obs)[0]
    torch.manual_seed(5)
    assert (act(obs)[0] == first).all() and (first != second).any()


# ---- the environments -----------------------------------------------------------------------------


def test_what_environments_say_in_info_is_not_gathered(ppo):
    """Gathering it takes 5 % of a MuJoCo training, and arrays whose shapes differ cannot be."""
    _, envs, _, _ = set_up(ppo, "Info", num_envs=2)
    action = np.zeros((2, 1)) if ppo is ppo_continuous else np.zeros(2, dtype=int)
    assert set().union(*(envs.step(action)[-1] for _ in range(7))) <= {
        "episode", "_episode", "final_obs", "_final_obs", "final_info", "_final_info"
    }  # fmt: skip


def test_actions_are_stored_as_sampled_and_sent_rescaled_to_the_bounds():
    """Echo shows what it was sent, in bounds that are lopsided."""
    args, envs, agent, obs = set_up(ppo_continuous, "Echo", num_steps=64)
    rollout, _, _ = ppo_continuous.collect(envs, agent, obs, args)
    assert rollout.actions.shape == (64, 3, 1, 3) and (rollout.actions.abs() > 1).any()
    with torch.no_grad():
        mean = agent(rollout.obs.flatten(0, 1))[0].mean.view(64, 3, 1, 3)
    by_hand = Normal(mean, agent.log_std.exp()).log_prob(rollout.actions).sum((-1, -2)).detach()
    torch.testing.assert_close(rollout.log_probs, by_hand, rtol=1e-5, atol=1e-5)
    low, high = np.array([-0.4, 0.0, -3.0]), np.array([2.0, 1.0, 5.0])
    sent = low + (high - low) * (rollout.actions[:-1].clamp(-1, 1).numpy() + 1) / 2
    np.testing.assert_allclose(rollout.obs[1:].numpy(), sent, atol=1e-6)


@pytest.mark.parametrize("action", [-1.0, 1.0, 0.3, 99.0])
def test_no_rounding_leads_past_the_bounds(action):
    """In float32, -0.2 + 0.3 · (1 + 1)/2 is above 0.1; the probe refuses what its space does not contain."""
    _, envs, _, _ = set_up(ppo_continuous, "Lopsided")
    envs.step(np.full((3, 1), action, dtype=np.float32))
