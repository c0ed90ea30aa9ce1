"""What only ppo_atari.py has: the protocols, the scores of whole games, the network for frames."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import probe_envs
import pytest
import torch
from conftest import gae

import ppo_atari as ppo

torch.set_num_threads(1)
SEEDS = [3, 1, 4, 1]  # the second and the last game are to be the same


def play(envs, steps, seeds=SEEDS):
    """Everything that random actions, the same for the same number of steps, bring about: one entry per step."""
    rng, out = np.random.default_rng(0), []
    obs, info = envs.reset(seed=seeds if isinstance(envs, ppo.CountGames) else np.array(seeds))
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


def test_actions_stick_in_the_machado_protocol_alone():
    """The paddle of Breakout starts in the middle, so the same orders move it alike unless some are not followed."""
    for protocol, alike in (("classic", True), ("machado", False)):
        envs = ppo.make_envs(ppo.Args("Breakout", protocol=protocol), 8)
        envs.reset(seed=list(range(8)))
        orders = [2, 3, 2, 2, 3, 2, 2, 2]  # 2 is right, 3 is left
        paddles = [(envs.step(np.full(8, order))[0][:, -1, 76, 5:-5] > 0).argmax(1) for order in orders]
        assert (np.ptp(paddles, axis=1) == 0).all() == alike and np.ptp(paddles) > 5


@pytest.mark.parametrize("protocol", ["classic", "machado"])
@pytest.mark.parametrize("game", ["Breakout", "SpaceInvaders", "Pong"])
def test_logged_scores_are_the_true_ones_of_whole_games(game, protocol):
    """The oracle: ALE without any life-loss signal, where terminated means that the game is over, and gym's wrapper."""
    args = ppo.Args(game, protocol=protocol)
    _, rewards, _, _, infos = play(ppo.make_envs(args, 4), 1000)
    plain = {"repeat_action_probability": 0.25 * (protocol == "machado"), "reward_clipping": False}
    mode = gym.vector.AutoresetMode.SAME_STEP
    envs = gym.make_vec(args.game, 4, "vector_entry_point", life_loss_info=False, autoreset_mode=mode, **plain)
    *_, expected = play(gym.wrappers.vector.RecordEpisodeStatistics(envs), 1000)
    assert scores(infos) == scores(expected) and len(scores(infos)) >= 3
    if game == "SpaceInvaders":
        assert rewards.max() > 1 and max(scores(infos)) > 20  # aliens are worth 5 to 30 each


def test_what_is_learned_from_is_the_sign_of_the_reward_and_what_is_logged_is_not():
    args = ppo.Args("SpaceInvaders", num_envs=4, num_steps=500)
    envs = ppo.make_envs(args)
    torch.manual_seed(0)
    agent, (obs, _) = ppo.Agent(envs, args), envs.reset(seed=SEEDS)
    rollout, _, episode_returns = ppo.collect(envs, agent, obs, args, 0)
    assert rollout.rewards.max() > 1 and max(episode_returns) > 20
    learned = agent.scale_rewards(np.array([[-3, 0], [7, 1]]), np.zeros((2, 2), bool))
    assert learned.tolist() == [[-1, 0], [1, 1]]
    batch = ppo.make_batch(agent, rollout, args)
    columns = rollout.values, rollout.next_values, rollout.terminated, rollout.done
    advantages = gae(ppo, np.clip(rollout.rewards, -1, 1), *columns, args.gamma, args.gae_lambda)
    np.testing.assert_allclose(batch.advantages, advantages.flatten(), rtol=1e-4, atol=1e-5)


def test_each_step_is_4_frames_and_a_game_starts_with_up_to_30_frames_of_waiting():
    envs = ppo.make_envs(ppo.Args("Pong"), 32)
    _, info = envs.reset(seed=list(range(32)))
    starts = info["episode_frame_number"]
    assert starts.min() >= 0 and starts.max() <= 30 and len(set(starts.tolist())) > 10
    *_, info = envs.step(np.zeros(32, dtype=np.int64))
    assert (info["episode_frame_number"] == starts + 4).all()


