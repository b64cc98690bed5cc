"""EDM2's network: published outputs, published sizes, precision."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from sid_scale.networks.denoiser import Prediction
from sid_scale.networks.edm2.layers import EPSILON, MPConv, mp_cat, sum_factors, unit_magnitude
from sid_scale.networks.edm2.network import EDM2
from sid_scale.networks.edm2.sizes import SIZES, imagenet512
from tests.tiny import tiny_folder, tiny_network
from tests.vectors import Vectors, relative_error


@pytest.fixture
def vectors(reference_dir: Path) -> Vectors:
    return Vectors(reference_dir / "edm2_forward.npz")


@pytest.fixture
def inputs(vectors: Vectors) -> tuple[torch.Tensor, ...]:
    return vectors["x"], vectors["sigma"], vectors.classes("class_labels")


def encoder_mean(prediction: Prediction) -> torch.Tensor:
    """The published map of the deepest encoder activation: its mean over channels."""
    (deepest,) = prediction.features
    return deepest.mean(dim=1, keepdim=True)


@pytest.mark.reference
def test_forward_is_the_published_one(vectors, inputs):
    network = vectors.network("param.")
    prediction = network(*inputs, features=(-1,))
    assert relative_error(prediction.denoised, vectors["denoised"]) < 1e-5
    assert relative_error(encoder_mean(prediction), vectors["encoder_mean"]) < 1e-5
    assert relative_error(prediction.logvar.flatten(), vectors["logvar"]) < 1e-5
    unlabelled = network(*inputs[:2]).denoised
    assert relative_error(unlabelled, vectors["denoised_no_label"]) < 1e-5


@pytest.mark.reference
def test_encoder_alone_gives_the_same_map_and_runs_no_decoder(vectors, inputs):
    network = vectors.network("param.")
    decoder_runs = []
    for block in network.unet.dec.values():
        block.register_forward_hook(lambda *_: decoder_runs.append(1))
    prediction = network(*inputs, features=(-1,), decoded=0)
    assert prediction.denoised is None
    assert not decoder_runs
    assert relative_error(encoder_mean(prediction), vectors["encoder_mean"]) < 1e-5
    assert prediction.logvar is not None


@pytest.mark.reference
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-2), (torch.float16, 5e-3)])
def test_half_precision_stays_near_float32(vectors, inputs, dtype, tolerance):
    network = vectors.network("param.", dtype)
    assert network.unet.out_conv.weight.dtype == dtype
    prediction = network(*inputs)
    assert prediction.denoised.dtype == torch.float32
    assert prediction.logvar.dtype == torch.float32
    assert relative_error(prediction.denoised, vectors["denoised"]) < tolerance


def test_fourier_features_keep_their_precision_when_the_network_is_cast():
    network = tiny_network().to(torch.bfloat16)
    assert network.unet.out_conv.weight.dtype == torch.bfloat16
    assert network.unet.emb_fourier.freqs.dtype == torch.float32
    assert network.logvar_fourier.phases.dtype == torch.float32


@pytest.mark.parametrize("size", SIZES)
def test_published_parameter_counts(size: str):
    with torch.device("meta"):
        network = EDM2(imagenet512(size))
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert int(millions) == SIZES[size][1] or round(millions) == SIZES[size][1]


def test_unknown_size_names_the_known_ones():
    with pytest.raises(ValueError, match="xs, s, m, l, xl, xxl"):
        imagenet512("huge")


def test_pieces_preserve_magnitude():
    torch.manual_seed(0)
    a, b = torch.randn(8, 64, 16, 16), torch.randn(8, 32, 16, 16)
    assert mp_cat(a, b).square().mean().sqrt() == pytest.approx(1, abs=0.01)
    path, branch = sum_factors(0.3)
    assert (path * a + branch * torch.randn_like(a)).std() == pytest.approx(1, abs=0.01)


def test_the_pixel_norm_and_its_gradient():
    torch.manual_seed(0)
    x, grad = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    x[0, :, 0] = 0  # a pixel without magnitude
    x[1, :, 0] *= 1e-3
    ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = unit_magnitude(ours, dim=1)
    expected = plain / (EPSILON + (plain.square().mean(1, keepdim=True) + 1e-30).sqrt())
    torch.testing.assert_close(y, expected)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-5)


def test_output_ignores_the_magnitude_of_weights():
    """What makes forced normalisation a matter of the optimizer alone."""
    torch.manual_seed(0)
    folder = tiny_folder()
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 5.0])
    before = folder.build()(x, sigma).denoised
    for name in folder.build().forward_scales():
        folder.state[name] *= 3.0
    torch.testing.assert_close(folder.build()(x, sigma).denoised, before, rtol=1e-3, atol=1e-3)


def test_attention_is_fused(monkeypatch):
    """Fused kernels want the last dimension contiguous."""
    chosen = []
    attend = F.scaled_dot_product_attention

    def watched(q, k, v):
        chosen.append(SDPBackend(torch._fused_sdp_choice(q, k, v)))
        return attend(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    tiny_network()(torch.randn(2, 3, 8, 8), torch.tensor(1.0))
    assert len(chosen) == 4
    assert set(chosen) == {SDPBackend.FLASH_ATTENTION}


def test_channels_stay_last_in_memory_through_the_network():
    network, layouts = tiny_network(), []
    for module in network.modules():
        if isinstance(module, MPConv) and module.weight.ndim == 4:
            module.register_forward_pre_hook(lambda _, inputs: layouts.append(inputs[0]))
    network(torch.randn(2, 3, 8, 8), torch.tensor(1.0))
    assert len(layouts) > 20
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in layouts)
