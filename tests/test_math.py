"""The formulas against oracles that share no code with them: written-out sums, case analyses, finite differences."""

import math

import numpy as np
import pytest
import torch
from conftest import gae
from torch.distributions import Normal, kl_divergence

import ppo_continuous as ppo

# ---- compute_gae -----------------------------------------------------------------------------------------------------


def random_rollout(rng, T, N, p_end, dtype=np.float64):
    rewards, values, next_values = (rng.normal(size=(T, N)).astype(dtype) for _ in range(3))
    terminated, truncated = rng.random((T, N)) < p_end, rng.random((T, N)) < p_end  # sometimes both
    return rewards, values, next_values, terminated, terminated | truncated


def gae_as_a_sum(rewards, values, next_values, terminated, done, gamma, lam):
    """Σ_l (γλ)^l δ_{t+l} up to the end of the episode or rollout, one term after the other (GAE paper, eq. 16)."""
    T, N = rewards.shape
    out = np.zeros((T, N))
    for n in range(N):
        for t in range(T):
            for step in range(t, T):
                bootstrap = 0.0 if terminated[step, n] else gamma * float(next_values[step, n])
                delta = float(rewards[step, n]) + bootstrap - float(values[step, n])
                out[t, n] += (gamma * lam) ** (step - t) * delta
                if done[step, n]:
                    break
    return out


@pytest.mark.parametrize("gamma, lam", [(0.99, 0.95), (0.9, 0.0), (0.9, 1.0), (1.0, 1.0), (0.0, 0.5)])
@pytest.mark.parametrize("p_end", [0.0, 0.1, 0.6, 1.0])
def test_gae_is_the_written_out_sum(gamma, lam, p_end):
    rollout = random_rollout(np.random.default_rng(0), 23, 5, p_end)
    got = gae(ppo, *rollout, gamma, lam)
    np.testing.assert_allclose(got, gae_as_a_sum(*rollout, gamma, lam), rtol=1e-12, atol=1e-12)


def test_gae_by_hand():
    """Four one-environment cases with γ = λ = 1/2, V = 4 now and V = 8 afterwards, r = 1."""
    cases = {(False, False): 1 + 4 - 4, (True, True): 1 - 4, (False, True): 1 + 4 - 4}
    for (terminated, done), delta in cases.items():
        one = np.array([[1.0], [1.0]])
        flags = np.array([[terminated], [False]]), np.array([[done], [False]])
        advantages = gae(ppo, one, 4 * one, 8 * one, *flags, 0.5, 0.5)
        assert advantages[1, 0] == 1  # the rollout's end bootstraps
        assert advantages[0, 0] == delta + (0 if done else 0.25 * 1)


