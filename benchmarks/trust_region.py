"""What is said of TRPO and PPO, put to the test with the scripts' own flags.

    python benchmarks/trust_region.py surrogate
    python benchmarks/trust_region.py table1
    python benchmarks/trust_region.py collapse
    python benchmarks/trust_region.py story
    python benchmarks/trust_region.py claims

`surrogate` draws the clipped objective and its gradient against the ratio, as the script's own ppo_loss
computes them. The others train what has no CSV in benchmarks/results/trust_region_2/ yet (stop them whenever
you like, the same command goes on), then print their table or draw their figure. A run that ends because its
loss is no longer finite is a result too: it counts with the return that it had last, or with the random
policy's where no episode had ended.
"""

import json
import math
import shlex
import sys
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from returns import RESULTS, ROOT, Run, draw, evaluation, final_return, read, train_all
from tyro.extras import SubcommandApp

sys.path.insert(0, str(ROOT))
import ppo_continuous as ppo

SEEDS = (1, 2, 3)
STEPS = 300_000
TABLE1_STEPS = 150_000
FOLDER = "trust_region_2"  # the results in trust_region/ are of commit 011ca3b and before, with other flags
TRPO, PENALTY = "variants/trpo_continuous", "variants/ppo_penalty_continuous"
TABLE1_ENVS = ("HalfCheetah-v5", "Hopper-v5", "InvertedDoublePendulum-v5", "InvertedPendulum-v5",
               "Reacher-v5", "Swimmer-v5", "Walker2d-v5")  # fmt: skip
# The paper's batches of 2048 in minibatches of 64, learning rate, λ and std, all constant, and nothing but
# what is varied to hold the policy back.
PAPER = "--num-minibatches 32 --learning-rate 3e-4 --no-anneal-lr --gae-lambda 0.95 --initial-std 1"
PAPER += " --max-grad-norm 1e9 --target-kl None"
FREE = "--target-kl None"  # the clip, where it is not turned off, without early stopping
NO_CLIP = "--clip-coef inf"
app = SubcommandApp()


@dataclass(frozen=True)
class Variant:
    """One row of a table: what it is called there, its folder of results, its flags, the paper's score."""

    label: str
    name: str
    flags: str
    paper: float | None = None
    script: str = "ppo_continuous"

    def runs(self, env_ids: tuple[str, ...], seeds: tuple[int, ...] = SEEDS, steps: int = STEPS) -> list[Run]:
        flags = tuple(shlex.split(f"{self.flags} --total-timesteps {steps}"))
        return [Run(f"{FOLDER}/{self.name}", self.script, e, s, flags) for s in seeds for e in env_ids]


TABLE1 = (
    Variant("no clipping, no penalty", "table1_neither", f"{PAPER} {NO_CLIP}", -0.39),
    *(
        Variant(f"clipping, ε = {eps}", f"table1_clip_{eps}", f"{PAPER} --clip-coef {eps}", score)
        for eps, score in ((0.05, None), (0.1, 0.76), (0.2, 0.82), (0.3, 0.70), (0.5, None))
    ),
    *(
        Variant(
            f"adaptive KL penalty, d = {d}", f"table1_kl_{d}", f"{PAPER} --kl-coef-target {d}", score, PENALTY
        )
        for d, score in ((0.003, 0.68), (0.01, 0.74), (0.03, 0.71))
    ),
    Variant("early stopping alone, KL 0.03", "table1_early_stop", f"{PAPER} {NO_CLIP} --target-kl 0.03"),
    Variant("TRPO, δ = 0.01", "table1_trpo", "--initial-std 1", script=TRPO),
)


# ---- Scores ----
def returns_of(runs: list[Run]) -> np.ndarray:
    """The mean return of the last 100 training episodes of each run (R,)."""
    last = {run: final_return(run.csv) for run in runs}
    return np.array([random_return(run.env_id) if math.isnan(x) else x for run, x in last.items()])


def random_return(env_id: str, episodes: int = 100) -> float:
    """The mean return of actions drawn uniformly; measured once, then kept."""
    path = RESULTS / "trust_region" / "random.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if env_id not in known:
        env, total = gym.make(env_id), 0.0
        env.action_space.seed(0)
        for episode in range(episodes):
            env.reset(seed=episode)
            done = False
            while not done:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                total, done = total + reward, terminated or truncated
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known | {env_id: round(total / episodes, 2)}, indent=1) + "\n")
        return random_return(env_id)
    return known[env_id]


