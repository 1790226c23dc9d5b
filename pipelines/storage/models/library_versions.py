"""The versions that rewards depend on beside the model: launcher and workers must have the same ones.

A fingerprint does not hold them: a new release of a library rarely changes a reward by more than rounding, and must not cost all
scores. But one run must not mix them, nor workers differ from the launcher that checked the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from pipelines.errors import ModelLoadError

_LIBRARIES = ("torch", "transformers", "tokenizers")
_SCORING = "SCORING_VERSION"


def installed_versions() -> dict[str, str]:
    """The versions by name; libraries that are not installed are left out. Imports none of them.

    Without local parts: 2.9.0+cpu and 2.9.0+cu128 are the same source.
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
    """Raise `ModelLoadError` where the versions of a worker differ from those `planned` by the launcher."""
    installed = installed_versions()
    others = [name for name, version in planned.items() if name in installed and installed[name] != version]
    if others:
        named = ", ".join(f"{name} {installed[name]} (launcher: {planned[name]})" for name in others)
        raise ModelLoadError(
            f"this worker has other versions than the launcher, and rewards depend on them: {named}; build the workers' image "
            "from the launcher's lock (constraints.txt), or launch from that image"
        )
