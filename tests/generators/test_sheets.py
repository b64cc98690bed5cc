"""`sid-scale grid`: sheets of a generator's images, and the way from one seed to another."""

import dataclasses
from pathlib import Path

import pytest
import torch

from sid_scale import OneStepGenerator
from sid_scale.cli import main
from sid_scale.generators.folder import GeneratorError
from sid_scale.generators.interpolation import slerp
from sid_scale.generators.sheets import GAP, MARGIN, TEXT, sheet
from sid_scale.image_grid import read_png
from tests.generators.tiny import save_generator, tiny_generator
from tests.hub_server import Hub, files_of, use_hub
from tests.tiny import ARCHITECTURE, tiny_folder

SIDE, TOP = 64, TEXT + 2 * MARGIN  # 8x8 pixels are shown eight times as large


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of 8x8 pixels and four classes, which have names."""
    folder = tiny_generator(tmp_path_factory.mktemp("sheets") / "generator")
    (folder / "classes.txt").write_text("tench, Tinca tinca\ngoldfish\nwhite shark\nhen\n")
    return folder


@pytest.fixture(scope="module")
def generator(folder: Path) -> OneStepGenerator:
    return OneStepGenerator.from_pretrained(folder)


def shown(path: Path, row: int, column: int, columns: int) -> torch.Tensor:
    """The image (3, 8, 8) in a place of a sheet."""
    picture = read_png(path)
    left = picture.shape[2] - MARGIN - columns * (SIDE + GAP)
    y, x = TOP + row * (SIDE + GAP), left + column * (SIDE + GAP)
    return picture[:, y : y + SIDE : 8, x : x + SIDE : 8]


# --- interpolation ------------------------------------------------------------------------


def test_noise_keeps_its_length_between_two_draws_and_ends_where_they_are():
    a, b = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    b = b * a.norm() / b.norm()
    way = slerp(a, b, torch.linspace(0, 1, 5))
    assert torch.equal(way[0], a)
    assert torch.equal(way[4], b)
    lengths = way.flatten(1).norm(dim=1).tolist()
    assert lengths == pytest.approx([lengths[0]] * 5)  # on a straight line 0.7 in the middle
    cosines = torch.cosine_similarity(way.flatten(1)[:-1], way.flatten(1)[1:])
    torch.testing.assert_close(cosines, cosines[:1].expand(4))  # equal steps
    assert torch.equal(slerp(a, a, torch.tensor([0.3]))[0], a)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_way_begins_and_ends_with_the_images_of_its_seeds(
    generator: OneStepGenerator, steps: int
):
    way = generator.interpolate(2, (5, 9), 4, steps=steps)
    ends = generator.generate([2, 2], [5, 9], steps=steps)
    assert way.shape == (4, 3, 8, 8)
    assert torch.equal(way[[0, -1]], ends)
    assert not torch.equal(way[1], way[2])


def test_a_way_of_one_image_or_of_no_class_is_refused(generator: OneStepGenerator):
    with pytest.raises(GeneratorError, match="1 images, 2 seeds: a way has two ends"):
        generator.interpolate(2, (0, 1), 1)
    with pytest.raises(GeneratorError, match="count: integers are wanted"):
        generator.interpolate(2, (0, 1), 2.5)  # type: ignore[arg-type]
    with pytest.raises(GeneratorError, match="class_labels are missing"):
        generator.interpolate(None, (0, 1), 3)
    with pytest.raises(GeneratorError, match="class 4 is not one of the generator's 4"):
        generator.interpolate(4, (0, 1), 3)


@pytest.mark.parametrize("seeds", [(3,), (3, 7, 5)])
def test_a_way_of_other_than_two_seeds_is_refused_without_classes_too(
    tmp_path: Path, generator: OneStepGenerator, seeds: tuple[int, ...]
):
    network = tiny_folder(architecture=dataclasses.replace(ARCHITECTURE, label_dim=0))
    unconditional = OneStepGenerator.from_pretrained(save_generator(tmp_path / "other", network))
    for one, label in ((generator, 2), (unconditional, None)):
        with pytest.raises(GeneratorError, match=f"{len(seeds)} seeds: a way has two ends"):
            one.interpolate(label, seeds, 4)  # type: ignore[arg-type]


# --- sheets -------------------------------------------------------------------------------


def test_rows_are_classes_and_columns_seeds(
    folder: Path, generator: OneStepGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = ["--classes", "hen,0", "--seeds", "3,7-8", "--frames", "5", "--out", str(tmp_path)]
    assert main(["grid", str(folder), *given]) == 0
    classes, way = tmp_path / "class-by-seed.png", tmp_path / "interpolation.png"
    assert capsys.readouterr().out.splitlines() == [str(classes), str(way)]
    for row, label in enumerate([3, 0]):
        images = generator.generate([label] * 3, [3, 7, 8])
        between = generator.interpolate(label, (3, 7), 5)
        for column in range(3):
            assert torch.equal(shown(classes, row, column, 3), images[column])
        for column in range(5):
            assert torch.equal(shown(way, row, column, 5), between[column])


def test_a_generator_without_classes_has_a_row_for_each_two_seeds(tmp_path: Path):
    network = tiny_folder(architecture=dataclasses.replace(ARCHITECTURE, label_dim=0))
    folder = save_generator(tmp_path / "generator", network)
    given = ["--seeds", "0-2", "--frames", "3", "--out", str(tmp_path / "out")]
    assert main(["grid", str(folder), *given]) == 0
    images = OneStepGenerator.from_pretrained(folder).generate(None, [0, 1, 2])
    way = tmp_path / "out" / "interpolation.png"
    for row in range(2):
        assert torch.equal(shown(way, row, 0, 3), images[row])
        assert torch.equal(shown(way, row, 2, 3), images[row + 1])
    assert torch.equal(shown(tmp_path / "out" / "class-by-seed.png", 0, 1, 3), images[1])


def test_names_have_room_and_large_images_are_made_smaller():
    rows = [torch.full((2, 3, 512, 512), 200, dtype=torch.uint8)]
    plain, named = sheet(rows, [""], ["a", "b"]), sheet(rows, ["golden retriever"], ["a", "b"])
    assert plain.shape == (3, TOP + 256 + GAP + MARGIN, 2 * MARGIN + 2 * (256 + GAP))
    room = named.shape[2] - plain.shape[2]
    left = named[:, TOP:, :room]
    assert 80 < room < 200
    assert (left < 100).any()  # the name is there
    assert (named[:, TOP : TOP + 256, MARGIN + room : MARGIN + room + 256] == 200).all()
    wide = sheet([torch.zeros(2, 3, 8, 8, dtype=torch.uint8)], [""], ["seed 4294967295"] * 2)
    assert wide.shape[2] > 2 * 100  # columns are as wide as what is above them


def test_a_generator_on_the_hub_is_drawn_with_its_names(
    folder: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    hub.model("user/fishes", files_of(folder))
    use_hub(hub.address, tmp_path / "cache", monkeypatch)
    given = ["--classes", "hen", "--seeds", "0,1", "--frames", "2"]
    for place, out in ((str(folder), "here"), ("user/fishes", "there")):
        assert main(["grid", place, *given, "--out", str(tmp_path / out)]) == 0
    for name in ("class-by-seed.png", "interpolation.png"):
        here, there = (read_png(tmp_path / out / name) for out in ("here", "there"))
        assert torch.equal(here, there)


# --- mistakes -----------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "4"], "error: classes: 4 is not within the generator's, 0 to 3"),
        (["--classes", "trench"], "error: classes: none is named 'trench'; did you mean 'tench'?"),
        (["--seeds", "3"], "error: seeds: 3 is one; a way goes from one to another"),
        (["--seeds", "a"], "error: seeds: 'a' is neither a number nor a range such as 0-63"),
        (["--seeds", "0-999"], "error: 4 rows of 1000 images are too many for one sheet: 2,500"),
        (["--frames", "700"], "error: 4 rows of 700 images are too many"),
        (["--frames", "1"], "error: --frames 1 is below 2"),
        (["--steps", "0"], "error: --steps 0 is below 1"),
        (["--out", "sheet.png"], "error: --out sheet.png: expected a folder, for two sheets"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
):
    assert main(["grid", str(folder), "--out", str(tmp_path / "out"), *words]) != 0
    told = capsys.readouterr().err
    assert told.startswith(message)
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.faults
def test_a_folder_that_is_none_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    assert main(["grid", str(folder), "--out", str(tmp_path / "file")]) == 1
    assert f"error: {tmp_path / 'file'}: no folder for the sheets" in capsys.readouterr().err
    assert main(["grid", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert "nowhere: nothing is there" in capsys.readouterr().err
