# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.13", "gymnasium[mujoco]>=1.4,<2", "tyro>=1.0", "tensorboard>=2.20",
#                 "tqdm>=4.67", "wandb>=0.31", "moviepy>=2.2", "pydantic>=2"]
# ///
# Copyright 2026 the authors of "PPO in single files". SPDX-License-Identifier: MIT
"""Trust Region Policy Optimization (TRPO) for continuous actions, in one file.

    python trpo_continuous.py --env-id Hopper-v5

Read it beside Schulman et al. 2015, arXiv:1502.05477 ("eq.", but in compute_gae that of the PPO paper).
Begin with `train`.

A batch is collected by one policy, π_old, and used for one step to another, π_θ. Importance
ratios correct for the actions that π_θ would choose instead, but not for the states that it would meet, so
the batch says little about a π_θ far from π_old. TRPO goes along the natural gradient, as far as a mean KL
divergence of δ between them allows.

    L(θ)           surrogate   E[π_θ(a|s) / π_old(a|s) Â], eq. 14  surrogate
    δ              max_kl      the mean KL that is allowed         policy_step
    A              fisher      Hessian of the mean KL              fisher_vector_product
    s = A⁻¹g       direction   natural gradient, appendix C        conjugate_gradient
    β              length      √(2δ / sᵀAs), appendix C            policy_step
    Â_t            advantages  generalized advantage estimates     compute_gae
    V_t^targ       returns     Â_t + V(s_t), target of V           make_batch

Shapes: T steps, N environments, B transitions; *O of an observation, *A of an action. Differences from the
paper, from openai/baselines if not noted, besides some defaults:

    1. bootstrapping at time limits (Pardo et al. 2018): collect, compute_gae
    2. standardised observations, advantages, scaled, unclipped rewards: Agent, update, RewardScaler
    3. orthogonal weights: mlp
    4. advantages by GAE (Schulman et al. 2016), from values that Adam fits: compute_gae, fit_critic
    5. a damped Fisher matrix: fisher_vector_product
    6. actions from [-1, 1] to their bounds (ours): make_envs
"""

import math
import random
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple
from weakref import finalize