def test_gae_with_lambda_1_is_the_discounted_return_and_with_lambda_0_the_td_error():
    rng = np.random.default_rng(1)
    rewards, values, _, _, _ = random_rollout(rng, 7, 3, 0)
    last, never = rng.normal(size=(1, 3)), np.zeros((7, 3), dtype=bool)
    next_values = np.concatenate([values[1:], last])
    returns = [sum(0.9**k * rewards[t + k] for k in range(7 - t)) + 0.9 ** (7 - t) * last[0] for t in range(7)]
    got = gae(ppo, rewards, values, next_values, never, never, 0.9, 1.0)
    np.testing.assert_allclose(got, np.array(returns) - values, rtol=1e-12)
    got = gae(ppo, rewards, values, next_values, never, never, 0.9, 0.0)
    np.testing.assert_allclose(got, rewards + 0.9 * next_values - values, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gae_keeps_the_dtype_and_its_inputs(dtype):
    rollout = random_rollout(np.random.default_rng(2), 9, 2, 0.2, dtype)
    before = [array.copy() for array in rollout]
    assert gae(ppo, *rollout, 0.99, 0.95).dtype == dtype
    for array, copy in zip(rollout, before):
        np.testing.assert_array_equal(array, copy)


# ---- ppo_loss --------------------------------------------------------------------------------------------------------

COEFS = {"clip_coef": 0.2, "clip_vloss": False, "vf_coef": 0.5, "ent_coef": 0.01}


def random_batch(size=200, seed=0):
    """A float64 batch with ratios well inside, well outside and on both sides of the clip, and new values nearby."""
    g = torch.Generator().manual_seed(seed)
    old, old_values, advantages, returns = (torch.randn(size, generator=g, dtype=torch.float64) for _ in range(4))
    new = old + torch.randn(size, generator=g, dtype=torch.float64) * 0.4
    values = old_values + torch.randn(size, generator=g, dtype=torch.float64) * 0.4
    entropy = torch.rand(size, generator=g, dtype=torch.float64)
    nothing = torch.zeros(size)
    return new, values, entropy, ppo.Batch(nothing, nothing, old, old_values, advantages, returns)


def loss_by_cases(new, values, entropy, batch, clip_coef, clip_vloss, vf_coef, ent_coef):
    """The loss, a sample at a time, from what the clips are meant to do; returns the three parts and the loss."""
    policy, value = [], []
    rows = [new, values, batch.log_probs, batch.values, batch.advantages, batch.returns]
    for log_prob, v, old_log_prob, v_old, a, ret in zip(*(row.tolist() for row in rows)):
        r = math.exp(log_prob - old_log_prob)
        if a >= 0:
            policy.append(a * (1 + clip_coef if r > 1 + clip_coef else r))
        else:
            policy.append(a * (1 - clip_coef if r < 1 - clip_coef else r))
        error = (v - ret) ** 2
        if clip_vloss:
            near = v_old + clip_coef if v > v_old + clip_coef else v_old - clip_coef if v < v_old - clip_coef else v
            error = max(error, (near - ret) ** 2)
        value.append(error / 2)
    parts = sum(policy) / len(policy), sum(value) / len(value), sum(entropy.tolist()) / len(policy)
    return *parts, -parts[0] + vf_coef * parts[1] - ent_coef * parts[2]


@pytest.mark.parametrize("clip_vloss", [False, True])
@pytest.mark.parametrize("clip_coef", [0.05, 0.2, 0.7, math.inf])
def test_loss_is_the_case_analysis(clip_coef, clip_vloss):
    new, values, entropy, batch = random_batch()
    coefs = COEFS | {"clip_coef": clip_coef, "clip_vloss": clip_vloss}
    loss, metrics = ppo.ppo_loss(new, values, entropy, batch, **coefs)
    objective, value_loss, mean_entropy, expected = loss_by_cases(new, values, entropy, batch, **coefs)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert metrics["policy_loss"].item() == pytest.approx(-objective, rel=1e-12)
    assert metrics["value_loss"].item() == pytest.approx(value_loss, rel=1e-12)
    assert metrics["entropy"].item() == pytest.approx(mean_entropy, rel=1e-12)
    outside = [abs(math.exp(x) - 1) > clip_coef for x in (new - batch.log_probs).tolist()]
    assert metrics["clip_fraction"].item() == pytest.approx(sum(outside) / len(outside))
    assert not any(metric.requires_grad for metric in metrics.values())


@pytest.mark.parametrize("clip_vloss", [False, True])
def test_gradient_is_that_of_finite_differences_and_zero_where_the_clip_says(clip_vloss):
    new, values, entropy, batch = random_batch()
    inputs = [x.requires_grad_() for x in (new, values, entropy)]
    coefs = COEFS | {"clip_vloss": clip_vloss}
    loss, _ = ppo.ppo_loss(*inputs, batch, **coefs)
    gradients = torch.autograd.grad(loss, inputs)
    for which, gradient in enumerate(gradients):
        for i in range(0, len(new), 7):
            ends = []
            for h in (1e-6, -1e-6):
                moved = [x.detach().clone() for x in inputs]
                moved[which][i] += h
                ends.append(loss_by_cases(*moved, batch, **coefs)[-1])
            assert gradient[i].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-8)
    ratio = (new - batch.log_probs).exp()
    stopped = ((batch.advantages > 0) & (ratio > 1.2)) | ((batch.advantages < 0) & (ratio < 0.8))
    assert 20 < stopped.sum() < len(new) - 20  # both kinds are there
    assert (gradients[0][stopped] == 0).all() and (gradients[0][~stopped] != 0).all()