def test_frames_are_those_of_gymnasiums_own_preprocessing_oldest_first():
    """Without random starts, and without the frame that presses FIRE, ALE's and gym's frames agree to the bit."""
    wrappers = gym.wrappers
    oracle = gym.make("ale_py:ALE/Breakout-v5", frameskip=1, repeat_action_probability=0)
    oracle = wrappers.FrameStackObservation(wrappers.AtariPreprocessing(oracle, 0), 4, padding_type="zero")
    obs, _ = oracle.reset()
    envs, frames = ppo.make_envs(ppo.Args("Breakout"), 1, noop_max=0, use_fire_reset=False), []
    ours, _ = envs.reset(seed=[0])
    for t in range(100):
        assert ours.dtype == np.uint8 and ours.shape == (1, 4, 84, 84) and (ours[0] == obs).all()
        action = [1, 2, 0, 3][t % 4]
        obs, reward, *_ = oracle.step(action)
        ours, rewards, *_ = envs.step(np.array([action]))
        assert rewards[0] == reward
        frames.append(ours[0])
    assert (frames[-1][2] == frames[-2][3]).all() and (frames[-1][0] == frames[-2][1]).all()


def test_a_game_cut_off_by_its_limit_of_frames_is_bootstrapped_from_the_frames_it_was_cut_off_at():
    """Pong, 60 frames a game; a twin without the limit shows what would have come. (At the limit, ALE takes the newest
    picture one frame early, so that up to 100 pixels of it differ.)"""
    args = ppo.Args("Pong", num_envs=4, num_steps=20)
    capped, endless = ppo.make_envs(args, max_num_frames_per_episode=60), ppo.make_envs(args)
    agent, seen = ppo.Agent(capped, args), []
    (obs, _), _ = capped.reset(seed=SEEDS), endless.reset(seed=SEEDS)
    agent.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rollout, _, episode_returns = ppo.collect(capped, agent, obs, args, 0)
    cut = rollout.done & ~rollout.terminated
    assert cut[14].all() and cut.sum() == len(episode_returns) == 4 and not rollout.terminated.any()
    for t in range(15):
        twin, *_ = endless.step(rollout.actions[t].numpy())
    last = seen[-1].numpy()
    assert (last[:, :3] == twin[:, :3]).all() and ((last[:, 3] != twin[:, 3]).sum((1, 2)) < 100).all()
    with torch.no_grad():
        np.testing.assert_allclose(rollout.next_values[14], agent(seen[-1])[1], rtol=1e-4)
    assert (np.abs(rollout.next_values[14] - rollout.values[15]) > 1e-3).all()  # what came next was a new game


@pytest.mark.parametrize("kwargs", [{}, {"render_mode": "rgb_array", "wrappers": []}], ids=["play", "film"])
def test_the_limit_is_108000_frames(monkeypatch, kwargs):
    make_vec, seen = gym.make_vec, {}
    monkeypatch.setattr(gym, "make_vec", lambda *args, **kwargs: seen.update(kwargs) or make_vec(*args, **kwargs))
    ppo.make_envs(ppo.Args("Pong"), 1, **kwargs)
    assert seen["max_num_frames_per_episode"] == 108_000


def test_another_protocol_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ppo_atari.py", "--protocol", "modern"])
    with pytest.raises(SystemExit, match="2"):
        ppo.main()
    assert "invalid choice 'modern'" in capsys.readouterr().err
    with pytest.raises(KeyError, match="modern"):
        ppo.make_envs(ppo.Args(protocol="modern"))


def test_streams_differ_between_environments_and_between_seeds_and_recur_with_the_same_seed():
    args = ppo.Args("Pong")
    seeds = [ppo.env_seeds(seed, step, 8) for seed in (0, 1, 2) for step in (0, 1024)]
    assert len({seed for stream in seeds for seed in stream}) == 48
    envs = ppo.make_envs(args)
    starts = []
    for stream in (*seeds, seeds[0]):
        _, info = envs.reset(seed=stream)
        starts.append(tuple(info["episode_frame_number"].tolist()))
    assert starts[-1] == starts[0] and len(set(starts)) == len(seeds)
    assert all(len(set(start)) > 2 for start in starts)


def test_making_a_film_or_an_evaluation_leaves_the_environments_of_the_training_as_they_are():
    """ALE keeps the reset mode in a class attribute: a second environment in another mode would change the first."""
    envs = ppo.make_envs(ppo.Args("Pong"))
    ppo.make_envs(ppo.Args("Pong"), 1, render_mode="rgb_array", wrappers=[])
    ppo.make_envs(ppo.Args("Breakout", protocol="machado"), 3)
    assert envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.SAME_STEP


def test_both_names_of_a_game_are_the_same_game():
    for env_id in ("Breakout", "ALE/Breakout-v5", "ale_py:ALE/Breakout-v5"):
        args = ppo.Args(env_id)
        ppo.check(args)
        assert args.game == "ale_py:ALE/Breakout-v5"
        assert ppo.make_envs(args, 1).single_action_space.n == 4


