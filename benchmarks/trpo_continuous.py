# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.13", "gymnasium[mujoco]>=1.4,<2", "mujoco>=3.3,<3.16", "tyro>=1.0", "tensorboard>=2.20",
#                 "tqdm>=4.67", "wandb>=0.31", "moviepy>=2.2"]
# ///
# Copyright (c) 2026 the authors of "PPO in single files". SPDX-License-Identifier: MIT
"""Trust Region Policy Optimization for continuous actions (Schulman et al. 2015, arXiv:1502.05477), whole in this file.

    python benchmarks/trpo_continuous.py --env-id Hopper-v5

The policy takes one step a batch: the longest in the direction of the natural gradient that keeps the mean KL
divergence from the old policy within δ. PPO keeps the surrogate and the importance ratios, and replaces all of
`policy_step` by a clip and first-order steps. What this file shares with it is equal to the byte. Shapes: T steps,
N environments, B rows (N·T), P policy parameters, *O and *A the shapes of one observation and one action.

    L(θ)            surrogate         E[π_θ(a|s)/π_old(a|s) Â], eq. 14                  surrogate
    D̄_KL ≤ δ        max_kl            the trust region, eq. 14                          policy_step
    A               Fisher matrix     Hessian of D̄_KL, never formed, appendix C         policy_step
    s = A⁻¹g        direction         by conjugate gradient, appendix C                 conjugate_gradient
    β               step length       √(2δ / sᵀAs), appendix C                          policy_step
"""

import io
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
import tyro
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, kl_divergence
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass(frozen=True)
class Args:
    env_id: str = "HalfCheetah-v5"  # environment with Box observations and actions; "module:Id-v0" works too
    seed: int = 1  # seeds weights, action sampling, minibatch order and environments
    total_timesteps: int = 1_000_000  # environment steps over all num_envs, rounded down to whole batches
    initial_std: float = 0.6  # standard deviation, at the start, of actions, which are in [-1, 1]; learned
    num_envs: int = 16  # N, environments that act in parallel
    vectorization: Literal["sync", "async"] = "sync"  # async gives each environment a process: pays for slow ones
    num_steps: int = 128  # T, steps per environment and iteration; each iteration learns from one batch of N·T steps
    gamma: float = 0.99  # γ, the discount
    gae_lambda: float = 0.95  # λ of GAE: 0 is the one-step TD error (low variance), 1 is Monte Carlo minus V (low bias)
    max_kl: float = 0.01  # δ, the mean KL divergence from the old policy that a step may reach
    cg_iterations: int = 10  # iterations of conjugate gradient
    damping: float = 0.1  # is added to the Fisher matrix's diagonal, so that the direction is well defined
    critic_learning_rate: float = 1e-3  # step size of Adam, for the value function alone
    critic_epochs: int = 10  # passes over each batch to fit the value function
    num_minibatches: int = 16  # equal minibatches in each of them; must divide num_envs·num_steps
    norm_obs: bool = True  # scale observations by their running mean and standard deviation
    norm_reward: bool = True  # divide rewards by the running std of their discounted sum; logged returns stay raw
    device: str = "cpu"  # cpu, cuda, cuda:1, ...; networks this small are fastest on the CPU
    threads: int = 1  # CPU threads of torch; more gain little at this size
    track: bool = False  # log to Weights & Biases, besides TensorBoard
    wandb_project_name: str = "ppo"  # project for --track
    capture_video: bool = False  # film the evaluation into videos/ in the run folder; it is then of one episode
    checkpoint_every: int = 10  # iterations between checkpoints; the last iteration leaves one too
    resume: str | None = None  # checkpoint.pt to go on from, in its folder; flags given here override the saved ones
    evaluate: str | None = None  # checkpoint.pt to evaluate instead of training; saved flags as with --resume
    eval_episodes: int = 10  # episodes of the evaluation, which also ends a training
    eval_greedy: bool = True  # evaluate with the most likely action; --no-eval-greedy samples
    batch_size = property(lambda self: self.num_envs * self.num_steps)
    num_iterations = property(lambda self: self.total_timesteps // self.batch_size)
    rank = property(lambda self: int(os.environ.get("RANK", 0)))  # this process's number, set by torchrun
    world_size = property(lambda self: int(os.environ.get("WORLD_SIZE", 1)))  # how many processes torchrun started
    final_std = property(lambda self: None)  # ppo_continuous.py has a schedule; here the standard deviation is learned


class Isolate(gym.Wrapper):
    """Copies where an episode was cut off, as a reset may write into it, and drops info, which nothing here reads, but
    gathering it takes 5 % of a HalfCheetah training. Keeps Ctrl-C from the processes of --vectorization async."""

    def __init__(self, env: gym.Env, main_process: int) -> None:
        super().__init__(env)
        if os.getpid() != main_process:
            os.setpgrp()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, terminated, truncated, _ = self.env.step(action)
        return np.array(obs) if truncated else obs, reward, terminated, truncated, {}


def make_envs(args: Args, num_envs: int | None = None, **kwargs: Any) -> gym.vector.VectorEnv:  # noqa: ANN401
    """Environments that map [-1, 1] to their bounds, and clip there, and report returns; kwargs as in gym.make_vec."""
    mode = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}  # no step is spent on a reset: all rows are real
    num_envs, main_process = num_envs or args.num_envs // args.world_size, os.getpid()
    wrappers = [lambda env: Isolate(env, main_process), *kwargs.pop("wrappers", [])]
    envs = gym.make_vec(args.env_id, num_envs, args.vectorization, mode, wrappers, **kwargs)
    low, high = envs.action_space.low, envs.action_space.high
    envs = gym.wrappers.vector.TransformAction(envs, lambda a: np.clip(low + (high - low) * (a + 1) / 2, low, high))
    return gym.wrappers.vector.RecordEpisodeStatistics(envs)


