"""The formulas against oracles of other make: sums, cases, finite differences, another library."""

import math
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import small, train
from torch.distributions import Normal, kl_divergence

import ppo_continuous as ppo

# ---- compute_gae ----------------------------------------------------------------------------------


def random_rollout(p_end, T=23, N=5):
    """A rollout that has what compute_gae reads, and the values of the next states."""
    rng = np.random.default_rng(0)
    rewards, values, next_values = torch.as_tensor(rng.normal(size=(3, T, N)))
    terminated, truncated = torch.as_tensor(rng.random((2, T, N)) < p_end)  # sometimes both
    columns = {"rewards": rewards, "values": values, "terminated": terminated, "truncated": truncated}
    return ppo.Rollout(**dict.fromkeys(ppo.Rollout._fields) | columns), next_values


def gae_as_a_sum(rollout, next_values, gamma, lam):
    """Σ_l (γλ)^l δ_{t+l} up to the end of the episode or rollout (GAE paper, eq. 16)."""
    columns = rollout.rewards, rollout.values, next_values, rollout.terminated, rollout.truncated
    rewards, values, next_values, terminated, truncated = (column.numpy() for column in columns)
    out = np.zeros_like(rewards)
    for t, n in np.ndindex(out.shape):
        for step in range(t, len(out)):
            bootstrap = 0.0 if terminated[step, n] else gamma * next_values[step, n]
            out[t, n] += (gamma * lam) ** (step - t) * (rewards[step, n] + bootstrap - values[step, n])
            if terminated[step, n] or truncated[step, n]:
                break
    return out


@pytest.mark.parametrize("gamma, lam", [(0.99, 0.95), (0.9, 0.0), (0.9, 1.0), (1.0, 1.0), (0.0, 0.5)])
@pytest.mark.parametrize("p_end", [0.0, 0.1, 0.6, 1.0])
def test_gae_is_the_written_out_sum(gamma, lam, p_end):
    rollout, next_values = random_rollout(p_end)
    expected = gae_as_a_sum(rollout, next_values, gamma, lam)
    advantages = ppo.compute_gae(rollout, next_values, ppo.Args(gamma=gamma, gae_lambda=lam))
    np.testing.assert_allclose(advantages, expected, atol=1e-12)
    np.testing.assert_array_equal(gae_as_a_sum(rollout, next_values, gamma, lam), expected)  # not modified


# ---- ppo_loss -------------------------------------------------------------------------------------

COEFS = {"clip_coef": 0.2, "clip_vloss": False, "vf_coef": 0.5, "ent_coef": 0.01}


def loss_of(new, values, entropy, batch, **coefs):
    """ppo_loss for a policy whose log-probabilities and entropies are given."""
    args = ppo.Args(norm_adv=False, **coefs)
    policy = SimpleNamespace(log_prob=lambda actions: new, entropy=lambda: entropy)
    return ppo.ppo_loss(policy, values, batch, args.clip_coef, args)


