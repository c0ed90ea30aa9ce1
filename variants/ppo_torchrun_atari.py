# /// script
# dependencies = ["torch>=2.13", "gymnasium>=1.4,<2", "ale-py>=0.12.1", "tyro>=1.0", "tensorboard", "tqdm",
#                 "wandb", "moviepy", "pydantic>=2", "opencv-python-headless>=4.11"]
# ///
# SPDX-License-Identifier: MIT
"""Proximal Policy Optimization (PPO) for Atari games in several processes, in one file.

    torchrun --nproc-per-node 2 ppo_torchrun_atari.py --env-id Pong

Each process has its share of --num-envs, and with CUDA a GPU. Gradients are averaged: weights stay equal.

Read it beside Schulman et al. 2017, arXiv:1707.06347 ("eq."); `train` is its Algorithm 1.

A batch is collected with one policy, π_old, and used for many gradient steps on another, π_θ. Importance
ratios correct for the actions that π_θ prefers, but not for the states that it would reach: the batch says
little about a π_θ far from π_old. So PPO clips the objective: moving a ratio beyond 1 ± ε gains nothing.

    r_t(θ)         ratio       π_θ(a_t|s_t) / π_old(a_t|s_t)
    L^CLIP         objective   the clipped surrogate, eq. 7
    L^(CLIP+VF+S)  -loss       with value loss and entropy, eq. 9
    Â_t            advantages  generalized advantage estimates, eq. 11

Shapes: T steps, N environments, B transitions, *O of an observation, *A of an action. Not in the paper:
bootstrapping at time limits (Pardo et al. 2018), the KL limit (Spinning Up), 4 epochs, an ε that does not
fall; openai/baselines' orthogonal weights, standardised advantages, clipped gradients and values.
"""

import re
import sys
import time
from collections import deque
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
import tyro
from gymnasium.vector import VectorEnv
from pydantic import Field, FilePath, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

Fraction = Annotated[float, Field(ge=0, le=1)]
FinitePositive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config={"extra": "forbid"})
class Args:
    env_id: str = "Breakout"  # a game of the Arcade Learning Environment
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    total_timesteps: PositiveInt = 10_000_000  # steps of 4 frames
    num_envs: PositiveInt = 8  # N
    protocol: Literal["classic", "machado"] = "classic"  # see make_envs
    num_steps: PositiveInt = 128  # T
    num_minibatches: PositiveInt = 4
    update_epochs: PositiveInt = 4  # K
    learning_rate: FinitePositive = 2.5e-4
    anneal_lr: bool = True  # to 0, linearly
    gamma: Fraction = 0.99  # discount
    gae_lambda: Fraction = 0.95  # 0: low variance, 1: low bias
    norm_adv: bool = True  # standardise advantages
    clip_coef: PositiveFloat = 0.1  # epsilon; inf: no clip
    anneal_clip_coef: bool = False  # to 0, linearly, as in the paper
    clip_vloss: bool = False  # clip values, too
    target_kl: PositiveFloat | None = None  # an update ends above it
    vf_coef: NonNegativeFloat = 0.5  # c_1, of half a squared error
    ent_coef: NonNegativeFloat = 0.01  # c_2, weight of the entropy
    max_grad_norm: PositiveFloat = 0.5
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    threads: PositiveInt = 2  # of torch on a CPU; the games have their own
    bf16: bool = False  # for GPUs and CPUs with bfloat16; slow on others
    track: bool = False  # in Weights & Biases
    resume: FilePath | None = None  # checkpoint.pt to go on from
    evaluate: FilePath | None = None  # checkpoint.pt to evaluate
    eval_episodes: PositiveInt = 10
    capture_video: bool = False  # film evaluations


class GameStatistics(gym.vector.VectorWrapper):
    """Scores and lengths of whole games, as RecordEpisodeStatistics would have those of single lives."""

    def __init__(self, envs: VectorEnv) -> None:
        super().__init__(envs)
        self.episode_count, self.return_queue, self.length_queue = 0, deque(maxlen=100), deque(maxlen=100)

    def reset(self, *, seed: list[int] | None = None, options: dict | None = None) -> tuple:
        obs, info = self.env.reset(seed=None if seed is None else np.array(seed), options=options)
        self.scores, self.lengths = np.zeros((2, self.num_envs))
        self.frames = info["episode_frame_number"]
        return obs, info

    def step(self, actions: np.ndarray) -> tuple:
        obs, rewards, terminated, truncated, info = self.env.step(actions)
        self.scores, self.lengths = self.scores + rewards, self.lengths + 1
        ended = info["episode_frame_number"] <= self.frames  # it grows until the next game starts
        if ended.any():
            info |= {"episode": {"r": self.scores.copy()}, "_episode": ended}
            self.return_queue.extend(self.scores[ended])
            self.length_queue.extend(self.lengths[ended])
            self.episode_count += ended.sum()
            self.scores[ended] = self.lengths[ended] = 0
        self.frames = info["episode_frame_number"]
        return obs, rewards, terminated, truncated, info


