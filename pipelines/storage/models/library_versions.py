"""The versions of software on which rewards depend; they must be the same on launcher and workers.

They are not part of a fingerprint: a new release of a library rarely changes a reward by more than rounding, and must not make
scores unusable. But within one run, workers must have the versions of the launcher that checked the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from pipelines.errors import ModelLoadError

_LIBRARIES = ("torch", "transformers", "tokenizers")
_SCORING = "SCORING_VERSION"


def installed_versions() -> dict[str, str]:
    """The versions by name, without libraries that are not installed. Imports none of them.

    Local parts of versions are omitted: 2.9.0+cpu and 2.9.0+cu128 have the same source.
    """
    from rm.identity import SCORING_VERSION

    versions = {_SCORING: str(SCORING_VERSION)}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return versions


def refuse_other_versions(planned: Mapping[str, str]) -> None:
    """Raise `ModelLoadError` if the versions on this worker differ from those `planned` by the launcher."""
    installed = installed_versions()
    others = [name for name, version in planned.items() if name in installed and installed[name] != version]
    if others:
        named = ", ".join(f"{name} {installed[name]} (launcher: {planned[name]})" for name in others)
        raise ModelLoadError(
            f"this worker has other versions than the launcher, and rewards depend on them: {named}; build the workers' image "
            "from the launcher's lock (constraints.txt), or launch from that image"
        )
