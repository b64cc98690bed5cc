"""The demo's teachers, from nothing: a tiny VAE of the digits and a tiny EDM2 in its latents; and a
tiny EDM in pixels.

What this makes is shipped in `assets/`, so a demo run never trains it;
`tools/train_digits_teacher.py` makes it again and says how long that took. Equations are those of
EDM2 (arXiv 2312.02696).

One latent channel: at 8x8 its 64 numbers have to carry the 64 grey values of a scan. In four
channels the same VAE lays the digits out so smoothly that 17 evaluations of the teacher are
nearly as good as 63, which leaves a student little to beat.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sid_scale.codecs import Codec, IdentityCodec, VAECodec, normalisation
from sid_scale.demo.digits import (
    NUM_CLASSES,
    RESOLUTION,
    SCAN_RESOLUTION,
    class_accuracy,
    class_accuracy_real,
    digit_images,
)
from sid_scale.demo.judge import TEACHER_EVALUATIONS, Judge
from sid_scale.demo.prepare import PIXEL_TEACHER, TEACHER
from sid_scale.diffusion.sigma import lognormal_sigma
from sid_scale.methods.losses import denoising_loss, denoising_weight
from sid_scale.networks import Architecture
from sid_scale.networks.edm.architecture import EDMArchitecture
from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.folder import NetworkFolder, save_network
from sid_scale.ranks import joined_ranks
from sid_scale.zero import power_ema
from sid_scale.zero.ema import ShardedEMA
from sid_scale.zero.engines import AdamConfig, ShardedNetwork
from sid_scale.zero.settings import read_deepspeed_json

Log = Callable[[str], None]


@dataclass(frozen=True)
class VAERecipe:
    """How the autoencoder is built and trained."""

    widths: tuple[int, ...] = (8, 16, 32)  # channels per level: 32x32 -> 8x8
    latent_channels: int = 1
    norm_groups: int = 4
    kl_weight: float = 1e-6  # the Stability VAE's
    iterations: int = 1500
    batch: int = 64
    lr: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class TeacherRecipe:
    """How a class-conditional teacher is built and trained."""

    architecture: Architecture
    iterations: int
    lr: float
    betas: tuple[float, float]  # of Adam
    p_mean: float
    p_std: float
    batch: int = 128
    warmup: int = 100  # iterations of linear increase
    decay_from: int = 1000  # iterations after which lr falls with the inverse square root
    relative_width: float = 0.10  # of the average of the weights
    seed: int = 1


EDM2_TEACHER = TeacherRecipe(
    EDM2Architecture(
        img_resolution=8,
        img_channels=1,
        label_dim=NUM_CLASSES,
        model_channels=32,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
        channels_per_head=32,
        logvar_channels=64,
    ),
    iterations=3000,
    lr=1e-2,
    betas=(0.9, 0.99),
    p_mean=-0.4,
    p_std=1.0,
)
# Attention remains where DDPM++ always has it, between encoder and decoder.
EDM_TEACHER = TeacherRecipe(
    EDMArchitecture(
        model_type="SongUNet",
        img_resolution=SCAN_RESOLUTION,
        img_channels=3,
        label_dim=NUM_CLASSES,
        model_channels=32,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(),
    ),
    iterations=3000,
    lr=2e-3,
    betas=(0.9, 0.999),
    p_mean=-1.2,
    p_std=1.2,
)


# --- the autoencoder ----------------------------------------------------------------------


def train_vae(images: Tensor, recipe: VAERecipe, log: Log = print) -> Any:
    """Trains a diffusers `AutoencoderKL` on uint8 images (N, 3, 32, 32)."""
    from diffusers import AutoencoderKL

    torch.manual_seed(recipe.seed)
    levels = len(recipe.widths)
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=recipe.widths,
        layers_per_block=1,
        latent_channels=recipe.latent_channels,
        norm_num_groups=recipe.norm_groups,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
    )
    optimizer = torch.optim.Adam(vae.parameters(), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, recipe.iterations, pct_start=0.05
    )
    for iteration in range(recipe.iterations):
        batch = images[torch.randint(len(images), (recipe.batch,))].float()
        posterior = vae.encode(batch / 255).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        # The codec's decoder truncates to whole numbers: aim at the middle between two.
        error = F.mse_loss(decoded, (batch + 0.5) / 255)
        kl = posterior.kl().mean() / batch[0].numel()
        loss = error + recipe.kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (iteration + 1) % 250 == 0:
            log(f"vae {iteration + 1}: rms error {error.sqrt():.4f}, kl {kl:.4f}")
    return vae.eval()


def fit_codec(folder: Path, images: Tensor) -> tuple[VAECodec, Tensor]:
    """Codec around the VAE in `folder` whose latents of `images` have mean 0 and standard
    std sigma_data in each channel, and the stored latents (N, 2C, h, w)."""
    channels = json.loads((folder / "config.json").read_text())["latent_channels"]
    stored = VAECodec(folder, (1.0,) * channels, (0.0,) * channels).encode(images)
    mean, std = stored.double().chunk(2, dim=1)
    pixels = (0, 2, 3)
    variance = mean.var(dim=pixels) + std.square().mean(dim=pixels)
    scale, bias = normalisation(mean.mean(dim=pixels).tolist(), variance.sqrt().tolist())
    return VAECodec(folder, scale, bias), stored


# --- the teacher --------------------------------------------------------------------------


def teacher_loss(
    network: ShardedNetwork, images: Tensor, labels: Tensor, recipe: TeacherRecipe
) -> Tensor:
    """EDM's loss, in EDM2 with learned uncertainty (Eqs. 14 to 16 and 21), a scalar."""
    sigma = lognormal_sigma(torch.randn(len(images), 1, 1, 1), recipe.p_mean, recipe.p_std)
    prediction = network(images + torch.randn_like(images) * sigma, sigma, labels)
    weight = denoising_weight(sigma, recipe.architecture.sigma_data)
    logvar = torch.zeros_like(sigma) if prediction.logvar is None else prediction.logvar
    return denoising_loss(prediction.denoised, images, weight, logvar).mean()


