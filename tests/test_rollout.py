"""What make_envs, collect, make_batch and update do, against what the probe environments are known to do."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import gae

ppo = TASK = None  # set by the fixture
pytestmark = pytest.mark.usefixtures("script")


def set_up(env_id, **flags):
    args = ppo.Args(env_id=f"probe_envs:{env_id}-v0", **{"num_envs": 3, "num_steps": 8, **flags})
    torch.manual_seed(args.seed)
    envs = ppo.make_envs(args, args.num_envs)
    agent = ppo.Agent(envs, args)
    obs, _ = envs.reset(seed=ppo.env_seeds(args.seed, 0, args.num_envs))
    return args, envs, agent, obs


def part_of(vector, agent, parameter):
    """The piece of a gradient that belongs to a parameter."""
    start = 0
    for p in agent.parameters():
        if p is parameter:
            return vector[start : start + p.numel()].view_as(p)
        start += p.numel()


def value(agent, *obs):
    with torch.no_grad():
        return agent(torch.tensor(obs, dtype=torch.float64))[1].numpy()


def test_every_row_is_a_real_transition_and_next_values_are_of_the_state_that_followed():
    """Counter ends every third step, in turn by truncation, by termination and by both; row t is then known."""
    args, envs, agent, obs = set_up("Counter", num_steps=11)
    rollout, obs, episode_returns = ppo.collect(envs, agent, obs, args, 0)
    for t in range(11):
        episode, step = divmod(t, 3)
        last = step == 2
        assert (rollout.obs[t].numpy() == [step, episode]).all()
        assert (rollout.rewards[t] == 10 * episode + step).all()
        assert (rollout.done[t] == last).all()
        assert (rollout.terminated[t] == (last and episode % 3 != 0)).all()
        truncated = last and episode % 3 != 1
        following = [step + 1, episode] if truncated or not last else [0, episode + 1]
        np.testing.assert_allclose(rollout.next_values[t], value(agent, following).repeat(3), rtol=1e-5)
        np.testing.assert_allclose(rollout.values[t], value(agent, [step, episode]).repeat(3), rtol=1e-5)
    assert (obs == [2, 3]).all()  # the next rollout goes on in the middle of the episode
    assert episode_returns == [3.0] * 3 + [33.0] * 3 + [63.0] * 3
    rollout, _, episode_returns = ppo.collect(envs, agent, obs, args, 33)
    assert (rollout.obs[0].numpy() == [2, 3]).all() and episode_returns[:3] == [93.0] * 3


def test_each_environment_gets_its_own_ends_values_and_returns():
    """Ragged: all is known from the observation, and the environments are never in step with each other."""
    args, envs, agent, obs = set_up("Ragged", num_envs=5, num_steps=60)
    rollout, last_obs, episode_returns = ppo.collect(envs, agent, obs, args, 0)
    expected, ended = [], []
    for n in range(5):
        rows = rollout.obs[:, n].tolist()
        for t, (tag, step, length, kind) in enumerate(rows):
            end = step + 1 == length
            assert rollout.rewards[t, n] == pytest.approx(10 * tag + step)
            assert (rollout.done[t, n], rollout.terminated[t, n]) == (end, end and kind != 1)
            if not rollout.terminated[t, n]:
                expected.append((t, n, value(agent, [tag, step + 1, length, kind])[0]))
            if not end:
                assert [*rows, last_obs[n].tolist()][t + 1] == [tag, step + 1, length, kind]
            if end:
                ended.append(length * 10 * tag + length * (length - 1) / 2)
    for t, n, next_value in expected:
        assert rollout.next_values[t, n] == pytest.approx(next_value, rel=1e-4, abs=1e-6)
    assert sorted(episode_returns) == pytest.approx(sorted(ended)) and len(ended) > 50


def discounted_returns(rewards, done, gamma):
    """Return so far of the episode under way, after each step, one environment and one step at a time."""
    out = []
    for n in range(rewards.shape[1]):
        total = 0.0
        for reward, end in zip(rewards[:, n], done[:, n]):
            total = gamma * total + reward
            out.append(total)
            total = 0.0 if end else total
    return out


def test_rewards_are_divided_by_the_std_of_the_discounted_return_over_all_rollouts_so_far():
    _, _, agent, _ = set_up("Counter", gamma=0.9)
    rng = np.random.default_rng(0)
    rewards, done = rng.normal(2, 5, (30, 3)), rng.random((30, 3)) < 0.1
    for start, end in ((0, 10), (10, 11), (11, 30)):
        std = np.std(discounted_returns(rewards[:end], done[:end], 0.9))  # an episode may span several rollouts
        got = agent.scale_rewards(rewards[start:end], done[start:end])
        np.testing.assert_allclose(got, rewards[start:end] / std, rtol=1e-6)
    for _ in range(30):
        agent.scale_rewards(rewards, done)
    huge = agent.scale_rewards(np.array([[0.0, 1e6, -1e6]]), done[:1])
    assert huge.tolist() == [[0, 10, -10]]


def test_advantages_are_of_the_scaled_rewards():
    args, envs, agent, obs = set_up("Ragged", gamma=0.9, gae_lambda=0.5)
    rollout, _, _ = ppo.collect(envs, agent, obs, args, 0)
    rewards = rollout.rewards / np.std(discounted_returns(rollout.rewards, rollout.done, 0.9))
    columns = rollout.values, rollout.next_values, rollout.terminated, rollout.done
    advantages = gae(ppo, rewards, *columns, 0.9, 0.5)
    batch = ppo.make_batch(agent, rollout, args)
    np.testing.assert_allclose(batch.advantages, advantages.flatten(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.returns, (advantages + rollout.values).flatten(), rtol=1e-4, atol=1e-5)


def test_norm_reward_off_leaves_rewards_alone():
    _, _, agent, _ = set_up("Counter", norm_reward=False)
    rewards = np.random.default_rng(0).normal(size=(4, 3))
    np.testing.assert_array_equal(agent.scale_rewards(rewards, np.zeros((4, 3), bool)), rewards)


def test_observations_are_scaled_by_what_was_seen_before_and_clipped():
    args, envs, agent, obs = set_up("Counter")
    rollout, _, _ = ppo.collect(envs, agent, obs, args, 0)
    x = torch.tensor([[1.0, 1.0], [900.0, -900.0]], dtype=torch.float64)
    for norm, shown in ((False, x), (True, x.clamp(-10, 10))):  # no statistics yet: mean 0, variance 1
        agent.args = replace(args, norm_obs=norm)
        torch.testing.assert_close(agent(x)[1], agent.critic(shown.float()).squeeze(-1))
    agent.update_obs_stats(rollout.obs.flatten(0, 1))
    seen = rollout.obs.numpy().reshape(-1, 2)
    scaled = np.clip((x.numpy() - seen.mean(0)) / seen.std(0), -10, 10)
    torch.testing.assert_close(
        agent(x)[1], agent.critic(torch.tensor(scaled).float()).squeeze(-1), rtol=1e-4, atol=1e-5
    )


def test_a_batch_is_the_rollout_flattened_with_advantages_and_returns():
    args, envs, agent, obs = set_up("Counter", norm_reward=False, gae_lambda=0.5)
    rollout, _, _ = ppo.collect(envs, agent, obs, args, 0)
    batch = ppo.make_batch(agent, rollout, args)
    advantages = gae(ppo, *rollout[5:6], *rollout[3:5], *rollout[6:], args.gamma, 0.5)
    for row in range(24):
        t, n = divmod(row, 3)
        assert (batch.obs[row] == rollout.obs[t, n]).all() and (batch.actions[row] == rollout.actions[t, n]).all()
        assert batch.log_probs[row] == rollout.log_probs[t, n] and batch.values[row] == rollout.values[t, n]
        assert batch.advantages[row].item() == pytest.approx(advantages[t, n], rel=1e-6)
        assert batch.returns[row].item() == pytest.approx(advantages[t, n] + rollout.values[t, n], rel=1e-6)
    assert all(column.dtype == torch.float32 for column in batch[2:])


def test_the_first_minibatch_of_every_update_has_ratio_1(monkeypatch):
    """So it must be while statistics of observations move: they may only move between an update and a rollout."""
    ratios, update = [], ppo.update

    def update_and_look(agent, optimizer, batch, args, gradient_fn):
        with torch.no_grad():
            ratios.append((agent(batch.obs)[0].log_prob(batch.actions) - batch.log_probs).exp())
        return update(agent, optimizer, batch, args, gradient_fn)

    monkeypatch.setattr(ppo, "update", update_and_look)
    ppo.train(ppo.Args(TASK, total_timesteps=2560, num_steps=64, num_envs=8, eval_episodes=1))
    assert len(ratios) == 5
    torch.testing.assert_close(torch.stack(ratios), torch.ones(5, 512), rtol=0, atol=1e-5)


def one_update(**flags):
    """Metrics, number of gradient steps, the approx_kl of each minibatch, and the agent, of one update."""
    flags = {"num_steps": 32, "num_envs": 8, "num_minibatches": 8, "update_epochs": 3} | flags
    args, envs, agent, obs = set_up("Match", **flags)
    optimizer, steps, kls = ppo.make_optimizer(agent, replace(args, learning_rate=1e-3)), [], []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))

    def gradient_fn(*args):
        gradient, metrics = ppo.minibatch_gradient(*args)
        kls.append(metrics["approx_kl"].item())
        return gradient, metrics

    batch = ppo.make_batch(agent, ppo.collect(envs, agent, obs, args, 0)[0], args)
    return ppo.update(agent, optimizer, batch, args, gradient_fn), len(steps), kls, optimizer


def test_target_kl_ends_an_update_before_the_step_that_is_past_it():
    _, steps, kls, _ = one_update()
    assert steps == len(kls) == 24  # K epochs of all minibatches
    target = sorted(kls)[16]
    allowed = next(i for i, kl in enumerate(kls) if kl > target)
    metrics, steps, stopped_kls, _ = one_update(target_kl=target)
    assert 1 < steps == allowed < 23 and stopped_kls == kls[: allowed + 1]
    assert metrics["approx_kl"] == pytest.approx(np.mean(stopped_kls), rel=1e-5)


@pytest.mark.parametrize(("desired", "factor"), [(0.4, 1 / 1.5), (0.6, 1), (1.9, 1), (2.1, 1.5)])
def test_desired_kl_moves_the_learning_rate_by_its_factor(desired, factor):
    kl = one_update(desired_kl=0)[0]["approx_kl"]
    metrics, steps, _, optimizer = one_update(desired_kl=desired * kl)
    assert metrics["learning_rate"] == 1e-3 and steps == 24  # what this update was made with
    policy, critic = optimizer.param_groups
    assert policy["lr"] == pytest.approx(1e-3 * factor) and critic["lr"] == 1e-3


def closed_form_kl(old, new):
    """KL[old, new] (B,) by hand, of diagonal Gaussians or categoricals."""
    if hasattr(old, "logits"):
        return (old.probs * (old.probs.log() - new.probs.log())).sum(-1)
    terms = (new.stddev / old.stddev).log() + (old.variance + (old.mean - new.mean) ** 2) / (2 * new.variance) - 0.5
    return terms.flatten(1).sum(-1)


def test_the_penalty_adds_beta_times_the_gradient_of_the_kl_from_the_old_policy():
    args, envs, agent, obs = set_up("Match", num_steps=16)
    batch = ppo.make_batch(agent, ppo.collect(envs, agent, obs, args, 0)[0], args)
    old_agent = copy.deepcopy(agent)
    for p in agent.parameters():
        p.data += 0.1 * torch.randn_like(p)
    plain, _ = ppo.minibatch_gradient(agent, batch, args, 0.2)
    penalised, _ = ppo.minibatch_gradient(agent, batch, args, 0.2, 3.0, old_agent)
    kl = closed_form_kl(old_agent(batch.obs)[0], agent(batch.obs)[0]).mean()
    expected = torch.autograd.grad(kl, list(agent.parameters()), allow_unused=True, materialize_grads=True)
    expected = 3.0 * torch.cat([gradient.flatten() for gradient in expected])
    assert expected.norm() > 0.01
    torch.testing.assert_close(penalised - plain, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("target", "factor"), [(0.6, 2), (0.7, 1), (1.4, 1), (1.6, 0.5)])
def test_beta_doubles_above_1_5_times_the_target_and_halves_below_two_thirds(target, factor):
    """The KL that it goes by is that of the whole batch, of the policy before from the policy after the update."""
    kls, update = [], ppo.update

    def kl_of_update(agent, optimizer, batch, args, gradient_fn):
        with torch.no_grad():
            old = agent(batch.obs)[0]
            ppo_agent = copy.deepcopy(agent)
        metrics = update(agent, optimizer, batch, args, gradient_fn)
        ppo_agent.load_state_dict(agent.state_dict() | ppo_agent.obs_stats.state_dict(prefix="obs_stats."))
        with torch.no_grad():
            kls.append(closed_form_kl(old, ppo_agent(batch.obs)[0]).mean().item())
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "update", kl_of_update)
        one_update(kl_coef=0.5, kl_coef_target=1e9)
        (metrics, _, _, optimizer) = one_update(kl_coef=0.5, kl_coef_target=target * kls[0])
    assert metrics["kl_coef"] == 0.5 and optimizer.param_groups[0]["kl_coef"] == 0.5 * factor


def test_without_a_clip_or_a_penalty_the_ratio_is_free_and_either_holds_it():
    free, clipped, penalised = (
        one_update(update_epochs=20, num_minibatches=2, **flags)[0]["approx_kl"]
        for flags in ({"clip_coef": float("inf")}, {}, {"clip_coef": float("inf"), "kl_coef": 10.0})
    )
    assert max(clipped, penalised) < 0.5 * free


def test_the_optimizer_steps_the_critic_apart_from_all_else():
    """At learning rates 1 and 0 one half of the parameters moves, and the other does not, whatever the gradient."""
    args, _, agent, _ = set_up("Match")
    optimizer = ppo.make_optimizer(agent, args)
    assert [group["lr"] for group in optimizer.param_groups] == [args.learning_rate] * 2
    for moving in (0, 1):
        before = {name: p.detach().clone() for name, p in agent.named_parameters()}
        for i, group in enumerate(optimizer.param_groups):
            group["lr"], group["params"][0].grad = float(i == moving), torch.ones_like(group["params"][0])
        optimizer.step()
        for name, p in agent.named_parameters():
            assert (p != before[name]).all() == (name.startswith("critic.") == bool(moving)), name


def test_each_epoch_sees_each_row_once(monkeypatch):
    args, envs, agent, obs = set_up("Match", num_steps=8, num_envs=4, num_minibatches=4, update_epochs=3)
    seen = []

    def gradient_fn(agent, batch, *rest):
        seen.append(batch.returns.tolist())
        return ppo.minibatch_gradient(agent, batch, *rest)

    batch = ppo.make_batch(agent, ppo.collect(envs, agent, obs, args, 0)[0], args)
    batch = batch._replace(returns=torch.arange(32.0))
    ppo.update(agent, ppo.make_optimizer(agent, args), batch, args, gradient_fn)
    epochs = [[row for rows in seen[i : i + 4] for row in rows] for i in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(32)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(32))


def test_advantages_are_standardised_in_each_minibatch_and_only_with_the_flag():
    args, envs, agent, obs = set_up("Match", num_steps=16)
    batch = ppo.make_batch(agent, ppo.collect(envs, agent, obs, args, 0)[0], args)
    batch = batch._replace(
        advantages=torch.arange(48.0), log_probs=agent(batch.obs)[0].log_prob(batch.actions).detach()
    )
    for norm_adv, scale in ((True, np.std(np.arange(48.0), ddof=1)), (False, 1.0)):
        args = ppo.replace(args, norm_adv=norm_adv)
        vector, _ = ppo.minibatch_gradient(agent, batch, args, args.clip_coef)
        gradient = part_of(vector, agent, agent.actor[-1].weight)
        shift = 23.5 if norm_adv else 0.0
        weights = (torch.arange(48.0) - shift) / scale
        log_probs = agent(batch.obs)[0].log_prob(batch.actions)
        expected = torch.autograd.grad(-(weights * log_probs).mean(), agent.actor[-1].weight)[0]
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_gradients_longer_than_max_grad_norm_are_shortened_to_it_together():
    gradients = {}
    for limit in (1e9, 1e-3):
        metrics, _, _, optimizer = one_update(max_grad_norm=limit, num_minibatches=1, update_epochs=1)
        gradients[limit] = torch.cat([group["params"][0].grad for group in optimizer.param_groups])
        assert metrics["grad_norm"] == pytest.approx(gradients[1e9].norm().item(), rel=1e-5)  # logged as it was before
    assert gradients[1e9].norm() > 0.01
    torch.testing.assert_close(gradients[1e-3], gradients[1e9] * (1e-3 / gradients[1e9].norm()))


def test_explained_variance():
    args, envs, agent, obs = set_up("Match", num_minibatches=1)
    batch = ppo.make_batch(agent, ppo.collect(envs, agent, obs, args, 0)[0], args)
    batch = batch._replace(advantages=batch.returns / 2 + 3)  # off by a constant and half of the variation
    metrics = ppo.update(agent, ppo.make_optimizer(agent, args), batch, args)
    assert metrics["explained_variance"] == pytest.approx(0.75)


def test_the_gradient_is_that_of_the_loss_parameter_by_parameter():
    """Against autograd's accumulation into .grad; the step is then in every parameter of the agent."""
    learned = {"final_std": None} if ppo.__name__ == "ppo_continuous" else {}
    flags = {"num_steps": 16, "clip_vloss": True, "ent_coef": 0.01, "norm_adv": False} | learned
    args, envs, agent, obs = set_up("Match", **flags)
    batch = ppo.make_batch(agent, ppo.collect(envs, agent, obs, args, 0)[0], args)
    batch = batch._replace(log_probs=batch.log_probs + 0.3 * torch.randn(48))
    vector, _ = ppo.minibatch_gradient(agent, batch, args, args.clip_coef)
    policy, values = agent(batch.obs)
    coefs = {"clip_coef": 0.2, "clip_vloss": True, "vf_coef": 0.5, "ent_coef": 0.01}
    ppo.ppo_loss(policy.log_prob(batch.actions), values, policy.entropy(), batch, **coefs)[0].backward()
    for p in agent.parameters():
        torch.testing.assert_close(part_of(vector, agent, p), p.grad, rtol=1e-5, atol=1e-7)
        assert p.grad.abs().max() > 0
    before = [p.detach().clone() for p in agent.parameters()]
    ppo.update(agent, ppo.make_optimizer(agent, args), batch, ppo.replace(args, update_epochs=1))
    assert all((p != old).any() for p, old in zip(agent.parameters(), before))


