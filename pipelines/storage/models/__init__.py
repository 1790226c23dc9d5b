"""The files of a model: from a local directory, the hub, or a directory on an object store, which is copied to this machine.

`rm` reads only local directories, so all access to stores is here. The launcher computes the sha256 of every file once, the plan
records them, and a worker loads no other files.
"""

from pipelines.storage.models.library_versions import installed_versions, refuse_other_versions
from pipelines.storage.models.locate import (
    LocatedModel,
    carrying_model_errors,
    is_remote,
    loadable_directory,
    locate,
    reading_directory,
    small_directory,
    weight_bytes,
    whole_directory,
)

__all__ = [
    "LocatedModel",
    "carrying_model_errors",
    "installed_versions",
    "is_remote",
    "loadable_directory",
    "locate",
    "reading_directory",
    "refuse_other_versions",
    "small_directory",
    "weight_bytes",
    "whole_directory",
]
