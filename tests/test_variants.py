"""variants/: what each adds to ppo_continuous.py, against formulas of its own, and what it shares with it."""

import ast
import copy
import difflib
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "variants"), str(ROOT / "tests")]
penalty, trpo = map(import_module, ("ppo_penalty_continuous", "trpo_continuous"))

# What a variant has of its own, changes and leaves out of the functions and classes; lines that it may add.
TRPO_OWN = "surrogate flat_gradient fisher_vector_product conjugate_gradient policy_step fit_critic"
DECLARED = {
    penalty: ("adapt_kl_coef", "Args Agent compute_gradient update train compiled", "", 40),
    trpo: (TRPO_OWN, "Args collect update train Run check", "ppo_loss compute_gradient compiled", 120),
}
MATCH = {"env_id": "probe_envs:Match-v0", "num_envs": 4, "num_steps": 8, "num_minibatches": 2}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)


@pytest.fixture
def double(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # Agent.forward would go back to float32


@pytest.mark.parametrize("variant", DECLARED)
def test_what_is_shared_is_equal_to_the_byte(variant):
    texts = (ROOT / "ppo_continuous.py").read_text(), Path(variant.__file__).read_text()
    nodes = [(text, node) for text in texts for node in ast.parse(text).body if hasattr(node, "name")]
    ppo, own = ({n.name: ast.get_source_segment(t, n) for t, n in nodes if t == text} for text in texts)
    new, changed, gone, most = DECLARED[variant]
    assert set(own) - set(ppo) == set(new.split()) and set(ppo) - set(own) == set(gone.split())
    assert {name for name in set(ppo) & set(own) if ppo[name] != own[name]} == set(changed.split())
    diff = difflib.unified_diff(*map(str.splitlines, texts), "", "", lineterm="", n=0)
    assert sum(line.startswith("+") for line in list(diff)[2:]) <= most


@pytest.mark.parametrize("variant", DECLARED)
def test_it_trains_as_a_script_alone_in_a_folder(variant, tmp_path):
    script = shutil.copy(variant.__file__, tmp_path)
    flags = "--env-id=Pendulum-v1 --num-envs=2 --num-steps=16 --total-timesteps=96 --eval-episodes=1"
    result = subprocess.run([sys.executable, script, *flags.split()], capture_output=True, text=True)
    assert result.returncode == 0 and "evaluation: 1 episodes" in result.stdout, result.stderr
    assert len([*tmp_path.glob(f"runs/*{variant.__name__}*/checkpoint.pt")]) == 1


@pytest.mark.parametrize("variant", DECLARED)
def test_it_learns_a_probe_and_is_the_same_by_seed(variant):
    args = variant.Args(**MATCH | {"num_steps": 64}, total_timesteps=3072)
    first, second = (variant.train(args) for _ in range(2))
    assert (parameters_to_vector(first.parameters()) == parameters_to_vector(second.parameters())).all()
    policy, _ = first(torch.tensor([[-1.0], [1.0]]))  # the action's sign should be that of the observation
    assert policy.mean[0] < -0.1 and policy.mean[1] > 0.1


def make_penalised(**flags):
    """An agent of 3 actions in float64, an old one near it, and a minibatch that the old one acted in."""
    args = penalty.Args(env_id="probe_envs:Echo-v0", max_grad_norm=float("inf"), norm_adv=False, **flags)
    agent = penalty.Agent(penalty.make_envs(args, 1), args).double()
    old_agent = copy.deepcopy(agent).requires_grad_(False)
    for p in agent.parameters():
        p.data += 0.05 * torch.randn_like(p)
    obs = torch.randn(10_000, 1, 3, dtype=torch.float64)
    actions, log_probs, values = old_agent.act(obs)
    return args, agent, old_agent, penalty.Batch(obs, actions, log_probs, values, obs[:, 0, 0], values + 1)


def mean_kl(old_agent, agent, obs):
    """The mean of KL[old, new] between diagonal Gaussians, by hand."""
    (old, _), (new, _) = old_agent(obs), agent(obs)
    distance = (old.variance + (old.mean - new.mean) ** 2) / new.variance
    return 0.5 * (distance - 1 - (old.variance / new.variance).log()).flatten(1).sum(-1).mean()


def gradients(agent, old_agent, minibatch, args, kl_coef):
    """The gradient of the loss, and kl_coef times that of the KL."""
    agent.kl_coef.fill_(kl_coef)
    penalty.compute_gradient(agent, old_agent, minibatch, args)
    of_loss = parameters_to_vector([p.grad for p in agent.parameters()])
    agent.zero_grad(set_to_none=False)
    (kl_coef * mean_kl(old_agent, agent, minibatch.obs)).backward()
    return of_loss, parameters_to_vector([p.grad for p in agent.parameters()])


@pytest.mark.parametrize("clip_coef", [float("inf"), 0.2])
def test_the_penalty_adds_beta_times_the_gradient_of_the_kl(double, clip_coef):
    args, *problem = make_penalised(clip_coef=clip_coef)
    (plain, _), (penalised, expected) = (gradients(*problem, args, kl_coef) for kl_coef in (0.0, 3.0))
    assert expected.norm() > 0.1
    torch.testing.assert_close(penalised - plain, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("target", "factor"), [(1e-12, 2), (1e3, 0.5), (None, 1)])
def test_beta_is_logged_and_adapted_and_goes_on_in_a_resumed_run(monkeypatch, target, factor):
    logged, update = [], penalty.update

    def checked_update(agent, old_agent, *rest):
        before = parameters_to_vector(agent.parameters()).detach()
        history = update(agent, old_agent, *rest)
        assert (parameters_to_vector(old_agent.parameters()) == before).all()
        logged.append({metrics["kl_coef"].item() for metrics in history})
        return history

    monkeypatch.setattr(penalty, "update", checked_update)
    args = penalty.Args(**MATCH, total_timesteps=96, kl_coef=0.5, kl_coef_target=target)
    assert penalty.train(args).kl_coef == 0.5 * factor**3
    (path,) = Path("runs").glob("*/checkpoint.pt")
    assert penalty.train(replace(args, resume=str(path), total_timesteps=160)).kl_coef == 0.5 * factor**5
    assert logged == [{0.5 * factor**i} for i in range(5)]


@pytest.fixture
def problem(double):
    """A small agent in float64, and a batch that its own policy collected."""
    args = trpo.Args(env_id="Pendulum-v1", num_steps=64, num_minibatches=4, norm_obs=False)
    envs = trpo.make_envs(args, 4)
    agent = trpo.Agent(envs, args)
    agent.actor = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    rollout, _, _ = trpo.collect(envs, agent.double(), envs.reset(seed=1)[0], args)
    batch = trpo.make_batch(rollout, trpo.compute_gae(rollout, args.gamma, args.gae_lambda))
    advantages = (batch.advantages - batch.advantages.mean()) / batch.advantages.std()
    batch = trpo.Batch(*(field.double() for field in batch._replace(advantages=advantages)))
    return agent, batch, args, [*agent.actor.parameters(), agent.log_std]


def test_fisher_vector_product_is_that_of_the_explicit_fisher_matrix(problem):
    """The matrix is the mean of E[∇log π ∇log πᵀ], by quadrature. It is exact: with z = (a - mean) / std, the
    score is a polynomial in z of degree 2, its square of degree 4, and at these three points E[z⁴] = 3."""
    agent, batch, _, parameters = problem
    obs, fisher = batch.obs[::8], 0
    for row in obs:
        for z, weight in ((-(3**0.5), 1 / 6), (0.0, 2 / 3), (3**0.5, 1 / 6)):
            policy, _ = agent(row[None])
            log_prob = policy.log_prob((policy.mean + z * policy.stddev).detach()).sum()
            score = parameters_to_vector(torch.autograd.grad(log_prob, parameters))
            fisher = fisher + weight * torch.outer(score, score) / len(obs)
    kl = mean_kl(copy.deepcopy(agent).requires_grad_(False), agent, obs)
    slope = trpo.flat_gradient(kl, parameters, create_graph=True)
    v = torch.randn(len(fisher), dtype=torch.float64)
    product = trpo.fisher_vector_product(slope, parameters, 0.3, v)
    torch.testing.assert_close(product, fisher @ v + 0.3 * v, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("max_kl", "damping"), [(1e-8, 0.1), (1e-4, 0.1), (0.01, 1e-3), (0.3, 1e-3)])
def test_an_accepted_step_gains_and_stays_in_the_trust_region(problem, max_kl, damping):
    agent, batch, args, parameters = problem
    old_agent, start = copy.deepcopy(agent), parameters_to_vector(parameters).detach()
    before = trpo.surrogate(agent(batch.obs)[0], batch)
    g = trpo.flat_gradient(before, parameters)
    metrics = trpo.policy_step(agent, batch, replace(args, max_kl=max_kl, damping=damping))
    kl = mean_kl(old_agent, agent, batch.obs).item()
    assert metrics["approx_kl"].item() == pytest.approx(kl) and 0.1 * max_kl < kl <= max_kl
    assert (metrics["backtracks"] > 0) == (damping < 0.1)  # the first step is too long with little damping
    gain = (trpo.surrogate(agent(batch.obs)[0], batch) - before).item()
    assert metrics["surrogate_gain"].item() == pytest.approx(gain) and gain > 0 and abs(before) < 1e-6
    promise = g @ (parameters_to_vector(parameters) - start)  # kept by small steps
    assert max_kl > 1e-6 or gain == pytest.approx(promise.item(), rel=1e-2)


def test_trpo_says_that_it_works_in_one_process(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(trpo.UserError, match="torchrun"):
        trpo.train(trpo.Args(**MATCH))
