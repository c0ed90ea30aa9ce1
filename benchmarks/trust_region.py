"""What is said of TRPO and PPO, put to the test with the scripts' own flags; read TRUST_REGIONS.md.

    python benchmarks/trust_region.py surrogate
    python benchmarks/trust_region.py collapse
    python benchmarks/trust_region.py table --name story

`surrogate` draws the clipped objective and its gradient against the ratio, as the script's own ppo_loss
computes them. The others train what is not in benchmarks/results/trust_region.csv yet (stop them whenever
you like, the same command goes on), then draw or print. The tables are `story` (four answers to how far a
step may go), `paper` (Table 1 of the PPO paper) and `claims`. A run whose loss stops being finite counts
with the return that it had last, or with the random policy's where no episode had ended.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
from returns import Run, draw, last_rows, rows_of, train_all  # finds our scripts, too
from tyro.extras import SubcommandApp

import ppo_continuous as ppo

SEEDS = (1, 2, 3)
PPO, TRPO, PENALTY = "ppo_continuous", "variants/trpo_continuous", "variants/ppo_penalty_continuous"
# The mean return of 100 episodes of actions drawn uniformly.
RANDOM = {"HalfCheetah-v5": -274.86, "Hopper-v5": 16.67, "Walker2d-v5": 1.77, "Swimmer-v5": 0.8,
          "InvertedDoublePendulum-v5": 49.09, "InvertedPendulum-v5": 5.23, "Reacher-v5": -43.29}  # fmt: skip
# The paper's batches of 2048 in minibatches of 64, learning rate, λ and std, all constant, and nothing but
# what is varied to hold the policy back.
PAPER = "--num-minibatches 32 --learning-rate 3e-4 --no-anneal-lr --gae-lambda 0.95 --initial-std 1"
PAPER += " --max-grad-norm 1e9 --target-kl None"
NO_CLIP = "--clip-coef inf"
app = SubcommandApp()


@dataclass(frozen=True)
class Variant:
    """One row of a table: what it is called there, its flags, its script."""

    label: str
    flags: str
    script: str = PPO

    def runs(self, env_id: str, steps: int) -> list[Run]:
        setting = f"{self.flags} --total-timesteps {steps}".strip()
        return [Run("trust_region", self.script, env_id, seed, setting) for seed in SEEDS]


def varied(flag: str, *values: object) -> tuple[Variant, ...]:
    """One flag at each of these values."""
    return tuple(Variant(f"`{flag} {value}`", f"{flag} {value}") for value in values)


STORY = (
    Variant("TRPO", "", TRPO),
    Variant("nothing", f"{NO_CLIP} --target-kl None"),
    Variant("penalty", "", PENALTY),
    Variant("clip", "--target-kl None"),
    Variant("clip, early stopping", ""),
)
TABLE_1 = (  # with the scores of the paper
    Variant("no clipping, no penalty (−0.39)", f"{PAPER} {NO_CLIP}"),
    Variant("clipping, ε = 0.1 (0.76)", f"{PAPER} --clip-coef 0.1"),
    Variant("clipping, ε = 0.2 (0.82)", f"{PAPER} --clip-coef 0.2"),
    Variant("clipping, ε = 0.3 (0.70)", f"{PAPER} --clip-coef 0.3"),
    Variant("clipping, ε = 0.5", f"{PAPER} --clip-coef 0.5"),
    Variant("adaptive KL penalty, d = 0.003 (0.68)", f"{PAPER} --kl-coef-target 0.003", PENALTY),
    Variant("adaptive KL penalty, d = 0.01 (0.74)", f"{PAPER} --kl-coef-target 0.01", PENALTY),
    Variant("adaptive KL penalty, d = 0.03 (0.71)", f"{PAPER} --kl-coef-target 0.03", PENALTY),
    Variant("early stopping alone, KL 0.03", f"{PAPER} {NO_CLIP} --target-kl 0.03"),
    Variant("TRPO, δ = 0.01", "--initial-std 1", TRPO),
)
CLAIMS = (
    Variant("defaults", ""),
    *varied("--target-kl None --update-epochs", 1, 3, 10, 20),
    *varied(f"--target-kl None {NO_CLIP} --update-epochs", 1, 3, 10, 20),
    *varied("--target-kl None --clip-coef", 0.05, 0.1, 0.3, 0.5),
    *varied("--anneal-clip-coef --target-kl None --clip-coef", 0.1, 0.2),
)
TABLES = {
    "story": (STORY, ("Hopper-v5", "HalfCheetah-v5"), 300_000),
    "paper": (TABLE_1, tuple(RANDOM), 150_000),
    "claims": (CLAIMS, ("Hopper-v5", "HalfCheetah-v5"), 300_000),
}


@app.command
def table(name: Literal["story", "paper", "claims"], jobs: int = 2) -> None:
    """Trains and prints a table. In each environment the random policy scores 0, the best row's mean 1."""
    variants, env_ids, steps = TABLES[name]
    train_all([r for v in variants for e in env_ids for r in v.runs(e, steps)], jobs, may_diverge=True)
    rows = last_rows("trust_region").set_index(["environment", "script", "setting", "seed"])
    runs = [[rows.loc[[run.key for run in v.runs(e, steps)]] for e in env_ids] for v in variants]
    random = np.array([RANDOM[env_id] for env_id in env_ids])
    returns = np.array([[of_env["return"].fillna(RANDOM[e]) for e, of_env in zip(env_ids, r)] for r in runs])
    scores = (returns - random[:, None]) / (returns.mean(-1).max(0) - random)[:, None]
    print(f"| | score | {' | '.join(env_ids)} | seconds |\n|---|---|{'---|' * len(env_ids)}---|")
    for v, of_variant, of_envs, score in zip(variants, runs, returns, scores):
        seconds = " ".join(f"{of_env['seconds'].mean():.0f}" for of_env in of_variant)
        cells = [" ".join(f"{x:.0f}" for x in of_env).replace("-", "−") for of_env in of_envs]
        print(f"| {v.label} | {score.mean():.2f} | {' | '.join(cells)} | {seconds} |")


