"""Pictures of the report pages, for the documentation: wide, dark and narrow.

    PYTHONPATH=.:tests python -m browser.screenshots [FILE...] [--to DIR]

Without a FILE they show the demo, which is made first (`make demo`) where it is not there: an evaluation of its model on the
prompts that it was not trained on, and a run on these with their labels as gold. So all text in them is that of the project.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from browser.chromium import Browser, Page, started
from PIL import Image

VIEWS = {"wide": (1280, 1800, "light"), "dark": (1280, 1800, "dark"), "narrow": (390, 1600, "light")}  # px
ROOT = Path(__file__).parents[2]
DEMO = Path("out/demo")
_COLOURS = 256


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("files", nargs="*", type=Path, metavar="FILE", help="HTML files")
    arguments.add_argument("--to", type=Path, default=ROOT / "docs" / "images", metavar="DIR")
    options = arguments.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    with started() as browser:
        for file in options.files or demo_pages():
            for name, picture in pictures(browser, file).items():
                path = options.to / f"{file.stem}-{name}.png"
                path.write_bytes(picture)
                print(f"{path}: {len(picture):,} bytes")


def pictures(browser: Browser, file: Path) -> dict[str, bytes]:
    """PNG by view, the upper part of the page, in few colours."""
    taken = {}
    with closing(Page(browser, file)) as page:
        for name, (width, height, scheme) in VIEWS.items():
            page.emulate(width, height=height, scheme=scheme)
            image = Image.open(io.BytesIO(page.picture(whole=False))).convert("RGB")
            packed = io.BytesIO()
            image.quantize(_COLOURS, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
            taken[name] = packed.getvalue()
    return taken


def demo_pages() -> list[Path]:
    """The pages of the demo's run and of its model's evaluation; whatever of them is not there is made."""
    seed = DEMO / "seed-0"
    if not (ROOT / seed / "model").exists():
        _python("configs/demo/demo.py")
    judged = DEMO / "heldout.jsonl"
    if not (ROOT / seed / "evaluation" / "evaluation.html").exists():
        with gzip.open(ROOT / "configs/demo/heldout.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        scored = ({**row, "score": int(row.pop("quality") == "helpful")} for row in rows)
        (ROOT / judged).write_text("".join(json.dumps(row) + "\n" for row in scored), encoding="utf-8")
        settings = ("data.format=scores", f"output.path={seed / 'evaluation'}")
        _python("-m", "pipelines.cli", "evaluate", str(seed / "model"), str(judged), *settings)
    if not (ROOT / seed / "graded" / "report.html").exists():
        paths = (f"model.path={seed / 'model'}", f"input.path={judged}", f"output.path={seed / 'graded'}")
        gold = ("input.carry=[score]", "report.gold=score", f"scores.path={seed / 'scores'}")
        _python("-m", "pipelines.cli", "run", "configs/demo/run.yaml", *paths, *gold)
    return [ROOT / seed / "graded" / "report.html", ROOT / seed / "evaluation" / "evaluation.html"]


def _python(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
