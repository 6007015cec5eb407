"""The policies on streams of gradients, in one process, as the hook plays them."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from draws import DRAWS, draw_pools, on_one_thread
from torch.nn import functional as F

import gradsieve as gs
from gradsieve.lab.workloads.digits import batches
from gradsieve.lab.workloads.mnist import load_mnist
from gradsieve.lab.workloads.mnist_cnn import MnistCnn, make_optimizer
from gradsieve.parameters.parameter import ParameterState

NUMEL = 200_000
POLICIES = [
    gs.Fixed(0.0),
    gs.Fixed(1.5),
    gs.Sigma(2.0),
    gs.Sigma(3.0, of="accumulated"),
    gs.UnsentMean(1.0),
    gs.UnsentMean(4.0),
    gs.Density(0.01),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with on_one_thread():
        yield


@pytest.fixture(scope="module")
def pools():
    return draw_pools()


class Player:
    """One parameter on one rank, without a network."""

    def __init__(self, policy, numel=NUMEL, *, error_feedback=True):
        self.state = gs.SieveState(threshold=policy, error_feedback=error_feedback)
        self.parameter = ParameterState("p", torch.zeros(numel), whole=False)

    @property
    def left(self):
        return self.parameter.residual

    def step(self, gradient):
        """The threshold and the moments of one step."""
        threshold = self.state.sieve.thresholds.next(
            self.parameter, gradient, self.left, self.state.step
        )
        _, _, moments = gs.select(gradient, self.left, threshold)
        self.state.sieve.thresholds.observe(self.parameter, moments)
        if not self.state.config.error_feedback:
            self.left.zero_()
        self.state.sieve.thresholds.sizes.end_step()
        self.state.step += 1
        return threshold, self.parameter.moments


def play(policy, gradients, *, error_feedback=True):
    """Thresholds and densities, step by step."""
    player = None
    thresholds, densities = [], []
    for gradient in gradients:
        player = player or Player(policy, gradient.numel(), error_feedback=error_feedback)
        threshold, moments = player.step(gradient)
        thresholds.append(threshold)
        densities.append(moments.density)
    return np.array(thresholds), np.array(densities)


def stream(pool, steps, numel=NUMEL, *, scale=1.0, seed=0):
    """Gradients of `numel` elements, each a stretch of the pool that begins somewhere else."""
    rng = np.random.default_rng(seed)
    for start in rng.integers(0, pool.numel() - numel, steps):
        yield pool[start : start + numel] * scale


def longest_run(flags):
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (gs.Fixed(1.5), lambda gradient, before, unsent: 1.5),
        (gs.Fixed(0.0), lambda gradient, before, unsent: 0.0),
        (gs.Fixed(math.inf), lambda gradient, before, unsent: math.inf),
        (gs.Sigma(2.0), lambda gradient, before, unsent: 2 * gradient.std()),
        (gs.Sigma(3.0, "accumulated"), lambda gradient, before, unsent: 3 * before.std()),
        (gs.UnsentMean(4.0), lambda gradient, before, unsent: 4 * unsent.mean()),
        (gs.UnsentMean(1.0), lambda gradient, before, unsent: unsent.mean()),
    ],
    ids=lambda case: "" if callable(case) else str(case),
)
def test_each_threshold_is_what_the_table_says(policy, expected, pools):
    player = Player(policy, 10_000)
    unsent = None
    for step, gradient in enumerate(stream(pools["normal"], 6, 10_000)):
        accumulated = (gradient + player.left).numpy().astype(np.float64)
        unsent = np.abs(accumulated) if unsent is None else unsent
        threshold, moments = player.step(gradient)
        wanted = expected(gradient.numpy().astype(np.float64), accumulated, unsent)
        assert threshold == pytest.approx(wanted, rel=1e-4), step
        magnitudes = np.abs(accumulated)
        assert moments.survivors == (magnitudes > np.float32(threshold)).sum()
        unsent = magnitudes[magnitudes <= np.float32(threshold)]


def test_scale_one_falls_to_zero_and_sends_all_but_exact_zeros(pools):
    def with_zeros(gradient):
        gradient = gradient.clone()
        gradient[::10] = 0.0
        return gradient

    for pool in pools.values():
        gradients = map(with_zeros, stream(pool, 60))
        thresholds, densities = play(gs.UnsentMean(1.0), gradients, error_feedback=False)
        assert densities[30:].min() > 0.899
        assert thresholds[-1] < 1e-4 * thresholds[0]
        assert densities.max() == 0.9


def test_scale_two_falls_to_zero_too_but_slower(pools):
    thresholds, densities = play(
        gs.UnsentMean(2.0), stream(pools["laplace"], 400), error_feedback=False
    )
    windows = densities.reshape(8, 50).mean(axis=1)
    assert (np.diff(windows) > 0).all()
    assert windows[0] < 0.9 < windows[-1]
    assert thresholds[-1] < 0.2 * thresholds[0]


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("scale", [3.0, 4.0, 5.0])
def test_a_scale_above_two_settles(kind, scale, pools):
    _, densities = play(gs.UnsentMean(scale), stream(pools[kind], 200), error_feedback=False)
    before, last = densities[-100:-50].mean(), densities[-50:].mean()
    assert last == pytest.approx(before, rel=0.2)
    assert 0 < last < 0.5


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("scale", [2.5, 3.0, 4.0, 5.0])
def test_with_error_feedback_a_scale_above_two_never_stops_nor_sends_everything(kind, scale, pools):
    _, densities = play(gs.UnsentMean(scale), stream(pools[kind], 300, 50_000))
    assert longest_run(densities == 0) <= 50
    assert longest_run(densities == 1) <= 50
    assert 0 < densities[-100:].mean() < 0.7


@pytest.mark.parametrize("error_feedback", [True, False])
def test_a_scale_above_two_grows_back_from_a_tiny_threshold(error_feedback, pools):
    player = Player(gs.UnsentMean(4.0), error_feedback=error_feedback)
    densities = []
    for step, gradient in enumerate(stream(pools["normal"], 150)):
        if step == 0:
            gs.select(gradient, player.left, 1e-20)
            _, _, moments = gs.select(torch.full((NUMEL,), 1e-20), player.left, 1e-20)
            player.parameter.moments, player.parameter.threshold = moments, 1e-20
            assert moments.unsent_mean < 1e-19
        densities.append(player.step(gradient)[1].density)
    assert np.mean(densities[80:]) < 0.2


def test_a_scale_above_two_recovers_when_everything_was_sent(pools):
    gradients = list(stream(pools["normal"], 20))
    player = Player(gs.UnsentMean(4.0))
    _, _, player.parameter.moments = gs.select(gradients[0], player.left, 0.0)
    player.parameter.threshold = 0.0
    assert player.parameter.moments.density > 0.99
    densities = [player.step(gradient)[1].density for gradient in gradients[1:]]
    assert max(densities[1:]) < 0.2


@pytest.mark.parametrize("error_feedback", [True, False])
@pytest.mark.parametrize("target", [0.1, 0.01, 0.001, 0.0001])
@pytest.mark.parametrize("kind", DRAWS)
def test_density_holds_its_target_through_jumps_of_the_gradient(
    kind, target, error_feedback, pools
):
    player = Player(gs.Density(target), error_feedback=error_feedback)
    for seed, scale in enumerate([1.0, 10.0, 1.0]):
        densities = [
            player.step(gradient)[1].density
            for gradient in stream(pools[kind], 70, scale=scale, seed=seed)
        ]
        assert np.mean(densities[30:]) == pytest.approx(target, rel=0.2), scale


@pytest.mark.parametrize("error_feedback", [True, False])
def test_density_of_a_gradient_of_one_magnitude(error_feedback):
    gradient = torch.full((10_000,), 0.25)
    gradient[::3] *= -1
    _, densities = play(gs.Density(0.1), [gradient] * 200, error_feedback=error_feedback)
    assert longest_run(densities == 0) < 50
    assert longest_run(densities == 1) < 5
    assert densities[50:].mean() == pytest.approx(0.1, rel=0.3)


ODD = {
    "zero": torch.zeros(10_000),
    "constant": torch.full((10_000,), 0.1),
    "all NaN": torch.full((10_000,), math.nan),
    "all infinite": torch.full((10_000,), -math.inf),
    "one NaN": torch.arange(10_000.0).sub(5000).index_fill(0, torch.tensor([7]), math.nan),
    "half infinite": torch.linspace(-2, 2, 10_000).index_fill(0, torch.arange(5000), math.inf),
    "tiny": torch.full((10_000,), 1e-44),
    "huge": torch.full((10_000,), 3e37),
}


@pytest.mark.parametrize("error_feedback", [True, False])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_one_odd_gradient_does_not_break_what_follows(policy, odd, error_feedback, pools):
    for at in (0, 5):
        gradients = list(stream(pools["normal"], 12, 10_000))
        gradients[at] = ODD[odd]
        player = Player(policy, 10_000, error_feedback=error_feedback)
        for gradient in gradients:
            threshold, _ = player.step(gradient)
            assert math.isfinite(threshold)
            assert player.left.isfinite().all()


@pytest.mark.parametrize("odd", ["zero", "all NaN", "all infinite", "half infinite"])
@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize("policy", [gs.Sigma(2.0), gs.UnsentMean(4.0), gs.Density(0.01)], ids=str)
def test_the_step_after_an_odd_gradient_is_pruned(policy, at, odd, pools):
    gradients = list(stream(pools["normal"], 12, 10_000))
    gradients[at] = ODD[odd]
    _, densities = play(policy, gradients)
    assert densities[at + 1 :].max() < 0.5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gs.Fixed(-1.0), "Fixed: value"),
        (lambda: gs.Fixed(math.nan), "Fixed: value"),
        (lambda: gs.Sigma(0.0), "Sigma: k"),
        (lambda: gs.Sigma(math.inf), "Sigma: k"),
        (lambda: gs.Sigma(math.nan), "Sigma: k"),
        (lambda: gs.Sigma(1.0, of="residual"), "Sigma: of"),
        (lambda: gs.UnsentMean(0.0), "UnsentMean: scale"),
        (lambda: gs.UnsentMean(math.nan), "UnsentMean: scale"),
        (lambda: gs.Density(0.0), "Density: target"),
        (lambda: gs.Density(1.0), "Density: target"),
        (lambda: gs.Density(math.nan), "Density: target"),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_density_says_that_it_needs_a_histogram():
    _, _, moments = gs.select(torch.ones(10), torch.zeros(10), 0.5)
    with pytest.raises(ValueError, match="magnitudes"):
        gs.Density(0.1).next(moments, None)


def test_on_a_network_the_policies_do_what_they_do_on_noise():
    torch.manual_seed(0)
    model = MnistCnn()
    optimizer = make_optimizer(model)
    policies = [gs.UnsentMean(1.0), gs.UnsentMean(4.0), gs.Density(0.01)]
    named = {name: p for name, p in model.named_parameters() if p.numel() >= 2048}
    players = {
        (policy, name): Player(policy, p.numel())
        for policy in policies
        for name, p in named.items()
    }
    sent = {policy: [] for policy in policies}
    thresholds = []
    for images, labels in islice(batches(load_mnist(train=True), 0, 1, seed=0), 45):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        for policy in policies:
            survivors = 0
            for name, parameter in named.items():
                threshold, moments = players[policy, name].step(parameter.grad.flatten())
                survivors += moments.survivors
                if policy == policies[0]:
                    thresholds.append((name, threshold))
            sent[policy].append(survivors)
    numel = sum(p.numel() for p in named.values())
    density = {policy: np.mean(sent[policy][-20:]) / numel for policy in policies}
    first, last = dict(reversed(thresholds)), dict(thresholds)
    assert all(last[name] < 1e-3 * first[name] for name in named)
    assert 0.0005 < density[gs.UnsentMean(4.0)] < 0.3
    assert density[gs.Density(0.01)] == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("threshold", [0.01, "1 %"])
def test_a_number_is_no_policy(threshold):
    with pytest.raises(TypeError, match=r"policy such as gradsieve\.Density"):
        gs.SieveState(threshold=threshold)
