"""From a folder of images to the report, unattended; the run in it as without SLURM.

The run is GDD-I's, whose generator is put together from a checkpoint and the teacher's folder.
SiDA's is in test_distill.py.
"""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from sid_scale.demo.digits import digit_images
from sid_scale.demo.prepare import TEACHER
from tests.conftest import ROOT
from tests.ranks import run_ranks
from tests.slurm.cluster import Cluster
from tests.slurm.runs import in_process, losses

pytestmark = [pytest.mark.slurm, pytest.mark.distributed]


def test_digits_from_images_to_the_report(cluster: Cluster, tmp_path: Path):
    images, labels = digit_images()
    for i in range(160):
        folder = tmp_path / "images" / str(int(labels[i]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i].permute(1, 2, 0).numpy()).save(folder / f"{i:04d}.png")
    settings = {
        "extends": str(ROOT / "sid_scale" / "presets" / "digits-gdd-i.yaml"),
        "run_dir": str(tmp_path / "run"),
        "teacher": str(TEACHER),
        "data": str(tmp_path / "data"),
        "deepspeed": str(ROOT / "ds_configs" / "cpu.json"),
        "total_images": 192,
        "objective": {"r1_interval": 2},
        "log": {"every_images": 64, "samples_every_images": 0},
    }
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(settings))
    told = cluster.run(
        *("bash", str(ROOT / "slurm" / "pipeline.sh"), "--images", str(tmp_path / "images")),
        *("--resolution", "32", "--metrics", "fd_pixels", "--num", "96", "--gpus-per-node", "1"),
        *("--parts", "2", "--sbatch", f"--chdir={tmp_path}", str(run)),
    )
    jobs = [line.split() for line in told.splitlines() if line.partition(" ")[0].isdigit()]
    assert [name for _, name in jobs] == [
        *("encode_latents", "distill", "consolidate", "evaluate", "report"),
    ]
    for number, name in jobs:
        job = int(number)
        assert cluster.finish(job) == "COMPLETED", f"{name}\n{cluster.log(job)}"
        assert cluster.processes(job) == []
        if name == "encode_latents":
            run_ranks(2, in_process, run, tmp_path / "alone")
    assert len(losses(tmp_path / "run")) == 3
    assert losses(tmp_path / "run") == losses(tmp_path / "alone")
    told = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (told["ranks"], told["zero_stage"]) == (2, 2)
    assert json.loads((tmp_path / "data" / "index.json").read_text())["num_classes"] == 10
    measured = (tmp_path / "run" / "evaluation" / "published" / "metrics.json").read_text()
    assert json.loads(measured)
    assert "fd_pixels" in measured
    page = (tmp_path / "run" / "report.html").read_text()
    assert "fd_pixels" in page or "Fréchet" in page or "Frechet" in page
    assert (tmp_path / "run" / "published" / "README.md").is_file()
