# /// script
# dependencies = ["torch>=2.13", "gymnasium[box2d,other]>=1.4,<2", "tyro>=1.0", "tensorboard", "tqdm",
#                 "wandb", "moviepy", "pydantic>=2"]
# ///
# SPDX-License-Identifier: MIT
"""Proximal Policy Optimization (PPO) for discrete actions by images, in one file.

    python ppo_pixels_discrete.py --env-id CarRacing-v3 --env-kwargs continuous False

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

import cv2
import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import VectorEnv
from pydantic import Field, FilePath, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution
from torch.optim import Adam, Optimizer
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

Fraction = Annotated[float, Field(ge=0, le=1)]
FinitePositive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config={"extra": "forbid"})
class Args:
    env_id: str = "CarRacing-v3"  # or "module:MyEnv-v0"
    env_kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)  # name value ...
    frame_size: Annotated[int, Field(ge=36)] = 84  # S; images become squares
    frame_stack: PositiveInt = 4  # K, latest images that are seen
    colour: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    total_timesteps: PositiveInt = 200_000  # environment steps
    num_envs: PositiveInt = 16  # N
    vectorization: str = "sync"  # or "async", a process each
    num_steps: PositiveInt = 128  # T
    num_minibatches: PositiveInt = 8
    update_epochs: PositiveInt = 4  # K
    learning_rate: FinitePositive = 2.5e-4
    anneal_lr: bool = True  # to 0, linearly
    gamma: Fraction = 0.99  # discount
    gae_lambda: Fraction = 0.95  # 0: low variance, 1: low bias
    norm_adv: bool = True  # standardise advantages
    clip_coef: PositiveFloat = 0.2  # epsilon; inf: no clip
    anneal_clip_coef: bool = False  # to 0, linearly
    clip_vloss: bool = False  # clip values, too
    target_kl: PositiveFloat | None = None  # an update ends above it
    vf_coef: NonNegativeFloat = 0.5  # c_1, of half a squared error
    ent_coef: NonNegativeFloat = 0.01  # c_2, weight of the entropy
    max_grad_norm: PositiveFloat = 0.5
    norm_reward: bool = True  # scale rewards
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    track: bool = False  # in Weights & Biases
    resume: FilePath | None = None  # checkpoint.pt to go on from
    evaluate: FilePath | None = None  # checkpoint.pt to evaluate
    eval_episodes: PositiveInt = 10
    capture_video: bool = False  # film evaluations


class ImageEnv(gym.ObservationWrapper):
    """Observations (C, S, S): an image (H, W, C) or (C, H, W) of bytes, or a Dict's, resized; RGB to grey."""

    def __init__(self, env: gym.Env, args: Args) -> None:
        super().__init__(env)
        space, self.size, self.colour = env.observation_space, args.frame_size, args.colour
        spaces = space.spaces if isinstance(space, Dict) else {None: space}
        images = [key for key, part in spaces.items() if part.dtype == np.uint8 and len(part.shape) == 3]
        if len(images) != 1 or min(spaces[images[0]].shape) > 4:  # OpenCV's limit
            raise gym.error.Error(f"no image of bytes (H, W, C<5), (C, H, W) in {space}: use ppo_discrete.py")
        self.key, (first, *_, last) = images[0], spaces[images[0]].shape
        self.channel_axis = 0 if first < last else 2
        self.observation_space = Box(0, 255, self.observation(space.sample()).shape, np.uint8)

    def observation(self, observation: Any) -> np.ndarray:
        image = observation if self.key is None else observation[self.key]
        image = np.moveaxis(image, self.channel_axis, 2)
        if image.shape[2] == 3 and not self.colour:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return np.atleast_3d(image).transpose(2, 0, 1)


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
    """Environments with observations (K, C, S, S) of bytes, and actions that are counted from 0."""
    kwargs = args.env_kwargs | ({"render_mode": "rgb_array"} if videos else {})
    wrappers = [lambda e: gym.wrappers.FrameStackObservation(ImageEnv(e, args), args.frame_stack), QuietEnv]
    if videos:
        wrappers.append(lambda env: gym.wrappers.RecordVideo(env, videos, lambda n: n < args.eval_episodes))
    options = {"autoreset_mode": "SameStep"}
    envs = gym.make_vec(args.env_id, num_envs, args.vectorization, options, wrappers, **kwargs)
    obs, action = envs.single_observation_space, envs.single_action_space
    if not (isinstance(obs, Box) and isinstance(action, Discrete) and action.start == 0):
        raise gym.error.Error(f"needs Discrete actions from 0 (CarRacing-v3: continuous False), not {action}")
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


