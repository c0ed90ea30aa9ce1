"""variants/: what each adds to its script, against formulas of its own, and what it shares with it."""

import copy
import difflib
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import ROOT, checkpoint, start, train
from test_scripts import definitions
from test_training import scalars
from torch import nn
from torch.nn.utils import parameters_to_vector

NAMES = "ppo_penalty_continuous trpo_continuous ppo_fast_continuous ppo_masks_discrete ppo_lstm_discrete"
NAMES += " ppo_pixels_discrete ppo_torchrun_atari"
penalty, trpo, fast, masks, lstm, pixels, torchrun = map(import_module, NAMES.split())

# A variant's script; what it has of its own, changes and leaves out; lines that it may add.
TRPO_OWN = "surrogate flat_gradient fisher_vector_product conjugate_gradient policy_step fit_critic"
FAST_OWN = "Pool numpy_actor PolicyAndValues flatten_parameters compile_gradient"
DECLARED = {
    fast: ("ppo_continuous", FAST_OWN, "Args collect update train save_checkpoint", "", 160),
    penalty: ("ppo_continuous", "adapt_kl_coef", "Args Agent update train", "", 40),
    masks: ("ppo_discrete", "MaskedEnv", "Args QuietEnv make_envs Agent", "flatten", 60),
    lstm: ("ppo_discrete", "with_memory", "Args Agent collect update train evaluate", "", 90),
    pixels: ("ppo_discrete", "ImageEnv", "Args make_envs Agent collect train", "flatten mlp", 60),
    trpo: ("ppo_continuous", TRPO_OWN, "Args update train", "ppo_loss", 120),
    torchrun: ("ppo_atari", "", "update train log main", "", 40),
}
MATCH = {"env_id": "probe_envs:Match-v0", "num_envs": 4, "num_steps": 8, "num_minibatches": 2}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(3)