def random_batch():
    """A float64 batch with ratios inside, outside and on both sides of the clip, and new values nearby."""
    draws = torch.randn(7, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    old, old_values, advantages, returns, *steps, entropy = draws
    new, values, nothing = old + 0.4 * steps[0], old_values + 0.4 * steps[1], torch.zeros(200)
    return new, values, entropy.abs(), ppo.Batch(nothing, nothing, old, old_values, advantages, returns)


def loss_by_cases(new, values, entropy, batch, clip_coef, clip_vloss, vf_coef, ent_coef):
    """The loss, a sample at a time, from what the clips are meant to do; the three parts and the loss."""
    policy, value = [], []
    rows = [new, values, batch.old_log_probs, batch.old_values, batch.advantages, batch.returns]
    for log_prob, v, old_log_prob, v_old, a, ret in zip(*(row.tolist() for row in rows)):
        r = math.exp(log_prob - old_log_prob)
        policy.append(a * (min(r, 1 + clip_coef) if a >= 0 else max(r, 1 - clip_coef)))
        error = (v - ret) ** 2
        if clip_vloss:
            error = max(error, (min(max(v, v_old - clip_coef), v_old + clip_coef) - ret) ** 2)
        value.append(error / 2)
    parts = sum(policy) / len(policy), sum(value) / len(value), sum(entropy.tolist()) / len(policy)
    return *parts, -parts[0] + vf_coef * parts[1] - ent_coef * parts[2]


@pytest.mark.parametrize("clip_vloss", [False, True])
@pytest.mark.parametrize("clip_coef", [0.05, 0.2, 0.7, math.inf])
def test_loss_is_the_case_analysis(clip_coef, clip_vloss):
    new, values, entropy, batch = random_batch()
    coefs = COEFS | {"clip_coef": clip_coef, "clip_vloss": clip_vloss}
    loss, metrics = loss_of(new, values, entropy, batch, **coefs)
    objective, value_loss, mean_entropy, expected = loss_by_cases(new, values, entropy, batch, **coefs)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    ratios = [math.exp(x) for x in (new - batch.old_log_probs).tolist()]
    expected = {
        "policy_loss": -objective,
        "value_loss": value_loss,
        "entropy": mean_entropy,
        "approx_kl": np.mean([r - 1 - math.log(r) for r in ratios]),
        "clipfrac": np.mean([abs(r - 1) > clip_coef for r in ratios]),
    }
    assert {name: metric.item() for name, metric in metrics.items()} == pytest.approx(expected, rel=1e-6)
    assert not any(metric.requires_grad for metric in metrics.values())


@pytest.mark.parametrize("clip_vloss", [False, True])
def test_gradient_is_that_of_finite_differences_and_zero_where_the_clip_says(clip_vloss):
    new, values, entropy, batch = random_batch()
    inputs = [x.requires_grad_() for x in (new, values, entropy)]
    coefs = COEFS | {"clip_vloss": clip_vloss}
    loss, _ = loss_of(*inputs, batch, **coefs)
    gradients = torch.autograd.grad(loss, inputs)
    for which, gradient in enumerate(gradients):
        for i in range(0, len(new), 7):
            ends = []
            for h in (1e-6, -1e-6):
                moved = [x.detach().clone() for x in inputs]
                moved[which][i] += h
                ends.append(loss_by_cases(*moved, batch, **coefs)[-1])
            assert gradient[i].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-8)
    ratio = (new - batch.old_log_probs).exp()
    stopped = ((batch.advantages > 0) & (ratio > 1.2)) | ((batch.advantages < 0) & (ratio < 0.8))
    assert 20 < stopped.sum() < len(new) - 20  # both kinds are there
    assert (gradients[0][stopped] == 0).all() and (gradients[0][~stopped] != 0).all()


def test_approx_kl_estimates_the_divergence_from_the_old_policy():
    old, new = Normal(torch.tensor(0.0).double(), 1.0), Normal(torch.tensor(0.15).double(), 1.1)
    torch.manual_seed(0)
    actions, zero = old.sample((1_000_000,)), torch.zeros(1_000_000).double()
    batch = ppo.Batch(zero, zero, old.log_prob(actions), zero, zero, zero)
    _, metrics = loss_of(new.log_prob(actions), zero, zero, batch, **COEFS)
    assert metrics["approx_kl"].item() == pytest.approx(kl_divergence(old, new).item(), rel=0.01)
    reverse = kl_divergence(new, old).item()
    assert metrics["approx_kl"].item() != pytest.approx(reverse, rel=0.05)


# ---- the gradient of a batch, beside stable-baselines3's ------------------------------------------