class RunningMeanStd(nn.Module):
    """Mean and variance of all rows seen so far, in float64. Buffers, so that no checkpoint can forget them."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        for name, start in (("mean", torch.zeros(shape)), ("var", torch.ones(shape)), ("count", torch.zeros(()))):
            self.register_buffer(name, start.double())

    def update(self, rows: Tensor) -> None:
        """Merges in the moments of rows (B, *shape), exactly (Chan, Golub and LeVeque 1979)."""
        var, mean = torch.var_mean(rows.double(), 0, correction=0)
        self.count += len(rows)
        weight = len(rows) / self.count
        self.var += weight * (var - self.var + (1 - weight) * (mean - self.mean) ** 2)
        self.mean += weight * (mean - self.mean)


def mlp(sizes: list[int], out_gain: float) -> nn.Sequential:
    """Linear layers and tanh; orthogonal weights times √2, but the last's times out_gain, as in openai/baselines."""
    layers = [nn.Linear(*sizes[i : i + 2]) for i in range(len(sizes) - 1)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, out_gain if layer is layers[-1] else math.sqrt(2))
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*[module for layer in layers for module in (layer, nn.Tanh())][:-1])


class Agent(nn.Module):
    """A Gaussian policy and a value function that share no weights, and the scales of what they see and learn from."""

    def __init__(self, envs: gym.vector.VectorEnv, args: Args) -> None:
        super().__init__()
        obs_shape, action_shape = envs.single_observation_space.shape, envs.single_action_space.shape
        self.actor = mlp([math.prod(obs_shape), 64, 64, math.prod(action_shape)], out_gain=0.01)  # means start near 0
        self.critic = mlp([math.prod(obs_shape), 64, 64, 1], out_gain=1.0)
        self.log_std = nn.Parameter(torch.full(action_shape, args.initial_std).log())  # the same in every state
        self.args, self.obs_stats, self.return_stats = args, RunningMeanStd(obs_shape), RunningMeanStd(())
        self.update_obs_stats = self.obs_stats.update  # takes observations (B, *O)
        self.running_returns = np.zeros(args.num_envs)  # of episodes under way; not saved, as a resume starts new ones

    def forward(self, obs: Tensor) -> tuple[Distribution, Tensor]:
        """The policy π_θ(·|s), over actions (B, *A), and the values V(s) (B,), in observations (B, *O)."""
        if self.args.norm_obs:  # not in the paper, but in openai/baselines
            obs = ((obs - self.obs_stats.mean) / (self.obs_stats.var + 1e-8).sqrt()).clamp(-10, 10)
        x = obs.float().reshape(len(obs), -1)
        mean = self.actor(x).view(-1, *self.log_std.shape)
        log_std, progress = self.log_std, self.obs_stats.count / self.args.total_timesteps  # steps learned from
        if self.args.final_std:  # else learned
            log_std = log_std.detach() * (1 - progress) + progress * math.log(self.args.final_std)
        policy = Independent(Normal(mean, log_std.exp(), validate_args=False), mean.dim() - 1, validate_args=False)
        return policy, self.critic(x).squeeze(-1)

    def scale_rewards(self, rewards: np.ndarray, done: np.ndarray) -> np.ndarray:
        """Rewards (T, N) over the running std of their discounted sum so far (openai/baselines), within ±10."""
        returns = np.zeros(rewards.shape)
        for t in range(len(rewards)):
            returns[t] = self.args.gamma * self.running_returns + rewards[t]
            self.running_returns = returns[t] * ~done[t]
        self.return_stats.update(torch.as_tensor(returns.flatten(), device=self.return_stats.mean.device))
        return np.clip(rewards / math.sqrt(self.return_stats.var + 1e-8), -10, 10) if self.args.norm_reward else rewards


