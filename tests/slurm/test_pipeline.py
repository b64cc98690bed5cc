"""From a folder of images to the report, unattended."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from sid_scale.demo.digits import digit_images
from sid_scale.demo.prepare import TEACHER
from tests.conftest import ROOT
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.distributed]


def test_digits_from_images_to_the_report(cluster: Cluster, tmp_path: Path):
    images, labels = digit_images()
    for i in range(160):
        folder = tmp_path / "images" / str(int(labels[i]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i].permute(1, 2, 0).numpy()).save(folder / f"{i:04d}.png")
    settings = {
        "extends": str(ROOT / "sid_scale" / "presets" / "digits.yaml"),
        "run_dir": str(tmp_path / "run"),
        "teacher": str(TEACHER),
        "data": str(tmp_path / "data"),
        "deepspeed": str(ROOT / "ds_configs" / "cpu.json"),
        "total_images": 64,
        "log": {"every_images": 64, "samples_every_images": 0},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    told = cluster.run(
        *("bash", str(ROOT / "slurm" / "pipeline.sh"), "--images", str(tmp_path / "images")),
        *("--resolution", "32", "--metrics", "fd_pixels", "--num", "96", "--gpus-per-node", "1"),
        *("--parts", "2", "--sbatch", f"--chdir={tmp_path}", str(tmp_path / "run.yaml")),
    )
    jobs = [line.split() for line in told.splitlines() if line.partition(" ")[0].isdigit()]
    assert [name for _, name in jobs] == [
        *("encode_latents", "distill", "consolidate", "evaluate", "report"),
    ]
    for number, name in jobs:
        job = int(number)
        assert cluster.finish(job, 180) == "COMPLETED", f"{name}\n{cluster.log(job)}"
        assert cluster.processes(job) == []
    assert json.loads((tmp_path / "data" / "index.json").read_text())["num_classes"] == 10
    measured = (tmp_path / "run" / "evaluation" / "published" / "metrics.json").read_text()
    assert json.loads(measured)
    assert "fd_pixels" in measured
    page = (tmp_path / "run" / "report.html").read_text()
    assert "fd_pixels" in page or "Fréchet" in page or "Frechet" in page
    assert (tmp_path / "run" / "published" / "README.md").is_file()
