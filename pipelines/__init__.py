"""Beam pipelines that score a corpus with a reward model and keep the responses worth fine-tuning on."""

import os.path as _path
from importlib.util import find_spec as _find_spec


def _refuse_other_rm() -> None:
    """Raise `ImportError` where the name `rm` leads to another package than the one beside this one: to a folder or a file of the
    user's own. Every process of a run imports this package, on any runner."""
    spec, home = _find_spec("rm"), _path.dirname(_path.dirname(_path.realpath(__file__)))
    origin = None if spec is None else spec.origin
    if origin is None or _path.dirname(_path.dirname(_path.realpath(origin))) != home:
        raise ImportError(
            f"the name rm leads to {origin or 'no package'}, and bestkept needs its own package of this name, in {home}; "
            "rename the other one, or keep its folder out of Python's path: leave it out of PYTHONPATH, start in another "
            "directory, or use `python -P`",
            name="rm",
        )


_refuse_other_rm()
