"""Any combination of flags either gets the clear error of check, or trains to finite weights."""

import math
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ppo = None  # set by the fixture
pytestmark = pytest.mark.usefixtures("script")

SWITCHES = "norm_adv anneal_lr anneal_clip_coef clip_vloss eval_greedy"
NUMBERS = {
    "seed": (0, 1, 2**31, 2**63 - 1), "num_envs": (1, 2, 3, 8), "num_steps": (1, 2, 4, 8, 64),
    "num_minibatches": (1, 2, 3, 8), "update_epochs": (1, 2, 3),
    "learning_rate": (1e-12, 1e-3, 1.0), "gamma": (0.0, 0.5, 1.0), "gae_lambda": (0.0, 0.5, 1.0),
    "clip_coef": (1e-9, 0.2, 2.0, math.inf), "ent_coef": (0.0, 0.01, 10.0), "vf_coef": (0.0, 0.5, 100.0),
    "max_grad_norm": (1e-9, 0.5, 1e9), "kl_coef": (0.0, 1e-6, 1.0, 1e6), "kl_coef_target": (1e-9, 0.01, 10.0),
    "target_kl": (None, 1e-9, 0.02), "desired_kl": (0.0, 1e-9, 0.02), "threads": (1, 2), "checkpoint_every": (1, 3),
    "eval_episodes": (1, 2),
}  # fmt: skip
VECTORIZATION = {"vectorization": ("sync", "sync", "sync", "async")}
ATARI = {"protocol": ("classic", "machado"), "bf16": (False, True), "num_envs": (1, 2), "num_steps": (1, 2, 8)}
ATARI |= {"learning_rate": (1e-12, 1e-3)}  # 1.0 makes weights of which this network's deep sums overflow
STD = {"initial_std": (1e-6, 0.6, 10.0), "final_std": (None, 1e-6, 0.08, 10.0)}
NONSENSE = st.one_of(
    st.sampled_from(list(NUMBERS)).flatmap(
        lambda name: st.tuples(
            st.just(name),
            st.sampled_from((-1, 0) if type(NUMBERS[name][-1]) is int else (-1.0, 0.0, math.nan, math.inf, -math.inf)),
        )
    ),
    st.sampled_from([("device", "meat"), ("env_id", "Nowhere-v0"), ("env_id", "probe_envs:DictObs-v0")]),
)
TASKS = [f"probe_envs:{name}-v0" for name in ("Match", "Ragged", "Countdown", "Sign")]
SMALL = {"num_envs": 4, "num_steps": 16, "num_minibatches": 4, "eval_episodes": 1}


def trains_or_is_refused(data, flags, numbers, switches):
    optional = {name: st.sampled_from(values) for name, values in numbers.items()}
    optional |= {name: st.booleans() for name in switches.split()}
    flags = flags | data.draw(st.fixed_dictionaries({}, optional=optional))
    flags["total_timesteps"] = 2 * flags["num_envs"] * flags["num_steps"]
    if data.draw(st.integers(0, 3)) == 0:
        name, value = data.draw(NONSENSE)
        flags[name] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            agent = ppo.train(ppo.Args(**flags))
        except ppo.UserError as error:
            assert len(str(error)) > 10 and "\n" not in str(error)
        else:
            assert all(p.isfinite().all() for p in agent.parameters())


@given(st.data())
@settings(suppress_health_check=list(HealthCheck))
def test_flags_are_refused_in_one_line_or_train_to_finite_weights(data):
    numbers = NUMBERS | VECTORIZATION | (STD if ppo.__name__ == "ppo_continuous" else {})
    flags = SMALL | {"env_id": data.draw(st.sampled_from(TASKS))}
    trains_or_is_refused(data, flags, numbers, f"{SWITCHES} norm_obs norm_reward")


@pytest.mark.parametrize("script", ["ppo_atari"], indirect=True)
@given(st.data())
@settings(suppress_health_check=list(HealthCheck), max_examples=settings.default.max_examples // 4)
def test_flags_of_atari_are_refused_in_one_line_or_train_to_finite_weights(data):
    flags = {"env_id": "Pong", "num_envs": 2, "num_steps": 8, "eval_episodes": 1}
    trains_or_is_refused(data, flags, NUMBERS | ATARI, SWITCHES)
