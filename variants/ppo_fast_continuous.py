# /// script
# dependencies = ["torch>=2.13", "gymnasium[mujoco]>=1.4,<2", "envpool>=1.2", "tyro>=1.0", "tensorboard",
#                 "tqdm", "wandb", "moviepy", "pydantic>=2"]
# ///
# SPDX-License-Identifier: MIT
"""Proximal Policy Optimization (PPO) for continuous actions, as fast as a CPU can, in one file.

    pip install envpool && python ppo_fast_continuous.py --env-id Hopper-v5

The simulators are EnvPool's; acting is numpy, the gradient compiled, which needs a C++ compiler. Films and
evaluations are of Gymnasium's environment of the same name.

Read it beside Schulman et al. 2017, arXiv:1707.06347 ("eq."); `train` is its Algorithm 1.

A batch is collected with one policy, π_old, and used for many gradient steps on another, π_θ. Importance
ratios correct for the actions that π_θ prefers, but not for the states that it would reach: the batch says
little about a π_θ far from π_old. So PPO clips the objective: moving a ratio beyond 1 ± ε gains nothing.

    r_t(θ)         ratio       π_θ(a_t|s_t) / π_old(a_t|s_t)
    L^CLIP         objective   clipped surrogate, eq. 7
    L^(CLIP+VF+S)  -loss       with value loss and entropy, eq. 9
    Â_t            advantages  generalized advantage estimates, eq. 11

Shapes: T steps, N environments, B transitions, *O of an observation, *A of an action. Not in the paper:
bootstrapping at time limits (Pardo et al. 2018), the KL limit (Spinning Up), most defaults; openai/baselines'
normalisation, orthogonal weights, clipped gradients and values.
"""

import random
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import FlattenObservation, RecordVideo
from gymnasium.wrappers.vector import RecordEpisodeStatistics, TransformAction
from pydantic import Field, FilePath, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.func import functional_call, grad
from torch.optim import Adam, Optimizer
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

Fraction = Annotated[float, Field(ge=0, le=1)]
FinitePositive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config={"extra": "forbid"})
class Args:
    env_id: str = "HalfCheetah-v5"  # or "module:MyEnv-v0"
    env_kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)  # name value ...
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    total_timesteps: PositiveInt = 1_000_000  # environment steps
    num_envs: PositiveInt = 16  # N
    vectorization: str = "sync"  # of evaluations
    threads: PositiveInt = 1  # of EnvPool; not saved
    num_steps: PositiveInt = 128  # T
    num_minibatches: PositiveInt = 8
    update_epochs: PositiveInt = 10  # K
    learning_rate: FinitePositive = 1e-3
    anneal_lr: bool = True  # to 0, linearly
    gamma: Fraction = 0.99  # discount
    gae_lambda: Fraction = 0.93  # 0: low variance, 1: low bias
    norm_adv: bool = True  # standardise advantages
    clip_coef: PositiveFloat = 0.2  # epsilon; inf: no clip
    anneal_clip_coef: bool = False  # to 0, linearly
    clip_vloss: bool = False  # clip values, too
    target_kl: PositiveFloat | None = 0.05  # ends an update; of all dimensions together
    vf_coef: NonNegativeFloat = 0.5  # c_1, of half a squared error
    ent_coef: NonNegativeFloat = 0.0  # c_2, weight of the entropy
    max_grad_norm: PositiveFloat = 0.5
    initial_std: FinitePositive = 0.6  # of actions in [-1, 1]
    norm_obs: bool = True  # standardise observations
    norm_reward: bool = True  # scale rewards
    device: Literal["cpu"] = "cpu"
    track: bool = False  # in Weights & Biases
    resume: FilePath | None = None  # checkpoint.pt to go on from
    evaluate: FilePath | None = None  # checkpoint.pt to evaluate
    eval_episodes: PositiveInt = 10
    capture_video: bool = False  # film evaluations


class QuietEnv(gym.Wrapper):
    """Drops info, which is slow to gather, copies observations, seeds global generators."""

    def reset(self, *, seed: int | None = None, **kwargs: Any) -> tuple:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
        return np.array(self.env.reset(seed=seed, **kwargs)[0]), {}

    def step(self, action: Any) -> tuple:
        obs, reward, terminated, truncated, _ = self.env.step(action)
        return np.array(obs), np.asarray(reward).item(), terminated, truncated, {}


