"""The command `bestkept`, also as `python -m bestkept`; it ends with 2 where another package shadows one of ours."""

from __future__ import annotations

import sys

from bestkept._packages import refuse_shadowed

_CONFIG = 2  # `pipelines.errors.Exit.CONFIG`, which cannot be imported where another package is called `pipelines`


def main() -> None:
    """Run the command line of `pipelines.cli`, and end the process with a documented exit code."""
    try:
        refuse_shadowed()
        from pipelines.cli import main as run
    except ImportError as error:
        if error.name not in ("pipelines", "rm"):
            raise
        sys.stderr.write(f"bestkept: {error}\n")
        sys.exit(_CONFIG)
    run()


if __name__ == "__main__":
    main()