def test_every_action_of_the_policy_is_one_of_the_games():
    """An action that a game does not have would make ALE wait for ever."""
    for game in ("Breakout", "Pong", "Boxing"):
        envs = ppo.make_envs(ppo.Args(game), 1)
        policy, _ = ppo.Agent(envs, ppo.Args(game))(torch.zeros(2, 4, 84, 84, dtype=torch.uint8))
        assert policy.logits.shape == (2, envs.single_action_space.n)


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
    torch.testing.assert_close(values.double(), (x @ weights[10].T + weights[11]).squeeze(-1), rtol=1e-4, atol=1e-4)
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


def test_convolutions_work_channels_last(agents):
    """Twice as fast on a CPU as the other way round."""
    for agent in agents:
        seen = []
        agent.features[2].register_forward_hook(lambda _, inputs, output, seen=seen: seen.extend([*inputs, output]))
        agent(torch.zeros(2, 4, 84, 84, dtype=torch.uint8))
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen) and len(seen) == 2


def test_frames_stay_uint8_from_the_game_to_the_network(monkeypatch):
    seen, forward = set(), ppo.Agent.forward
    monkeypatch.setattr(ppo.Agent, "forward", lambda self, obs: seen.add(obs.dtype) or forward(self, obs))
    args = ppo.Args("Pong", num_envs=2, num_steps=8, total_timesteps=16, eval_episodes=1)
    envs = ppo.make_envs(args)
    agent, (obs, _) = ppo.Agent(envs, args), envs.reset(seed=[0, 1])
    rollout, _, _ = ppo.collect(envs, agent, obs, args, 0)
    batch = ppo.make_batch(agent, rollout, args)
    ppo.update(agent, ppo.make_optimizer(agent, args), batch, args)
    assert seen == {rollout.obs.dtype, batch.obs.dtype} == {torch.uint8}


def test_the_first_minibatch_has_ratio_1():
    args = ppo.Args("Breakout", num_envs=4, num_steps=32)
    envs = ppo.make_envs(args)
    agent, (obs, _) = ppo.Agent(envs, args), envs.reset(seed=SEEDS)
    batch = ppo.make_batch(agent, ppo.collect(envs, agent, obs, args, 0)[0], args)
    _, metrics = ppo.minibatch_gradient(agent, batch, args, args.clip_coef)
    assert metrics["approx_kl"] < 1e-7 and metrics["clip_fraction"] == 0


class Lights(probe_envs.Match):
    """A bright left or right half of the screen; the action that has its side pays."""

    observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)

    def obs(self):
        frames = np.zeros((4, 84, 84), np.uint8)
        frames[:, :, 42:] = 255 * (getattr(self, "sign", 1.0) > 0)
        frames[:, :, :42] = 255 - frames[:, :, 42:]
        return frames


def test_the_network_learns_what_it_sees(monkeypatch):
    monkeypatch.setenv("PROBE_ACTIONS", "Discrete")
    mode = gym.vector.AutoresetMode.SAME_STEP
    envs = gym.vector.SyncVectorEnv([Lights] * 8, autoreset_mode=mode)
    args = ppo.Args(num_envs=8, num_steps=16, learning_rate=1e-3)
    torch.manual_seed(1)
    agent, (obs, _) = ppo.Agent(envs, args), envs.reset(seed=list(range(8)))
    optimizer = ppo.make_optimizer(agent, args)
    for _ in range(15):
        rollout, obs, _ = ppo.collect(envs, agent, obs, args, 0)
        ppo.update(agent, optimizer, ppo.make_batch(agent, rollout, args), args)
    assert rollout.rewards.mean() > 0.8


def test_capture_video_films_a_whole_game(monkeypatch):
    import imageio

    args = ppo.Args("Breakout", capture_video=True)
    ppo.check(args)
    envs = ppo.make_envs(args)
    assert ppo.evaluate(ppo.Agent(envs, args), args, Path("here")).shape == (1,)
    (film,) = Path("here/videos").glob("*.mp4")
    frames = np.stack([frame for frame in imageio.get_reader(film)])  # noqa: C416
    assert len(frames) > 50 and frames.std(0).max() > 20
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ppo.UserError, match="opencv"):
        ppo.check(args)


def test_the_defaults_are_those_of_the_paper_and_evaluation_samples():
    """The greedy policy can wait for ever. K and vf_coef are openai/baselines', where the paper has 3 and c_1 = 1."""
    args = ppo.Args()
    assert not args.eval_greedy and args.protocol == "classic"
    assert (args.num_envs, args.num_steps, args.num_minibatches, args.clip_coef) == (8, 128, 4, 0.1)
    assert (args.learning_rate, args.ent_coef, args.update_epochs) == (2.5e-4, 0.01, 4)