def make_envs(args: Args, num_envs: int, videos: Path | None = None) -> VectorEnv:
    """Environments for actions in [-1, 1], mapped to their bounds (too coarsely at 1e6)."""
    kwargs = args.env_kwargs | ({"render_mode": "rgb_array"} if videos else {})
    wrappers = [lambda env: env if type(env.observation_space) is Box else FlattenObservation(env), QuietEnv]
    if videos:
        wrappers.append(lambda env: RecordVideo(env, videos, lambda n: n < args.eval_episodes))
    options = {"autoreset_mode": "SameStep"}
    envs = gym.make_vec(args.env_id, num_envs, args.vectorization, options, wrappers, **kwargs)
    obs, action = envs.single_observation_space, envs.single_action_space
    floats = action.dtype in (np.float32, np.float64) and (np.abs([action.low, action.high]) < 1e6).all()
    if not (isinstance(obs, Box) and floats):
        raise gym.error.Error(f"needs vectors, float actions < 1e6 (or ppo_discrete.py), not {action}, {obs}")
    low, high = envs.action_space.low, envs.action_space.high
    middle, half = (high + low) / 2, (high - low) / 2
    envs = TransformAction(envs, lambda x: np.clip(middle + half * x.reshape(low.shape), low, high))
    return RecordEpisodeStatistics(envs)


class Pool:
    """EnvPool's environments for actions in [-1, 1]; in the step that ends an episode the next one begins.
    Counts episodes as RecordEpisodeStatistics does. Raises gym.error.Error without envpool, and for an id or
    options that it lacks."""

    def __init__(self, args: Args, seeds: list[int]) -> None:
        try:
            import envpool
        except ModuleNotFoundError as error:
            raise gym.error.Error(
                "no EnvPool: pip install envpool (1.2.5 for Python 3.11, 1.2.7 for 3.12 to 3.14)"
            ) from error
        if args.env_id not in envpool.list_all_envs():
            raise gym.error.Error(f"EnvPool has no {args.env_id}: ppo_continuous.py trains on Gymnasium's")
        if args.env_id in ("Humanoid-v4", "HumanoidStandup-v4"):
            raise gym.error.Error(f"EnvPool's {args.env_id} has no contact forces, Gymnasium's has: take v5")
        # EnvPool calls a fall in its limit's step a truncation. So the limit is kept here, its own is later.
        limit = envpool.make_spec(args.env_id).config.max_episode_steps
        self.limit = args.env_kwargs.get("max_episode_steps", limit)
        options = {"num_envs": args.num_envs, "num_threads": args.threads, "seed": seeds}
        options |= args.env_kwargs | {"max_episode_steps": self.limit + 1}
        try:
            self.pool = envpool.make(args.env_id, "gymnasium", **options)
        except (TypeError, RuntimeError) as error:
            raise gym.error.Error(
                f"EnvPool's {args.env_id} cannot take {args.env_kwargs}: {error}"
            ) from error
        low, high = self.pool.action_space.low, self.pool.action_space.high
        self.middle, self.half = (high + low) / 2, (high - low) / 2
        self.returns, self.close = np.zeros(args.num_envs), self.pool.close
        self.episode_count, self.return_queue, self.length_queue = 0, deque(maxlen=100), deque(maxlen=100)

    def step(self, actions: np.ndarray) -> tuple:
        """Observations, rewards, terminated, truncated, and the observations (F, *O) of those truncated."""
        obs, rewards, terminated, _, info = self.pool.step(self.middle + self.half * actions.clip(-1, 1))
        truncated = info["elapsed_step"] >= self.limit
        self.returns += rewards
        ended, final_obs = terminated | truncated, obs[truncated]
        if ended.any():
            obs[ended], _ = self.pool.reset(np.flatnonzero(ended))
            self.return_queue.extend(self.returns[ended])
            self.length_queue.extend(info["elapsed_step"][ended])
            self.episode_count += ended.sum()
            self.returns[ended] = 0
        return obs, rewards, terminated, truncated, final_obs


