"""`bestkept init`: writes a shipped example configuration into the working directory."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

from pipelines.commands.printing import print_path
from pipelines.errors import ConfigError

_INSTALLED = Path(__file__).parents[1] / "shipped_configs"  # a wheel has the folder configs/ here
_CHECKOUT = Path(__file__).parents[2] / "configs"


def jobs() -> dict[str, Path]:
    """Return the shipped configurations by name."""
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def print_jobs() -> None:
    """Print the name and purpose of each job, from the first comment of its file."""
    for name, path in jobs().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        sys.stdout.write(f"{name:<20} {first.lstrip('# ')}\n")


def write_job(job: str) -> None:
    """Write `JOB.yaml` into the working directory. Raises `ConfigError` for an unknown job, and if the file exists."""
    shipped = jobs()
    name = job.removesuffix(".yaml")
    if name not in shipped:
        close = difflib.get_close_matches(name, list(shipped), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(shipped)}"
        raise ConfigError(f"there is no job {job!r}; {hint}")
    path = Path(f"{name}.yaml")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(shipped[name].read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise ConfigError(f"{path} exists and is not overwritten; remove it, or work in another directory") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; work in a writable directory") from error
    print_path(str(path))
