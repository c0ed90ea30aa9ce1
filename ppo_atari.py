# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.13", "gymnasium>=1.4,<2", "ale-py>=0.12.1", "tyro>=1.0", "tensorboard>=2.20", "tqdm>=4.67",
#                 "wandb>=0.31", "moviepy>=2.2", "opencv-python-headless>=4.11"]
# ///
# Copyright (c) 2026 the authors of "PPO in single files". SPDX-License-Identifier: MIT
"""Proximal Policy Optimization for Atari games (Schulman et al. 2017, arXiv:1707.06347), whole in this file.

    python ppo_atari.py --env-id Pong --clip-coef 0.2

PPO takes many gradient steps on data that the policy has just collected. Importance ratios correct for what changes in
its actions meanwhile, but not in the states it meets, so it must stay near the one that collected: in a trust region.
TRPO constrains the KL divergence; PPO clips what could be gained by going further. "eq." is the PPO paper's. Shapes:
T steps, N environments, B rows (N·T, or a minibatch of them), *O and *A the shapes of one observation and one action.

    r_t(θ)          ratio             π_θ(a_t|s_t) / π_old(a_t|s_t), in eq. 6           ppo_loss
    L^CLIP          objective         the clipped surrogate, eq. 7                      ppo_loss
    L^(CLIP+VF+S)   loss, negated     with value loss and entropy bonus, eq. 9          ppo_loss
    Â_t             advantages        generalized advantage estimation, eq. 11          compute_gae
    δ_t             deltas            temporal-difference errors, eq. 12                compute_gae
    V_t^targ        returns           Â_t + V(s_t), what the value function fits        make_batch
"""

