"""What is wrong with an HTML file, as a browser finds it.

    PYTHONPATH=tests python -m browser.examine FILE...

It is opened wide and narrow, in light and dark, and for print, and asked each time: does anything stick out or get cut off,
do texts of drawings overlap, is there enough contrast to read, have charts names and headings an order? And once: did it run,
fetch or refer to anything, and does it print?
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from browser.chromium import Browser, Page, started

WIDTHS = {"screen": (1280, 390), "print": (718,)}  # px; A4 less Chromium's margins
_CHECKS = Path(__file__).with_name("checks.js")


def findings(browser: Browser, path: Path) -> list[str]:
    """One sentence for each thing found, with the view it was found in; none where all is well."""
    with closing(Page(browser, path)) as page:
        return [*_laid_out(page), *([] if page.pdf().startswith(b"%PDF-") else ["it does not print"]), *_said(page)]


def _laid_out(page: Page) -> list[str]:
    checks = _CHECKS.read_text(encoding="utf-8")
    found = []
    for media, widths in WIDTHS.items():
        for width in widths:
            for scheme in ("light", "dark"):
                page.emulate(width, scheme=scheme, media=media)
                found += [f"{media}, {width} px, {scheme}: {one}" for one in page.evaluate(checks)]
    return found


def _said(page: Page) -> list[str]:
    """What the page said and asked for in all its views, and on paper."""
    return page.complaints() + [f"asks for {url[:100]}" for url in page.requests() if url != page.url]


def main(paths: list[str]) -> int:
    with started() as browser:
        found = {path: findings(browser, Path(path)) for path in paths}
    for path, sentences in found.items():
        print(f"{path}: {len(sentences)} found", *sentences, sep="\n  ")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
