"""Networks for others: one safetensors file with the publisher's own parameter names and shapes.

`network.load_state_dict(safetensors.torch.load_file(path))` fills EDM's, EDM2's and SiD's own
networks from it.
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from sid_scale.atomic import atomic_write
from sid_scale.networks.folder import CheckpointError, NetworkFolder


def export_network(network: NetworkFolder, path: Path, *, replace: bool = False) -> None:
    """Writes the weights, bit for bit, under their publisher's names and shapes.

    Args:
        network: what to write.
        path: the file; a missing folder is made.
        replace: whether a file that is there may go.

    Raises:
        CheckpointError: the file is there and may not go, or cannot be written.
    """
    if path.exists() and not replace:
        raise CheckpointError(f"{path} is there already: --force replaces it")
    tensors = {k: v.contiguous() for k, v in network.architecture.to_file(network.state).items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.touch()
            mode = partial.stat().st_mode
            save_file(tensors, partial)
            partial.chmod(mode)  # safetensors writes 0600
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