class Rollout(NamedTuple):
    """T steps of N environments under one policy, π_old."""

    obs: Tensor  # (T, N, *O), s_t
    actions: Tensor  # (T, N, *A), a_t as sampled
    log_probs: Tensor  # (T, N), log π_old(a_t|s_t)
    values: np.ndarray  # (T, N), V(s_t)
    next_values: np.ndarray  # (T, N), V of the state that a_t led to, before any reset; arbitrary where terminated
    rewards: np.ndarray  # (T, N), r_t
    terminated: np.ndarray  # (T, N), bool: a_t led to a terminal state
    done: np.ndarray  # (T, N), bool: a_t was its episode's last, because it terminated or was truncated by a time limit


class Batch(NamedTuple):
    """What an update learns from: a rollout without its order, or a minibatch of it."""

    obs: Tensor  # (B, *O)
    actions: Tensor  # (B, *A)
    log_probs: Tensor  # (B,), log π_old(a|s)
    values: Tensor  # (B,), V_old(s)
    advantages: Tensor  # (B,), Â
    returns: Tensor  # (B,), V^targ


def compute_gae(rollout: Rollout, gamma: float, gae_lambda: float) -> np.ndarray:
    """Generalized advantage estimates (T, N), in the inputs' dtype. A terminal state is worth 0; where a time
    limit or the rollout's end cuts an episode off, next_values stands for the rest."""
    deltas = rollout.rewards + gamma * rollout.next_values * ~rollout.terminated - rollout.values  # δ_t, eq. 12
    advantages = deltas.copy()
    for t in reversed(range(len(deltas) - 1)):
        advantages[t] += gamma * gae_lambda * ~rollout.done[t] * advantages[t + 1]  # Â_t = δ_t + γλ Â_{t+1}, eq. 11
    return advantages


