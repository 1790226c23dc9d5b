"""A package index with only torch and its dependencies, like the index of torch's CPU builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make_torch_index(folder: Path) -> Path:
    """Fetch the pinned torch, also from the index `TORCH_INDEX` if it is set; return the folder of an index (PEP 503) with it."""
    pin = re.search(r"^torch==.+$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), pin]
    if index := os.environ.get("TORCH_INDEX"):
        command += ["--extra-index-url", index]
    subprocess.run(command, check=True, cwd=folder)
    for wheel in sorted(folder.glob("*.whl")):
        name = re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()
        page = folder / name / "index.html"
        page.parent.mkdir(exist_ok=True)
        with page.open("a") as file:
            file.write(f'<a href="../{wheel.name.replace("+", "%2B")}">{wheel.name}</a>\n')
    return folder