def normalised(returns: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Scores (V, E, S) of returns (V, E, S) of V variants in E environments with S seeds, as in the paper: in
    each environment the random policy is 0, and the best variant's mean over seeds 1."""
    best = returns.mean(-1).max(0)
    return (returns - random[:, None]) / (best - random)[:, None]


# ---- The parts ----
def surrogate_of(ratios: np.ndarray, advantage: float, clip_coef: float) -> tuple[np.ndarray, np.ndarray]:
    """L^CLIP (R,) of samples with ratios (R,) and this advantage, and its derivative in the ratio (R,)."""
    values, slopes = [], []
    for r in ratios:
        log_prob = torch.tensor([math.log(r)], dtype=torch.float64, requires_grad=True)
        zero = torch.zeros(1, dtype=torch.float64)
        batch = ppo.Batch(zero, zero, zero, zero, zero + advantage, zero)
        coefs = {"clip_coef": clip_coef, "clip_vloss": False, "vf_coef": 0.0, "ent_coef": 0.0}
        loss, _ = ppo.ppo_loss(log_prob, zero, zero, batch, **coefs)
        loss.backward()
        values.append(-loss.item())
        slopes.append(-log_prob.grad.item() / r)  # dL/dr = dL/dlog r / r
    return np.array(values), np.array(slopes)


@app.command
def surrogate(clip_coef: float = 0.2) -> None:
    """Draws the clipped surrogate and its derivative against the ratio, for either sign of the advantage.

    Args:
        clip_coef: ε.
    """
    ratios = np.linspace(0.4, 1.6, 601)

    def paint(axes: np.ndarray, colors: list[str]) -> None:
        titles = ("Â = 1: a better action", "Â = −1: a worse action")
        for ax, advantage, title in zip(axes[0], (1.0, -1.0), titles):
            value, slope = surrogate_of(ratios, advantage, clip_coef)
            ax.axvspan(1 - clip_coef, 1 + clip_coef, color=colors[-1], alpha=0.07, linewidth=0)
            ax.plot(ratios, ratios * advantage, color=colors[-1], linestyle=":", linewidth=1.2, label="r Â")
            ax.plot(ratios, value, color=colors[0], linewidth=2.2, label="L$^{CLIP}$")
            ax.plot(ratios, slope, color=colors[1], linewidth=1.6, linestyle="--", label="dL$^{CLIP}$/dr")
            ax.set(title=title, xlabel="r, the ratio of new to old probability")
            ax.legend(frameon=False)

    draw("surrogate", (10, 3.4), (1, 2), paint)


@app.command
def table1(jobs: int = 2) -> None:
    """Table 1 of the PPO paper on today's environments: what holds the policy near the one that collected.

    Args:
        jobs: processes at a time, each with one thread.
    """
    runs = [run for seed in SEEDS for v in TABLE1 for run in v.runs(TABLE1_ENVS, (seed,), TABLE1_STEPS)]
    train_all(runs, jobs, may_diverge=True)
    returns = np.array([[returns_of(v.runs((e,), steps=TABLE1_STEPS)) for e in TABLE1_ENVS] for v in TABLE1])
    scores = normalised(returns, np.array([random_return(env_id) for env_id in TABLE1_ENVS]))
    print("| | paper | here | " + " | ".join(env_id.removesuffix("-v5") for env_id in TABLE1_ENVS) + " |")
    print("|---|---|---|" + "---|" * len(TABLE1_ENVS))
    for v, rows, of_envs in zip(TABLE1, returns, scores):
        cells = [" ".join(f"{x:.0f}" for x in row) for row in rows]
        cells = ["" if v.paper is None else f"{v.paper}", f"**{of_envs.mean():.2f}**", *cells]
        print(f"| {v.label} | {' | '.join(cells)} |")


EPOCHS = 20


@app.command
def collapse(env_id: str = "Hopper-v5", jobs: int = 2) -> None:
    """Many epochs on each batch, with the clip and without: return, KL and clip fraction, update by update.

    Args:
        env_id: environment with continuous actions.
        jobs: processes at a time, each with one thread.
    """
    flags = f"{PAPER} --update-epochs {EPOCHS}"
    clipped = Variant("clipped, ε = 0.2", f"collapse_clip_{EPOCHS}", flags)
    free = Variant("not clipped", f"collapse_free_{EPOCHS}", flags, script="benchmarks/unclipped")
    train_all([run for v in (clipped, free) for run in v.runs((env_id,))], jobs, may_diverge=True)

    def paint(axes: np.ndarray, colors: list[str]) -> None:
        titles = ("return of the last 100 episodes", "KL divergence of an update", "ratios past 1 ± 0.2")
        for variant, color in zip((clipped, free), colors):
            for i, run in enumerate(variant.runs((env_id,))):
                rows = read(run.csv)[1]
                for ax, column, title in zip(axes[0], (2, 3, 4), titles):
                    label = None if i else variant.label
                    ax.plot(rows[:, 0] / 1e3, rows[:, column], color=color, label=label)
                    ax.set(title=title, xlabel="thousand steps")
        axes[0, 1].set_yscale("log")
        axes[0, 2].set_ylim(0, 1)
        axes[0, 0].figure.legend(
            *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
        )

    draw("collapse", (10, 3.5), (1, 3), paint)
    for v in (clipped, free):
        each = returns_of(v.runs((env_id,)))
        print(f"{v.label}: " + ", ".join(f"seed {seed} {x:.0f}" for seed, x in zip(SEEDS, each)))


STORY = (
    Variant("TRPO", "trpo", "", script=TRPO),
    Variant("nothing", "epochs_10_free", f"--update-epochs 10 {NO_CLIP} {FREE}"),
    Variant("penalty on the KL", "penalty_0.01", "--kl-coef-target 0.01", script=PENALTY),
    Variant("PPO", "defaults", ""),
)


@app.command
def story(jobs: int = 2) -> None:
    """TRPO, its constraint removed, replaced by a penalty, and by a clip: what each returns and costs.

    Args:
        jobs: processes at a time, each with one thread.
    """
    env_ids = ("Hopper-v5", "HalfCheetah-v5")
    train_all([run for v in STORY for run in v.runs(env_ids)], jobs, may_diverge=True)
    print("| | " + " | ".join(f"{env_id}, seconds | return, each seed" for env_id in env_ids) + " |")
    print("|---" * (1 + 2 * len(env_ids)) + "|")
    for v in STORY:
        cells = []
        for env_id in env_ids:
            runs = v.runs((env_id,))
            cells.append(f"{np.mean([read(run.csv)[1][-1, 1] for run in runs]):.0f}")
            cells.append(" ".join(f"{x:.0f}" for x in returns_of(runs)))
        print(f"| {v.label} | {' | '.join(cells)} |")


@dataclass(frozen=True)
class Claim:
    """A row of the last table: what is said, and the runs that can tell."""

    number: str  # in the notes that it comes from
    said: str
    variants: tuple[Variant, ...]
    env_ids: tuple[str, ...] = ("Hopper-v5", "HalfCheetah-v5")
    steps: int = STEPS


def varied(flag: str, values: tuple[object, ...], also: str = "") -> tuple[Variant, ...]:
    """The defaults with one flag at each of these values."""
    name = flag.replace("-", "_")
    also_name = also.replace("--", "_").replace(" ", "_").replace("-", "_")
    return tuple(Variant(f"{x}", f"{name}_{x}{also_name}", f"--{flag} {x} {also}") for x in values)


DEFAULTS = Variant("defaults", "defaults", "")
CLIP = Variant("clip alone", "clip", FREE)
PENDULUM = "--gamma 0.9 --num-envs 4 --num-minibatches 8"
CLAIMS = (
    Claim("3", "Importance ratios allow several epochs on a batch, and are dangerous where they stray", (
        *varied("update-epochs", (1, 3, 10, 20), FREE),
        *(Variant(f"{k}, no clip", f"epochs_{k}_free", f"--update-epochs {k} {NO_CLIP} {FREE}")
          for k in (1, 3, 10, 20)),
    )),
    Claim("4", "ε: 0.05 very slow, stable; 0.1 slow; 0.2 moderate; 0.3 fast, unstable; 0.5 often collapses",
          varied("clip-coef", (0.05, 0.1, 0.2, 0.3, 0.5, "inf"), FREE)),
    Claim("6", "Early stopping on the KL divergence helps beside the clip",
          (CLIP, *varied("target-kl", (0.01, 0.02)), DEFAULTS, *varied("target-kl", (0.05,)))),
    Claim("7", "A penalty with an adaptive β does the same as the clip, with more tuning", (
        CLIP,
        *(Variant(f"penalty alone, d = {d}", f"penalty_{d}", f"--kl-coef-target {d}", script=PENALTY)
          for d in (0.003, 0.01, 0.03)),
        Variant("both", "penalty_and_clip", "--clip-coef 0.2", script=PENALTY),
    )),
    Claim("8", "PPO matches or beats TRPO at a fraction of the cost", (
        Variant("PPO", "defaults_1m", ""), Variant("TRPO", "trpo_1m", "", script=TRPO),
    ), ("Hopper-v5", "Walker2d-v5"), 1_000_000),
    Claim("9", "λ of 0 has low variance and high bias, 1 the opposite; 0.95 to 0.99 is best",
          varied("gae-lambda", (0, 0.9, 0.95, 0.99, 1))),
    Claim("10", "Standardised advantages and clipped gradients are needed", (
        DEFAULTS, Variant("raw advantages", "no_norm_adv", "--no-norm-adv"),
        Variant("gradients not clipped", "no_grad_clip", "--max-grad-norm 1e9"),
    )),
    Claim("11", "Clipping the value loss prevents destabilising updates",
          (DEFAULTS, Variant("clipped values", "clip_vloss", "--clip-vloss"))),
    Claim("12", "An entropy bonus of 0.01 prevents premature convergence",
          (DEFAULTS, *varied("ent-coef", (0.01,)))),
    Claim("12", "The same, with discrete actions", (
        Variant("0", "discrete", "", script="ppo_discrete"),
        Variant("0.01", "discrete_ent", "--ent-coef 0.01", script="ppo_discrete"),
    ), ("Acrobot-v1", "LunarLander-v3")),
    Claim("14", "Pendulum is balanced after 30,000 steps", (
        DEFAULTS, Variant("γ 0.9, 4 environments", "pendulum_fast", PENDULUM),
        Variant("and a std from 1, clip alone", "pendulum_std_1", f"{PENDULUM} --initial-std 1 {FREE}"),
    ), ("Pendulum-v1",), 30_000),
    Claim("15", "The sweet spot is 3e-4, minibatches of 32 to 256, 3 to 10 epochs, 2048 steps", (
        DEFAULTS,
        Variant("3e-4, minibatches of 64", "sweet_spot", f"--learning-rate 3e-4 --num-minibatches 32 {FREE}"),
    )),
)  # fmt: skip


@app.command
def claims(jobs: int = 2) -> None:
    """Prints the table "what is said, what we measured", a row a claim; LunarLander needs gymnasium[box2d].

    Args:
        jobs: processes at a time, each with one thread.
    """
    runs = {run.csv: run for c in CLAIMS for v in c.variants for run in v.runs(c.env_ids, steps=c.steps)}
    train_all(list(runs.values()), jobs, may_diverge=True)
    print("| | what is said | what we measured: the mean return of the last 100 episodes, seeds 1 2 3 |")
    print("|---|---|---|")
    for claim in CLAIMS:
        rows = []
        for env_id in claim.env_ids:
            cells = []
            for v in claim.variants:
                of_seeds = v.runs((env_id,), steps=claim.steps)
                seconds = np.mean([read(run.csv)[1][-1, 1] for run in of_seeds])
                each = " ".join(f"{x:.0f}" for x in returns_of(of_seeds))
                if claim.number == "8":
                    each += f" ({seconds:.0f} s)"
                if claim.number == "14":
                    each += f" (evaluated {' '.join(f'{evaluation(run.csv):.1f}' for run in of_seeds)})"
                cells.append(f"{v.label}: {each.replace('-', '−')}")
            rows.append(f"**{env_id.split('-v')[0]}** {'; '.join(cells)}")
        print(f"| {claim.number} | {claim.said} | {'<br>'.join(rows)} |")


if __name__ == "__main__":
    app.cli(description=__doc__.split("\n")[0])