import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
import tyro
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics, TransformAction
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, kl_divergence
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass(frozen=True, config={"extra": "forbid"})  # makes numpy's numbers plain
class Args:
    # The task
    env_id: str = "HalfCheetah-v5"  # Box spaces; "module:MyEnv-v0" imports module
    seed: int = 1
    total_timesteps: int = 1_000_000  # environment steps, in whole batches
    num_envs: int = 16  # N
    vectorization: Literal["sync", "async", "vector_entry_point"] = "sync"  # see gymnasium.make_vec
    # TRPO
    num_steps: int = 128  # T, of each environment in a batch
    gamma: float = 0.99  # γ, the discount
    gae_lambda: float = 0.95  # λ, from low variance (0) to low bias (1)
    max_kl: float = 0.01  # δ, the mean KL that a step may reach
    cg_iterations: int = 10  # of conjugate gradient
    damping: float = 0.1  # added to the Fisher matrix's diagonal
    critic_learning_rate: float = 1e-3  # of Adam
    critic_epochs: int = 10  # passes over a batch to fit the value function
    num_minibatches: int = 16  # in a batch, to fit the value function
    initial_std: float = 0.6  # of actions, in [-1, 1]
    norm_obs: bool = True  # standardise observations
    norm_reward: bool = True  # scale rewards
    # The run
    device: str = "cpu"  # the CPU suits small networks
    track: bool = False  # to Weights & Biases; $WANDB_PROJECT
    resume: Path | None = None  # checkpoint.pt to go on from; flags override
    evaluate: Path | None = None  # checkpoint.pt to evaluate
    eval_episodes: int = 10  # of an evaluation
    capture_video: bool = False  # film episodes 0, 1, 8, ...

    batch_size = property(lambda self: self.num_envs * self.num_steps)
    num_iterations = property(lambda self: self.total_timesteps // self.batch_size)


class TidyEnv(gym.Wrapper):
    """Seeds global RNGs, drops info, copies reused buffers, closes once."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.close = finalize(self, env.close)  # after errors, too

    def reset(self, *, seed: int | None = None, **kwargs: Any) -> tuple:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
        return self.env.reset(seed=seed, **kwargs)[0], {}

    def step(self, action: np.ndarray) -> tuple:
        obs, reward, terminated, truncated, _ = self.env.step(action)
        return np.array(obs), reward, terminated, truncated, {}


def make_envs(args: Args, num_envs: int, video_dir: Path | None = None) -> VectorEnv:
    """Environments that map actions from [-1, 1] to their bounds, and report returns."""
    mode = "sync" if video_dir else args.vectorization
    kwargs = {"wrappers": [TidyEnv], "vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP}}
    if mode == "vector_entry_point":
        kwargs = {}
    if video_dir:
        kwargs["render_mode"] = "rgb_array"
        kwargs["wrappers"] += [lambda env: gym.wrappers.RecordVideo(env, video_dir)]
    with explained(f"--env-id {args.env_id}", (gym.error.Error, ImportError)):
        envs = gym.make_vec(args.env_id, num_envs, mode, **kwargs)
    obs, action = envs.single_observation_space, envs.single_action_space
    if not (isinstance(obs, Box) and isinstance(action, Box) and action.is_bounded()):
        hint = "(Discrete: ppo_discrete.py; others: FlattenObservation)"
        raise UserError(f"{args.env_id} has {obs} and {action}, not Box and bounded Box {hint}")
    if envs.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
        raise UserError(f"{args.env_id} must be of AutoresetMode.SAME_STEP")
    low, high = envs.action_space.low, envs.action_space.high
    low, high = low.astype(float), np.nextafter(high, low, dtype=float)  # else int64 wraps

    def rescale(actions: np.ndarray) -> np.ndarray:
        actions = np.clip(low + (high - low) * (actions + 1) / 2, low, high)
        return (actions if action.dtype.kind == "f" else actions.round()).astype(action.dtype)

    return RecordEpisodeStatistics(TransformAction(envs, rescale))


class RunningMeanStd(nn.Module):
    """Mean and variance so far, saved with the weights."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape).double())
        self.register_buffer("var", torch.ones(shape).double())
        self.register_buffer("count", torch.zeros(()).double())

    def update(self, samples: Tensor) -> None:
        """Merges in the moments of samples (B, *shape) (Chan et al. 1979)."""
        samples = samples.double()
        mean = average(samples.mean(0))
        var = average(((samples - mean) ** 2).mean(0))
        self.count += len(samples)
        weight = len(samples) / self.count
        self.var += weight * (var - self.var + (1 - weight) * (mean - self.mean) ** 2)
        self.mean += weight * (mean - self.mean)


class RewardScaler(RunningMeanStd):
    """Divides rewards by the running standard deviation of their discounted sum."""

    def __init__(self, gamma: float) -> None:
        super().__init__(())
        self.gamma, self.sum = gamma, 0.0

    def update_and_scale(self, rewards: Tensor, done: Tensor) -> Tensor:
        """Takes in, then scales, rewards (T, N). A std < 1e-4 of the mean is noise."""
        sums = []
        for reward, end in zip(rewards.cpu().numpy(), done.cpu().numpy()):
            sums.append(self.gamma * self.sum + reward)
            self.sum = sums[-1] * ~end
        self.update(torch.as_tensor(np.concatenate(sums)))
        return rewards / (self.var + 1e-8 * self.mean**2 + 1e-30).sqrt().float()


def mlp(n_in: int, n_out: int, out_gain: float) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(n_in, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, n_out))
    for layer, gain in zip(net[::2], (2**0.5, 2**0.5, out_gain)):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return net


