"""Changes to checkpoints for the tests of loading."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file


def rename_tensors(directory: Path, changes: dict[str, str | None]) -> None:
    """Rename tensors of a checkpoint (old → new name); None drops a tensor."""
    file = directory / "model.safetensors"
    renamed = {changes.get(name, name): tensor for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in renamed.items() if name}, file, metadata={"format": "pt"})
