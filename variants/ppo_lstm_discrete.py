# /// script
# dependencies = ["torch>=2.13", "gymnasium[classic-control]>=1.4,<2", "tyro>=1.0", "tensorboard", "tqdm",
#                 "wandb", "moviepy", "pydantic>=2"]
# ///
# SPDX-License-Identifier: MIT
"""Proximal Policy Optimization (PPO) for discrete actions with a memory, in one file.

    python ppo_lstm_discrete.py --env-id my_module:Maze-v0 --lstm-size 128

An LSTM (Hochreiter & Schmidhuber 1997) remembers an episode. What the agent is shown is an observation and
its memory (h, c) of the steps before, in one tensor: so a batch holds both, and a state that a time limit cut
off has the memory that led there. Minibatches are whole sequences, from the memory at their rollout's start.

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
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import VectorEnv
from pydantic import Field, FilePath, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution
from torch.nn.utils.rnn import pack_sequence, unpack_sequence
from torch.optim import Adam, Optimizer
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

Fraction = Annotated[float, Field(ge=0, le=1)]
FinitePositive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config={"extra": "forbid"})
class Args:
    env_id: str = "CartPole-v1"  # or "module:MyEnv-v0"
    env_kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)  # name value ...
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    total_timesteps: PositiveInt = 200_000  # environment steps
    num_envs: PositiveInt = 16  # N
    vectorization: str = "sync"  # or "async", a process each
    num_steps: PositiveInt = 128  # T
    num_minibatches: PositiveInt = 8
    update_epochs: PositiveInt = 10  # K
    learning_rate: FinitePositive = 2e-3
    anneal_lr: bool = True  # to 0, linearly
    gamma: Fraction = 0.999  # discount
    gae_lambda: Fraction = 0.95  # 0: low variance, 1: low bias
    norm_adv: bool = True  # standardise advantages
    clip_coef: PositiveFloat = 0.2  # epsilon; inf: no clip
    anneal_clip_coef: bool = False  # to 0, linearly
    clip_vloss: bool = False  # clip values, too
    target_kl: PositiveFloat | None = None  # an update ends above it
    vf_coef: NonNegativeFloat = 0.5  # c_1, of half a squared error
    ent_coef: NonNegativeFloat = 0.01  # c_2, weight of the entropy
    max_grad_norm: PositiveFloat = 0.5
    lstm_size: PositiveInt = 64  # H
    norm_obs: bool = True  # standardise observations
    norm_reward: bool = True  # scale rewards
    device: str = "cpu"  # no faster on a GPU
    track: bool = False  # in Weights & Biases
    resume: FilePath | None = None  # checkpoint.pt to go on from
    evaluate: FilePath | None = None  # checkpoint.pt to evaluate
    eval_episodes: PositiveInt = 10
    capture_video: bool = False  # film evaluations


def flatten(env: gym.Env) -> gym.Env:
    try:
        return env if type(env.observation_space) is Box else gym.wrappers.FlattenObservation(env)
    except NotImplementedError:  # a space that is not Gymnasium's
        raise gym.error.Error(f"no numbers: {env.observation_space}; write a wrapper") from None


class QuietEnv(gym.Wrapper):
    """Drops info, which is slow to gather, copies observations, seeds global generators."""

    def reset(self, *, seed: int | None = None, **kwargs: Any) -> tuple:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
        obs, info = self.env.reset(seed=seed, **kwargs)
        if "action_mask" in info:
            gym.logger.warn("action_mask is ignored, but not by variants/ppo_masks_discrete.py")
        return np.array(obs), {}

    def step(self, action: Any) -> tuple:
        obs, reward, terminated, truncated, _ = self.env.step(int(action))  # some refuse numpy's
        return np.array(obs), np.asarray(reward).item(), terminated, truncated, {}


def make_envs(args: Args, num_envs: int, videos: Path | None = None) -> VectorEnv:
    """Environments with observations as vectors, and actions that are counted from 0."""
    kwargs = args.env_kwargs | ({"render_mode": "rgb_array"} if videos else {})
    wrappers = [flatten, QuietEnv]
    if videos:
        wrappers.append(lambda env: gym.wrappers.RecordVideo(env, videos, lambda n: n < args.eval_episodes))
    options = {"autoreset_mode": "SameStep"}
    envs = gym.make_vec(args.env_id, num_envs, args.vectorization, options, wrappers, **kwargs)
    obs, action = envs.single_observation_space, envs.single_action_space
    if not (isinstance(obs, Box) and isinstance(action, Discrete) and action.start == 0):
        others = "ppo_continuous.py, variants/ppo_masks_discrete.py"
        raise gym.error.Error(f"needs vectors, Discrete actions from 0 (or {others}), not {action}, {obs}")
    return gym.wrappers.vector.RecordEpisodeStatistics(envs)


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


def with_memory(obs: Tensor, memory: Tensor) -> Tensor:
    """What an agent sees, (N, O + 2H): observations (N, *O) and its memory of the steps before (N, 2H)."""
    return torch.cat([obs.reshape(len(obs), -1).double(), memory], 1)


class Agent(nn.Module):
    """A categorical policy and a value function, which share a memory. It is 0 where an episode begins."""

    def __init__(self, envs: VectorEnv, args: Args) -> None:
        super().__init__()
        obs_size, self.memory_size = int(np.prod(envs.single_observation_space.shape)), 2 * args.lstm_size
        self.encoder = mlp(obs_size, args.lstm_size, out_gain=1.0)
        self.lstm = nn.LSTM(args.lstm_size, args.lstm_size)
        self.actor = mlp(args.lstm_size, int(envs.single_action_space.n), out_gain=0.01)
        self.critic = mlp(args.lstm_size, 1, out_gain=0.01)  # larger values are noise at first
        self.obs_stats = RunningMeanStd((obs_size + self.memory_size,))
        self.norm_obs = args.norm_obs

    def forward(self, obs: Tensor, num_steps: int = 1) -> tuple[Distribution, Tensor]:
        """For (B, O + 2H) of with_memory: the policy π_θ(·|s) over actions (B,), and V(s) (B,). The memory
        after them is self.memory (B, 2H). Rows are blocks of num_steps steps; episodes may begin within."""
        obs, memory = self.preprocess(obs).tensor_split([-self.memory_size], 1)
        begins = (memory == 0).all(1)  # after a step it is never 0
        begins[::num_steps] = True
        first = begins.nonzero().flatten()
        lengths = first.diff(append=first.new_tensor([len(obs)])).tolist()
        sequences = pack_sequence(self.encoder(obs).split(lengths), enforce_sorted=False)
        hidden, cell = memory[first].chunk(2, 1)
        features, (hidden, cell) = self.lstm(sequences, (hidden[None].contiguous(), cell[None].contiguous()))
        features, self.memory = torch.cat(unpack_sequence(features)), torch.cat([hidden[0], cell[0]], 1)
        return Categorical(logits=self.actor(features)), self.critic(features).squeeze(-1)

    def preprocess(self, obs: Tensor) -> Tensor:  # (B, O)
        if not obs.isfinite().all():
            raise FloatingPointError(f"observation after step {self.obs_stats.count:.0f} is not finite")
        memory = obs[:, -self.memory_size :]
        if self.norm_obs:
            obs = (obs.double() - self.obs_stats.mean) / (self.obs_stats.var + 1e-8).sqrt()
            obs = obs.clamp(-10, 10)
        obs = with_memory(obs[:, : -self.memory_size], memory)
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


@torch.no_grad()
def collect(envs: VectorEnv, agent: Agent, obs: Tensor, args: Args) -> Rollout:
    """Takes T steps from the observations obs (N, *O)."""
    tensor = partial(torch.as_tensor, device=args.device)
    steps, final_obs = [], [obs[:0]]  # empty, for torch.cat
    for _ in range(args.num_steps):
        policy, values = agent(obs)
        actions = policy.sample()
        next_obs, rewards, terminated, truncated, info = envs.step(actions.cpu().numpy())
        outcome = tensor(rewards).float(), tensor(terminated), tensor(truncated)
        steps.append((obs, actions, policy.log_prob(actions), values, *outcome))  # as in Rollout
        if truncated.any():  # next_obs is of the next episode
            cut_off = tensor(np.stack(info["final_obs"][truncated]))
            final_obs.append(with_memory(cut_off, agent.memory[tensor(truncated)]))
        obs = with_memory(tensor(next_obs), agent.memory * tensor(~(terminated | truncated))[:, None])
    return Rollout(*map(torch.stack, zip(*steps)), final_obs=torch.cat(final_obs), next_obs=obs)


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


def update(agent: Agent, optimizer: Optimizer, batch: Batch, clip_coef: float, args: Args) -> list:
    """Takes K epochs of gradient steps on minibatches. Returns their metrics."""
    history = []
    for _ in range(args.update_epochs):
        permutation = torch.randperm(args.num_envs, device=args.device)
        for chosen in permutation.tensor_split(args.num_minibatches):
            rows = torch.arange(len(batch.returns), device=args.device).view(-1, args.num_envs)  # (T, N)
            indices = rows[:, chosen].T.flatten()  # the steps of an environment one after the other
            minibatch = Batch(*(column[indices] for column in batch))
            policy, values = agent(minibatch.obs, args.num_steps)
            loss, metrics = ppo_loss(policy, values, minibatch, clip_coef, args)
            if history and args.target_kl is not None and metrics["approx_kl"] > args.target_kl:
                return history  # never without a step
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()
            history.append(metrics)
    return history


def train(args: Args, run_dir: Path) -> Agent:
    """Algorithm 1: collects a batch, improves the policy with it, and again."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    Distribution.set_default_validate_args(False)  # its checks are slow
    envs = make_envs(args, args.num_envs)
    agent = Agent(envs, args).to(args.device).train()  # cuDNN's gradients of an LSTM ask for it
    optimizer = Adam(agent.parameters(), args.learning_rate, eps=1e-5, fused=True)
    scaler = RewardScaler(args)
    parts = {"agent": agent, "optimizer": optimizer, "reward_stats": scaler.stats}
    step = load_checkpoint(args.resume, **parts)["global_step"] if args.resume else 0
    batch_size, left = args.num_envs * args.num_steps, args.total_timesteps - step
    if not 2 * args.num_minibatches <= batch_size <= left:
        raise gym.error.Error(f"batch of {batch_size}: not from 2 * num_minibatches to {left} steps left")
    if args.num_envs < args.num_minibatches:
        raise gym.error.Error(f"{args.num_envs} environments, {args.num_minibatches} minibatches of them")
    seeds = np.random.SeedSequence([args.seed, step]).generate_state(args.num_envs) // 2
    torch.manual_seed(seeds[0])  # new actions if resumed
    obs = torch.as_tensor(envs.reset(seed=seeds.tolist())[0], device=args.device)
    obs = with_memory(obs, torch.zeros(args.num_envs, 2 * args.lstm_size, device=args.device))
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
        history = update(agent, optimizer, batch, clip_coef, args)
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
    state |= {"args": vars(args) | {"resume": None, "evaluate": None}, "global_step": step}
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
    """The returns of episodes with sampled actions: the likeliest can be to stand still for ever."""
    envs = make_envs(args, 1, path.parent / "videos" if args.capture_video else None)
    agent = Agent(envs, args).to(args.device).eval()
    load_checkpoint(path, agent=agent)
    torch.manual_seed(args.seed)
    n, returns, (obs, _) = args.eval_episodes, [], envs.reset(seed=args.seed)
    memory = torch.zeros(1, agent.memory_size, device=args.device)
    try:
        for _ in tqdm(range(10_000 * n), "evaluation", leave=False):
            policy, _ = agent(with_memory(torch.as_tensor(obs, device=args.device), memory))
            obs, _, terminated, truncated, info = envs.step(policy.sample().cpu().numpy())
            memory = agent.memory * bool(~(terminated | truncated)[0])
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
