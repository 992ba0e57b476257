"""A model by its name on the hub, where the network and the `hub` extra allow it."""

import re
from pathlib import Path

from qkrepro.checkpoint_files import one_line
from qkrepro.errors import CheckpointError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SMALL = ["config.json", "*.safetensors.index.json", "*.bin.index.json", "tokenizer*", "vocab*", "merges.txt", "*.model"]


def local_model(name: str | Path) -> Path:
    """The folder or file of a model: the path itself when it exists, else a download of the hub's `owner/model`.

    Prefers safetensors, and takes .bin files where there are none. Raises CheckpointError when nothing is found.
    """
    path = Path(name).expanduser()
    if path.exists() or not HUB_NAME.fullmatch(str(name)):
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"model is {str(name)!r}; no such file or folder, and the hub needs: pip install 'qkrepro[hub]'"
        ) from error
    try:
        folder = Path(snapshot_download(str(name), allow_patterns=[*SMALL, "*.safetensors"], ignore_patterns=["*/*"]))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(str(name), allow_patterns=[*SMALL, "*.bin"], ignore_patterns=["*/*"])
    except Exception as error:  # network, authorisation, disk: the hub's errors share no base class of their own
        raise CheckpointError(
            f"model is {str(name)!r}; no such file or folder, and not to be had from the hub ({one_line(error)})"
        ) from error
    return folder