class RunningMeanStd(nn.Module):
    """Mean and variance of all samples, saved with the weights."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(shape).double())
        self.var = nn.Buffer(torch.ones(shape).double())
        self.count = nn.Buffer(torch.zeros(()).double())

    def update(self, samples: Tensor) -> None:
        """Takes in (B, *shape) (Chan et al. 1979)."""
        var, mean = torch.var_mean(samples.double(), 0, correction=0)
        self.count += len(samples)
        weight = len(samples) / self.count
        self.var += weight * (var - self.var + (1 - weight) * (mean - self.mean) ** 2)  # by the old mean
        self.mean += weight * (mean - self.mean)


class RewardScaler:
    """Divides rewards by the standard deviation of their discounted sums, at least 1e-4 of the mean."""

    def __init__(self, args: Args) -> None:
        self.gamma, self.stats, self.last_sum = args.gamma, RunningMeanStd(()).to(args.device), 0.0

    def __call__(self, rewards: Tensor, done: Tensor) -> Tensor:
        """Takes in and scales rewards (T, N)."""
        sums = torch.zeros_like(rewards)
        for t in range(len(rewards)):
            sums[t] = self.gamma * self.last_sum + rewards[t]
            self.last_sum = sums[t] * ~done[t]
        self.stats.update(sums.flatten())
        return rewards / (self.stats.var + 1e-8 * self.stats.mean**2 + 1e-30).sqrt().float()


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
        obs_size, action_size = int(np.prod(obs_shape)), int(np.prod(action_shape))
        self.actor = mlp(obs_size, action_size, out_gain=0.01)
        self.log_std = nn.Parameter(torch.full((action_size,), np.log(args.initial_std)))
        self.critic = mlp(obs_size, 1, out_gain=1.0)
        self.obs_stats = RunningMeanStd(obs_shape)
        self.norm_obs = args.norm_obs

    def forward(self, obs: Tensor) -> tuple[Distribution, Tensor]:
        """For observations (B, *O): the policy π_θ(·|s) over actions (B, *A), and V(s) (B,)."""
        x = self.preprocess(obs)
        policy = Independent(Normal(self.actor(x), self.log_std.exp()), 1)
        return policy, self.critic(x).squeeze(-1)

    def preprocess(self, obs: Tensor) -> Tensor:  # (B, O)
        if not obs.isfinite().all():
            raise FloatingPointError(f"observation after step {self.obs_stats.count:.0f} is not finite")
        if self.norm_obs:
            obs = (obs.double() - self.obs_stats.mean) / (self.obs_stats.var + 1e-8).sqrt()
            obs = obs.clamp(-10, 10)
        return obs.float().reshape(len(obs), -1)


# ---- The algorithm ----
class Rollout(NamedTuple):
    """T steps of N environments, by π_old."""

    obs: Tensor  # (T, N, *O), s_t
    actions: Tensor  # (T, N, *A), a_t
    log_probs: Tensor  # (T, N), log π_old(a_t|s_t)
    values: Tensor  # (T, N), V(s_t)
    rewards: Tensor  # (T, N), r_t
    terminated: Tensor  # (T, N), bool: a_t led to a terminal state
    truncated: Tensor  # (T, N), bool: a time limit cut the episode off
    final_obs: Tensor  # (F, *O), the states where one did, by t and n
    next_obs: Tensor  # (N, *O), the states after the last step


class Batch(NamedTuple):
    """The transitions of a rollout, or a minibatch of them."""

    obs: Tensor  # (B, *O), s
    actions: Tensor  # (B, *A)
    old_log_probs: Tensor  # (B,), log π_old(a|s)
    old_values: Tensor  # (B,), V(s) before the update
    advantages: Tensor  # (B,), Â
    returns: Tensor  # (B,), V^targ = Â + V(s)


def numpy_actor(agent: Agent) -> Callable:
    """The policy's means for observations (N, *O), computed on the memory of its parameters: 27 µs for
    8 rows, where the agent, its sample and log-probability take 378."""
    layers = [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in agent.actor[::2]]
    mean, std = agent.obs_stats.mean.numpy(), (agent.obs_stats.var + 1e-8).sqrt().numpy()

    def actor(obs: np.ndarray) -> np.ndarray:
        x = ((obs - mean) / std).clip(-10, 10) if agent.norm_obs else obs
        x = x.reshape(len(obs), -1).astype(np.float32)
        for weight, bias in layers[:-1]:
            x = np.tanh(x @ weight + bias)
        weight, bias = layers[-1]
        return x @ weight + bias

    return actor


@torch.no_grad()
def collect(envs: Pool, agent: Agent, obs: Tensor, args: Args) -> Rollout:
    """Takes T steps from the observations obs (N, *O). What acting does not need is computed after it."""
    actor, obs, steps = numpy_actor(agent), obs.numpy(), []
    noise = torch.randn(args.num_steps, args.num_envs, len(agent.log_std))
    for scaled_noise in (noise * agent.log_std.exp()).numpy():
        actions = actor(obs) + scaled_noise
        next_obs, *outcome = envs.step(actions)
        steps.append((obs, actions, *outcome))
        obs = next_obs
    *columns, final_obs = zip(*steps)
    observations, actions, *outcome = (torch.from_numpy(np.stack(column)) for column in columns)
    log_probs = Normal(0.0, 1.0).log_prob(noise).sum(-1) - agent.log_std.sum()
    values = agent.critic(agent.preprocess(observations.flatten(0, 1))).view(log_probs.shape)
    final_obs, next_obs = torch.from_numpy(np.concatenate(final_obs)), torch.from_numpy(obs)
    return Rollout(observations, actions, log_probs, values, *outcome, final_obs, next_obs)


def compute_gae(rollout: Rollout, next_values: Tensor, args: Args) -> Tensor:
    """Generalized advantage estimates (T, N). Terminal states are worth 0. Where a time limit or the
    rollout's end cuts an episode off, the next state's value (T, N) stands for the rest."""
    deltas = rollout.rewards + args.gamma * next_values * ~rollout.terminated - rollout.values  # δ_t, eq. 12
    not_done = ~(rollout.terminated | rollout.truncated)
    advantages = deltas.clone()
    for t in reversed(range(len(deltas) - 1)):
        advantages[t] += args.gamma * args.gae_lambda * advantages[t + 1] * not_done[t]  # eq. 11
    return advantages


@torch.no_grad()
def make_batch(agent: Agent, rollout: Rollout, args: Args) -> Batch:
    """The transitions of a rollout, with advantages and returns."""
    _, values = agent(torch.cat([rollout.next_obs, rollout.final_obs]))
    last_values, final_values = values.tensor_split([len(rollout.next_obs)])
    next_values = torch.cat([rollout.values[1:], last_values[None]])
    next_values[rollout.truncated] = final_values  # not the next episode's
    advantages = compute_gae(rollout, next_values, args)
    returns = advantages + rollout.values
    columns = rollout.obs, rollout.actions, rollout.log_probs, rollout.values, advantages, returns
    return Batch(*(column.flatten(0, 1) for column in columns))


def ppo_loss(policy: Distribution, values: Tensor, batch: Batch, clip_coef: float, args: Args) -> tuple:
    """The negative of eq. 9 for π_θ and its values (B,), and metrics.

    L^CLIP is flat where the ratio of a better action (Â > 0) is above 1+ε, or of a worse one below 1-ε.
    Beyond the other bound the policy has gone the wrong way, and the min keeps the unclipped term, whose
    gradient leads back."""
    advantages = batch.advantages
    if args.norm_adv:  # a std below 0.01 would blow up noise
        advantages = (advantages - advantages.mean()) / advantages.std().clamp(min=0.01)
    log_ratio = policy.log_prob(batch.actions) - batch.old_log_probs
    ratio = log_ratio.exp()  # r_t(θ)
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    objective = torch.min(ratio * advantages, clipped_ratio * advantages).mean()  # eq. 7
    squared_errors = (values - batch.returns) ** 2
    if args.clip_vloss:
        clipped_values = batch.old_values + (values - batch.old_values).clamp(-clip_coef, clip_coef)
        squared_errors = torch.max(squared_errors, (clipped_values - batch.returns) ** 2)
    value_loss = 0.5 * squared_errors.mean()
    entropy = policy.entropy().mean()
    loss = -(objective - args.vf_coef * value_loss + args.ent_coef * entropy)  # eq. 9
    metrics = {
        "policy_loss": -objective,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": (ratio - 1 - log_ratio).mean(),  # estimates KL[π_old, π_θ]
        "clipfrac": ((ratio - 1).abs() > clip_coef).float().mean(),
    }
    return loss, {name: metric.detach() for name, metric in metrics.items()}


class PolicyAndValues(nn.Module):
    """An agent whose forward takes preprocessed observations (B, O), for functional_call."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, x: Tensor) -> tuple[Distribution, Tensor]:
        policy = Independent(Normal(self.agent.actor(x), self.agent.log_std.exp()), 1)
        return policy, self.agent.critic(x).squeeze(-1)


