"""What only ppo_atari.py has: the protocols, the scores of whole games, the network for frames."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from ale_py.env import AtariEnv
from conftest import film, small, train
from test_training import scalars

import ppo_atari as ppo

SEEDS = [3, 1, 4, 1]  # the second and the last game are to be the same


def play(envs, steps, seeds=SEEDS):
    """All that random actions, the same for the same number of steps, bring about: one entry a step."""
    rng, out = np.random.default_rng(0), []
    obs, info = envs.reset(seed=seeds if isinstance(envs, ppo.GameStatistics) else np.array(seeds))
    out.append((obs, np.zeros(len(seeds)), *np.zeros((2, len(seeds)), bool), info))
    for _ in range(steps):
        actions = np.resize(rng.integers(envs.single_action_space.n, size=len(seeds) - 1), len(seeds))
        actions[-1] = actions[1]
        out.append(envs.step(actions))
    obs, rewards, terminated, truncated, infos = zip(*out)
    return np.stack(obs), np.stack(rewards), np.stack(terminated), np.stack(truncated), infos


def column(infos, key):
    return np.stack([info[key] for info in infos])


def scores(infos):
    return [score for info in infos if "episode" in info for score in info["episode"]["r"][info["_episode"]]]


@pytest.mark.parametrize("game", ["Breakout", "SpaceInvaders", "Pong"])
def test_a_lost_life_terminates_in_the_classic_protocol_but_the_game_goes_on(game):
    _, _, terminated, _, infos = play(ppo.make_envs(ppo.Args(game), 4), 1000)
    lives, frames = column(infos, "lives"), column(infos, "episode_frame_number")
    ended = np.diff(frames, axis=0) < 0  # a game's frames count up until the next one starts
    lost = (np.diff(lives, axis=0) < 0) & ~ended
    assert (terminated[1:] == (ended | lost)).all() and ended.sum() >= 3
    if game == "Pong":
        assert not lost.any()
    else:
        assert lost.sum() >= 2 * ended.sum()  # all lives are played, not the first one alone
        assert lives.max() == {"Breakout": 5, "SpaceInvaders": 3}[game]
        assert (lives[1:][ended] == lives.max()).all()


def test_the_machado_protocol_does_not_look_at_lives_and_repeats_actions():
    classic = play(ppo.make_envs(ppo.Args("Breakout"), 4), 300)
    _, _, terminated, _, infos = play(ppo.make_envs(ppo.Args("Breakout", protocol="machado"), 4), 600)
    lives, frames = column(infos, "lives"), column(infos, "episode_frame_number")
    assert (terminated[1:] == (np.diff(frames, axis=0) < 0)).all() and terminated.sum() >= 3
    assert sorted(set(lives.flatten().tolist())) == [1, 2, 3, 4, 5]
    sticky = play(ppo.make_envs(ppo.Args("Breakout", protocol="machado"), 4), 300)
    assert (classic[0][0] == sticky[0][0]).all() and not (classic[0][:20] == sticky[0][:20]).all()


@pytest.mark.parametrize(
    "game, protocol", [("Breakout", "classic"), ("SpaceInvaders", "machado"), ("Pong", "classic")]
)
def test_logged_scores_and_lengths_are_the_true_ones_of_whole_games(game, protocol):
    """The oracle: ALE without a life-loss signal, where terminated means game over, and gym's wrapper."""
    ours = ppo.make_envs(ppo.Args(game, protocol=protocol), 4)
    _, rewards, _, _, infos = play(ours, 1000)
    plain = {"repeat_action_probability": 0.25 * (protocol == "machado"), "reward_clipping": False}
    plain |= {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP, "life_loss_info": False}
    theirs = gym.make_vec(f"ale_py:ALE/{game}-v5", 4, "vector_entry_point", **plain)
    theirs = gym.wrappers.vector.RecordEpisodeStatistics(theirs)
    *_, expected = play(theirs, 1000)
    assert scores(infos) == scores(expected) == list(ours.return_queue) and len(scores(infos)) >= 3
    assert list(ours.length_queue) == list(theirs.length_queue)
    assert ours.episode_count == theirs.episode_count == len(scores(infos))
    if game == "SpaceInvaders":
        assert rewards.max() > 1 and max(scores(infos)) > 20  # aliens are worth 5 to 30 each


