"""Two whole iterations of SiD and SiDA on EDM's networks, as published, draw by draw.

With and without augmentation, on one rank and two, in one round or two, and from a generator that
SiD made, at every ZeRO stage. Two micro-batches are two ranks' or two rounds of one, whatever they
were when they were recorded, and SiD's losses are cut between samples.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sid_scale.codecs import IdentityCodec
from sid_scale.diffusion.few_step import generate
from sid_scale.methods import GENERATOR, MicroBatch
from sid_scale.methods.settings import FakeScoreSettings, SiDObjective, WarmUp
from sid_scale.methods.sid import FAKE_SCORE, SiD, SiDA
from sid_scale.zero.ema import ShardedEMA, ema_decay
from sid_scale.zero.engines import AdamConfig, ShardedNetwork
from sid_scale.zero.fragments import gather_parameters, local_fragments
from sid_scale.zero.settings import read_deepspeed_json
from tests.ranks import run_ranks
from tests.vectors import Vectors, relative_error

pytestmark = [pytest.mark.reference, pytest.mark.distributed]

FILES = (
    *("sid_edm_two_steps_1rank", "sid_edm_augment_two_steps_1rank"),
    *("sida_edm_two_steps_1rank", "sida_edm_augment_two_steps_1rank"),
    *("sida_edm_two_steps_2ranks", "sida_edm_two_steps_2rounds"),
)
TOLERANCE = 1e-4
SHORT = {FAKE_SCORE: "fake", GENERATOR: "gen"}  # the files' names of the roles


@pytest.mark.parametrize("name", FILES)
def test_two_iterations_at_every_stage(name: str, reference_dir: Path, tmp_path: Path):
    file = reference_dir / f"{name}.npz"
    run_ranks(Vectors(file).settings["ranks"], _stages, file, tmp_path, (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("sid_edm_augment_two_steps_1rank", 2),
        ("sida_edm_two_steps_2ranks", 1),
        ("sida_edm_two_steps_2rounds", 2),
    ],
)
def test_the_same_iterations_on_another_number_of_ranks(
    name: str, ranks: int, reference_dir: Path, tmp_path: Path
):
    run_ranks(ranks, _stages, reference_dir / f"{name}.npz", tmp_path, (0, 3))


def _stages(rank: int, file: Path, folder: Path, stages: tuple[int, ...]) -> None:
    vectors = Vectors(file)
    for stage in stages:
        ds_json = folder / f"stage{stage}-rank{rank}.json"
        ds_json.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        _two_iterations(vectors, rank, ds_json)


def _two_iterations(v: Vectors, rank: int, ds_json: Path) -> None:
    s, method = v.settings, _method(v)
    share = _share(v, rank, dist.get_world_size())
    trained = _networks(v, method, ds_json, len(share), share[0].samples(v))
    ema = ShardedEMA(trained[GENERATOR])
    for iteration in range(s["iterations"]):
        batch = s["ranks"] * s["batch_per_rank"]
        images_seen = 1000 * s["start_kimg"] + iteration * batch
        for update in method.updates(images_seen):
            network = trained[update.role]
            (other,) = trained.keys() - {update.role}
            for place in share:
                recorded = Recorded(v, place, iteration, SHORT[update.role])
                with trained[other].frozen() as frozen:
                    networks = {"teacher": v.network("teacher."), other: frozen}
                    loss = update.loss({**networks, update.role: network}, _micro_batch(recorded))
                    network.backward(loss.total)
                assert network.step()
                _compare_losses(recorded, update.role, loss.terms)
        ema.update(ema_decay(images_seen, batch, s["ema_halflife_nimg"], s["ema_rampup_ratio"]))
    for role, network in trained.items():
        fragments = local_fragments(network.engine)
        masters = [f.master for f in fragments]
        state = gather_parameters(network.engine, fragments, masters)
        _compare_weights(state, v.state(f"final.{SHORT[role]}."))
    _compare_weights(ema.gather(), v.state("final.ema."))


# --- the run, as it was recorded ----------------------------------------------------------


def _method(v: Vectors) -> SiD:
    s, adversarial = v.settings, v.settings["method"] == "sida"
    objective = SiDObjective(
        alpha=s["alpha"],
        tmax=s["tmax"],
        logvar_weighting=False,
        loss_scale_generator=s["lsg"],
        loss_scale_generator_gan=s.get("lsg_gan", 0.01),
        loss_scale_discriminator=s.get("lsd", 1),
        augmentation=s["augment"],
        discriminator_logit_limit=None,
        fake_score=FakeScoreSettings(
            learning_rate=s["lr"],
            p_mean=s["P_mean"],
            p_std=s["P_std"],
            clip_value=1.0 if adversarial else None,
        ),
        warm_up=WarmUp(generator_images=100_000, adversarial_images=200_000),
    )
    config: Any = SimpleNamespace(
        objective=objective,
        teacher="recorded",
        forced_weight_norm=False,
        learning_rate=SimpleNamespace(generator=s["glr"]),
        adam=SimpleNamespace(generator_betas=tuple(s["betas_gen"])),
    )
    return (SiDA if adversarial else SiD)(config, v.config)


def _networks(
    v: Vectors, method: SiD, ds_json: Path, accumulation: int, micro_batch: int
) -> dict[str, ShardedNetwork]:
    s = v.settings
    assert s["ls"] == 1
    settings = read_deepspeed_json(ds_json, micro_batch, accumulation)
    of_sid = any(v.state("initial.gen."))
    networks = {}
    for role in method.roles():
        from_sid = role.name == GENERATOR and of_sid
        start = v.folder("initial.gen." if from_sid else "teacher.")
        adam = AdamConfig(role.learning_rate, role.betas or tuple(s["betas_fake"]), s["eps"])
        network = start.build_zero(torch.float32, torch.float32, "cpu")
        networks[role.name] = ShardedNetwork(
            network, settings, adam, start.state, clip_value=role.clip_value
        )
    return networks


class Place(NamedTuple):
    """A micro-batch, or a part of one, among all that were recorded of an update."""

    prefix: str  # of its names, between those of the iteration and the role
    part: slice | None  # of its samples; None: all

    def samples(self, v: Vectors) -> int:
        whole = v.settings["batch_gpu"]
        return whole if self.part is None else len(range(whole)[self.part])


def _share(v: Vectors, rank: int, ranks: int) -> list[Place]:
    """What a rank takes of each update, in rounds."""
    s = v.settings
    rounds = s["batch_per_rank"] // s["batch_gpu"]
    of_round = [f"round{k}." for k in range(rounds)] if rounds > 1 else [""]
    places = [Place(f"rank{r}.{k}", None) for r in range(s["ranks"]) for k in of_round]
    if len(places) < ranks:
        assert s["method"] == "sid"
        middle = s["batch_gpu"] // 2
        halves = slice(None, middle), slice(middle, None)
        places = [place._replace(part=half) for place in places for half in halves]
    assert len(places) % ranks == 0
    each = len(places) // ranks
    return places[rank * each : (rank + 1) * each]


@dataclass
class Recorded:
    """One micro-batch of one update; `recorded["z_unit"]` is what was drawn."""

    v: Vectors
    place: Place
    iteration: int
    role: str

    @property
    def prefix(self) -> str:
        return f"it{self.iteration}.{self.place.prefix}{self.role}."

    def __getitem__(self, key: str) -> Tensor:
        return self.part(self.v[self.prefix + key])

    @property
    def classes(self) -> Tensor | None:
        if not self.v.config.label_dim:
            return None
        return self.part(self.v.classes(f"{self.prefix}labels"))

    def of(self, name: str) -> "RecordedNoise":
        return RecordedNoise(self, name)

    def part(self, whole: Tensor) -> Tensor:
        """Of something of the whole micro-batch, the samples that are here."""
        return whole if self.place.part is None else whole[self.place.part]


@dataclass
class RecordedNoise:
    """The draws of one name, in place of random ones."""

    recorded: Recorded
    name: str

    def normal(self, *shape: int) -> Tensor:
        if self.name == "step_noise":
            return torch.empty(len(self.recorded["z_unit"]), *shape)
        if self.name.startswith("augment"):
            scale, aniso, translate = self._augmentation("scale", "aniso", "translate")
            return self.recorded.part(torch.stack([scale, aniso, *translate], dim=1))
        key = {"z": "z_unit", "noise": "noise_unit", "sigma": "sigma_normal"}[self.name]
        return self.recorded[key]

    def uniform(self, *shape: int) -> Tensor:
        if self.name == "sigma":
            return self.recorded["uniform"]
        names = (
            *("xflip", "xflip_gate", "yflip", "yflip_gate", "scale_gate", "rotate"),
            *("rotate_gate", "aniso_rotate", "aniso_gate", "aniso_rotate_gate", "translate_gate"),
        )
        draws = {name: draw.flatten() for name, draw in zip(names, self._augmentation(*names))}
        for flip in ("xflip", "yflip"):  # 1 is a flip; here one is drawn by a number below 1/2
            draws[flip] = 0.75 - 0.5 * draws[flip]
        return self.recorded.part(torch.stack(list(draws.values()), dim=1))

    def _augmentation(self, *names: str) -> list[Tensor]:
        """Draws for generated or real images, as the second word of the streams' name says, of
        the whole micro-batch."""
        prefix = f"{self.recorded.prefix}augment_{self.name.split()[1]}."
        return [self.recorded.v[prefix + name] for name in names]


def _micro_batch(recorded: Recorded) -> MicroBatch:
    v, classes = recorded.v, recorded.classes

    def images(network, z: Tensor, step_noise: Tensor) -> Tensor:
        made = generate(network, z, step_noise, classes, v.settings["init_sigma"])
        assert relative_error(made.detach(), recorded["generated"]) < TOLERANCE
        return made

    real = lambda: recorded["real"]  # noqa: E731 - in [-1, 1]
    noise: Any = recorded
    return MicroBatch(
        classes,
        v.config.sample_shape,
        1,
        noise,
        real,
        images,
        IdentityCodec().pixels,
        of_whole_batch=lambda values: values,
    )


# --- what comes out -----------------------------------------------------------------------


def _compare_losses(recorded: Recorded, role: str, terms) -> None:
    """A recorded loss is divided by the batch of all rounds, and a term of the log is not."""
    s = recorded.v.settings
    if recorded.place.part is not None:
        return  # only the whole's were recorded
    share = s["batch_gpu"] / s["batch_per_rank"]
    names = {"loss/fake_score": "loss", "loss/discriminator": "loss_d"}
    if role == GENERATOR:
        names = {"loss/generator_sid": "loss_sid", "loss/generator_gan": "loss_gan"}
    assert terms.keys() & names.keys() >= set(list(names)[: 1 + (s["method"] == "sida")])
    for term, key in names.items():
        if term not in terms:
            continue
        expected, magnitude = recorded[key], recorded[key].abs()
        if key == "loss_sid":  # a sum of large terms of both signs, recorded of the first round
            first = re.sub(r"round\d+", "round0", recorded.place.prefix)
            elements = recorded.v[f"it0.{first}gen.sid_per_element"]
            magnitude = s["lsg"] * elements.abs().sum() / s["batch_per_rank"]
        assert abs(share * terms[term] - expected) <= TOLERANCE * magnitude, term


def _compare_weights(state: dict[str, Tensor] | None, published: dict[str, Tensor]) -> None:
    """Of each parameter the relative distance (2-norm); `state` is None but on the first rank."""
    if state is None:
        return
    expected = {name: w for name, w in published.items() if name in state}
    assert expected.keys() == state.keys()
    for name, weight in expected.items():
        # A bias of keys changes no attention: Adam's first steps move it at random.
        kept = [i for i in range(len(weight)) if not name.endswith("qkv.bias") or i % 3 != 1]
        error = (state[name][kept] - weight[kept]).norm() / weight[kept].norm()
        assert error < TOLERANCE, (name, float(error))