@pytest.mark.parametrize("norm_adv", [False, True])
@pytest.mark.parametrize("ent_coef", [0.0, 0.01])
def test_the_gradient_of_a_batch_is_stable_baselines3s(norm_adv, ent_coef):
    """Same weights, same batch; its value loss has no ½, so that its vf_coef is half of ours."""
    sb3 = pytest.importorskip("stable_baselines3")
    args = ppo.Args("Pendulum-v1", num_envs=4, num_steps=16, norm_obs=False, norm_reward=False,
                    norm_adv=norm_adv, ent_coef=ent_coef, max_grad_norm=1e9)  # fmt: skip
    torch.manual_seed(0)
    envs = ppo.make_envs(args, 4)
    agent = ppo.Agent(envs, args)
    rollout = ppo.collect(envs, agent, torch.as_tensor(envs.reset(seed=0)[0]), args)
    batch = ppo.make_batch(agent, rollout, args)
    batch = batch._replace(old_log_probs=batch.old_log_probs + 0.3 * torch.randn(64))

    model = sb3.PPO("MlpPolicy", gym.make("Pendulum-v1"), n_steps=64, batch_size=64, n_epochs=1, vf_coef=0.25,
                    ent_coef=ent_coef, normalize_advantage=norm_adv, max_grad_norm=1e9)  # fmt: skip
    theirs, extractor = model.policy, model.policy.mlp_extractor
    their_layers = [*extractor.policy_net, theirs.action_net, *extractor.value_net, theirs.value_net]
    their_parameters = [p for layer in their_layers for p in layer.parameters()] + [theirs.log_std]
    parameters = [*agent.actor.parameters(), *agent.critic.parameters(), agent.log_std]
    for their_parameter, parameter in zip(their_parameters, parameters, strict=True):
        their_parameter.data.copy_(parameter.data)
    buffer = model.rollout_buffer
    buffer.reset()
    data = {"observations": agent.preprocess(batch.obs), "actions": batch.actions, "values": batch.old_values}
    data |= {"log_probs": batch.old_log_probs, "advantages": batch.advantages, "returns": batch.returns}
    for name, column in data.items():
        getattr(buffer, name)[:] = column.reshape(getattr(buffer, name).shape).numpy()
    buffer.full = True
    model.set_logger(sb3.common.logger.configure(None, []))
    model._setup_learn(64)
    theirs.optimizer.step = lambda: None  # keep the gradient
    model.train()

    loss, _ = ppo.ppo_loss(*agent(batch.obs), batch, args.clip_coef, args)
    loss.backward()
    for their_parameter, parameter in zip(their_parameters, parameters):
        assert their_parameter.grad.abs().max() > 1e-4
        torch.testing.assert_close(parameter.grad, their_parameter.grad, rtol=1e-5, atol=1e-5)


# ---- RunningMeanStd, RewardScaler, mlp ------------------------------------------------------------


def test_running_moments_are_numpys_over_all_samples():
    rng = np.random.default_rng(0)
    chunks = [rng.normal(1e4, 3, (n, 4)) * [1, 10, 0.01, 0] for n in (1, 17, 256, 3)]
    stats = ppo.RunningMeanStd((4,))
    for i, chunk in enumerate(chunks):
        stats.update(torch.as_tensor(chunk))
        rows = np.concatenate(chunks[: i + 1])
        np.testing.assert_allclose(stats.mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(stats.var, rows.var(0), rtol=1e-8, atol=1e-12)
    assert stats.count == 277 and stats.mean.dtype == stats.var.dtype == torch.float64
    assert set(stats.state_dict()) == {"mean", "var", "count"}


def test_rewards_are_divided_by_the_std_of_the_discounted_sum_over_all_rollouts_so_far():
    rng = np.random.default_rng(0)
    rewards, done = rng.normal(2, 5, (30, 3)).astype(np.float32), rng.random((30, 3)) < 0.1
    sums, total = [], np.zeros(3)
    for reward, end in zip(rewards, done):
        sums.append(0.9 * total + reward)
        total = sums[-1] * ~end
    scaler = ppo.RewardScaler(ppo.Args(gamma=0.9))
    for start, end in ((0, 10), (10, 11), (11, 30)):  # an episode may span several rollouts
        part = slice(start, end)
        got = scaler(torch.tensor(rewards[part]), torch.tensor(done[part]))
        np.testing.assert_allclose(got, rewards[part] / np.std(sums[:end]), rtol=1e-5)


def test_layers_start_orthogonal_times_gain_and_make_the_function_they_name():
    network = ppo.mlp(17, 6, out_gain=0.3)
    gains, shapes = (2**0.5, 2**0.5, 0.3), ((64, 17), (64, 64), (6, 64))
    for layer, gain, shape in zip(network[::2], gains, shapes, strict=True):
        assert layer.weight.shape == shape and (layer.bias == 0).all()
        singular_values = torch.linalg.svdvals(layer.weight)
        torch.testing.assert_close(singular_values, torch.full_like(singular_values, gain))
    x = torch.randn(5, 17)
    hidden = (x @ network[0].weight.T).tanh()
    torch.testing.assert_close(network(x), (hidden @ network[2].weight.T).tanh() @ network[4].weight.T)


def test_the_seeds_of_environments_never_meet(record):
    """Seeds s, s + 1, ... for the environments of run s would be shared with run s + 1 but for one."""
    resets = record(ppo.RecordEpisodeStatistics, "reset")
    for seed in range(1, 12):
        train(ppo, small(ppo, seed=seed, total_timesteps=64))
    seen = [seed for call in resets for seed in call.kwargs["seed"]]
    assert len(set(seen)) == len(seen) == 44 and all(0 <= seed < 2**31 for seed in seen)
