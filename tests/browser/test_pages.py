"""Every page as a browser shows it, and every kind of fault that the examination must find."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from browser import chromium
from browser.chromium import Browser, BrowserError, Page
from browser.examine import findings, main
from browser.pages import HOSTILE, PAGES
from support.corpora import write_jsonl

from pipelines.commands.report import compare
from pipelines.commands.run import run_curation
from pipelines.config import RunConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.find() is None, reason=f"none of {chromium.NAMES} on PATH, nor BESTKEPT_CHROMIUM"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.started() as running:
        yield running


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_fault(browser, name, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(PAGES[name](), encoding="utf-8")
    assert findings(browser, path) == []


def test_the_report_on_a_run_and_a_comparison_have_no_fault(browser, tmp_path):
    rows = [
        {"prompt": HOSTILE[p % 7] + str(p), "response": f"{r} {HOSTILE[(p + r) % 7]}", "source": HOSTILE[p % 7]}
        for p in range(14)
        for r in range(4)
    ]
    rows = [{**row, "reward": float(place * 5 % 11)} for place, row in enumerate(rows)]
    write_jsonl(tmp_path / "in" / "rows.jsonl", rows)
    for name, step in (("one", {"best_of_n": {}}), ("other", {"threshold": {"min_reward": 4.0}})):
        values = {"input": {"path": str(tmp_path / "in")}, "scores": {"column": "reward"}, "select": [step]}
        values["output"] = {"path": str(tmp_path / name)}
        run_curation(RunConfig.model_validate(values), scorer=None)
    page = tmp_path / "comparison.html"
    compare(str(tmp_path / "one"), str(tmp_path / "other"), write=str(page))
    for path in (tmp_path / "one" / "report.html", tmp_path / "other" / "report.html", page):
        assert findings(browser, path) == [], path


SOUND = '<!doctype html><html lang="en"><meta charset="utf-8"><title>t</title><style>.x {{ {style} }}</style><h1>h</h1>{body}'
DRAWING = '<svg viewBox="0 0 100 100" width="100" {more} role="img">{body}</svg>'
TWO = '<text x="10" y="50">one</text><text x="{x}" y="50">two</text>'
NAMED = 'aria-label="a"'
DOTS = '<circle cx="50" cy="50" r="4"/><circle cx="50" cy="50" r="{r}"/>'
LINES = '<polyline points="1,1 50,50"/><polyline points="1,1 50,50" {dashes}/>'
WIDE = '<div class="x"><p style="width: 2000px">w</p></div>'


@pytest.mark.parametrize(
    ("style", "body", "expected"),
    [
        ("", WIDE, "the page is 2008 px wide in 1280"),
        ("overflow-x: auto", WIDE, None),
        ("overflow: hidden", WIDE, "cut off: <div.x>"),
        ("position: absolute; left: -90px", '<p class="x">w</p>', "sticks out, -90 to"),
        ("", DRAWING.format(more=NAMED, body=TWO.format(x=60)), None),
        ("", DRAWING.format(more=NAMED, body=TWO.format(x=20)), 'overlap: <text> "one" and <text> "two"'),
        ("", DRAWING.format(more=NAMED, body=TWO.format(x=90)), 'leaves its drawing: <text> "two"'),
        ("", DRAWING.format(more=NAMED, body='<text y="50">a na…</text>'), 'a cut label: <text> "a na…"'),
        ("", DRAWING.format(more=NAMED, body='<text y="50">a…e</text>'), None),
        ("", DRAWING.format(more=NAMED, body=DOTS.format(r=4)), "coincident marks: <circle>"),
        ("", DRAWING.format(more=NAMED, body=DOTS.format(r=8)), None),
        ("", DRAWING.format(more=NAMED, body=LINES.format(dashes="")), "coincident marks: <polyline>"),
        ("", DRAWING.format(more=NAMED, body=LINES.format(dashes='stroke-dasharray="2 3"')), None),
        ("", DRAWING.format(more="", body=""), "no label: <svg>"),
        ("", '<svg viewBox="0 0 9 9" aria-label="a"></svg>', "neither role=img nor hidden"),
        ("color: #767676", '<p class="x">w</p>', None),
        ("color: #777777", '<p class="x">w</p>', "contrast 4.48, at least 4.5"),
        ("color: #949494; font-size: 24px", '<p class="x">w</p>', None),
        ("color: #959595; font-size: 24px", '<p class="x">w</p>', "at least 3 to 1"),
        ("opacity: .5", '<p class="x">w</p>', "contrast 3.9"),
        ("background: #555", '<p class="x">w</p>', "contrast 2.8"),
        (
            "fill: #555",
            DRAWING.format(more=NAMED, body='<rect class="x" width="99" height="99"/><text y="50">w</text>'),
            "contrast 2.8",
        ),
        ("", "<h3>w</h3>", "a heading of level 3 follows one of 1"),
        ("", "<h1>w</h1>", "expected one h1"),
        ("", "<h2></h2>", "says nothing: <h2>"),
        ("", '<p id="a"><p id="a">', "an id is there twice"),
        ("", "<script>console.warn('w')</script>", "console.warning"),
        ("", "<script>throw new Error('w')</script>", "exception: Uncaught"),
        ("", "<script>1</script>", "a script in the page"),
        ("", '<p onclick="1">w</p>', "runs: P onclick"),
        ("", '<a href=" JavaScript:1">w</a>', "runs: A href"),
        ("", '<a href="https://example.com/">w</a>', "refers outside: A href"),
        ("", '<a href="#a">w</a>', None),
        ("background: url(http://example.com/a.png)", '<p class="x">w</p>', "asks for http://example.com/a.png"),
        (
            "background: url(data:image/gif;base64,R0lGODlhAQABAAAAACw=)",
            '<p class="x">w</p>',
            'refers outside: url("data:image/gif',
        ),
        ("background: url(other.png)", '<p class="x">w</p>', "asks for file:///"),
        ("} @media print { .x { color: #eee }", '<p class="x">w</p>', "print, 718 px, light: contrast"),
        ("} @media (max-width: 400px) { .x { color: #eee }", '<p class="x">w</p>', "screen, 390 px, light: contrast"),
        (
            "} @media (prefers-color-scheme: dark) { .x { color: #eee }",
            '<p class="x">w</p>',
            "screen, 1280 px, dark: contrast",
        ),
    ],
)
def test_a_fault_is_found(browser, style, body, expected, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(SOUND.format(style=style, body=body), encoding="utf-8")
    found = findings(browser, path)
    assert any(expected in one for one in found) if expected else not found, found


def test_a_page_that_is_not_there_is_an_error(browser, tmp_path):
    with pytest.raises(BrowserError, match="ERR_FILE_NOT_FOUND"):
        Page(browser, tmp_path / "none.html")
    page = tmp_path / "page.html"
    page.write_text(SOUND.format(style="", body=""), encoding="utf-8")
    assert findings(browser, page) == []


def test_a_browser_that_is_not_there_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("BESTKEPT_CHROMIUM", str(shutil.which("true")))
    with chromium.started() as running, pytest.raises(BrowserError, match="Chromium ended"):
        running.send("Browser.getVersion")
    monkeypatch.setenv("BESTKEPT_CHROMIUM", str(tmp_path / "none"))
    with pytest.raises(BrowserError, match=r"cannot start .*none"), chromium.started():
        pass
    monkeypatch.delenv("BESTKEPT_CHROMIUM")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrowserError, match="no Chromium; install one of"), chromium.started():
        pass


def test_the_command_prints_what_it_finds(tmp_path, capsys):
    for name, body in (("good", ""), ("bad", "<h3>w</h3>")):
        (tmp_path / name).with_suffix(".html").write_text(SOUND.format(style="", body=body), encoding="utf-8")
    assert main([str(tmp_path / "good.html")]) == 0
    assert main([str(tmp_path / "good.html"), str(tmp_path / "bad.html")]) == 1
    assert "bad.html: 6 found\n  screen, 1280 px, light: a heading of level 3" in capsys.readouterr().out