import copy
import io
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
import tyro
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, kl_divergence
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass(frozen=True)
class Args:
    env_id: str = "Breakout"  # game of the Arcade Learning Environment; "ALE/Breakout-v5" works too
    protocol: Literal["classic", "machado"] = "classic"  # sticky actions and lives: see make_envs
    seed: int = 1  # seeds weights, action sampling, minibatch order and environments
    total_timesteps: int = 10_000_000  # environment steps over all num_envs, rounded down to whole batches
    learning_rate: float = 2.5e-4  # step size of Adam; with desired_kl the policy's is at most that
    num_envs: int = 8  # N, environments that act in parallel, over all processes
    num_steps: int = 128  # T, steps per environment and iteration; each iteration learns from one batch of N·T steps
    anneal_lr: bool = True  # let learning_rate fall linearly to 0, as the paper does on Atari
    gamma: float = 0.99  # γ, the discount
    gae_lambda: float = 0.95  # λ of GAE: 0 is the one-step TD error (low variance), 1 is Monte Carlo minus V (low bias)
    num_minibatches: int = 4  # equal minibatches per epoch; must divide num_envs·num_steps
    update_epochs: int = 4  # K, passes over each batch
    norm_adv: bool = True  # standardise the advantages of each minibatch
    clip_coef: float = 0.1  # ε, the ratio is clipped to [1-ε, 1+ε]; inf turns clipping off
    anneal_clip_coef: bool = False  # let ε fall linearly to 0, as the paper does on Atari
    clip_vloss: bool = False  # also clip the new value to within ε of the old one, in units of the clipped reward
    ent_coef: float = 0.01  # c_2, weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value loss 0.5 (V - V^targ)², so twice the paper's c_1
    max_grad_norm: float = 0.5  # clip the gradient of all parameters together to this L2 norm
    kl_coef: float = 0.0  # β at the start, weight of a penalty on the KL, eq. 8 (there without the clip); 0: none
    kl_coef_target: float = 0.01  # d_targ: β doubles after a KL above 1.5 d_targ, and halves below d_targ / 1.5
    target_kl: float | None = None  # end an update before the first step whose minibatch has an approx_kl above this
    desired_kl: float = 0.0  # a KL above twice this lowers the policy's learning rate, below half raises it; 0: off
    device: str = "cuda" if torch.cuda.is_available() else "cpu"  # cpu, cuda, cuda:1, ...
    threads: int = 2  # CPU threads of torch, which pauses while the games play in threads of their own
    bf16: bool = False  # compute the convolutions in bfloat16; weights, heads and loss stay float32
    compile: bool = False  # compile acting, loss and gradient: faster after a wait at the start; needs a C++ compiler
    track: bool = False  # log to Weights & Biases, besides TensorBoard
    wandb_project_name: str = "ppo"  # project for --track
    capture_video: bool = False  # film the evaluation into videos/ in the run folder; it is then of one episode
    checkpoint_every: int = 10  # iterations between checkpoints; the last iteration leaves one too
    resume: str | None = None  # checkpoint.pt to go on from, in its folder; flags given here override the saved ones
    evaluate: str | None = None  # checkpoint.pt to evaluate instead of training; saved flags as with --resume
    eval_episodes: int = 10  # episodes of an evaluation; a training ends with one
    eval_greedy: bool = False  # evaluate with the most likely action, which can be to wait until the frame limit
    game = property(lambda self: f"ale_py:ALE/{self.env_id.split('ALE/')[-1].removesuffix('-v5')}-v5")
    batch_size = property(lambda self: self.num_envs * self.num_steps)
    num_iterations = property(lambda self: self.total_timesteps // self.batch_size)
    rank = property(lambda self: int(os.environ.get("RANK", 0)))  # this process's number, set by torchrun
    world_size = property(lambda self: int(os.environ.get("WORLD_SIZE", 1)))  # how many processes torchrun started


def make_envs(args: Args, num_envs: int | None = None, **kwargs: Any) -> gym.vector.VectorEnv:  # noqa: ANN401
    """Games, 4 frames a step, that report the scores of whole games; kwargs are those of gym.make_vec. The protocol
    classic, near to openai/baselines': no sticky actions, and a lost life ends the bootstrap but not the game. The
    protocol machado: the sticky actions of Machado et al. 2018, and lives play no part."""
    mode = gym.vector.AutoresetMode.SAME_STEP  # no step is spent on a reset: all rows are real
    sticky = {"classic": 0.0, "machado": 0.25}[args.protocol]  # probability, each frame, that the last action goes on
    kwargs = {"repeat_action_probability": sticky, "max_num_frames_per_episode": 108_000} | kwargs  # then truncated
    if "render_mode" in kwargs:  # ALE's threads cannot render: one game, with the same frames, started without FIRE
        stack = [lambda env: gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")]
        kwargs["wrappers"] = [gym.wrappers.AtariPreprocessing, *stack, *kwargs["wrappers"]]
        envs = gym.make_vec(args.game, num_envs, "sync", {"autoreset_mode": mode}, frameskip=1, **kwargs)
        return gym.wrappers.vector.RecordEpisodeStatistics(envs)
    options = {"frameskip": 4, "maxpool": True, "stack_num": 4, "noop_max": 30, "use_fire_reset": True}
    options |= {"autoreset_mode": mode, "life_loss_info": args.protocol == "classic"}  # a lost life is terminated
    options |= {"episodic_life": False, "reward_clipping": False}  # True would reset at a lost life; hide true scores
    num_envs = num_envs or args.num_envs // args.world_size
    return CountGames(gym.make_vec(args.game, num_envs, "vector_entry_point", **(options | kwargs)))


class CountGames(gym.vector.VectorWrapper):
    """Reports scores as gym's RecordEpisodeStatistics does, but of whole games: that one would report each life's."""

    def reset(self, *, seed: list[int] | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        obs, info = self.env.reset(seed=None if seed is None else np.array(seed), options=options)  # ALE takes no list
        self.scores, self.frames = np.zeros(self.num_envs), info["episode_frame_number"]  # (N,) each
        return obs, info

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        obs, rewards, terminated, truncated, info = self.env.step(actions)
        self.scores += rewards
        ended = info["episode_frame_number"] <= self.frames  # it grows, until it is the next game's
        info |= {"episode": {"r": self.scores}, "_episode": ended}
        self.scores, self.frames = self.scores * ~ended, info["episode_frame_number"]
        return obs, rewards, terminated, truncated, info


def layer_init(layer: nn.Linear | nn.Conv2d, gain: float = math.sqrt(2)) -> nn.Linear | nn.Conv2d:
    """Orthogonal weights times gain, zero biases (openai/baselines)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """A categorical policy and a value function that share the network of Mnih et al. 2015, as in openai/baselines."""

    def __init__(self, envs: gym.vector.VectorEnv, args: Args) -> None:
        super().__init__()
        self.features = nn.Sequential(
            layer_init(nn.Conv2d(4, 32, 8, stride=4)), nn.ReLU(inplace=True),
            layer_init(nn.Conv2d(32, 64, 4, stride=2)), nn.ReLU(inplace=True),
            layer_init(nn.Conv2d(64, 64, 3, stride=1)), nn.ReLU(inplace=True), nn.Flatten(),
            layer_init(nn.Linear(64 * 7 * 7, 512)), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.actor = layer_init(nn.Linear(512, int(envs.single_action_space.n)), 0.01)  # at first equally likely
        self.critic = layer_init(nn.Linear(512, 1), 1.0)
        self.bf16 = args.bf16

    def forward(self, obs: Tensor) -> tuple[Distribution, Tensor]:
        """The policy π_θ(·|s), over actions (B,), and the values V(s) (B,), in frames (B, 4, 84, 84) of 0 to 255."""
        x = obs.to(memory_format=torch.channels_last).float().div_(255)  # bytes are the cheapest to reorder
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.features(x).float()
        return Categorical(logits=self.actor(x), validate_args=False), self.critic(x).squeeze(-1)

    def scale_rewards(self, rewards: np.ndarray, done: np.ndarray) -> np.ndarray:
        """The signs of rewards (T, N), so that one learning rate suits all games (Mnih et al. 2015)."""
        return np.sign(rewards, dtype=np.float32)

    def update_obs_stats(self, obs: Tensor) -> None:
        """Pixels need no statistics; forward scales them to [0, 1]."""


# ---- From here on, but for check_env, nothing depends on what an observation or an action is. ------------------------
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


def ppo_loss(log_probs: Tensor, values: Tensor, entropy: Tensor, batch: Batch, *, clip_coef: float, clip_vloss: bool,
             vf_coef: float, ent_coef: float) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The loss, eq. 9 negated, and metrics. log_probs, values and entropy, all (B,), are of the policy being optimised.
    Where Â > 0 and r_t(θ) > 1+ε, or Â < 0 and r_t(θ) < 1-ε, L^CLIP is flat: no gain in going further. Past the other
    bound the min keeps the unclipped term, whose gradient pulls the ratio back."""
    log_ratio = log_probs - batch.log_probs
    ratio = log_ratio.exp()  # r_t(θ), the ratio in eq. 6
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    objective = torch.min(ratio * batch.advantages, clipped_ratio * batch.advantages).mean()  # L^CLIP, eq. 7
    value_errors = (values - batch.returns) ** 2
    if clip_vloss:  # not in the paper, but in openai/baselines
        clipped_values = batch.values + (values - batch.values).clamp(-clip_coef, clip_coef)
        value_errors = torch.max(value_errors, (clipped_values - batch.returns) ** 2)
    value_loss = 0.5 * value_errors.mean()  # L^VF; the 0.5 is openai/baselines', so the paper's c_1 is vf_coef / 2
    loss = -(objective - vf_coef * value_loss + ent_coef * entropy.mean())  # eq. 9, to be minimised
    metrics = {"policy_loss": -objective, "value_loss": value_loss, "entropy": entropy.mean()}
    metrics["approx_kl"] = (log_ratio.expm1() - log_ratio).mean()  # r-1-log r ≥ 0 estimates KL[π_old, π_θ]
    metrics["clip_fraction"] = ((ratio - 1).abs() > clip_coef).float().mean()
    return loss, {name: metric.detach() for name, metric in metrics.items()}


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


def make_optimizer(agent: Agent, args: Args) -> torch.optim.Optimizer:
    """Adam with openai/baselines' eps on two flat vectors, of which the parameters become views: fewer kernels."""
    vector = nn.utils.parameters_to_vector(agent.parameters()).detach()
    if args.world_size > 1:
        dist.broadcast(vector, 0)  # all processes start from the first one's weights
    nn.utils.vector_to_parameters(vector, agent.parameters())
    n = sum(p.numel() for p in agent.critic.parameters())  # the critic's vector is the last, so define it last
    policy = {"params": vector[:-n], "clip_coef": args.clip_coef, "kl_coef": args.kl_coef}  # here they are checkpointed
    return torch.optim.Adam([policy, {"params": vector[-n:]}], args.learning_rate, eps=1e-5, fused=True)


def minibatch_gradient(agent: Agent, batch: Batch, args: Args, clip_coef: float, kl_coef: float = 0.0,
                       old_agent: Agent | None = None) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The gradient of the loss in all parameters as one flat vector, in their order, and the metrics of ppo_loss, both
    of this process's share. An old_agent, which acts by π_old, adds the penalty on KL[π_old, π_θ] of eq. 8, times β."""
    if args.norm_adv:  # not in the paper, but in openai/baselines
        std, mean = torch.std_mean(batch.advantages)
        batch = batch._replace(advantages=(batch.advantages - mean) / (std + 1e-8))
    batch = Batch(*(column[args.rank :: args.world_size] for column in batch))
    policy, values = agent(batch.obs)
    loss, metrics = ppo_loss(policy.log_prob(batch.actions), values, policy.entropy(), batch, clip_coef=clip_coef,
                             clip_vloss=args.clip_vloss, vf_coef=args.vf_coef, ent_coef=args.ent_coef)  # fmt: skip
    if old_agent:  # in closed form, where approx_kl is an estimate
        loss = loss + kl_coef * kl_divergence(old_agent(batch.obs)[0], policy).mean()
    gradients = torch.autograd.grad(loss, list(agent.parameters()), materialize_grads=True)  # 0 for what had no part
    return torch.cat([gradient.flatten() for gradient in gradients]), metrics


def update(agent: Agent, optimizer: torch.optim.Optimizer, batch: Batch, args: Args,
           gradient_fn: Callable = minibatch_gradient) -> dict[str, float]:  # fmt: skip
    """K epochs of gradient steps; then rl_games' rule for the policy's learning rate. Returns the metrics' means."""
    policy, critic = optimizer.param_groups
    vectors, history = [policy["params"][0], critic["params"][0]], []
    old_agent = copy.deepcopy(agent).requires_grad_(False) if args.kl_coef else None
    policy["kl_coef"] = policy.get("kl_coef") or args.kl_coef  # none or 0: of a resumed run that had no penalty
    order = torch.cat([torch.randperm(args.batch_size, device=args.device) for _ in range(args.update_epochs)])
    if args.world_size > 1:
        dist.broadcast(order, 0)  # all processes work on the same minibatches
    for rows in order.split(args.batch_size // args.num_minibatches):  # equal parts: none straddles two epochs
        minibatch = Batch(*(column[rows] for column in batch))
        gradient, metrics = gradient_fn(agent, minibatch, args, policy["clip_coef"], policy["kl_coef"], old_agent)
        if args.world_size > 1:
            gradient, metrics = average(gradient, metrics, args)
        metrics["grad_norm"] = gradient.norm()
        gradient *= (args.max_grad_norm / metrics["grad_norm"]).clamp(max=1)  # openai/baselines
        vectors[0].grad, vectors[1].grad = gradient.split([len(vector) for vector in vectors])
        history.append(torch.stack(list(metrics.values())))
        if args.target_kl is not None and metrics["approx_kl"] > args.target_kl:  # Spinning Up stops at 1.5 times this
            break
        optimizer.step()
    means = dict(zip(metrics, torch.stack(history).mean(0).tolist()))
    means |= {"learning_rate": policy["lr"], "kl_coef": policy["kl_coef"]}
    if old_agent:
        kl, d_targ = kl_divergence(old_agent(batch.obs)[0], agent(batch.obs)[0]).mean().item(), args.kl_coef_target
        policy["kl_coef"] = max(policy["kl_coef"] * 2.0 ** ((kl > 1.5 * d_targ) - (kl < d_targ / 1.5)), 1e-99)  # not 0
    agent.update_obs_stats(batch.obs)  # only now: before, it would shift π_θ but not log π_old
    policy["lr"] *= 1.5 ** ((means["approx_kl"] < args.desired_kl / 2) - (means["approx_kl"] > 2 * args.desired_kl > 0))
    return means | {"explained_variance": 1 - (batch.advantages.var() / batch.returns.var().clamp(min=1e-8)).item()}


def train(args: Args) -> Agent:
    """Algorithm 1, then an evaluation. Raises ValueError on arguments that cannot work, FloatingPointError on NaN."""
    act_fn, gradient_fn = prepare(args)
    envs = make_envs(args)
    agent = Agent(envs, args).to(args.device)
    optimizer = make_optimizer(agent, args)
    global_step = load_checkpoint(args.resume, agent, optimizer)["global_step"] if args.resume else 0
    seeds = np.split(np.array(env_seeds(args.seed, global_step, args.num_envs)), args.world_size)[args.rank].tolist()
    obs, _ = envs.reset(seed=seeds)
    if global_step or args.rank:  # neither a resumed run nor another process draws the actions of the first again
        torch.manual_seed(seeds[0])
    with closing(Logger(args, global_step)) as logger:
        for iteration in range(math.ceil(global_step / args.batch_size), args.num_iterations):
            remaining, (policy, critic) = 1 - iteration / args.num_iterations, optimizer.param_groups
            critic["lr"] = args.learning_rate * (remaining if args.anneal_lr else 1)
            policy["lr"] = min(critic["lr"], policy["lr"]) if args.desired_kl else critic["lr"]
            policy["clip_coef"] = args.clip_coef * (remaining if args.anneal_clip_coef else 1)
            rollout, obs, episode_returns = collect(envs, agent, obs, args, global_step, act_fn)
            metrics = update(agent, optimizer, make_batch(agent, gather(rollout, args), args), args, gradient_fn)
            global_step += args.batch_size
            logger.log(metrics, episode_returns, global_step)
            if logger.stop or (iteration + 1) % args.checkpoint_every == 0 or iteration + 1 == args.num_iterations:
                save_checkpoint(logger.run_dir / "checkpoint.pt", agent, optimizer, args, global_step)
            if logger.stop:
                envs.close()
                sys.exit(128 + logger.stop[0])
    envs.close()  # not after an error: one of several processes may be dead, and it would wait for that
    if args.rank == 0:
        evaluate(agent, args, logger.run_dir)
    return agent


# ---- The algorithm ends here; what follows is plumbing. --------------------------------------------------------------
def prepare(args: Args) -> tuple[Callable, Callable]:
    """Checks args, sets torch up, meets torchrun's other processes. Returns act and minibatch_gradient, or compiled."""
    check(args)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if args.world_size > 1:
        if on_gpu := "cuda" in args.device:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if hasattr(os, "SCHED_BATCH"):  # Linux; where cores are few, gloo's messages then take half as long
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        dist.init_process_group("nccl" if on_gpu else "gloo")
    if not args.compile:
        return act, minibatch_gradient
    # The backward pass with the loss; tanh as exp, which CPUs do faster; CUDA graphs on GPUs.
    torch._dynamo.config.trace_autograd_ops = torch._inductor.config.cpp.use_decompose_tanh = True
    return torch.compile(act), torch.compile(minibatch_gradient, mode="reduce-overhead")


def gather(rollout: Rollout, args: Args) -> Rollout:
    """The rollouts of all processes, each (T, N / processes, ...), side by side: (T, N, ...)."""

    def whole(column: Tensor | np.ndarray) -> Tensor | np.ndarray:
        part = torch.as_tensor(column, device=args.device)
        dist.all_gather(parts := [torch.empty_like(part) for _ in range(args.world_size)], part)
        return torch.cat(parts, 1) if torch.is_tensor(column) else torch.cat(parts, 1).cpu().numpy()

    return Rollout(*map(whole, rollout)) if args.world_size > 1 else rollout


def average(gradient: Tensor, metrics: dict[str, Tensor], args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """The means of both over all processes, in one message."""
    dist.all_reduce(vector := torch.cat([gradient, torch.stack(list(metrics.values()))]))
    gradient, means = (vector / args.world_size).split([len(gradient), len(metrics)])
    return gradient, dict(zip(metrics, means))


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
    may_be_0 = {"seed", "gamma", "gae_lambda", "ent_coef", "vf_coef", "kl_coef", "desired_kl"}
    for name, x in asdict(args).items():
        top = {"gamma": 1, "gae_lambda": 1, "clip_coef": math.inf, "threads": 1024}.get(name, 2**63 - 1)
        if type(x) in (int, float) and not (0 <= x <= top and (x or name in may_be_0)):
            raise UserError(f"--{name.replace('_', '-')} {x}: must be in {'[' if name in may_be_0 else '('}0, {top}]")
    n, size, w = args.num_minibatches, args.batch_size, args.world_size
    if size % n or size == n:
        raise UserError(f"--num-minibatches {n}: must cut num_envs·num_steps = {size} into equal parts of 2 or more")
    if args.num_envs % w or size // n % w:
        raise UserError(f"{w} processes: must divide --num-envs {args.num_envs} and minibatches of {size // n} steps")
    if w > 1 and "cuda" in args.device and torch.cuda.device_count() <= int(os.environ["LOCAL_RANK"]):
        raise UserError(f"{w} processes: each needs a GPU of its own, and here are {torch.cuda.device_count()}")
    if args.num_iterations < 1:
        raise UserError(f"--total-timesteps {args.total_timesteps}: must be num_envs·num_steps = {size} or more")
    if args.compile and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise UserError("--compile needs a C++ compiler: install g++ or clang++")
    check_env(args)


def check_env(args: Args) -> None:
    """Raises UserError if there is no such device or environment, or the environment is not one for this script."""
    try:
        torch.empty(0, device=args.device)
        if "ALE/" not in args.env_id and (":" in args.env_id or args.env_id in gym.registry):
            raise UserError(f"{args.env_id} is not an Atari game: use ppo_continuous.py or ppo_discrete.py")
        gym.make(args.game)
    except (gym.error.Error, ImportError, RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise UserError(f"--device {args.device} --env-id {args.env_id}: {' '.join(str(error).split())}") from error
    if args.capture_video and not (find_spec("moviepy") and find_spec("cv2")):
        raise UserError("--capture-video needs moviepy and opencv: pip install moviepy opencv-python-headless")


def main() -> None:
    """Trains, resumes or evaluates; a user's mistake costs one line and exit status 2."""
    try:
        args = tyro.cli(Args, description=__doc__.split("\n")[0])
        if path := args.evaluate or args.resume:
            args = tyro.cli(Args, description=__doc__.split("\n")[0], default=load_checkpoint(path)["args"])
        if args.evaluate:
            check(replace(args, compile=False))  # evaluating needs no compiler
            agent = Agent(make_envs(args, 1), args).to(args.device)
            load_checkpoint(args.evaluate, agent)
            evaluate(agent, args, Path(args.evaluate).parent)
        else:
            train(args)
    except (EOFError, ConnectionError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "by peer" not in str(error):  # gloo's words for one that is gone
            raise
        sys.exit(f"error: lost another process of this run, a reader of its output or an environment's peer: {error}")
    except (UserError, FloatingPointError, OSError, KeyboardInterrupt) as error:  # OSError: a full disk, and its kin
        print(f"error: {str(error) or 'interrupted'}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else 1)


if __name__ == "__main__":
    main()
