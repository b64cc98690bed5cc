"""GDD's losses and three whole iterations, as published, draw by draw.

The iterations run at every ZeRO stage on one rank, and on two that are given the same images: batch
normalisation takes its statistics of one micro-batch, so that halves of a batch are another run.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException

from sid_scale.codecs import IdentityCodec
from sid_scale.diffusion.few_step import generate
from sid_scale.methods import GENERATOR, MicroBatch
from sid_scale.methods.freezing import frozen_weights
from sid_scale.methods.gdd import (
    DISCRIMINATOR,
    GDD,
    GDDI,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)
from sid_scale.methods.settings import DiscriminatorSettings, GDDIObjective, GDDObjective
from sid_scale.networks.denoiser import preconditioning
from sid_scale.networks.discriminator import Discriminator
from sid_scale.networks.features import FeatureNetwork
from sid_scale.networks.features.projection import (
    ProjectedFeatures,
    RandomProjection,
    projected_channels,
)
from sid_scale.zero.ema import ShardedEMA, ema_decay
from sid_scale.zero.engines import AdamConfig, ShardedNetwork
from sid_scale.zero.fragments import gather_parameters, local_fragments
from sid_scale.zero.settings import exact, read_deepspeed_json
from tests.ranks import run_ranks
from tests.tiny import ARCHITECTURE, config
from tests.vectors import Vectors, relative_error

# Threads, and so orders of sums. Of 10^5 units one can be within rounding of its kink, where its
# slope is a hundredth of a gradient: the side it is on is an accident of the machine that recorded.
ORDERS = (2, 3, 1)
TOLERANCE = {GENERATOR: 1e-4, DISCRIMINATOR: 1e-3}  # relative 2-norms of weights
# Of losses by stage. R1 comes last, after a step of Adam in which rounding decides the sign of a
# vanishing gradient of one bias.
LOSSES = {"gen": 1e-5, "disc": 1e-5, "r1": 1e-3}

# --- the losses ----------------------------------------------------------------------------


class Losses(NamedTuple):
    v: Vectors
    fake: list[Tensor]
    real: list[Tensor]
    images: int


@pytest.fixture
def recorded_losses(reference_dir: Path) -> Losses:
    v = Vectors(reference_dir / "gdd_losses.npz")
    fake, real = (list(v.named(f"logits_{kind}.").values()) for kind in ("fake", "real"))
    return Losses(v, fake, real, v.settings["batch"])


@pytest.mark.reference
@pytest.mark.parametrize(("kind", "theirs"), [("non_saturating", "ns"), ("hinge", "hinge")])
def test_the_published_adversarial_losses(recorded_losses: Losses, kind: str, theirs: str):
    v, fake, real, images = recorded_losses
    assert torch.isclose(images * generator_loss(fake, kind), v[f"generator_loss_{theirs}"])
    loss = images * discriminator_loss(fake, real, kind)
    assert torch.isclose(loss, v[f"discriminator_loss_{theirs}"])


@pytest.mark.reference
def test_the_published_r1(recorded_losses: Losses):
    v = recorded_losses.v
    gradient = v["r1_image_gradient"]
    images = torch.zeros_like(gradient).requires_grad_()
    logits = [(gradient * images).sum(dim=(2, 3)), torch.zeros(len(images), 1)]
    penalty = r1_penalty(images, logits)
    assert torch.allclose(penalty, v["r1_penalty"])
    weight = v.settings["r1_gain"] * v.settings["r1_gamma"] / 2
    assert torch.isclose(weight * penalty.mean(), v["r1_loss"])


@pytest.mark.reference
def test_the_published_preconditioning(recorded_losses: Losses):
    v = recorded_losses.v
    for prefix, sigma_min in (("gdd_precond", 0.002), ("edm_precond", 0.0)):
        sigma = v["precond.sigma"]
        ours = preconditioning(sigma, len(sigma), 0.5, sigma_min)._asdict()
        for name, coefficient in ours.items():
            expected = v[f"{prefix}.{name}"].reshape(coefficient.shape)
            assert torch.allclose(coefficient, expected, rtol=1e-6, atol=1e-9), name


def test_a_discriminator_is_the_same_in_whatever_order_its_sources_are_named(tmp_path: Path):
    """Its optimizer's parameters are in its order, and so is what a checkpoint has of them."""
    built = []
    for files in ("{digits: a, vgg16_bn: b}", "{vgg16_bn: b, digits: a}"):
        given = {"method": "gdd", "objective.feature_networks": files}
        (tmp_path / "run.yaml").touch()
        _, role = GDD(config(tmp_path, warm_up=False, **given), ARCHITECTURE).roles()
        assert role.build is not None
        with torch.device("meta"):
            built.append([name for name, _ in role.build(ARCHITECTURE).named_parameters()])
    assert built[0] == built[1]


