"""Files that hold the Inception network.

- `inception-2015-12-05.pt`, StyleGAN2-ADA's, is TorchScript: a program that brings its layers.
- `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, which torch-fidelity names
  `weights-inception-2015-12-05-6726825d.pth`, holds weights for the layers of `inception.py`.
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.serialization import MAGIC_NUMBER

from sid_scale.evaluate.inception import InceptionLayers, weight_shapes

ZIP = b"PK"
TORCH_SAVE = pickle.dumps(MAGIC_NUMBER, protocol=2)  # begins what torch.save wrote before 1.6
PICKLE = b"\x80"
COUNTER = ".bn.num_batches_tracked"  # of training; a file has them or not
MOST_FAULTS = 4  # in one message
A_PICKLE = (
    "a pickle, such as the inception-2015-12-05.pkl that EDM and EDM2 fetch; it needs their code "
    "and is not run here. Other files hold the same network"
)

# Called with uint8 images (N, 3, H, W) as StyleGAN calls its file: `return_features=True` gives
# (N, 2048), `no_output_bias=True` probabilities (N, 1008).
Network: TypeAlias = Callable[..., Tensor]


def open_inception(path: Path, device: torch.device) -> Network:
    """The network of a file of either kind.

    Raises:
        ValueError: it is damaged or something else; the message says what.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():  # opening a pipe may last for ever
        raise ValueError("not a file")
    with open(path, "rb") as file:
        start = file.read(len(TORCH_SAVE))
    if not start.startswith((ZIP, TORCH_SAVE)):
        is_pickle = start.startswith(PICKLE)
        raise ValueError(A_PICKLE if is_pickle else "neither TorchScript nor weights of PyTorch's")
    try:
        if start.startswith(ZIP) and _is_torchscript(path):
            return torch.jit.load(path, map_location=device).eval()
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:  # its message recommends to run the file
        raise ValueError("damaged, or it holds more than weights") from error
    except Exception as error:  # a damaged file can raise anything
        first_line = str(error).partition("\n")[0]
        reason = f"{type(error).__name__}: {first_line}"
        raise ValueError(f"damaged, or no network ({reason})") from error
    return InceptionLayers({k: v.to(device) for k, v in _checked(state).items()})


def _is_torchscript(path: Path) -> bool:
    """Whether a whole archive is TorchScript.

    Raises:
        ValueError: a member is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} has another checksum than the archive's directory says")
        return any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist())


def _checked(state: Any) -> dict[str, Tensor]:
    """The weights, float32.

    Raises:
        ValueError: some are missing, unknown, of another shape or not finite.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"holds no weights by their names, but {type(state).__name__}")
    shapes = weight_shapes()
    faults = [f"unknown {name}" for name in state if not _known(name, shapes)]
    for name, shape in shapes.items():
        value = state.get(name)
        if not isinstance(value, Tensor):
            faults.append(f"missing {name}")
        elif value.shape != shape:
            faults.append(f"{name} has shape {list(value.shape)}, not {list(shape)}")
        elif not _is_sound(name, value):
            faults.append(f"{name} holds what is no finite number, or a negative variance")
    if faults:
        more = f" and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        raise ValueError(
            f"weights of another network: {'; '.join(faults[:MOST_FAULTS])}{more} (torchvision's "
            "Inception, trained with 1000 classes, is another)"
        )
    return {name: state[name].float() for name in shapes}


def _is_sound(name: str, value: Tensor) -> bool:
    plain = value.layout == torch.strided and value.device.type == "cpu"
    if not (plain and value.is_floating_point() and value.isfinite().all()):
        return False
    return not name.endswith("running_var") or bool((value >= 0).all())


def _known(name: Any, shapes: Mapping[str, Any]) -> bool:
    return name in shapes or str(name).endswith(COUNTER)