@app.command
def collapse(steps: int = 300_000, epochs: int = 20, jobs: int = 2) -> None:
    """Many epochs on each batch of Hopper, with the clip and without: return and KL, update by update."""
    clipped = Variant("clipped, ε = 0.2", f"{PAPER} --update-epochs {epochs}")
    free = Variant("not clipped", f"{PAPER} --update-epochs {epochs} {NO_CLIP}")
    runs = {v: v.runs("Hopper-v5", steps) for v in (clipped, free)}
    train_all([*runs[clipped], *runs[free]], jobs, may_diverge=True)

    def paint(axes: np.ndarray, colors: list[str]) -> None:
        titles = {"return": "return of the last 100 episodes", "approx_kl": "KL divergence of an update"}
        for variant, color in zip(runs, colors):
            for i, run in enumerate(runs[variant]):
                rows = rows_of(run)
                for ax, column in zip(axes[0], titles):
                    label = None if i else variant.label
                    ax.plot(rows["step"] / 1e3, rows[column], color=color, label=label)
                    ax.set(title=titles[column], xlabel="thousand steps")
        axes[0, 1].set_yscale("log")
        axes[0, 0].legend(frameon=False)

    draw("collapse", (10, 3.5), (1, 2), paint)
    for v, of_seeds in runs.items():
        rows = [rows_of(run) for run in of_seeds]
        each = [(r["return"].iloc[-1], r["return"].max(), r["approx_kl"].median()) for r in rows]
        print(f"{v.label}: (last return, highest, median KL) {np.round(each, 3).tolist()}")


@app.command
def surrogate(clip_coef: float = 0.2) -> None:
    """Draws the clipped surrogate and its derivative against the ratio, for either sign of the advantage."""
    ratios = torch.linspace(0.4, 1.6, 601, dtype=torch.float64)

    def paint(axes: np.ndarray, colors: list[str]) -> None:
        for ax, sign, title in zip(axes[0], (1, -1), ("Â = 1: a better action", "Â = −1: a worse action")):
            log_probs, zero = ratios.log().requires_grad_(), torch.zeros_like(ratios)
            objectives = []
            for log_prob in log_probs:  # of batches of one
                batch = ppo.Batch(*[zero[:1]] * 4, advantages=zero[:1] + sign, returns=zero[:1])
                policy = SimpleNamespace(log_prob=lambda _, x=log_prob: x[None], entropy=lambda z=zero: z[:1])
                args = ppo.Args(norm_adv=False, vf_coef=0.0, ent_coef=0.0)
                objectives.append(-ppo.ppo_loss(policy, zero[:1], batch, clip_coef, args)[0])
            torch.stack(objectives).sum().backward()
            slopes = log_probs.grad / ratios  # dL/dr = dL/dlog r / r
            ax.axvspan(1 - clip_coef, 1 + clip_coef, color=colors[-1], alpha=0.07, linewidth=0)
            ax.plot(ratios, ratios * sign, color=colors[-1], linestyle=":", linewidth=1.2, label="r Â")
            ax.plot(
                ratios, [x.item() for x in objectives], color=colors[0], linewidth=2.2, label="L$^{CLIP}$"
            )
            ax.plot(ratios, slopes, color=colors[1], linewidth=1.6, linestyle="--", label="dL$^{CLIP}$/dr")
            ax.set(title=title, xlabel="r, the ratio of new to old probability")
            ax.legend(frameon=False)

    draw("surrogate", (10, 3.4), (1, 2), paint)


if __name__ == "__main__":
    app.cli(description=__doc__.split("\n")[0])