class FireReset(gym.Wrapper):
    """Presses FIRE, as in training."""

    def reset(self, **kwargs: Any) -> tuple:
        self.env.reset(**kwargs)
        obs, *_, info = self.env.step("FIRE" in self.unwrapped.get_action_meanings())
        return obs, info


def make_envs(args: Args, num_envs: int, videos: Path | None = None) -> VectorEnv:
    """Protocol classic, as in openai/baselines: a lost life counts as terminated, but the game goes on.
    machado (Machado et al. 2018): lives play no part, actions are sticky."""
    game = re.sub(r"^.*ALE/|(NoFrameskip|Deterministic)?-v\d$", "", args.env_id)
    mode = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    kwargs = {"repeat_action_probability": 0.0 if args.protocol == "classic" else 0.25}
    kwargs["max_num_frames_per_episode"] = 108_000
    if videos:  # ALE's vector environment cannot render; the frames are the same
        wrappers = [
            FireReset,
            gym.wrappers.AtariPreprocessing,
            lambda env: gym.wrappers.FrameStackObservation(env, 4, padding_type="zero"),
            lambda env: gym.wrappers.RecordVideo(env, videos, lambda n: n < args.eval_episodes),
        ]
        kwargs |= {"frameskip": 1, "render_mode": "rgb_array"}
        envs = gym.make_vec(f"ale_py:ALE/{game}-v5", num_envs, "sync", mode, wrappers, **kwargs)
        return gym.wrappers.vector.RecordEpisodeStatistics(envs)
    kwargs |= {"frameskip": 4, "maxpool": True, "stack_num": 4, "noop_max": 30, "use_fire_reset": True}
    kwargs |= {"episodic_life": False, "life_loss_info": args.protocol == "classic"}
    kwargs |= {"reward_clipping": False}
    return GameStatistics(
        gym.make_vec(f"ale_py:ALE/{game}-v5", num_envs, "vector_entry_point", **kwargs, **mode)
    )