class Agent(nn.Module):
    """A Gaussian policy and a value function, which share no weights."""

    def __init__(self, envs: VectorEnv, args: Args) -> None:
        super().__init__()
        obs_shape, action_shape = envs.single_observation_space.shape, envs.single_action_space.shape
        self.actor = mlp(math.prod(obs_shape), math.prod(action_shape), out_gain=0.01)
        self.critic = mlp(math.prod(obs_shape), 1, out_gain=1.0)
        self.log_std = nn.Parameter(torch.full(action_shape, math.log(args.initial_std)))
        self.obs_stats = RunningMeanStd(obs_shape)
        self.norm_obs = args.norm_obs

    def forward(self, obs: Tensor) -> tuple[Distribution, Tensor]:
        """For observations (B, *O): the policy π_θ(·|s) over actions (B, *A), and V(s) (B,)."""
        if self.norm_obs:
            obs = (obs.double() - self.obs_stats.mean) / (self.obs_stats.var + 1e-8).sqrt()
            obs = obs.clamp(-10, 10)
        x = obs.float().reshape(len(obs), -1)
        mean = self.actor(x).reshape(-1, *self.log_std.shape)
        policy = Independent(Normal(mean, self.log_std.exp()), self.log_std.dim())
        return policy, self.critic(x).squeeze(-1)

    def act(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For observations (N, *O): sampled actions (N, *A), their log π (N,), and values (N,)."""
        policy, values = self(obs)
        actions = policy.rsample()  # sample() compiles to slower code
        return actions, policy.log_prob(actions), values


# ---- The algorithm ----
class Rollout(NamedTuple):
    """T steps of N environments, by π_old."""

    obs: Tensor  # (T, N, *O), s_t
    actions: Tensor  # (T, N, *A), a_t
    log_probs: Tensor  # (T, N), log π_old(a_t|s_t)
    values: Tensor  # (T, N), V(s_t)
    next_values: Tensor  # (T, N), V of the state after a_t; arbitrary where terminated
    rewards: Tensor  # (T, N), r_t
    terminated: Tensor  # (T, N), bool: a_t led to a terminal state
    done: Tensor  # (T, N), bool: the episode ended or was cut off


class Batch(NamedTuple):
    """The transitions of a rollout, or a minibatch of them."""

    obs: Tensor  # (B, *O)
    actions: Tensor  # (B, *A)
    old_log_probs: Tensor  # (B,), log π_old(a|s)
    old_values: Tensor  # (B,), V(s) before the update
    advantages: Tensor  # (B,), Â
    returns: Tensor  # (B,), V^targ


@torch.no_grad()
def collect(envs: VectorEnv, agent: Agent, obs: np.ndarray, args: Args) -> tuple[Rollout, np.ndarray, list]:
    """Takes T steps from obs (N, *O). Also returns the next obs, and the returns of ended episodes."""
    shape = (args.num_steps, envs.num_envs)
    rewards, values, final_values = np.zeros((3, *shape), dtype=np.float32)
    terminated, truncated = np.zeros((2, *shape), dtype=bool)
    all_obs, all_actions, all_log_probs, episode_returns = [], [], [], []
    to_tensor = partial(torch.tensor, device=args.device)
    act = agent.act
    for t in range(args.num_steps):
        all_obs.append(to_tensor(obs))
        actions, log_probs, step_values = act(all_obs[t])
        all_actions.append(actions)
        all_log_probs.append(log_probs)
        values[t] = step_values.cpu()
        obs, rewards[t], terminated[t], truncated[t], info = envs.step(actions.cpu().numpy())
        if truncated[t].any():  # obs is the next episode's first; info has the last
            final_obs = to_tensor(np.stack(info["final_obs"][truncated[t]]))
            final_values[t, truncated[t]] = agent(final_obs)[1].cpu()
        if "episode" in info:
            episode_returns += info["episode"]["r"][info["_episode"]].tolist()
    last_values = agent(to_tensor(obs))[1].cpu()
    next_values = np.concatenate([values[1:], last_values[None]])
    next_values[truncated] = final_values[truncated]
    rollout = Rollout(
        obs=torch.stack(all_obs), actions=torch.stack(all_actions), log_probs=torch.stack(all_log_probs),
        values=to_tensor(values), next_values=to_tensor(next_values), rewards=to_tensor(rewards),
        terminated=to_tensor(terminated), done=to_tensor(terminated | truncated),
    )  # fmt: skip
    return rollout, obs, episode_returns


def compute_gae(rollout: Rollout, gamma: float, gae_lambda: float) -> Tensor:
    """Generalized advantage estimates (T, N). A terminal state is worth 0. Where a time limit or the
    rollout's end cuts an episode off, the next state's value stands for the rest."""
    next_values = ~rollout.terminated * rollout.next_values
    deltas = rollout.rewards + gamma * next_values - rollout.values  # δ_t, eq. 12
    advantages, goes_on = deltas.cpu().numpy(), ~rollout.done.cpu().numpy()  # loops faster
    for t in reversed(range(len(deltas) - 1)):  # eq. 11: Â_t = δ_t + γλ Â_{t+1}
        advantages[t] += gamma * gae_lambda * advantages[t + 1] * goes_on[t]
    return torch.as_tensor(advantages, device=deltas.device)


def make_batch(rollout: Rollout, advantages: Tensor) -> Batch:
    """The transitions of a rollout, with advantages (T, N) and value targets."""
    batch = Batch(
        obs=rollout.obs, actions=rollout.actions, old_log_probs=rollout.log_probs,
        old_values=rollout.values, advantages=advantages, returns=advantages + rollout.values,
    )  # fmt: skip
    return Batch(*(field.flatten(0, 1) for field in batch))


def surrogate(policy: Distribution, batch: Batch) -> Tensor:
    """L(θ), eq. 14: the mean over the batch of the importance ratio times the advantage, a scalar."""
    log_ratio = policy.log_prob(batch.actions) - batch.old_log_probs
    return (log_ratio.exp() * batch.advantages).mean()


def flat_gradient(scalar: Tensor, parameters: list[Tensor], **options: bool) -> Tensor:
    """The gradient (P,) of a scalar in the P parameters. Options are those of torch.autograd.grad."""
    return parameters_to_vector(torch.autograd.grad(scalar, parameters, **options))


def fisher_vector_product(kl_gradient: Tensor, parameters: list[Tensor], damping: float, v: Tensor) -> Tensor:
    """(A + damping I) v for v (P,), from the gradient (P,) of the mean KL with its graph: Av = ∇(∇KL·v)."""
    return flat_gradient(kl_gradient @ v, parameters, retain_graph=True) + damping * v


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solves A x = b for positive definite A (P, P), given v -> A v and b (P,) (Hestenes, Stiefel 1952)."""
    x, residual, direction = torch.zeros_like(b), b, b
    for _ in range(iterations):
        error, image = residual @ residual, product(direction)
        if error < 1e-10:
            break
        length = error / (direction @ image)
        x, residual = x + length * direction, residual - length * image
        direction = residual + residual @ residual / error * direction
    return x


def policy_step(agent: Agent, batch: Batch, args: Args) -> dict[str, Tensor]:
    """Maximises the surrogate with the mean KL at most δ (appendix C). The policy stays if no step does."""
    parameters = [*agent.actor.parameters(), agent.log_std]
    start = parameters_to_vector(parameters).detach()
    policy, _ = agent(batch.obs)
    with torch.no_grad():
        old_policy, _ = agent(batch.obs)
    old_surrogate = surrogate(policy, batch)
    g = flat_gradient(old_surrogate, parameters, retain_graph=True)
    kl = kl_divergence(old_policy, policy).mean()  # 0 here, as is its gradient; its Hessian is A
    kl_gradient = flat_gradient(kl, parameters, create_graph=True)
    fisher = partial(fisher_vector_product, kl_gradient, parameters, args.damping)
    direction = conjugate_gradient(fisher, g, args.cg_iterations)
    length = (2 * args.max_kl / (direction @ fisher(direction))).sqrt()  # β: the KL is about β²sᵀAs / 2
    for backtrack in range(10):
        vector_to_parameters(start + 0.8**backtrack * length * direction, parameters)
        with torch.no_grad():
            policy, _ = agent(batch.obs)
            gain = surrogate(policy, batch) - old_surrogate
            kl = kl_divergence(old_policy, policy).mean()
        if gain > 0 and kl <= args.max_kl:
            break
    else:  # not even the shortest step will do
        vector_to_parameters(start, parameters)
        backtrack, gain, kl = 10, torch.zeros(()), torch.zeros(())
    return {"surrogate_gain": gain, "approx_kl": kl, "backtracks": torch.tensor(float(backtrack))}


def fit_critic(agent: Agent, optimizer: torch.optim.Optimizer, batch: Batch, args: Args) -> Tensor:
    """Epochs of gradient steps of the value function on minibatches. Returns the mean of their losses."""
    losses = []
    for _ in range(args.critic_epochs):
        permutation = torch.randperm(len(batch.obs), device=args.device)
        for indices in permutation.tensor_split(args.num_minibatches):
            _, values = agent(batch.obs[indices])
            loss = 0.5 * ((values - batch.returns[indices]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return torch.stack(losses).mean()


def update(agent: Agent, optimizer: torch.optim.Adam, batch: Batch, args: Args) -> list[dict[str, Tensor]]:
    """A step of the policy, then the fit of the value function. Returns metrics."""
    std, mean = torch.std_mean(batch.advantages)
    advantages = (batch.advantages - mean) / (std + 1e-8)
    metrics = policy_step(agent, batch._replace(advantages=advantages), args)
    return [metrics | {"value_loss": fit_critic(agent, optimizer, batch, args)}]


def train(args: Args) -> Agent:
    """Collects a batch, improves the policy with it, and again."""
    with closing(Run(args)) as run:
        envs, agent, optimizer, obs = run.envs, run.agent, run.optimizer, run.obs
        for iteration in range(run.first_iteration, args.num_iterations):
            rollout, obs, episode_returns = collect(envs, agent, obs, args)
            if args.norm_reward:
                scaled = run.reward_scaler.update_and_scale(rollout.rewards, rollout.done)
                rollout = rollout._replace(rewards=scaled)
            advantages = compute_gae(rollout, args.gamma, args.gae_lambda)
            batch = make_batch(rollout, advantages)
            history = update(agent, optimizer, batch, args)
            agent.obs_stats.update(batch.obs)  # not before: it would move π_θ from π_old
            run.record(iteration, history, episode_returns)
    run.evaluate()
    return agent


# ---- Around the algorithm ----
def average(*tensors: Tensor) -> Tensor:
    """Averages tensors over processes. Returns the first."""
    if dist.is_initialized():
        flat = nn.utils.parameters_to_vector(tensors)
        dist.all_reduce(flat)
        nn.utils.vector_to_parameters(flat / dist.get_world_size(), tensors)
    return tensors[0]


@torch.no_grad()
def evaluate(path: Path, args: Args) -> list[float]:
    """The returns of episodes with the likeliest actions."""
    envs = make_envs(args, 1, path.parent / "videos" if args.capture_video else None)
    agent = Agent(envs, args).to(args.device)
    load_checkpoint(path, agent=agent)
    obs, _ = envs.reset(seed=args.seed % 2**31)
    returns, limit = [], 30_000 * args.eval_episodes  # some never end
    for _ in tqdm(range(limit), "evaluation", math.inf, leave=False):
        policy, _ = agent(torch.as_tensor(obs, device=args.device))
        obs, _, _, _, info = envs.step(policy.mode.cpu().numpy())
        returns += info["episode"]["r"].tolist() if "episode" in info else []
        if len(returns) == args.eval_episodes:
            break
    envs.close()
    stats = f", return {np.mean(returns):.5g}, std {np.std(returns):.5g}" if returns else f" in {limit} steps"
    print(f"evaluation: {len(returns)} episodes{stats}")
    return returns


def load_checkpoint(path: Path, **parts: Any) -> dict[str, Any]:
    """A checkpoint, with args as Args. Loads parts, such as agent=agent."""
    with explained(f"cannot load {path}"):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
        return checkpoint | {"args": Args(**checkpoint["args"])}


class Run:
    """Set-up, logs, checkpoints."""

    def __init__(self, args: Args) -> None:
        check(args)
        self.args, self.rank, world_size = args, 0, 1
        if dist.is_torchelastic_launched():
            dist.init_process_group()
            self.rank, world_size = dist.get_rank(), dist.get_world_size()
        if args.num_envs % world_size:
            raise UserError(f"num_envs {args.num_envs}: not a multiple of {world_size} processes")
        torch.set_num_threads(1)
        torch.manual_seed(args.seed)
        Distribution.set_default_validate_args(False)
        self.envs = make_envs(args, args.num_envs // world_size)
        if (size := math.prod(self.envs.single_observation_space.shape)) > 3000:
            print(f"warning: an MLP over {size:,} numbers, not a CNN", file=sys.stderr)
        self.agent = Agent(self.envs, args).to(args.device)
        self.optimizer = torch.optim.Adam(
            self.agent.critic.parameters(), args.critic_learning_rate, fused=True
        )
        self.reward_scaler = RewardScaler(args.gamma)
        self.saved = {"agent": self.agent, "optimizer": self.optimizer, "reward_scaler": self.reward_scaler}
        step = load_checkpoint(args.resume, **self.saved)["global_step"] if args.resume else 0
        self.first_iteration = math.ceil(step / args.batch_size)
        seeds = np.random.SeedSequence([args.seed, step]).generate_state(args.num_envs) // 2
        seeds = seeds[self.rank :: world_size].tolist()
        self.obs, _ = self.envs.reset(seed=seeds)
        torch.manual_seed(seeds[0])  # by rank
        self.returns = []
        self.bar = tqdm(total=args.total_timesteps, initial=step, disable=self.rank > 0)
        self.bar.set_postfix_str("no episode ended yet")
        if self.rank > 0:
            return
        run = re.sub(r"[^\w.-]", "_", f"{args.env_id}__{Path(__file__).stem}__{args.seed}__{datetime.now()}")
        self.path = args.resume or Path(f"runs/{run}/checkpoint.pt")
        if args.track:
            with explained("--track"):
                import wandb

                wandb.init(name=run, config=vars(args), sync_tensorboard=True)
        self.writer = SummaryWriter(self.path.parent, purge_step=step + 1, flush_secs=10)
        self.bar.write(f"checkpoint: {self.path}")

    def record(self, iteration: int, history: list[dict], returns: list[float]) -> None:
        """Logs and saves. Raises FloatingPointError on NaN or inf."""
        args, step = self.args, (iteration + 1) * self.args.batch_size
        metrics = {name: torch.stack([m[name] for m in history]).mean().item() for name in history[0]}
        if not all(map(math.isfinite, metrics.values())):
            raise FloatingPointError(f"not finite at step {step:,}: {metrics}")
        if self.rank > 0:
            return
        self.returns = (self.returns + returns)[-100:]
        if self.returns:
            metrics["episodic_return"] = np.mean(self.returns)
            self.bar.set_postfix_str(f"return {metrics['episodic_return']:.5g}")
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.bar.update(args.batch_size)
        if (iteration + 1) % 10 == 0 or iteration + 1 == args.num_iterations:
            state = {name: part.state_dict() for name, part in self.saved.items()}
            state |= {"args": vars(args) | {"resume": None}, "global_step": step}
            temporary = self.path.with_suffix(".tmp")
            torch.save(state, temporary)
            temporary.replace(self.path)

    def close(self) -> None:
        self.bar.close()
        with warnings.catch_warnings(action="ignore"), suppress(KeyboardInterrupt, BrokenPipeError):
            self.envs.close()  # workers got Ctrl-C, too

    def evaluate(self) -> None:
        if self.rank == 0:
            self.writer.close()
            evaluate(self.path, self.args)


class UserError(ValueError):
    """Arguments that can't work."""


@contextmanager
def explained(what: str, errors: Any = Exception) -> Any:
    """Errors as a UserError of one line."""
    try:
        yield
    except errors as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}") from error


def check(args: Args) -> None:
    """Raises UserError if args can't work."""
    may_be_0 = ("seed", "gamma", "gae_lambda", "damping")
    for name, value in vars(args).items():
        rule = "0 or more" if name in may_be_0 else "more than 0"
        if type(value) in (int, float) and not (value > 0 or (value == 0 and name in may_be_0)):
            raise UserError(f"{name} {value}: must be {rule}")
    if max(args.gamma, args.gae_lambda) > 1:
        raise UserError(f"gamma {args.gamma}, gae_lambda {args.gae_lambda}: at most 1")
    if dist.is_torchelastic_launched():
        raise UserError("torchrun: TRPO works in one process here; start it without torchrun")
    if not 2 * args.num_minibatches <= args.batch_size <= args.total_timesteps:
        rule = f"2 * {args.num_minibatches} minibatches to {args.total_timesteps} timesteps"
        raise UserError(f"num_envs * num_steps = {args.batch_size}: must be from {rule}")
    with explained("--device"):
        torch.empty(0, device=args.device)
    if args.capture_video:
        hint = "--capture-video (no display? set MUJOCO_GL=egl)"
        with explained(hint), TemporaryDirectory() as d, closing(make_envs(args, 1, Path(d, "film"))) as envs:
            envs.reset()


def main() -> None:
    """The command line. A mistake costs one line and exit status 2."""
    sys.stdout.reconfigure(errors="replace", line_buffering=True)  # may lack γ
    try:
        args = tyro.cli(Args)
        path = args.evaluate or args.resume
        if path:  # flags not given are as saved
            args = tyro.cli(Args, default=load_checkpoint(path)["args"])
        if args.evaluate:
            check(args)
            evaluate(args.evaluate, args)
        else:
            train(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from a checkpoint", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
