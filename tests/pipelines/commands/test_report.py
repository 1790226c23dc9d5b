"""`bestkept report`: the page drawn again, two outputs compared, and what is said of outputs that have none."""

from __future__ import annotations

import json

import pytest
from support.corpora import write_jsonl

from pipelines import cli
from pipelines.commands.report import compare, distinct_parts, rebuild
from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.errors import InputError
from pipelines.report import write
from pipelines.report.pages import run
from pipelines.report.pages.comparison import agreement

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)> javascript:alert(1)",
    "&lt;b&gt; \" ' ` {{ 7 * 7 }} {% raw %}",
    "\u202egnirts desrever\u202c a\u0301\u0301\u0301\u0301\u0301\u0301\u0301\u0301 \x07\x1b[31m",
    "long " + "w" * 100_000,
)


@pytest.fixture
def output(tmp_path):
    """Makes an output of hostile rows; its path."""

    def make(name="out", *, seed=1, **changes):
        rows = [
            {
                "prompt": f"prompt {seed}-{p} {HOSTILE[p % 5]}",
                "response": f"{r} {HOSTILE[(p + r) % 5]}",
                "source": HOSTILE[p % 5],
                "reward": float((p * 5 + r * 3 * seed) % 7),
            }
            for p in range(6)
            for r in range(4)
        ]
        path = tmp_path / f"in-{seed}" / "a<b>.jsonl"
        if not path.exists():
            write_jsonl(path, rows)
        values = {
            "input": {"path": str(tmp_path / f"in-{seed}")},
            "scores": {"column": "reward"},
            "output": {"path": str(tmp_path / name)},
            **changes,
        }
        run_curation(RunConfig.model_validate(values), scorer=None)
        return tmp_path / name

    return make


def test_hostile_rows_are_shown_as_text(output):
    page = (output() / "report.html").read_text()
    assert "<script" not in page.lower()
    assert "<img" not in page
    assert "onerror=alert" in page, "it is there, as text"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert "{% raw %}" in page
    assert "w" * 3_000 not in page
    assert "more characters)" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert len(page.encode()) < 400_000


def test_the_page_is_drawn_again_from_what_is_there(output, capsys):
    out = output()
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    cli.app(["report", str(out)], standalone_mode=False)
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    assert (out / "report.html").read_bytes() == page


def test_a_finished_output_keeps_its_page(output):
    out = output()
    before = (out / "report.html").read_bytes()
    output()
    assert (out / "report.html").read_bytes() == before


def test_two_outputs_are_compared(output, tmp_path, monkeypatch):
    one, other = output("best"), output("longest", select=[{"longest": {}}])
    monkeypatch.chdir(tmp_path)
    cli.app(["report", str(one), str(other)], standalone_mode=False)
    page = (tmp_path / "comparison.html").read_text()
    assert (
        "The rewards come from the same model. The samples have 6 prompts with 24 responses in common. The first output keeps 6"
        in page
    )
    assert "<script" not in page.lower()


def test_agreement_counts_what_both_have():
    one = {
        "prompts": {
            "p": [["a", 3.0, True], ["b", 2.0, False], ["c", 1.0, False], ["x", 9.0, True]],
            "q": [["d", 1.0, True]],
        }
    }
    other = {"prompts": {"p": [["c", 0.2, False], ["b", 0.9, True], ["a", 0.5, True]], "r": [["d", 1.0, True]]}}
    assert agreement(one, other) == {
        "prompts": 1,
        "responses": 3,
        "one": 1,  # a
        "other": 2,  # a and b
        "both": 1,
        "choices": 1,
        "best": 0,  # a, and b
        "pairs": 3,
        "order": 2,  # a before c, b before c; not a before b
    }
    assert agreement(other, one)["one"] == 2
    assert agreement(one, one)["order"] == agreement(one, one)["pairs"] == 6


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ("out/a/curated", "out/b/curated/", ("a", "b")),
        ("out", "out/more", ("out", "out/more")),
        ("x", "y", ("x", "y")),
        ("gs://b/a/1", "gs://b/a/2", ("1", "2")),
        ("same", "same", ("same", "same")),
        ("/t/a/x/c", "/t/b/c", ("a/x", "b")),
    ],
)
def test_outputs_are_called_by_what_tells_them_apart(one, other, names):
    assert distinct_parts(one, other) == names


def test_ties_are_in_no_order():
    one = {"prompts": {"p": [["a", 1.0, True], ["b", 1.0, False]]}}
    other = {"prompts": {"p": [["a", 1.0, True], ["b", 0.0, False]]}}
    assert (agreement(one, other)["pairs"], agreement(one, one)["best"]) == (0, 1)


def test_outputs_of_other_corpora_have_nothing_in_common(output):
    one, two = output("one"), output("two", seed=2)
    compare(str(one), str(two), write=str(one / "c.html"))
    assert (
        "the samples have no prompt in common: the outputs come from different corpora" in (one / "c.html").read_text()
    )


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (
            lambda out: (out / "manifest.json").unlink(),
            "has no manifest.json; give the output.path of a finished run",
        ),
        (lambda out: (out / "report.json").unlink(), "has no report.json: it was selected with report.write=false"),
        (lambda out: (out / "report.json").write_text("{"), "report.json is damaged"),
        (
            lambda out: (out / "report.json").write_text(json.dumps({"format": 9})),
            "is of format 9, and this version reads 1",
        ),
        (lambda out: (out / "samples.parquet").write_bytes(b"PAR1"), "samples.parquet is damaged"),
    ],
)
def test_what_is_missing_or_damaged_is_named(output, break_it, words):
    out = output()
    break_it(out)
    with pytest.raises(InputError, match=words):
        rebuild(str(out))


def test_without_run_json_the_page_is_without_throughput(output):
    out = output()
    page = (out / "report.html").read_text()
    (out / "run.json").unlink()
    rebuild(str(out))
    assert (out / "report.html").read_text() == page
    assert "Throughput" not in page


def test_throughput_of_a_model(output):
    out = output()
    manifest, report = json.loads((out / "manifest.json").read_text()), write.read_numbers(str(out))
    rates = {"rows": 10, "tokens_read": 2000, "forward_secs": 4.0, "rows_per_sec": 2.5, "tokens_read_per_sec": 500.0}
    rates |= {"sharing_ratio": 1.5, "padding_ratio": 0.0, "model_flops_utilisation": 0.25}
    page = run.render(manifest, report, [], {"command": "run", "secs": 9.0, "finished": "then", "throughput": rates})
    for words in (
        "10 responses, 2,000 tokens, in 4 s",
        "2.5 responses, 500 tokens",
        "1.50, by sharing",
        "25.0% of FLOP/s",
    ):
        assert words in page
