"""The demo's feature network, from nothing: a classifier of the digits that also denoises them.

What this makes is shipped in `assets/classifier`; `tools/train_digits_classifier.py` makes it
again. The features of a classifier alone may lack what classes do not differ in. A discriminator
needs the shape of each stroke, so a second head, which is thrown away, predicts the clean scan.
Noise and distortions make features that also hold for images that are not yet digits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from sid_scale.demo.classifier import DigitClassifier
from sid_scale.demo.digits import RESOLUTION, SCAN_RESOLUTION, digit_images
from sid_scale.demo.prepare import CLASSIFIER

Log = Callable[[str], None]


@dataclass(frozen=True)
class ClassifierRecipe:
    """How the classifier is trained."""

    iterations: int = 3000
    batch: int = 64
    lr: float = 2e-3  # the highest of one cycle
    weight_decay: float = 1e-2
    label_smoothing: float = 0.05
    scan_weight: float = 1.0  # of the mean squared error of the clean scans
    rotation: float = 12.0  # degrees to either side, at most
    zoom: float = 0.15  # of a side, at most
    shift: float = 1.0  # pixels of a scan, at most
    noise: float = 0.4  # std in [-1, 1], at most
    seed: int = 0


def train_classifier(recipe: ClassifierRecipe, log: Log = print) -> DigitClassifier:
    """Trains on the odd half of the real digits: the demo's judge has seen the even half."""
    images, labels = (part[1::2] for part in digit_images(RESOLUTION))
    torch.manual_seed(recipe.seed)
    network = DigitClassifier()
    scan_head = nn.Linear(network.head.in_features, SCAN_RESOLUTION**2)
    optimizer = torch.optim.AdamW(
        [*network.parameters(), *scan_head.parameters()],
        recipe.lr,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, recipe.iterations, pct_start=0.1
    )
    for iteration in range(recipe.iterations):
        rows = torch.randint(len(images), (recipe.batch,))
        clean = distort(images[rows].float() / 127.5 - 1, recipe)
        scans = F.avg_pool2d(clean, RESOLUTION // SCAN_RESOLUTION)
        if iteration % 2:
            clean = scans  # so that it knows images of both sizes
        noise = recipe.noise * torch.rand(recipe.batch, 1, 1, 1) * torch.randn_like(clean)
        features = network(clean + noise)[-1].flatten(1)
        class_loss = F.cross_entropy(
            network.head(features), labels[rows], label_smoothing=recipe.label_smoothing
        )
        scan_loss = F.mse_loss(scan_head(features), scans[:, 0].flatten(1))
        optimizer.zero_grad()
        (class_loss + recipe.scan_weight * scan_loss).backward()
        optimizer.step()
        schedule.step()
        if (iteration + 1) % 500 == 0:
            log(f"classifier {iteration + 1}: classes {class_loss:.4f}, scans {scan_loss:.4f}")
    return network.requires_grad_(False)


def distort(images: Tensor, recipe: ClassifierRecipe) -> Tensor:
    """Rotates, zooms and shifts each of images (N, C, H, W) in [-1, 1] at random.

    What comes in from outside is -1, as the paper around the digits.
    """

    def uniform(largest: float, *shape: int) -> Tensor:
        return (2 * torch.rand(len(images), *shape) - 1) * largest

    angle = uniform(recipe.rotation * pi / 180)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1)
    linear = rotation.view(-1, 2, 2) * (1 + uniform(recipe.zoom, 1, 2))
    shift = uniform(recipe.shift * 2 / SCAN_RESOLUTION, 2, 1)  # an image is 2 wide here
    places = F.affine_grid(torch.cat([linear, shift], dim=2), list(images.shape), False)
    return F.grid_sample(images + 1, places, align_corners=False) - 1


@torch.no_grad()
def unseen_accuracy(network: DigitClassifier, resolution: int) -> float:
    """Share of the even half of the real digits whose class the network knows.

    `resolution` is that of the images, a multiple of 8.
    """
    images, labels = (part[::2] for part in digit_images(resolution))
    classes = network.logits(images.float() / 127.5 - 1).argmax(dim=1)
    return float((classes == labels).float().mean())


def make_classifier(folder: Path, recipe: ClassifierRecipe, log: Log = print) -> dict[str, float]:
    """Trains a classifier, writes `folder`/classifier/model.safetensors; returns its accuracies."""
    network = train_classifier(recipe, log)
    file = folder / CLASSIFIER.parent.name / CLASSIFIER.name
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), file)
    return {f"unseen_accuracy_{size}": unseen_accuracy(network, size) for size in (8, 32)}