def flatten_parameters(agent: Agent) -> Tensor:
    """A vector that all parameters are views of, so that Adam takes 83 µs and not 139."""
    vector = nn.utils.parameters_to_vector(agent.parameters()).detach()
    nn.utils.vector_to_parameters(vector, agent.parameters())
    return vector


def compile_gradient(agent: Agent, args: Args) -> Callable:
    """One function for forward, backward and clipping: gradient (P,) and metrics for parameters (P,)."""
    model = PolicyAndValues(agent)
    names, parameters = zip(*model.named_parameters())

    def loss(vector: Tensor, batch: Batch, clip_coef: Tensor) -> tuple:
        parts = vector.split([parameter.numel() for parameter in parameters])
        state = {name: part.view_as(old) for name, part, old in zip(names, parts, parameters)}
        policy, values = functional_call(model, state, batch.obs)
        return ppo_loss(policy, values, batch, clip_coef, args)

    def gradient(vector: Tensor, batch: Batch, clip_coef: Tensor) -> tuple:
        grads, metrics = grad(loss, has_aux=True)(vector, batch, clip_coef)
        return grads * (args.max_grad_norm / (grads.norm() + 1e-6)).clamp(max=1), metrics

    return torch.compile(gradient, options={"cpp.use_decompose_tanh": True})


