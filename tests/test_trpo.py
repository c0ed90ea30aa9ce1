"""benchmarks/trpo_continuous.py: its linear algebra against dense matrices in float64, and what it shares with PPO."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import trpo_continuous as trpo

DIFFERENT = {"Args", "train", "update", "check", "main"}
ONLY_IN_TRPO = {"surrogate", "flat_gradient", "fisher_vector_product", "conjugate_gradient", "policy_step"}
ONLY_IN_PPO = {"ppo_loss", "minibatch_gradient", "make_optimizer", "prepare", "gather", "average"}


@pytest.fixture
def problem(monkeypatch):
    """A small agent in float64, and a batch that its own policy collected."""
    monkeypatch.setenv("PROBE_ACTIONS", "Box")
    args = trpo.Args(env_id="Pendulum-v1", num_envs=4, num_steps=64, num_minibatches=4, damping=0.0, norm_obs=False)
    torch.manual_seed(3)
    envs = trpo.make_envs(args)
    agent = trpo.Agent(envs, args)
    agent.actor = trpo.mlp([3, 5, 1], out_gain=0.5)
    agent.double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # forward would go back to float32
    obs, _ = envs.reset(seed=[1, 2, 3, 4])
    rollout, _, _ = trpo.collect(envs, agent, obs, args, 0)
    batch = trpo.make_batch(agent, rollout, args)
    batch = batch._replace(advantages=(batch.advantages - batch.advantages.mean()) / batch.advantages.std())
    return agent, trpo.Batch(*(column.double() for column in batch)), args


def dense_fisher(agent, batch, parameters):
    """The mean outer product of the score at actions drawn by quadrature: E[∇log π ∇log πᵀ], exact for a Gaussian."""
    points, weights = torch.tensor([[-(3**0.5), 0.0, 3**0.5], [1 / 6, 2 / 3, 1 / 6]], dtype=torch.float64)
    fisher = 0
    for row in batch.obs[::8]:
        for point, weight in zip(points, weights):
            policy, _ = agent(row[None])
            action = policy.mean.detach() + point * policy.stddev.detach()
            score = trpo.flat_gradient(policy.log_prob(action).sum(), parameters)
            fisher = fisher + weight * torch.outer(score, score)
    return fisher / len(batch.obs[::8])


def kl_gradient_of(agent, obs, parameters):
    policy, _ = agent(obs)
    with torch.no_grad():
        old_policy, _ = agent(obs)
    return trpo.flat_gradient(trpo.kl_divergence(old_policy, policy).mean(), parameters, create_graph=True)


def test_fisher_vector_product_is_that_of_the_explicit_fisher_matrix(problem):
    agent, batch, _ = problem
    parameters = [*agent.actor.parameters(), agent.log_std]
    gradient = kl_gradient_of(agent, batch.obs[::8], parameters)
    assert gradient.abs().max() < 1e-12  # the KL is at its minimum
    # Per dimension z = (a - mean) / std, the score is linear and quadratic in z, its square of degree 4: E[z⁴] = 3, as
    # with these three points.
    expected = dense_fisher(agent, batch, parameters)
    for seed in range(3):
        v = torch.randn(len(expected), generator=torch.Generator().manual_seed(seed)).double()
        for damping in (0.0, 0.3):
            product = trpo.fisher_vector_product(gradient, parameters, damping, v)
            torch.testing.assert_close(product, expected @ v + damping * v, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [1, 5, 20])
def test_conjugate_gradient_solves_as_a_dense_solver_does(n):
    root = torch.randn(n, n, generator=torch.Generator().manual_seed(n)).double()
    matrix, b = root @ root.T + 0.1 * torch.eye(n).double(), torch.arange(1.0, n + 1).double()
    x = trpo.conjugate_gradient(lambda v: matrix @ v, b, iterations=4 * n)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b), rtol=1e-5, atol=1e-5)
    assert (trpo.conjugate_gradient(lambda v: matrix @ v, torch.zeros_like(b), 5) == 0).all()


@pytest.mark.parametrize("max_kl", [1e-4, 0.01, 0.3])
def test_an_accepted_step_gains_and_stays_in_the_trust_region(problem, max_kl):
    agent, batch, args = problem
    old_policy, _ = agent(batch.obs)
    before = trpo.surrogate(old_policy, batch).item()
    metrics = trpo.policy_step(agent, batch, trpo.replace(args, max_kl=max_kl, damping=0.1))
    policy, _ = agent(batch.obs)
    kl = trpo.kl_divergence(old_policy, policy).mean().item()
    assert metrics["approx_kl"] == pytest.approx(kl) and 0.1 * max_kl < kl <= max_kl
    assert (
        metrics["surrogate_gain"] == pytest.approx(trpo.surrogate(policy, batch).item() - before) and abs(before) < 1e-6
    )
    assert metrics["surrogate_gain"] > 0 and metrics["backtracks"] < 10


def test_small_steps_gain_what_the_gradient_promises(problem):
    agent, batch, args = problem
    parameters = [*agent.actor.parameters(), agent.log_std]
    start = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
    g = trpo.flat_gradient(trpo.surrogate(agent(batch.obs)[0], batch), parameters)
    metrics = trpo.policy_step(agent, batch, trpo.replace(args, max_kl=1e-8, damping=0.1))
    step = torch.nn.utils.parameters_to_vector(parameters).detach() - start
    assert metrics["surrogate_gain"] == pytest.approx((g @ step).item(), rel=1e-2)


def test_a_rejected_step_leaves_the_policy_to_the_bit(problem, monkeypatch):
    agent, batch, args = problem
    before = [p.detach().clone() for p in agent.parameters()]
    true = trpo.surrogate
    calls = []

    def falling(policy, batch):
        calls.append(1)
        return true(policy, batch) - len(calls)

    monkeypatch.setattr(trpo, "surrogate", falling)
    metrics = trpo.policy_step(agent, batch, args)
    assert len(calls) == 11 and metrics["backtracks"] == 10
    assert metrics["surrogate_gain"] == 0 and all((p == q).all() for p, q in zip(agent.parameters(), before))


def test_it_learns_a_probe_and_is_the_same_by_seed(monkeypatch):
    monkeypatch.setenv("PROBE_ACTIONS", "Box")
    flags = {"env_id": "probe_envs:Match-v0", "num_envs": 4, "num_steps": 64, "total_timesteps": 5120}
    flags |= {"num_minibatches": 4, "eval_episodes": 4}
    first, second = (trpo.train(trpo.Args(**flags)) for _ in range(2))
    assert all((p == q).all() for p, q in zip(first.parameters(), second.parameters()))
    args = trpo.Args(**flags | {"eval_episodes": 200}, eval_greedy=False)
    assert trpo.evaluate(first, args, Path()).mean() > trpo.evaluate(fresh(args), args, Path()).mean() + 0.1


def fresh(args):
    torch.manual_seed(args.seed)
    return trpo.Agent(trpo.make_envs(args), args)


def test_what_is_shared_with_ppo_is_equal_to_the_byte():
    sources = []
    for path in (ROOT / "ppo_continuous.py", Path(trpo.__file__)):
        text = path.read_text()
        nodes = [node for node in ast.parse(text).body if hasattr(node, "name")]
        sources.append({node.name: ast.get_source_segment(text, node) for node in nodes})
    ppo, own = sources
    assert set(ppo) - set(own) == ONLY_IN_PPO and set(own) - set(ppo) == ONLY_IN_TRPO
    assert {name for name in set(ppo) & set(own) if ppo[name] != own[name]} == DIFFERENT