# --- whole iterations ----------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "stages"), [(1, (0, 1, 2, 3)), (2, (2, 3))])
@pytest.mark.parametrize("name", ["gdd_iterations", "gdd_i_cond_iterations"])
def test_three_iterations_at_every_stage(
    name: str, ranks: int, stages: tuple[int, ...], reference_dir: Path, tmp_path: Path
):
    failures = []
    for threads in ORDERS:
        try:
            return run_ranks(
                ranks, _stages, reference_dir / f"{name}.npz", tmp_path, stages, threads
            )
        except ProcessRaisedException as failure:
            failures.append(failure)
    raise failures[0]


def _stages(rank: int, file: Path, folder: Path, stages: tuple[int, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    v = Vectors(file)
    for stage in stages:
        ds_json = folder / f"stage{stage}-rank{rank}.json"
        ds_json.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        _iterations(v, ds_json)


def _iterations(v: Vectors, ds_json: Path) -> None:
    s, method = v.settings, _method(v)
    trained, fixed = _trained(v, method, ds_json), _fixed(v)
    ema = ShardedEMA(trained[GENERATOR])
    for iteration in range(s["iterations"]):
        images_seen = iteration * s["batch"]
        for update in method.updates(images_seen):
            stage = {GENERATOR: "gen", DISCRIMINATOR: update.name or "disc"}[update.role]
            recorded = Recorded(v, f"it{iteration}.", stage)
            (other,) = trained.keys() - {update.role}
            with trained[other].frozen() as frozen:
                networks = {**fixed, other: frozen, update.role: trained[update.role]}
                loss = update.loss(networks, recorded.micro_batch())
                trained[update.role].backward(loss.total)
            assert trained[update.role].step()
            expected = v[f"it{iteration}.{stage}.loss"]
            assert torch.isclose(loss.total.detach(), expected, rtol=LOSSES[stage]), stage
            if update.role == GENERATOR:
                decay = ema_decay(
                    images_seen, s["batch"], s["ema_halflife_nimg"], s["ema_rampup_ratio"]
                )
                ema.update(decay)
    _compare(_state(trained[GENERATOR]), v.state("final.gen."), TOLERANCE[GENERATOR])
    _compare(ema.gather(), v.state("final.ema."), TOLERANCE[GENERATOR])
    _compare(_state(trained[DISCRIMINATOR]), _heads(v, "final"), TOLERANCE[DISCRIMINATOR])


def _sources(v: Vectors) -> list[str]:
    """The file's names of the stand-ins, in the order of their settings."""
    names = v.named("features.feature_networks.")
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def _method(v: Vectors) -> GDD:
    s = v.settings
    assert s["r1_interval"] / (s["r1_interval"] + 1) * s["dlr"] == pytest.approx(s["lr_disc"])
    method, kind = (GDDI, GDDIObjective) if s["freeze_layer"] else (GDD, GDDObjective)
    objective = kind(
        feature_networks=dict.fromkeys(_sources(v), "stand-in"),
        summed_images=s["batch"],
        r1_gamma=s["r1_gamma"],
        r1_interval=s["r1_interval"],
        discriminator=DiscriminatorSettings(learning_rate=s["dlr"]),
    )
    config: Any = SimpleNamespace(
        objective=objective,
        batch_size=s["batch"],
        forced_weight_norm=False,
        learning_rate=SimpleNamespace(generator=s["lr"]),
        adam=SimpleNamespace(betas=tuple(map(float, s["betas_gen"])), generator_betas=None),
    )
    return method(config, v.config)


def _trained(v: Vectors, method: GDD, ds_json: Path) -> dict[str, ShardedNetwork]:
    s = v.settings
    settings = read_deepspeed_json(ds_json, s["batch"], 1)
    generator, discriminator = method.roles()
    assert generator.architecture(v.config) == v.config  # the file's has the shift
    start = v.folder("initial.gen.")
    with torch.device("meta"):
        on_meta = v.config.build()
    frozen = frozen_weights(generator, on_meta)
    parameters = {name for name, _ in on_meta.named_parameters()}
    assert parameters - set(frozen) == set(v.strings("stepped"))
    network = start.build_zero(torch.float32, torch.float32, "cpu", frozen=frozen)
    adam = AdamConfig(generator.learning_rate, tuple(map(float, s["betas_gen"])), s["eps"])
    heads = _discriminator(v)
    weights = {name: p.detach().clone() for name, p in heads.named_parameters()}
    assert discriminator.betas == pytest.approx(s["betas_disc"])
    adam_heads = AdamConfig(discriminator.learning_rate, discriminator.betas, s["eps"])
    return {
        GENERATOR: ShardedNetwork(network, settings, adam, start.state, frozen=frozen),
        DISCRIMINATOR: ShardedNetwork(heads, exact(settings), adam_heads, weights),
    }


def _discriminator(v: Vectors) -> Discriminator:
    s = v.settings
    levels = len(s["backbone_channels"][0])
    taken = projected_channels(levels, s["cout"])
    heads = [[taken[i], *[s["ndf"]] * (levels - i)] for i in range(levels)]
    network = Discriminator(
        dict.fromkeys(_sources(v), heads), v.config.label_dim, s["embedding_dim"]
    )
    network.load_state_dict(_heads(v, "initial"))
    return network


def _heads(v: Vectors, when: str) -> dict[str, Tensor]:
    """A state of the discriminator under our names."""
    renamed = {}
    for name, tensor in v.named(f"{when}.d.discriminators.").items():
        name = re.sub(r"main\.(\d+)\.main\.", r"down.\1.", name)
        name = re.sub(r"main\.\d+\.|cls\.", "last.", name)
        name = name.replace("embed.", "embedding.").replace("embed_proj.", "gain.")
        renamed[f"heads.{name.replace('.mini_discs.', '.')}"] = tensor
    return renamed


class StandIn(FeatureNetwork):
    """Four convolutions, whose results are the features."""

    def __init__(self, v: Vectors, source: str):
        super().__init__()
        of_source = _sources(v).index(source)
        channels = v.settings["backbone_channels"][of_source]
        self.size = 224
        shape = (1, 3, 1, 1)
        self.mean = torch.tensor(v.settings["backbone_mean"][of_source]).reshape(shape)
        self.std = torch.tensor(v.settings["backbone_std"][of_source]).reshape(shape)
        weights = v.named(f"features.feature_networks.{source}.pretrained.")
        self.layers = nn.ModuleList()
        for i in range(len(channels)):
            weight = weights[f"layer{i}.0.weight"]
            out, before, kernel, _ = weight.shape
            layer = nn.Conv2d(before, out, kernel, stride=kernel)
            layer.load_state_dict({"weight": weight, "bias": weights[f"layer{i}.0.bias"]})
            self.layers.append(layer)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = ((images + 1) / 2 - self.mean) / self.std
        x = nn.functional.interpolate(x, self.size, mode="bilinear", align_corners=False)
        maps = []
        for layer in self.layers:
            x = layer(x).relu()
            maps.append(x)
        return tuple(maps)


def _fixed(v: Vectors) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for source, channels in zip(_sources(v), v.settings["backbone_channels"], strict=True):
        network = StandIn(v, source)
        projection = RandomProjection(channels, v.settings["cout"])
        state = {}
        for name, tensor in v.named(f"features.feature_networks.{source}.scratch.").items():
            name = re.sub(r"layer(\d+)_ccm", r"mix_channels.\1", name)
            state[re.sub(r"layer(\d+)_csm\.out_conv", r"mix_scales.\1", name)] = tensor
        projection.load_state_dict(state)
        found[source] = ProjectedFeatures(network, projection).requires_grad_(False)
    return found


class Recorded:
    """The draws of one stage of one iteration, as noise."""

    def __init__(self, v: Vectors, iteration: str, stage: str):
        self._v, self._iteration, self._stage = v, iteration, stage

    def of(self, name: str) -> "Recorded":
        return self

    def normal(self, *shape: int) -> Tensor:
        if shape[0] == 0:
            return torch.empty(self._v.settings["batch"], *shape)  # between steps
        return self._v[f"{self._iteration}{self._stage}.z_unit"]

    def micro_batch(self) -> MicroBatch:
        v, labels = self._v, f"{self._iteration}labels"
        condition = v.classes(labels) if v.config.label_dim else None

        def images(network: Any, z: Tensor, step_noise: Tensor) -> Tensor:
            made = generate(network, z, step_noise, condition, v.settings["sigma"])
            expected = v[f"{self._iteration}{self._stage}.generated"]
            assert relative_error(made.detach(), expected) < 1e-4
            return made

        noise: Any = self
        return MicroBatch(
            condition,
            v.config.sample_shape,
            1,
            noise,
            lambda: v[f"{self._iteration}real"].clone(),
            images,
            IdentityCodec().pixels,
            of_whole_batch=lambda values: values,
        )


def _state(network: ShardedNetwork) -> dict[str, Tensor] | None:
    fragments = local_fragments(network.engine)
    return gather_parameters(network.engine, fragments, [f.master for f in fragments])


def _compare(
    state: dict[str, Tensor] | None, published: dict[str, Tensor], tolerance: float
) -> None:
    """Of each parameter the relative distance (2-norm); `state` is None but on the first rank."""
    for name, weight in (state or {}).items():
        if re.search(r"\.down\.\d+\.0\.bias$", name):
            continue  # without effect before a batch normalisation: Adam moves it at random
        # A bias of keys has none either.
        kept = [i for i in range(len(weight)) if not name.endswith("qkv.bias") or i % 3 != 1]
        expected = published[name][kept]
        error = (weight[kept] - expected).norm() / expected.norm()
        assert error < tolerance, (name, float(error))
