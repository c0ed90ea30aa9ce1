"""benchmarks/trust_region.py: the figure's numbers by hand, the paper's normalisation, and that all its flags exist."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import returns
import trpo_continuous
import trust_region

import ppo_continuous


@pytest.mark.parametrize("advantage", [1.0, -1.0, 2.5])
def test_the_surrogate_is_linear_up_to_the_bound_that_the_advantage_points_to_and_flat_beyond(advantage):
    ratios = np.array([0.5, 0.79, 0.81, 0.999, 1.1, 1.19, 1.21, 2.0])
    values, slopes = trust_region.surrogate_of(ratios, advantage, 0.2)
    flat = ratios > 1.2 if advantage > 0 else ratios < 0.8
    bound = 1.2 if advantage > 0 else 0.8
    np.testing.assert_allclose(values, advantage * np.where(flat, bound, ratios), rtol=1e-12)
    np.testing.assert_allclose(slopes, np.where(flat, 0.0, advantage), rtol=1e-12)


def test_scores_are_0_for_the_random_policy_and_1_for_the_best_mean():
    returns = np.array([[[10.0, 20.0], [-4.0, -4.0]], [[0.0, 0.0], [-6.0, -2.0]], [[5.0, 5.0], [-10.0, -10.0]]])
    scores = trust_region.normalised(returns, np.array([5.0, -8.0]))
    np.testing.assert_allclose(scores[0], [[0.5, 1.5], [1, 1]])
    np.testing.assert_allclose(scores[1], [[-0.5, -0.5], [0.5, 1.5]])
    np.testing.assert_allclose(scores[2], [[0, 0], [-0.5, -0.5]])


def test_every_run_has_flags_that_its_script_takes_and_a_name_of_its_own():
    variants = [(v, trust_region.TABLE1_ENVS, trust_region.TABLE1_STEPS) for v in trust_region.TABLE1]
    variants += [(v, ("Hopper-v5",), trust_region.STEPS) for v in trust_region.STORY]
    variants += [(v, c.env_ids, c.steps) for c in trust_region.CLAIMS for v in c.variants]
    seen = {}
    for variant, env_ids, steps in variants:
        module = trpo_continuous if "trpo" in variant.script else ppo_continuous
        for run in variant.runs(env_ids, steps=steps):
            args = tyro.cli(module.Args, args=run.arguments[1:])
            assert args.batch_size % args.num_minibatches == 0 and args.total_timesteps == steps
            assert seen.setdefault(run.csv, run.arguments) == run.arguments


def test_a_run_that_diverges_before_its_first_episode_ends_counts_as_the_random_policy(tmp_path, monkeypatch):
    for module in (returns, trust_region):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(returns.Run, "folder", property(lambda self: tmp_path / "work" / self.csv.stem))
    flags = "--num-envs 2 --num-steps 64 --total-timesteps 512 --learning-rate 1e18 --max-grad-norm 1e18 --desired-kl 0"
    run = trust_region.Variant("diverges", "diverges", flags).runs(("Pendulum-v1",), (1,), 512)[0]
    with pytest.raises(SystemExit, match="1 of 1"):
        returns.train_all([run], 1)
    returns.train_all([run], 1, may_diverge=True)
    about, rows = returns.read(run.csv)
    assert "error: " in about["evaluation"] and len(rows) == 1 and np.isnan(rows[0, 2])
    (tmp_path / "trust_region" / "random.json").write_text('{"Pendulum-v1": -1200}')
    assert trust_region.returns_of([run]).tolist() == [-1200]