def learning_rate(iteration: int, recipe: TeacherRecipe) -> float:
    """Linear warm-up, then inverse-square-root decay (Eq. 67)."""
    decay = max(iteration / recipe.decay_from, 1.0) ** -0.5
    return recipe.lr * min((iteration + 1) / recipe.warmup, 1.0) * decay


def train_teacher(
    codec: Codec, stored: Tensor, labels: Tensor, recipe: TeacherRecipe, log: Log = print
) -> NetworkFolder:
    """Trains a teacher on what `codec` stores of the digits, with labels (N,).

    Returns the average of the weights. To be called on one rank.
    """
    torch.manual_seed(recipe.seed)
    module = recipe.architecture.build()
    buffers = {name: b.clone() for name, b in module.named_buffers()}
    network = ShardedNetwork(
        module,
        read_deepspeed_json("cpu", recipe.batch, accumulation=1),
        AdamConfig(recipe.lr, recipe.betas),
        {name: p.detach().clone() for name, p in module.named_parameters()},
        forward_scales=module.forward_scales(),
        forced_norm=True,
    )
    average = ShardedEMA(network)
    for iteration in range(recipe.iterations):
        rows = torch.randint(len(stored), (recipe.batch,))
        images = codec.sample(stored[rows], partial(torch.randn, len(rows)))
        loss = teacher_loss(network, images, labels[rows], recipe)
        network.backward(loss)
        network.learning_rate = learning_rate(iteration, recipe)
        network.step()
        average.update(power_ema.decay(recipe.relative_width, iteration + 1, 1))
        if (iteration + 1) % 500 == 0:
            log(f"teacher {iteration + 1}: loss {loss:.4f}")
    state = average.gather()
    assert state is not None  # the only rank is the first
    return NetworkFolder(recipe.architecture, {**state, **buffers})


def measure_teacher(folder: Path) -> dict[str, float]:
    """Fréchet distances and class accuracies of the teacher in `folder`."""
    judge = Judge(folder)
    figures = {"class_accuracy_real": class_accuracy_real()}
    figures["codec_fd"] = judge.codec_distance()
    for evaluations in TEACHER_EVALUATIONS:
        judged = judge.teacher(evaluations)
        figures[f"fd_{evaluations}"] = judged.distance
        figures[f"class_accuracy_{evaluations}"] = class_accuracy(judged.images, judge.labels)
    return figures


# --- the whole ----------------------------------------------------------------------------


def make_latent_teacher(
    folder: Path, vae_recipe: VAERecipe, recipe: TeacherRecipe, log: Log = print
) -> dict[str, float]:
    """Trains VAE and EDM2, writes `folder`/vae and `folder`/teacher; returns the figures.

    A VAE that is there already is kept: delete it to train it anew.
    """
    images, labels = digit_images()
    if not (folder / "vae" / "config.json").is_file():
        train_vae(images, vae_recipe, log).save_pretrained(folder / "vae")
    codec, stored = fit_codec(folder / "vae", images)
    with joined_ranks():
        network = train_teacher(codec, stored, labels, recipe, log)
    # The two folders are beside each other.
    description = codec.describe() | {"vae": os.path.join("..", "vae")}
    return _save_teacher(folder / TEACHER.name, network, description, recipe)


def make_pixel_teacher(folder: Path, recipe: TeacherRecipe, log: Log = print) -> dict[str, float]:
    """Trains an EDM in pixels, writes `folder`/pixel_teacher; returns the figures."""
    codec = IdentityCodec()
    images, labels = digit_images(recipe.architecture.sample_shape[-1])
    with joined_ranks():
        network = train_teacher(codec, codec.encode(images), labels, recipe, log)
    return _save_teacher(folder / PIXEL_TEACHER.name, network, codec.describe(), recipe)


def _save_teacher(
    folder: Path, network: NetworkFolder, codec: dict[str, Any], recipe: TeacherRecipe
) -> dict[str, float]:
    provenance = {
        "what": "class-conditional teacher on scikit-learn's handwritten digits",
        "iterations": recipe.iterations,
        "images_seen": recipe.iterations * recipe.batch,
        "license": "apache-2.0",
    }
    save_network(folder, dataclasses.replace(network, codec=codec, provenance=provenance))
    return measure_teacher(folder)