class Agent(nn.Module):
    """A categorical policy and a value function, which share the CNN of Mnih et al. 2015."""

    def __init__(self, envs: VectorEnv, args: Args) -> None:
        super().__init__()
        stack, channels, size, _ = envs.single_observation_space.shape
        self.features = nn.Sequential(
            nn.Flatten(1, 2),
            nn.Conv2d(stack * channels, 32, 8, stride=4), nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(inplace=True), nn.Flatten(),
            nn.Linear(64 * ((size // 4 - 1) // 2 - 3) ** 2, 512), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.actor, self.critic = nn.Linear(512, int(envs.single_action_space.n)), nn.Linear(512, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(layer.weight, {self.actor: 0.01, self.critic: 1.0}.get(layer, 2**0.5))
                nn.init.zeros_(layer.bias)

    def forward(self, obs: Tensor) -> tuple[Distribution, Tensor]:
        """For observations (B, *O): the policy π_θ(·|s) over actions (B,), and V(s) (B,)."""
        x = self.features(obs / 255)
        return Categorical(logits=self.actor(x)), self.critic(x).squeeze(-1)


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
    steps, final_obs, frames = [], [obs[:0]], obs.new_empty(args.num_steps, *obs.shape)
    for _ in range(args.num_steps):
        frames[len(steps)] = obs  # not stacked later, which would hold them twice
        policy, values = agent(obs)
        actions = policy.sample()
        next_obs, rewards, terminated, truncated, info = envs.step(actions.cpu().numpy())
        outcome = tensor(rewards).float(), tensor(terminated), tensor(truncated)
        steps.append((actions, policy.log_prob(actions), values, *outcome))  # as in Rollout, after obs
        if truncated.any():  # next_obs is of the next episode
            final_obs.append(tensor(np.stack(info["final_obs"][truncated])))
        obs = tensor(next_obs)
    return Rollout(frames, *map(torch.stack, zip(*steps)), final_obs=torch.cat(final_obs), next_obs=obs)


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
        permutation = torch.randperm(len(batch.returns), device=args.device)
        for indices in permutation.tensor_split(args.num_minibatches):
            minibatch = Batch(*(column[indices] for column in batch))
            policy, values = agent(minibatch.obs)
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
    agent = Agent(envs, args).to(args.device).eval()  # dropout would be noise in ratios
    optimizer = Adam(agent.parameters(), args.learning_rate, eps=1e-5, fused=True)
    scaler = RewardScaler(args)
    parts = {"agent": agent, "optimizer": optimizer, "reward_stats": scaler.stats}
    step = load_checkpoint(args.resume, **parts)["global_step"] if args.resume else 0
    batch_size, left = args.num_envs * args.num_steps, args.total_timesteps - step
    if not 2 * args.num_minibatches <= batch_size <= left:
        raise gym.error.Error(f"batch of {batch_size}: not from 2 * num_minibatches to {left} steps left")
    seeds = np.random.SeedSequence([args.seed, step]).generate_state(args.num_envs) // 2
    torch.manual_seed(seeds[0])  # new actions if resumed
    obs = torch.as_tensor(envs.reset(seed=seeds.tolist())[0], device=args.device)
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
        obs, step = rollout.next_obs, step + batch_size
        writer.add_scalar("charts/learning_rate", lr, step)
        log(writer, bar, step, envs, agent, batch, history)
        del rollout, batch  # frees its frames before the next
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
    try:
        for _ in tqdm(range(10_000 * n), "evaluation", leave=False):
            policy, _ = agent(torch.as_tensor(obs, device=args.device))
            obs, *_, info = envs.step(policy.sample().cpu().numpy())
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
