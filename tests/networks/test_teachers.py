"""What the names of published files say of the teachers in them."""

import pytest

from sid_scale.networks.edm.sizes import TEACHERS
from sid_scale.networks.teachers import publication, published_architecture


@pytest.mark.parametrize("name", TEACHERS)
def test_edms_teachers_are_known_with_data_and_architecture(name: str):
    published, architecture = publication(f"edm-{name}.pkl"), published_architecture(f"edm-{name}")
    assert published is not None
    assert architecture is not None
    assert ("with classes" in published.what) == (architecture.label_dim > 0)
    is_small = published.data.name == "CIFAR-10"
    assert architecture.sample_shape == ((3, 32, 32) if is_small else (3, 64, 64))


@pytest.mark.parametrize(
    ("name", "label_dim"),
    [
        ("edm2-img512-xs-2147483-0.135", 1000),
        ("edm2-img512-xs-uncond-2147483-0.110", 0),
        ("edm2-img512-l-ddo", 1000),
    ],
)
def test_edm2s_teachers_of_latents_have_the_classes_of_their_name(name: str, label_dim: int):
    architecture = published_architecture(name)
    assert architecture is not None
    assert publication(name) is not None
    assert architecture.label_dim == label_dim


@pytest.mark.parametrize("name", ["edm-cifar10", "edm2-img512-xx-1-0.1", "edm2-img512-", "", "me"])
def test_other_names_say_nothing(name: str):
    assert published_architecture(name) is None
    assert publication(name) is None