def act(agent: Agent, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Samples actions (N, *A) in observations (N, *O); also returns their log π (N,) and the values (N,)."""
    policy, values = agent(obs)
    actions = policy.rsample() if policy.has_rsample else policy.sample()  # the former compiles to faster code
    return actions, policy.log_prob(actions), values


@torch.no_grad()
def collect(envs: gym.vector.VectorEnv, agent: Agent, obs: np.ndarray, args: Args, global_step: int,
            act_fn: Callable = act) -> tuple[Rollout, np.ndarray, list[float]]:  # fmt: skip
    """T steps of N environments from obs (N, *O), which the last rollout ended in, after global_step steps. Returns the
    rollout, the observations it ended in, and the raw returns of ended episodes. Raises FloatingPointError on NaN."""
    rows, final_obs, episode_returns = [], [], []
    if not np.isfinite(obs).all():
        raise FloatingPointError(f"an observation is not finite at step {global_step:,}")
    for step in range(global_step, global_step + args.batch_size, args.num_envs):
        obs_t = torch.as_tensor(obs, device=args.device)
        actions, log_probs, values = act_fn(agent, obs_t)
        obs, rewards, terminated, truncated, info = envs.step(actions.cpu().numpy())
        if not (np.isfinite(rewards).all() and np.isfinite(obs).all()):
            raise FloatingPointError(f"a reward or observation is not finite at step {step + args.num_envs:,}")
        rows.append((obs_t, actions, log_probs, values, rewards, terminated, truncated))
        if truncated.any():  # obs is the next episode's already; where this one was cut off is in final_obs
            final_obs.append(np.stack(info["final_obs"][truncated]))
        episode_returns += info["episode"]["r"][info["_episode"]].tolist() if "episode" in info else []
    columns = [torch.stack(column) if torch.is_tensor(column[0]) else np.stack(column) for column in zip(*rows)]
    all_obs, actions, log_probs, values, rewards, terminated, truncated = columns
    _, last_values = agent(torch.as_tensor(obs, device=args.device))
    next_values = torch.cat([values[1:], last_values[None]]).cpu().numpy()
    if final_obs:
        _, final_values = agent(torch.as_tensor(np.concatenate(final_obs), device=args.device))
        next_values[truncated] = final_values.cpu().numpy()
    values, done = values.cpu().numpy(), terminated | truncated
    return Rollout(all_obs, actions, log_probs, values, next_values, rewards, terminated, done), obs, episode_returns


def make_batch(agent: Agent, rollout: Rollout, args: Args) -> Batch:
    """Scales the rewards; estimates advantages and value targets; flattens from (T, N) to (B,)."""
    rollout = rollout._replace(rewards=agent.scale_rewards(rollout.rewards, rollout.done))
    advantages = compute_gae(rollout, args.gamma, args.gae_lambda)
    returns = advantages + rollout.values
    columns = (*rollout[:4], advantages.astype(np.float32), returns.astype(np.float32))  # as in Batch
    return Batch(*(torch.as_tensor(column, device=args.device).flatten(0, 1) for column in columns))


def surrogate(policy: Distribution, batch: Batch) -> Tensor:
    """L(θ), eq. 14: the mean over the batch of the importance ratio times the advantage, a scalar."""
    return ((policy.log_prob(batch.actions) - batch.log_probs).exp() * batch.advantages).mean()


def flat_gradient(scalar: Tensor, parameters: list[Tensor], **options: bool) -> Tensor:
    """The gradient (P,) of a scalar; options are those of torch.autograd.grad."""
    return parameters_to_vector(torch.autograd.grad(scalar, parameters, **options))


def fisher_vector_product(kl_gradient: Tensor, parameters: list[Tensor], damping: float, v: Tensor) -> Tensor:
    """(A + damping I) v, for v (P,), from the gradient (P,) of the mean KL with its graph: Av = ∇(∇KL·v)."""
    return flat_gradient(kl_gradient @ v, parameters, retain_graph=True) + damping * v


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solves A x = b for positive definite A (P, P), given v -> A v, for b (P,) (Hestenes and Stiefel 1952)."""
    x, residual, direction = torch.zeros_like(b), b, b
    for _ in range(iterations):
        error, image = residual @ residual, product(direction)
        if error < 1e-10:
            break
        length = error / (direction @ image)
        x, residual = x + length * direction, residual - length * image
        direction = residual + residual @ residual / error * direction
    return x


def policy_step(agent: Agent, batch: Batch, args: Args) -> dict[str, float]:
    """Maximises the surrogate with the mean KL divergence at most δ (appendix C); the policy stays if no step does."""
    parameters = [*agent.actor.parameters(), agent.log_std]
    start = parameters_to_vector(parameters).detach()
    policy, _ = agent(batch.obs)
    with torch.no_grad():
        old_policy, _ = agent(batch.obs)
    old_surrogate = surrogate(policy, batch)
    g = flat_gradient(old_surrogate, parameters, retain_graph=True)
    kl_gradient = flat_gradient(kl_divergence(old_policy, policy).mean(), parameters, create_graph=True)  # 0, so far
    fisher = partial(fisher_vector_product, kl_gradient, parameters, args.damping)
    s = conjugate_gradient(fisher, g, args.cg_iterations)
    step = (2 * args.max_kl / (s @ fisher(s))).sqrt() * s  # KL is about ½ sᵀAs, so this one reaches δ
    for backtrack in range(10):
        vector_to_parameters(start + 0.8**backtrack * step, parameters)
        with torch.no_grad():
            policy, _ = agent(batch.obs)
            gain = (surrogate(policy, batch) - old_surrogate).item()
            kl = kl_divergence(old_policy, policy).mean().item()
        if gain > 0 and kl <= args.max_kl:
            return {"surrogate_gain": gain, "approx_kl": kl, "backtracks": backtrack}
    vector_to_parameters(start, parameters)
    return {"surrogate_gain": 0.0, "approx_kl": 0.0, "backtracks": 10}


def update(agent: Agent, optimizer: torch.optim.Optimizer, batch: Batch, args: Args) -> dict[str, float]:
    """One step of the policy, and epochs of gradient steps of the value function; returns metrics."""
    advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
    metrics = policy_step(agent, batch._replace(advantages=advantages), args)
    order = torch.cat([torch.randperm(args.batch_size, device=args.device) for _ in range(args.critic_epochs)])
    for rows in order.split(args.batch_size // args.num_minibatches):
        loss = 0.5 * (agent(batch.obs[rows])[1] - batch.returns[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    metrics["value_loss"] = loss.item()
    agent.update_obs_stats(batch.obs)  # only now: before, it would shift π_θ, not π_old
    return metrics | {"explained_variance": 1 - (batch.advantages.var() / batch.returns.var().clamp(min=1e-8)).item()}


def train(args: Args) -> Agent:
    """Algorithm 1, then an evaluation. Raises ValueError on arguments that cannot work, FloatingPointError on NaN."""
    check(args)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    envs = make_envs(args)
    agent = Agent(envs, args).to(args.device)
    optimizer = torch.optim.Adam(agent.critic.parameters(), args.critic_learning_rate, fused=True)
    global_step = load_checkpoint(args.resume, agent, optimizer)["global_step"] if args.resume else 0
    seeds = env_seeds(args.seed, global_step, args.num_envs)
    obs, _ = envs.reset(seed=seeds)
    if global_step:  # a resumed run does not draw the actions of the first again
        torch.manual_seed(seeds[0])
    with closing(Logger(args, global_step)) as logger:
        for iteration in range(math.ceil(global_step / args.batch_size), args.num_iterations):
            rollout, obs, episode_returns = collect(envs, agent, obs, args, global_step)
            metrics = update(agent, optimizer, make_batch(agent, rollout, args), args)
            global_step += args.batch_size
            logger.log(metrics, episode_returns, global_step)
            if logger.stop or (iteration + 1) % args.checkpoint_every == 0 or iteration + 1 == args.num_iterations:
                save_checkpoint(logger.run_dir / "checkpoint.pt", agent, optimizer, args, global_step)
            if logger.stop:
                envs.close()
                sys.exit(128 + logger.stop[0])
    envs.close()
    evaluate(agent, args, logger.run_dir)
    return agent


# ---- The algorithm ends here; what follows is plumbing. --------------------------------------------------------------
@torch.no_grad()
def evaluate(agent: Agent, args: Args, run_dir: Path) -> np.ndarray:
    """Plays one whole episode in each of E fresh environments: the first E to end would be short ones. Returns (E,)."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    episodes = 1 if args.capture_video else args.eval_episodes
    film = [lambda env: gym.wrappers.RecordVideo(env, str(run_dir / "videos"), episode_trigger=lambda n: n == 0)]
    envs = make_envs(args, episodes, **({"render_mode": "rgb_array", "wrappers": film} if args.capture_video else {}))
    obs, _ = envs.reset(seed=env_seeds(args.seed, -1, episodes))
    returns, finished = np.zeros(episodes), np.zeros(episodes, dtype=bool)
    for _ in range(100_000):  # an environment may never end
        policy, _ = agent(torch.as_tensor(obs, device=args.device))
        obs, rewards, *_, info = envs.step((policy.mode if args.eval_greedy else policy.sample()).cpu().numpy())
        returns += rewards * ~finished
        finished |= info.get("_episode", False)
        if finished.all():
            break
    envs.close()
    rest = "" if finished.all() else f", {(~finished).sum()} cut off after 100,000 steps"
    print(f"evaluation: return {returns.mean():.1f} ± {returns.std():.1f}, {episodes} episodes of {args.env_id}{rest}")
    return returns


def env_seeds(seed: int, global_step: int, num_envs: int) -> list[int]:
    """Seeds for a reset at global_step (-1: evaluation), hashed: seed, seed + 1, ... would recur with other seeds."""
    return (np.random.SeedSequence([seed, global_step + 1]).generate_state(num_envs) % 2**31).tolist()


def save_checkpoint(path: Path, agent: Agent, optimizer: torch.optim.Optimizer, args: Args, global_step: int) -> None:
    """Writes all that resuming and evaluating need; a kill meanwhile leaves the previous checkpoint whole."""
    if args.rank:  # the first process does it for all
        return
    checkpoint = {"script": Path(__file__).stem, "args": asdict(replace(args, resume=None, evaluate=None))}
    checkpoint |= {"agent": agent.state_dict(), "optimizer": optimizer.state_dict(), "global_step": global_step}
    torch.save(checkpoint, buffer := io.BytesIO())  # in memory first: for a full disk, torch has no clear words
    path.with_suffix(".tmp").write_bytes(buffer.getbuffer())
    os.replace(path.with_suffix(".tmp"), path)


def load_checkpoint(path: str, agent: Agent | None = None, optimizer: Any = None) -> dict[str, Any]:  # noqa: ANN401
    """What save_checkpoint wrote, args as Args. Loads it into agent and optimizer, where given."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["script"] != Path(__file__).stem:
            raise ValueError(f"it was written by {checkpoint['script']}.py: use that script")
        checkpoint["args"] = Args(**checkpoint["args"])
        for name, target in (("agent", agent), ("optimizer", optimizer)):
            if target:
                target.load_state_dict(checkpoint[name])
    except Exception as error:  # no file, half a file, another file, arguments or networks of another version, ...
        raise UserError(f"cannot load {path}: {' '.join(str(error).split()) or 'it is empty'}") from error
    return checkpoint


class Logger:
    """What surrounds a run: its folder, TensorBoard, progress bar, Weights & Biases, and the signals that end it."""

    def __init__(self, args: Args, global_step: int) -> None:
        name = f"{args.env_id}__{Path(__file__).stem}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self.run_dir = Path(args.resume or f"runs/{name.translate(str.maketrans('/:', '__'))}/checkpoint.pt").parent
        try:
            if args.track and args.rank == 0:
                __import__("wandb").init(project=args.wandb_project_name, id=self.run_dir.resolve().name,
                    config=asdict(args), resume="allow", reinit="finish_previous", sync_tensorboard=True)  # fmt: skip
        except Exception as error:
            print(f"warning: going on without Weights & Biases: {error}", file=sys.stderr)
        if args.rank == 0:
            self.writer = SummaryWriter(self.run_dir, purge_step=global_step + 1 if args.resume else None)
            print(f"{self.run_dir}: {args.num_iterations:,} iterations of {args.batch_size:,} steps", flush=True)
        self.bar = tqdm(total=args.total_timesteps, initial=global_step, unit=" steps", unit_scale=True, mininterval=1,
                        disable=args.rank > 0)  # fmt: skip
        self.args, self.returns, self.last = args, [], (global_step, time.perf_counter())
        self.signals, self.stop = [], []  # those that this process got; those that any did, by the end of an iteration
        in_main = threading.current_thread() is threading.main_thread()  # no handlers elsewhere
        self.handlers = {s: signal.signal(s, self.catch) for s in (signal.SIGINT, signal.SIGTERM) if in_main}

    def catch(self, signum: int, _: object) -> None:
        """Lets the iteration finish on the first Ctrl-C or SIGTERM; a second one acts as it would without us, but for
        SIGTERM under torchrun, which adds its own to one that a scheduler sent to all processes."""
        self.signals.append(signum)
        for each, handler in self.handlers.items():
            signal.signal(each, handler if each == signal.SIGINT or self.args.world_size == 1 else self.catch)
        self.bar.disable = True  # Ctrl-C may have stopped what reads our output, too
        with suppress(OSError):
            os.write(2, f"\n{signal.Signals(signum).name}: stopping after this iteration; again: at once\n".encode())

    def log(self, metrics: dict[str, float], episode_returns: list[float], global_step: int) -> None:
        """Tells all processes of returns and signals; the first writes the iteration's metrics, and its speed."""
        mine = (global_step, episode_returns, self.signals)
        everyone = [mine] * self.args.world_size
        if self.args.world_size > 1:
            dist.all_gather_object(everyone, mine)
        if any(step != global_step for step, *_ in everyone):
            raise UserError("processes went on from different checkpoints: copy the first one's to every machine")
        self.stop = [signum for *_, signals in everyone for signum in signals]
        if self.args.rank:
            return
        self.returns = (self.returns + [x for _, returns, _ in everyone for x in returns])[-100:]
        metrics |= {"episodic_return": float(np.mean(self.returns))} if self.returns else {}
        (last_step, last_time), self.last = self.last, (global_step, time.perf_counter())
        metrics["steps_per_second"] = (global_step - last_step) / (self.last[1] - last_time)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} is {value} at step {global_step:,}")
            self.writer.add_scalar(name, value, global_step)
        self.bar.postfix = f"return {metrics.get('episodic_return', math.nan):.1f}, KL {metrics['approx_kl']:.4f}"
        self.bar.update(global_step - last_step)

    def close(self) -> None:
        self.bar.close()
        if self.args.rank == 0:
            self.writer.close()
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)
        if self.args.world_size > 1 and sys.exc_info()[0] in (None, SystemExit):  # after an error, it would wait
            dist.destroy_process_group()


class UserError(ValueError):
    """Arguments that cannot work: says the rule, the numbers and the way out."""


def check(args: Args) -> None:
    """Raises UserError, before anything is created, if these arguments cannot work."""
    may_be_0 = {"seed", "gamma", "gae_lambda", "damping"}
    for name, x in asdict(args).items():
        top = 1 if name in ("gamma", "gae_lambda") else 2**63 - 1
        if type(x) in (int, float) and not (0 <= x <= top and (x or name in may_be_0)):
            raise UserError(f"--{name.replace('_', '-')} {x}: must be in {'[' if name in may_be_0 else '('}0, {top}]")
    n, size = args.num_minibatches, args.batch_size
    if size % n or size == n:
        raise UserError(f"--num-minibatches {n}: must cut num_envs·num_steps = {size} into equal parts of 2 or more")
    if args.num_iterations < 1:
        raise UserError(f"--total-timesteps {args.total_timesteps}: must be num_envs·num_steps = {size} or more")
    if args.world_size > 1:
        raise UserError(f"torchrun started {args.world_size} processes: this script works in one, unlike PPO's")
    check_env(args)


def check_env(args: Args) -> None:
    """Raises UserError if there is no such device or environment, or the environment is not one for this script."""
    try:
        torch.empty(0, dtype=torch.float64, device=args.device)
        env = gym.make(args.env_id)
    except (gym.error.Error, ImportError, RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise UserError(f"--device {args.device} --env-id {args.env_id}: {' '.join(str(error).split())}") from error
    obs, actions = env.observation_space, env.action_space
    if isinstance(actions, gym.spaces.Discrete):
        raise UserError(f"{args.env_id} has Discrete actions: use ppo_discrete.py")
    if not (isinstance(obs, gym.spaces.Box) and isinstance(actions, gym.spaces.Box) and actions.is_bounded()):
        raise UserError(f"{args.env_id} needs Box observations and bounded Box actions here, not {obs} and {actions}")
    if args.capture_video and not (find_spec("moviepy") and "rgb_array" in env.metadata.get("render_modes", [])):
        raise UserError(f"--capture-video needs moviepy (pip install moviepy), and {args.env_id} to render rgb_array")


def main() -> None:
    """Trains, resumes or evaluates; a user's mistake costs one line and exit status 2."""
    try:
        args = tyro.cli(Args, description=__doc__.split("\n")[0])
        if path := args.evaluate or args.resume:
            args = tyro.cli(Args, description=__doc__.split("\n")[0], default=load_checkpoint(path)["args"])
        if args.evaluate:
            check(args)
            agent = Agent(make_envs(args, 1), args).to(args.device)
            load_checkpoint(args.evaluate, agent)
            evaluate(agent, args, Path(args.evaluate).parent)
        else:
            train(args)
    except (UserError, FloatingPointError, OSError, KeyboardInterrupt) as error:  # OSError: a full disk, and its kin
        print(f"error: {str(error) or 'interrupted'}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else 1)


if __name__ == "__main__":
    main()