@pytest.fixture
def double(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # of preprocess, too


@pytest.mark.parametrize("variant", DECLARED)
def test_what_is_shared_is_equal_to_the_byte(variant):
    script, new, changed, gone, most = DECLARED[variant]
    paths = ROOT / f"{script}.py", Path(variant.__file__)
    ppo, own = map(definitions, paths)
    assert set(own) - set(ppo) == set(new.split()) and set(ppo) - set(own) == set(gone.split())
    assert {name for name in set(ppo) & set(own) if ppo[name] != own[name]} == set(changed.split())
    lines = [path.read_text().splitlines() for path in paths]
    diff = difflib.unified_diff(*lines, "", "", lineterm="", n=0)
    assert sum(line.startswith("+") for line in list(diff)[2:]) <= most


@pytest.mark.parametrize("variant", [penalty, trpo])
def test_it_trains_as_a_script_alone_in_a_folder(variant, tmp_path):
    script = shutil.copy(variant.__file__, tmp_path)
    flags = "--env-id=Pendulum-v1 --num-envs=2 --num-steps=16 --total-timesteps=96 --eval-episodes=1"
    process = start(script, *flags.split(), PYTHONPATH="")
    out, err = process.communicate()
    assert process.returncode == 0 and "evaluation: 1 of 1 episodes" in out, err
    assert len([*tmp_path.glob(f"runs/*{variant.__name__}*/checkpoint.pt")]) == 1


@pytest.mark.parametrize("variant", [penalty, trpo])
def test_it_learns_a_probe_and_is_the_same_by_seed(variant):
    args = variant.Args(**MATCH | {"num_steps": 64}, total_timesteps=3072)
    first, second = (train(variant, args)[0] for _ in range(2))
    assert (parameters_to_vector(first.parameters()) == parameters_to_vector(second.parameters())).all()
    policy, _ = first(torch.tensor([[-1.0], [1.0]]))  # the action's sign should be that of the observation
    assert policy.mean[0] < -0.1 and policy.mean[1] > 0.1


# ---- the penalty ----------------------------------------------------------------------------------


def make_penalised(**flags):
    """An agent of 3 actions in float64, an old one near it, and a batch that the old one acted in."""
    flags |= {"norm_adv": False, "norm_obs": False, "num_minibatches": 1, "update_epochs": 1}
    args = penalty.Args(env_id="probe_envs:Echo-v0", max_grad_norm=float("inf"), **flags)
    agent = penalty.Agent(penalty.make_envs(args, 1), args).double()
    old_agent = copy.deepcopy(agent).requires_grad_(False)
    for p in agent.parameters():
        p.data += 0.05 * torch.randn_like(p)
    obs = torch.randn(10_000, 3, dtype=torch.float64)
    policy, values = old_agent(obs)
    actions = policy.sample()
    batch = penalty.Batch(obs, actions, policy.log_prob(actions), values, obs[:, 0], values + 1)
    return args, agent, old_agent, batch


def mean_kl(old_agent, agent, obs):
    """The mean of KL[old, new] between diagonal Gaussians, by hand."""
    (old, _), (new, _) = old_agent(obs), agent(obs)
    distance = (old.variance + (old.mean - new.mean) ** 2) / new.variance
    return 0.5 * (distance - 1 - (old.variance / new.variance).log()).sum(-1).mean()


def gradients(agent, old_agent, batch, args, kl_coef):
    """The gradient of the loss, and kl_coef times that of the KL."""
    agent.kl_coef.fill_(kl_coef)
    still = torch.optim.SGD(agent.parameters(), lr=0.0)
    penalty.update(agent, old_agent, still, batch, args.clip_coef, args)
    of_loss = parameters_to_vector([p.grad for p in agent.parameters()])
    agent.zero_grad(set_to_none=False)
    (kl_coef * mean_kl(old_agent, agent, batch.obs)).backward()
    return of_loss, parameters_to_vector([p.grad for p in agent.parameters()])


@pytest.mark.parametrize("clip_coef", [float("inf"), 0.2])
def test_the_penalty_adds_beta_times_the_gradient_of_the_kl(double, clip_coef):
    args, *problem = make_penalised(clip_coef=clip_coef)
    (plain, _), (penalised, expected) = (gradients(*problem, args, kl_coef) for kl_coef in (0.0, 3.0))
    assert expected.norm() > 0.1
    torch.testing.assert_close(penalised - plain, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("target", "factor"), [(1e-12, 2), (1e3, 0.5), (None, 1)])
def test_beta_is_logged_and_adapted_and_goes_on_in_a_resumed_run(target, factor):
    args = penalty.Args(**MATCH, total_timesteps=96, kl_coef=0.5, kl_coef_target=target)
    agent, path = train(penalty, args)
    assert agent.kl_coef == 0.5 * factor**3
    agent, _ = train(penalty, replace(args, resume=str(path), total_timesteps=160), "resumed")
    assert agent.kl_coef == 0.5 * factor**5
    logged = scalars("losses/kl_coef") | scalars("losses/kl_coef", "resumed")
    assert list(logged.values()) == [0.5 * factor**i for i in range(5)]


# ---- TRPO -----------------------------------------------------------------------------------------


@pytest.fixture
def problem(double):
    """A small agent in float64, and a batch that its own policy collected."""
    args = trpo.Args(env_id="Pendulum-v1", num_steps=64, num_minibatches=4, norm_obs=False)
    envs = trpo.make_envs(args, 4)
    agent = trpo.Agent(envs, args)
    agent.actor = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    rollout = trpo.collect(envs, agent.double(), torch.as_tensor(envs.reset(seed=1)[0]), args)
    batch = trpo.make_batch(agent, rollout, args)
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


# ---- torchrun -------------------------------------------------------------------------------------


def run_with_torchrun(*command, **env):
    """The exit status, stdout and stderr of two processes."""
    process = start("-m", "torch.distributed.run", "--nproc-per-node", 2, *command, **env)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


# Trains as one process of two, and keeps the seeds that it was given, what it did, and where it ended.
TRAIN = """
from pathlib import Path
from conftest import small
import torch, torch.distributed as dist, ppo_torchrun_atari as ppo
seeds, rollouts, reset, collect = [], [], ppo.GameStatistics.reset, ppo.collect
def spy(self, *, seed):
    seeds.append(seed)
    return reset(self, seed=seed)
def keep(*args):
    rollouts.append(collect(*args))
    return rollouts[-1]
ppo.GameStatistics.reset, ppo.collect = spy, keep
dist.init_process_group("gloo")
rank = dist.get_rank()
args = small(ppo, num_steps=64, total_timesteps=768, num_minibatches=2, target_kl=1e-5, learning_rate=1e-2)
ppo.train(args, Path(f"run{rank}"))
torch.save((seeds[0], rollouts[0].actions), f"{rank}.pt")
"""


def test_two_processes_have_one_policy_and_games_of_their_own():
    Path("train.py").write_text(TRAIN)
    code, _, err = run_with_torchrun("train.py")
    assert code == 0, err
    (seeds, actions), (other_seeds, other_actions) = (torch.load(f"{rank}.pt") for rank in (0, 1))
    assert len({*seeds, *other_seeds}) == 4 == len(seeds) + len(other_seeds)
    assert not torch.equal(actions, other_actions)
    saved, other = (torch.load(f"run{rank}/checkpoint.pt", weights_only=True) for rank in (0, 1))
    for name, value in saved["agent"].items():
        assert torch.equal(value, other["agent"][name]), name  # to the bit
    for tag in ("losses/policy_loss", "losses/explained_variance", "charts/gradient_steps"):  # of the whole
        assert scalars(tag, "run0") == scalars(tag, "run1") and list(scalars(tag, "run0")) == [256, 512, 768]
    assert max(scalars("charts/gradient_steps", "run0").values()) < 8  # --target-kl stopped both at once
    assert saved["global_step"] == 768 and saved["args"]["num_envs"] == 4


# Each rank has a batch of its own; one step of SGD on the mean of both losses, by hand.
STEP = """
from conftest import small
import torch, torch.distributed as dist, ppo_torchrun_atari as ppo
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
args = small(ppo, num_minibatches=1, update_epochs=1, max_grad_norm=1e9)
torch.manual_seed(0)
agent = ppo.Agent(ppo.make_envs(args, 1), args)
def batch():
    frames, actions = torch.randint(256, (6, 4, 84, 84), dtype=torch.uint8), torch.randint(4, (6,))
    return ppo.Batch(frames, actions, torch.randn(6) * 0.1 - 1.4, *torch.randn(3, 6))
batches = [batch(), batch()]
start = [p.detach().clone() for p in agent.parameters()]
losses = [ppo.ppo_loss(*agent(b.obs), b, args.clip_coef, args)[0] for b in batches]
expected = torch.autograd.grad((losses[0] + losses[1]) / 2, list(agent.parameters()))
sgd = torch.optim.SGD(agent.parameters(), lr=1.0)
ppo.update(DistributedDataParallel(agent), sgd, batches[dist.get_rank()], args.clip_coef, args)
for p, before, g in zip(agent.parameters(), start, expected):
    torch.testing.assert_close(before - p, g, rtol=1e-3, atol=1e-5)
"""


def test_the_gradient_is_the_mean_of_all_processes_minibatches():
    Path("step.py").write_text(STEP)
    code, _, err = run_with_torchrun("step.py")
    assert code == 0, err


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--num-envs=3", "num_envs 3 is not a multiple of the 2 processes"),
     ("--num-envs=2 --num-steps=4 --num-minibatches=3", "batch of 8: not from 12 ")],
)  # fmt: skip
def test_what_cannot_be_split_costs_one_line(flags, message):
    code, _, err = run_with_torchrun(torchrun.__file__, *flags.split())
    assert code != 0 and f"error: {message}" in err and not Path("runs").exists()


def test_it_trains_as_a_script_with_torchrun_and_evaluates_once():
    flags = "--num-envs=2 --num-steps=16 --total-timesteps=64 --eval-episodes=1 --num-minibatches=2"
    code, out, err = run_with_torchrun(torchrun.__file__, *flags.split(), "--threads=1", PYTHONPATH="")
    assert code == 0 and out.count("evaluation: 1 of 1 episodes") == 1, err
    assert torch.load(checkpoint(), weights_only=True)["global_step"] == 64