@torch._dynamo.config.patch(trace_autograd_ops=True)
def test_compiled_gradient_is_the_eager_one():
    args, envs, agent, obs = set_up("Match", num_steps=32, clip_vloss=True, ent_coef=0.01)
    batch = ppo.make_batch(agent, ppo.collect(envs, agent, obs, args, 0)[0], args)
    batch = batch._replace(log_probs=batch.log_probs + 0.3 * torch.randn(96))
    results = []
    for gradient_fn in (ppo.minibatch_gradient, torch.compile(ppo.minibatch_gradient, fullgraph=True)):
        gradient, metrics = gradient_fn(agent, batch, args, args.clip_coef)
        results.append([gradient, *metrics.values()])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_compiled_acting_samples_from_the_policy_as_the_seed_says():
    _, _, agent, obs = set_up("Match")
    obs = torch.as_tensor(obs).repeat(2000, *[1] * (obs.ndim - 1))
    act_fn, policy = torch.compile(ppo.act, fullgraph=True), agent(obs)[0]
    actions, log_probs, values = act_fn(agent, obs)
    torch.testing.assert_close(log_probs, policy.log_prob(actions), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values, agent(obs)[1])
    mean, variance = policy.log_prob(policy.sample((20,))).mean(), policy.log_prob(policy.sample((20,))).var()
    assert abs(log_probs.mean() - mean) < 5 * (variance / len(log_probs)).sqrt() + 1e-4  # -entropy: it did sample
    torch.manual_seed(5)
    first, second = act_fn(agent, obs)[0], act_fn(agent, obs)[0]
    torch.manual_seed(5)
    assert (act_fn(agent, obs)[0] == first).all() and (first != second).any()


def test_without_a_desired_kl_the_learning_rate_is_left_alone():
    args, envs, agent, obs = set_up("Match", num_minibatches=1, desired_kl=0)
    optimizer = ppo.make_optimizer(agent, args)
    ppo.update(agent, optimizer, ppo.make_batch(agent, ppo.collect(envs, agent, obs, args, 0)[0], args), args)
    assert [group["lr"] for group in optimizer.param_groups] == [args.learning_rate] * 2