def update(gradient: Callable, optimizer: Optimizer, batch: Batch, clip_coef: float, args: Args) -> list:
    """Takes K epochs of gradient steps on minibatches. Returns their metrics."""
    history, (vector,) = [], optimizer.param_groups[0]["params"]
    clip_coef = torch.tensor(clip_coef)  # a float would be compiled in as a constant
    for _ in range(args.update_epochs):
        permutation = torch.randperm(len(batch.returns), device=args.device)
        columns = (column[permutation].tensor_split(args.num_minibatches) for column in batch)
        for minibatch in zip(*columns):
            vector.grad, metrics = gradient(vector, Batch(*minibatch), clip_coef)
            if history and args.target_kl is not None and metrics["approx_kl"] > args.target_kl:
                return history  # never without a step
            optimizer.step()
            history.append(metrics)
    return history


def train(args: Args, run_dir: Path) -> Agent:
    """Algorithm 1: collects a batch, improves the policy with it, and again."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    Distribution.set_default_validate_args(False)  # its checks are slow
    envs = make_envs(args, 1)
    agent = Agent(envs, args).eval()  # dropout would be noise in ratios
    envs.close()
    gradient = compile_gradient(agent, args)
    optimizer = Adam([flatten_parameters(agent)], args.learning_rate, eps=1e-5, fused=True)
    scaler = RewardScaler(args)
    parts = {"agent": agent, "optimizer": optimizer, "reward_stats": scaler.stats}
    step = load_checkpoint(args.resume, **parts)["global_step"] if args.resume else 0
    batch_size, left = args.num_envs * args.num_steps, args.total_timesteps - step
    if not 2 * args.num_minibatches <= batch_size <= left:
        raise gym.error.Error(f"batch of {batch_size}: not from 2 * num_minibatches to {left} steps left")
    seeds = np.random.SeedSequence([args.seed, step]).generate_state(args.num_envs) // 2
    torch.manual_seed(seeds[0])  # new actions if resumed
    envs = Pool(args, seeds.tolist())
    obs = torch.as_tensor(envs.pool.reset()[0])
    if args.track:
        import wandb

        wandb.init(name=run_dir.name, config=vars(args), sync_tensorboard=True, reinit="finish_previous")
    writer, bar = SummaryWriter(run_dir, flush_secs=5), tqdm(total=args.total_timesteps, initial=step)
    writer.add_text("args", str(args))
    while step + batch_size <= args.total_timesteps:
        remaining = 1 - step / args.total_timesteps
        lr = optimizer.param_groups[0]["lr"] = args.learning_rate * (remaining if args.anneal_lr else 1)
        clip_coef = args.clip_coef * (remaining if args.anneal_clip_coef else 1)
        rollout = collect(envs, agent, obs, args)
        if args.norm_reward:
            rewards = scaler(rollout.rewards, rollout.terminated | rollout.truncated)
            rollout = rollout._replace(rewards=rewards)
        batch = make_batch(agent, rollout, args)
        standard = batch._replace(obs=agent.preprocess(batch.obs))  # once for all steps
        history = update(gradient, optimizer, standard, clip_coef, args)
        agent.obs_stats.update(batch.obs)  # not before: π_θ would not start as π_old
        obs, step = rollout.next_obs, step + batch_size
        writer.add_scalar("charts/learning_rate", lr, step)
        log(writer, bar, step, envs, agent, batch, history)
        save_checkpoint(run_dir / "checkpoint.pt", args, step, parts)
    envs.close()
    return agent


def log(
    writer: Any, bar: tqdm, step: int, envs: VectorEnv, agent: Agent, batch: Batch, history: list
) -> None:
    metrics = {f"losses/{name}": torch.stack([m[name] for m in history]).mean() for name in history[0]}
    metrics["losses/explained_variance"] = 1 - batch.advantages.var() / batch.returns.var()
    metrics["charts/gradient_steps"] = len(history)
    metrics["charts/action_std"] = agent.log_std.exp().mean()
    metrics["charts/SPS"] = (step - bar.initial) / bar.format_dict["elapsed"]
    if envs.episode_count:  # of this batch
        metrics["charts/episodic_return"] = np.mean(list(envs.return_queue)[-envs.episode_count :])
        metrics["charts/episodic_length"] = np.mean(list(envs.length_queue)[-envs.episode_count :])
        metrics["charts/return_100"] = np.mean(envs.return_queue)
        bar.set_postfix_str(f"return {np.mean(envs.return_queue):.5g}")
        envs.episode_count = 0
    bar.update(step - bar.n)
    for name, value in metrics.items():
        writer.add_scalar(name, value, step)


def save_checkpoint(path: Path, args: Args, step: int, parts: dict[str, Any]) -> None:
    """Replaces the checkpoint by a whole one."""
    state = {name: part.state_dict() for name, part in parts.items()}
    if not all(value.isfinite().all() for value in state["agent"].values()):
        raise FloatingPointError(f"reward or loss before step {step} is not finite")
    saved = {
        name: value for name, value in vars(args).items() if name != "threads"
    }  # or ppo_continuous.py could not read it
    state |= {"args": saved | {"resume": None, "evaluate": None}, "global_step": step}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_checkpoint(path: Path, **parts: Any) -> dict[str, Any]:
    """A checkpoint, with args as Args of the default device; restores parts such as agent=agent."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
        return checkpoint | {"args": Args(**checkpoint["args"] | {"device": Args.device})}
    except Exception as error:
        raise gym.error.Error(f"{path} does not fit script or environment") from error