def layer_init(layer: nn.Linear | nn.Conv2d, gain: float = 2**0.5) -> nn.Linear | nn.Conv2d:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """A categorical policy and a value function, which share the network of Mnih et al. 2015."""

    def __init__(self, envs: VectorEnv, args: Args) -> None:
        super().__init__()
        self.features = nn.Sequential(
            layer_init(nn.Conv2d(4, 32, 8, stride=4)), nn.ReLU(inplace=True),
            layer_init(nn.Conv2d(32, 64, 4, stride=2)), nn.ReLU(inplace=True),
            layer_init(nn.Conv2d(64, 64, 3, stride=1)), nn.ReLU(inplace=True), nn.Flatten(),
            layer_init(nn.Linear(64 * 7 * 7, 512)), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.actor = layer_init(nn.Linear(512, int(envs.single_action_space.n)), 0.01)
        self.critic = layer_init(nn.Linear(512, 1), 1.0)
        self.bf16 = args.bf16

    def forward(self, obs: Tensor) -> tuple[Distribution, Tensor]:
        """For frames (B, 4, 84, 84) of bytes: the policy π_θ(·|s) over actions (B,), and V(s) (B,)."""
        x = obs.to(memory_format=torch.channels_last).float().div_(255)  # faster convolutions on a CPU
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.features(x).float()
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
    steps, final_obs = [], [obs[:0]]  # empty, for torch.cat
    for _ in range(args.num_steps):
        policy, values = agent(obs)
        actions = policy.sample()
        next_obs, rewards, terminated, truncated, info = envs.step(actions.cpu().numpy())
        outcome = tensor(rewards).float(), tensor(terminated), tensor(truncated)
        steps.append((obs, actions, policy.log_prob(actions), values, *outcome))  # as in Rollout
        if truncated.any():  # next_obs is of the next episode
            final_obs.append(tensor(np.stack(info["final_obs"][truncated])))
        obs = tensor(next_obs)
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
        permutation = torch.randperm(len(batch.returns), device=args.device)
        for indices in permutation.tensor_split(args.num_minibatches):
            minibatch = Batch(*(column[indices] for column in batch))
            policy, values = agent(minibatch.obs)
            loss, metrics = ppo_loss(policy, values, minibatch, clip_coef, args)
            for metric in metrics.values():  # so that --target-kl stops all processes in the same step
                dist.all_reduce(metric.div_(dist.get_world_size()))
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
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if args.num_envs % world_size:
        raise gym.error.Error(f"num_envs {args.num_envs} is not a multiple of the {world_size} processes")
    if args.device == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank())
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    Distribution.set_default_validate_args(False)  # its checks are slow
    envs = make_envs(args, args.num_envs // world_size)
    agent = Agent(envs, args).to(args.device).eval()  # dropout would be noise in ratios
    optimizer = Adam(agent.parameters(), args.learning_rate, eps=1e-5, fused=True)
    parts = {"agent": agent, "optimizer": optimizer}
    step = load_checkpoint(args.resume, **parts)["global_step"] if args.resume else 0
    batch_size, left = args.num_envs * args.num_steps, args.total_timesteps - step
    if not 2 * args.num_minibatches * world_size <= batch_size <= left:
        least = 2 * args.num_minibatches * world_size
        raise gym.error.Error(f"batch of {batch_size}: not from {least} to {left} steps left")
    seeds = np.random.SeedSequence([args.seed, step]).generate_state(args.num_envs)[rank::world_size] // 2
    torch.manual_seed(seeds[0])  # new actions if resumed
    obs = torch.as_tensor(envs.reset(seed=seeds.tolist())[0], device=args.device)
    if args.track and rank == 0:
        import wandb

        wandb.init(name=run_dir.name, config=vars(args), sync_tensorboard=True, reinit="finish_previous")
    writer = SummaryWriter(run_dir, flush_secs=5)
    bar = tqdm(total=args.total_timesteps, initial=step, delay=1e9 * rank)  # one bar
    writer.add_text("args", str(args))
    averaged = DistributedDataParallel(agent)
    while step + batch_size <= args.total_timesteps:
        remaining = 1 - step / args.total_timesteps
        lr = optimizer.param_groups[0]["lr"] = args.learning_rate * (remaining if args.anneal_lr else 1)
        clip_coef = args.clip_coef * (remaining if args.anneal_clip_coef else 1)
        rollout = collect(envs, agent, obs, args)
        rollout = rollout._replace(rewards=rollout.rewards.sign())  # one scale for all games
        batch = make_batch(agent, rollout, args)
        history = update(averaged, optimizer, batch, clip_coef, args)
        obs, step = rollout.next_obs, step + batch_size
        writer.add_scalar("charts/learning_rate", lr, step)
        log(writer, bar, step, envs, agent, batch, history)
        if step // batch_size % 10 == 0 or step + batch_size > args.total_timesteps:
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
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, {name: float(value) for name, value in metrics.items()})
    for name in set().union(*everyone):
        writer.add_scalar(name, np.mean([of_one[name] for of_one in everyone if name in of_one]), step)


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
    """The scores of games with sampled actions: the likeliest can be to wait for ever."""
    envs = make_envs(args, 1, path.parent / "videos" if args.capture_video else None)
    agent = Agent(envs, args).to(args.device).eval()
    load_checkpoint(path, agent=agent)
    torch.manual_seed(args.seed)
    n, returns, (obs, _) = args.eval_episodes, [], envs.reset(seed=[args.seed])
    try:
        for _ in tqdm(range(27_000 * n), "evaluation", leave=False):
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
    args = tyro.cli(Args)
    try:
        if args.resume or args.evaluate:  # flags not given are the checkpoint's
            args = tyro.cli(Args, default=load_checkpoint(args.resume or args.evaluate)["args"])
        name = f"{args.env_id}__{Path(__file__).stem}__{args.seed}__{time.time_ns()}"
        path = Path("runs", name.replace("/", "_").replace(":", "_"), "checkpoint.pt").absolute()
        dist.init_process_group()
        temporary = TemporaryDirectory()  # what the other processes write is the same, and dropped
        if dist.get_rank() > 0:
            path = Path(temporary.name, "checkpoint.pt")
        if not args.evaluate:
            print("checkpoint:", path)
            train(args, path.parent)
        if dist.get_rank() == 0:
            evaluate(args.evaluate or path, args)
    except (gym.error.Error, FloatingPointError) as error:
        sys.exit("error: " + " ".join(str(error).split()))  # in one line
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
