"""`bestkept model merge`: averages models, and says what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from pipelines.commands.printing import print_result
from pipelines.errors import ConfigError, ModelLoadError, StorageError
from pipelines.storage import files
from pipelines.storage.files import check_writable
from pipelines.storage.models import is_remote


def run_merge(sources: Sequence[str], output: str) -> None:
    """Average the models at `sources` into the new directory `output`.

    Raises `ConfigError`, `ModelLoadError` for models that do not fit together, and `StorageError`.
    """
    if len(sources) < 2:
        raise ConfigError(
            f"MODEL names {len(sources)} model; expected two or more, and the directory of their average last"
        )
    for name in (*sources, output):
        if is_remote(name):
            raise ConfigError(f"{name!r} is on an object store; expected local directories, or hub ids of models")
    place = Path(output).expanduser()
    if place.exists() or place.is_symlink():
        raise ConfigError(f"OUTPUT {output!r} exists already; name a new directory")
    check_writable(output, named=output)
    from rm.checkpoint.merge import merge_models
    from rm.identity import ModelError

    try:
        tensors = merge_models(sources, place)
    except ModelError as error:
        raise ModelLoadError(str(error)) from error
    except OSError as error:
        raise StorageError(f"cannot write {output}: {files.describe(error)}; choose another OUTPUT") from error

    def tables() -> Iterable[Table]:
        table = Table(show_header=False, title="merged", title_justify="left")
        for source in sources:
            table.add_row("model", source)
        table.add_row("tensors", f"{tensors:,}")
        table.add_row("in the configuration", f"model: {{path: {output}}}")
        table.add_row("verdict", f"none yet: bestkept evaluate {output} PREFERENCES")
        return [table]

    print_result("merged", {"models": list(sources), "tensors": tensors}, path=output, table=tables)