@torch.no_grad()
def evaluate(path: Path, args: Args) -> list[float]:
    """The returns of episodes with mean actions."""
    envs = make_envs(args, 1, path.parent / "videos" if args.capture_video else None)
    agent = Agent(envs, args).to(args.device).eval()
    load_checkpoint(path, agent=agent)
    n, returns, (obs, _) = args.eval_episodes, [], envs.reset(seed=args.seed)
    try:
        for _ in tqdm(range(10_000 * n), "evaluation", leave=False):
            policy, _ = agent(torch.as_tensor(obs, device=args.device))
            obs, *_, info = envs.step(policy.mean.cpu().numpy())
            returns += info["episode"]["r"].tolist() if "episode" in info else []
            if len(returns) == n:
                break
    finally:  # also after Ctrl-C
        print(f"evaluation: {len(returns)} of {n} episodes, mean return {np.mean(returns or np.nan):.5g}")
    envs.close()
    return returns


def main() -> None:
    sys.path.append("")  # env modules
    args = tyro.cli(Args)
    try:
        if args.resume or args.evaluate:  # flags not given are the checkpoint's
            args = tyro.cli(Args, default=load_checkpoint(args.resume or args.evaluate)["args"])
        name = f"{args.env_id}__{Path(__file__).stem}__{args.seed}__{time.time_ns()}"
        path = Path("runs", name.replace("/", "_").replace(":", "_"), "checkpoint.pt").absolute()
        if not args.evaluate:
            print("checkpoint:", path)
            train(args, path.parent)
        evaluate(args.evaluate or path, args)
    except (gym.error.Error, FloatingPointError) as error:
        sys.exit("error: " + " ".join(str(error).split()))  # in one line
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