def test_each_step_is_4_frames_and_a_game_starts_with_up_to_30_frames_of_waiting():
    envs = ppo.make_envs(ppo.Args("Pong"), 16)
    _, info = envs.reset(seed=list(range(16)))
    starts = info["episode_frame_number"]
    assert starts.min() >= 0 and starts.max() <= 30 and len(set(starts.tolist())) > 6
    *_, info = envs.step(np.zeros(16, dtype=np.int64))
    assert (info["episode_frame_number"] == starts + 4).all()


@pytest.fixture
def agents():
    """The same network in float32 and in bfloat16."""
    envs = ppo.make_envs(ppo.Args("Pong"), 1)
    exact, half = (ppo.Agent(envs, ppo.Args("Pong", bf16=bf16)) for bf16 in (False, True))
    half.load_state_dict(exact.state_dict())
    return exact, half


def test_the_network_is_the_one_of_mnih_et_al(agents):
    """Their three convolutions and one hidden layer, with frames divided by 255, by hand in float64."""
    exact, _ = agents
    frames = torch.randint(256, (5, 4, 84, 84), dtype=torch.uint8)
    weights = [p.detach().double() for p in exact.parameters()]
    assert [tuple(w.shape) for w in weights[::2]] == [
        (32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (6, 512), (1, 512),
    ]  # fmt: skip
    for w, gain in zip(weights[::2], [2**0.5] * 4 + [0.01, 1.0], strict=True):  # orthogonal, times gain
        w = w.flatten(1)
        singular_values = torch.linalg.svdvals(w)
        torch.testing.assert_close(singular_values, torch.full_like(singular_values, gain), rtol=1e-5, atol=0)
    assert all((b == 0).all() for b in weights[1::2])
    x = frames.double() / 255
    for w, b, stride in zip(weights[:6:2], weights[1:6:2], (4, 2, 1)):
        x = torch.nn.functional.conv2d(x, w, b, stride).relu()
    x = (x.flatten(1) @ weights[6].T + weights[7]).relu()
    policy, values = exact(frames)
    expected = (x @ weights[8].T + weights[9]).log_softmax(-1)
    torch.testing.assert_close(policy.logits.double(), expected, rtol=1e-4, atol=1e-5)
    expected = (x @ weights[10].T + weights[11]).squeeze(-1)
    torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=1e-4)
    assert (policy.probs - 1 / 6).abs().max() < 0.01  # all actions start equally likely


def test_bf16_is_close_and_keeps_weights_and_loss_in_float32(agents):
    exact, half = agents
    frames = torch.randint(256, (64, 4, 84, 84), dtype=torch.uint8)
    (policy, values), (policy16, values16) = exact(frames), half(frames)
    torch.testing.assert_close(policy16.logits, policy.logits, rtol=0, atol=0.02)
    torch.testing.assert_close(values16, values, rtol=0.05, atol=0.05)
    assert not torch.equal(values16, values) and policy16.logits.dtype == values16.dtype == torch.float32
    (values16.mean() + policy16.entropy().mean()).backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in half.parameters())
    assert not torch.equal(values16.bfloat16().float(), values16)  # nor are values rounded to bfloat16


def test_what_is_learned_from_is_the_sign_of_the_reward_and_what_is_logged_is_not(record):
    batches = record(ppo, "make_batch")
    args = small(ppo, env_id="SpaceInvaders", num_envs=8, num_steps=300, total_timesteps=2400)
    train(ppo, args)
    _, rollout, _ = batches[0].args
    assert set(rollout.rewards.flatten().tolist()) == {0.0, 1.0}  # aliens are worth 5 to 30 each
    assert scalars("charts/episodic_return")[2400] > 20 and scalars("charts/episodic_length")[2400] > 50


def test_frames_are_those_of_gymnasiums_own_preprocessing_oldest_first(monkeypatch):
    """Without random starts, and the frame that presses FIRE, ALE's and gym's frames agree to the bit."""
    wrappers = gym.wrappers
    oracle = gym.make("ale_py:ALE/Breakout-v5", frameskip=1, repeat_action_probability=0)
    oracle = wrappers.FrameStackObservation(wrappers.AtariPreprocessing(oracle, 0), 4, padding_type="zero")
    obs, _ = oracle.reset()
    make_vec, settings = gym.make_vec, {"noop_max": 0, "use_fire_reset": False}
    monkeypatch.setattr(gym, "make_vec", lambda *args, **kwargs: make_vec(*args, **kwargs | settings))
    envs, frames = ppo.make_envs(ppo.Args("Breakout"), 1), []
    ours, _ = envs.reset(seed=[0])
    for t in range(100):
        assert ours.dtype == np.uint8 and ours.shape == (1, 4, 84, 84) and (ours[0] == obs).all()
        action = [1, 2, 0, 3][t % 4]
        obs, reward, *_ = oracle.step(action)
        ours, rewards, *_ = envs.step(np.array([action]))
        assert rewards[0] == reward
        frames.append(ours[0])
    assert (frames[-1][2] == frames[-2][3]).all() and (frames[-1][0] == frames[-2][1]).all()


