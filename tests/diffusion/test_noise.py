"""Randomness is a function of (seed, purpose, sample)."""

import pytest
import torch

from sid_scale.diffusion.noise import KeyedNoise, keyed_seed


def test_a_samples_noise_does_not_depend_on_its_neighbours():
    together = KeyedNoise(1, "generator", torch.arange(8))
    apart = KeyedNoise(1, "generator", torch.tensor([5]))
    assert torch.equal(together.of("z").normal(2, 3)[5:6], apart.of("z").normal(2, 3))
    assert torch.equal(together.of("t").uniform()[5:6], apart.of("t").uniform())


def test_the_order_of_draws_changes_none_of_them():
    noise = KeyedNoise(1, "generator", torch.arange(8))
    z, sigma = noise.of("z").normal(2), noise.of("sigma").normal(2)
    again = KeyedNoise(1, "generator", torch.arange(8))
    assert torch.equal(again.of("sigma").normal(2), sigma)
    assert torch.equal(again.of("z").normal(2), z)
    assert not torch.equal(z, sigma)


@pytest.mark.parametrize("expected", ["normal", "uniform"])
@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (), (1, 4, 5)])
def test_drawing_ahead_changes_no_number(expected: str, shape: tuple[int, ...]):
    earlier = KeyedNoise(1, "generator", torch.arange(8))
    getattr(earlier.of("z"), expected)(2, 3)
    assert earlier.first_draws.keys() == {"z"}
    ahead, alone = (KeyedNoise(1, "generator", torch.arange(8, 12)) for _ in range(2))
    ahead.draw_ahead(earlier.first_draws)
    for _ in range(2):  # twice from the beginning
        drawn = [noise.of("z") for noise in (ahead, alone)]
        for kind in ("normal", "normal", "uniform"):
            numbers = [getattr(noise, kind)(*shape) for noise in drawn]
            assert numbers[0].equal(numbers[1])
    assert ahead.of("other").normal(2).equal(alone.of("other").normal(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_has_the_same_numbers_without_waiting_for_them():
    on_gpu = KeyedNoise(1, "generator", torch.arange(8), "cuda").of("z")
    torch.cuda.set_sync_debug_mode("error")
    try:
        numbers = on_gpu.normal(2, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert numbers.cpu().equal(KeyedNoise(1, "generator", torch.arange(8)).of("z").normal(2, 3))


@pytest.mark.parametrize(("seed", "purpose", "sample"), [(2, "a", 0), (1, "b", 0), (1, "a", 1)])
def test_another_seed_purpose_or_sample_is_other_noise(seed, purpose, sample):
    first = KeyedNoise(1, "a", torch.tensor([0])).of("z").normal(100)
    other = KeyedNoise(seed, purpose, torch.tensor([sample])).of("z").normal(100)
    assert abs(torch.corrcoef(torch.cat([first, other]))[0, 1]) < 0.35


def test_noise_is_unit_normal_across_samples():
    noise = KeyedNoise(0, "x", torch.arange(20_000)).of("z").normal()
    assert noise.mean() == pytest.approx(0, abs=0.03)
    assert noise.std() == pytest.approx(1, abs=0.03)


def test_seeds_fit_a_generator_and_differ():
    seeds = {keyed_seed(seed, "p", number) for seed in range(30) for number in range(30)}
    assert len(seeds) == 900
    assert all(0 <= s < 2**64 for s in seeds)
