"""Ways to spoil a checkpoint."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file


def rename_tensors(directory: Path, changes: dict[str, str | None]) -> None:
    """Rewrite the checkpoint's tensor names; None drops a tensor."""
    file = directory / "model.safetensors"
    renamed = {changes.get(name, name): tensor for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in renamed.items() if name}, file, metadata={"format": "pt"})
