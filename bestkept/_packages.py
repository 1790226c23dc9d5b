"""The check that `pipelines` is the package of bestkept, and not the user's folder or file of that name.

`pipelines` checks `rm` in the same way when it is imported, and so in every process of a run.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path


def refuse_shadowed() -> None:
    """Raise `ImportError` if `pipelines` is not the package beside this one."""
    home = Path(__file__).parents[1]
    spec = find_spec("pipelines")
    origin = None if spec is None else spec.origin
    if origin is None or os.path.realpath(Path(origin).parent.parent) != os.path.realpath(home):
        raise ImportError(
            f"the name pipelines leads to {origin or 'no package'}, and bestkept needs its own package of this name, in {home}; "
            "rename the other one, or keep its folder out of Python's path: leave it out of PYTHONPATH, start in another "
            "directory, or use `python -P`",
            name="pipelines",
        )