def test_a_game_cut_off_by_its_limit_is_bootstrapped_from_the_frames_it_was_cut_off_at(monkeypatch, record):
    """Pong, 60 frames a game instead of 108,000; a twin without the limit shows what would have come. (At the
    limit, ALE takes the newest picture one frame early, so that up to 100 pixels of it differ.)"""
    args = ppo.Args("Pong", num_envs=4, num_steps=20, threads=1)
    endless = ppo.make_envs(args, 4)
    endless.reset(seed=SEEDS)
    make_vec, settings = gym.make_vec, {"max_num_frames_per_episode": 60}
    monkeypatch.setattr(gym, "make_vec", lambda *args, **kwargs: make_vec(*args, **kwargs | settings))
    made, forwards = record(gym, "make_vec"), record(ppo.Agent, "forward")
    capped = ppo.make_envs(args, 4)
    torch.manual_seed(0)
    agent, (obs, _) = ppo.Agent(capped, args), capped.reset(seed=SEEDS)
    rollout = ppo.collect(capped, agent, torch.as_tensor(obs), args)
    assert made[0].kwargs["max_num_frames_per_episode"] == 108_000
    assert {call.args[1].dtype for call in forwards} == {torch.uint8}
    assert rollout.truncated[14].all() and rollout.truncated.sum() == 4 == len(capped.return_queue)
    assert not rollout.terminated.any()
    for t in range(15):
        twin, *_ = endless.step(rollout.actions[t].numpy())
    last = rollout.final_obs.numpy()
    assert (last[:, :3] == twin[:, :3]).all() and ((last[:, 3] != twin[:, 3]).sum((1, 2)) < 100).all()
    estimates = record(ppo, "compute_gae")
    assert ppo.make_batch(agent, rollout, args).obs.dtype == torch.uint8  # not four times as large
    at_the_cut, new_game = estimates[0].args[1][14], rollout.values[15]
    with torch.no_grad():
        np.testing.assert_allclose(at_the_cut, agent(rollout.final_obs)[1], rtol=1e-4)
    assert ((at_the_cut - new_game).abs() > 1e-3).all()


def test_a_film_shows_a_whole_game_and_leaves_the_environments_of_the_training_as_they_are():
    """ALE keeps the reset mode in a class attribute: another environment's mode would change the first's."""
    envs = ppo.make_envs(ppo.Args("Breakout"), 2)
    agent = ppo.Agent(envs, ppo.Args())
    torch.save({"args": vars(ppo.Args()), "agent": agent.state_dict()}, "checkpoint.pt")
    args = ppo.Args("Breakout", capture_video=True, eval_episodes=1)
    assert len(ppo.evaluate(Path("checkpoint.pt"), args)) == 1
    (path,) = Path("videos").glob("*.mp4")
    frames = film(path)
    assert len(frames) > 50 and frames.std(0).max() > 20
    assert envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.SAME_STEP


@pytest.mark.parametrize("game, lit", [("Breakout", True), ("Pong", True), ("Freeway", False)])
def test_a_filmed_game_starts_as_in_training(record, game, lit):
    """Breakout's ball flies only after FIRE; Freeway has no such button, and nobody presses another."""
    envs, steps = ppo.make_envs(ppo.Args(game), 1, Path("videos")), record(AtariEnv, "step")
    envs.reset(seed=[1])
    pressed = [call.args[1] for call in steps]
    assert pressed[0] == lit and not any(pressed[1:])
    envs.close()


def test_an_evaluation_plays_whole_games_and_samples():
    """The likeliest action of this policy is always to wait, which loses no life."""
    agent = ppo.Agent(ppo.make_envs(ppo.Args("Breakout"), 1), ppo.Args())
    torch.save({"args": vars(ppo.Args()), "agent": agent.state_dict()}, "checkpoint.pt")
    args = ppo.Args("Breakout", eval_episodes=2)
    first = ppo.evaluate(Path("checkpoint.pt"), args)
    assert len(first) == 2 and first == ppo.evaluate(Path("checkpoint.pt"), args)
