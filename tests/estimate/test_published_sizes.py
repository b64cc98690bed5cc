"""What the published sizes ask of a GPU, counted: bars that changes of networks have to keep."""

import pytest

from sid_scale.config.run import load_config
from sid_scale.estimate.count import CONVOLUTION, MATMUL, Work
from sid_scale.estimate.report import Plan, make_plan
from sid_scale.estimate.step import PhaseWork, fixed_and_per_sample, total
from tests.conftest import ROOT

ALL = "activations={generator: checkpoint, fake_score: checkpoint, teacher: checkpoint}"


def counted(*settings: str, size: str = "xxl") -> Plan:
    return make_plan(load_config(f"edm2-img512-{size}-sida", settings), 1, 8)


def without_products(work: PhaseWork) -> Work:
    """Of all kernels but convolutions and matrix products."""
    return total({key: w for key, w in work.items() if key[1] not in (CONVOLUTION, MATMUL)})


@pytest.fixture(scope="module")
def xxl() -> Plan:
    return counted()


def test_kernels_beside_the_products_move_little(xxl: Plan):
    other = counted(f"micro_batch={2 * xxl.config.micro_batch}")
    fixed, per_sample = fixed_and_per_sample(xxl.count, other.count)
    assert total(fixed).nbytes <= 40e9
    assert without_products(per_sample).nbytes <= 16e9
    assert xxl.count.total.kernels <= 9000


@pytest.mark.parametrize(
    ("settings", "gigabytes"),
    [(["micro_batch=16", ALL], 5.5), (["micro_batch=64", ALL], 20)],
)
def test_checkpointed_blocks_leave_room_for_large_micro_batches(
    settings: list[str], gigabytes: float
):
    assert max(counted(*settings).count.peak.values()) <= gigabytes * 1e9


def test_the_preset_of_xxl_keeps_all_activations_on_80_gb(xxl: Plan):
    assert max(counted("micro_batch=16").count.peak.values()) <= 24e9
    assert xxl.memory.total <= 80e9


@pytest.mark.parametrize("size", ["xs", "s", "m", "l", "xl"])
def test_presets_fit_one_node_of_80_gb(size: str):
    assert counted(size=size).memory.total <= 80e9


@pytest.mark.parametrize(
    ("preset", "settings", "named"),
    [
        ("edm-cifar10-cond-sida", [], "`edm-cifar10-cond-sida`"),
        ("edm-cifar10-cond-sida", ["deepspeed=zero2"], "the same, `deepspeed=zero2`"),
        ("edm-cifar10-cond-sid", [], "`edm-cifar10-cond-sid`"),
    ],
)
def test_the_page_on_cifar_10_has_memory_and_hours_as_counted(
    preset: str, settings: list[str], named: str
):
    plan = make_plan(load_config(preset, settings), 1, 8)
    page = (ROOT / "docs" / "cifar10.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| {named}"))
    assert f"| {plan.memory.total / 1e9:.0f} |" in row
    assert f" {plan.time.gpu_hours(plan.config.total_images):,.0f} GPU hours |" in row
    assert f"| {plan.time.gpu_hours(10_000_000) / 8:.1f} hours |" in row


@pytest.mark.parametrize("data", ["cifar10-uncond", "ffhq64", "afhqv2", "imagenet64"])
def test_presets_of_pixels_fit_one_node_of_80_gb(data: str):
    plan = make_plan(load_config(f"edm-{data}-sida"), 1, 8)
    assert plan.memory.total <= (24e9 if data == "cifar10-uncond" else 80e9)