def test_at_the_old_policy_the_gradient_is_that_of_the_policy_gradient():
    _, values, entropy, batch = random_batch()
    new = batch.log_probs.clone().requires_grad_()
    loss, metrics = ppo.ppo_loss(new, values, entropy, batch, **COEFS)
    (gradient,) = torch.autograd.grad(loss, new)
    torch.testing.assert_close(gradient, -batch.advantages / len(new))
    assert metrics["approx_kl"] == 0 and metrics["clip_fraction"] == 0


def test_clipped_values_stop_learning_only_where_the_clip_makes_the_error_larger():
    """V_old = 0, ε = 0.2: 1 towards a return of 2 has gone too far (stop); 1 away from a return of -2 comes back."""
    zero, one = torch.zeros(2), torch.ones(2, requires_grad=True)
    batch = ppo.Batch(zero, zero, zero, zero, zero, torch.tensor([2.0, -2.0]))
    coefs = COEFS | {"clip_vloss": True, "vf_coef": 1.0}
    loss, metrics = ppo.ppo_loss(zero, one, zero, batch, **coefs)
    assert metrics["value_loss"].item() == pytest.approx((1.8**2 + 3**2) / 4)
    (gradient,) = torch.autograd.grad(loss, one)
    assert gradient.tolist() == pytest.approx([0, 1.5])


def test_approx_kl_estimates_the_divergence_from_the_old_policy():
    old, new = Normal(torch.tensor(0.0).double(), 1.0), Normal(torch.tensor(0.15).double(), 1.1)
    torch.manual_seed(0)
    actions, zero = old.sample((1_000_000,)), torch.zeros(1_000_000).double()
    batch = ppo.Batch(zero, zero, old.log_prob(actions), zero, zero, zero)
    _, metrics = ppo.ppo_loss(new.log_prob(actions), zero, zero, batch, **COEFS)
    assert metrics["approx_kl"].item() == pytest.approx(kl_divergence(old, new).item(), rel=0.01)
    assert metrics["approx_kl"].item() != pytest.approx(kl_divergence(new, old).item(), rel=0.05)  # not the reverse


def test_approx_kl_is_r_minus_1_minus_log_r():
    new, values, entropy, batch = random_batch()
    ratios = [math.exp(x) for x in (new - batch.log_probs).tolist()]
    _, metrics = ppo.ppo_loss(new, values, entropy, batch, **COEFS)
    expected = sum(r - 1 - math.log(r) for r in ratios) / len(ratios)
    assert metrics["approx_kl"].item() == pytest.approx(expected, rel=1e-9)


# ---- RunningMeanStd, mlp, env_seeds ---------------------------------------------------------------------------


def test_running_moments_are_numpys_over_all_rows():
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


def test_layers_start_orthogonal_times_gain_and_make_the_function_they_name():
    network = ppo.mlp([17, 64, 32, 6], out_gain=0.3)
    layers, gains = network[::2], (math.sqrt(2), math.sqrt(2), 0.3)
    for layer, gain, shape in zip(layers, gains, ((64, 17), (32, 64), (6, 32)), strict=True):
        assert layer.weight.shape == shape and (layer.bias == 0).all()
        torch.testing.assert_close(torch.linalg.svdvals(layer.weight), torch.full((min(shape),), gain))
    x = torch.randn(5, 17)
    hidden = (x @ layers[0].weight.T).tanh()
    torch.testing.assert_close(network(x), (hidden @ layers[1].weight.T).tanh() @ layers[2].weight.T)


def test_environment_seeds_never_meet():
    """Seeds s, s + 1, ... for the environments of run s would be shared with run s + 1 but for one."""
    seeds = [seed for s in range(1, 30) for step in (-1, 0, 2048, 4096) for seed in ppo.env_seeds(s, step, 16)]
    assert len(set(seeds)) == len(seeds)
    assert all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in seeds)
