"""`bestkept evaluate` as a user meets it: tables, files, exit codes; and the page by itself."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from html.parser import HTMLParser

import numpy as np
import pytest
from support.corpora import write_jsonl
from support.planted_models import VERDICTS, planted

from pipelines.commands import evaluate as evaluation
from pipelines.commands.evaluate import evaluate_model, evaluation_config
from pipelines.commands.progress_bar import showing_nothing
from pipelines.config import EvaluateConfig
from pipelines.errors import ConfigError
from pipelines.report import evaluation_tables
from pipelines.report.charts import Mark, Series, interval_chart, line_chart
from pipelines.report.pages.evaluation import render
from pipelines.report.text import percent_interval
from pipelines.report.verdict import told, words_of
from rm.calibration_record import load_evaluation
from rm.checkpoint.embedding_config import read_embedding
from rm.embedder import Embedder
from rm.evaluate import load_temperature, store_trained_prompts
from rm.preferences import Group
from rm.scores import GroupScores
from rm.text.windows import split_into_windows

SECRET = "xyzzy"


@pytest.fixture
def bestkept(bestkept, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return bestkept


@pytest.fixture
def model(encoder, tmp_path):
    import shutil

    return shutil.copytree(encoder, tmp_path / "model")


def pairs(count=30):
    rng = np.random.default_rng(0)
    words = "good bad hot long number time people day two way".split()
    text = [" ".join(rng.choice(words, size=rng.integers(2, 9))) for _ in range(2 * count)]
    return [
        {"prompt": f"{SECRET} {k}", "chosen": f"{text[2 * k]} yes {k}", "rejected": f"{text[2 * k + 1]} no {k}"}
        for k in range(count)
    ]


@pytest.fixture
def data(tmp_path):
    return write_jsonl(tmp_path / "pairs.jsonl", [*pairs(), {"prompt": SECRET, "chosen": "same", "rejected": "same"}])


def read(tmp_path):
    return json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", VERDICTS)
def test_planted_models_get_their_verdicts_from_the_command(bestkept, model, tmp_path, monkeypatch, name, count):
    """In table, JSON and page, and stored beside the weights; what is read is a file of pairs."""
    groups, planted_rewards = planted(count)
    best = [edge.preferred for group in groups for edge in group.edges]
    rows = [
        {"prompt": group.prompt[0][1], "chosen": group.responses[at], "rejected": group.responses[1 - at]}
        for group, at in zip(groups, best, strict=True)
    ]
    of_text = {
        (group.prompt, text): float(reward)
        for group, rewards in zip(groups, planted_rewards[name], strict=True)
        for text, reward in zip(group.responses, rewards, strict=True)
    }

    def score(_config, _directory, read, *_):
        scores = [GroupScores.empty(len(group.responses)) for group in read]
        for group, scored in zip(read, scores, strict=True):
            scored.rewards[:] = [of_text[group.prompt, text] for text in group.responses]
        return evaluation._ScoredGroups(scores, None, 64, "float32")

    monkeypatch.setattr(evaluation, "_score", score)
    write_jsonl(tmp_path / "planted.jsonl", rows)
    code, out, err = bestkept("evaluate", model, "planted.jsonl", "bootstrap.resamples=400")
    assert code == 0, err
    document = read(tmp_path)
    assert document["verdict"]["verdict"] == VERDICTS[name]
    sentence = document["verdict"]["sentence"]
    assert f": of {count:,} comparisons it orders " in sentence
    assert f"; of {count // 2:,} pairs of similar length it orders " in sentence
    page = (tmp_path / "evaluation" / "evaluation.html").read_text()
    assert sentence.partition(":")[0] in out
    assert page.index(sentence.partition(":")[0]) < page.index("<svg")
    assert load_evaluation(model)["verdict"] == VERDICTS[name]


def test_figures_are_those_of_a_plain_loop(bestkept, model, data, tmp_path):
    from rm.scorer import Scorer

    code, out, _ = bestkept("evaluate", model, data)
    assert code == 0
    scorer = Scorer.load(model, dtype="float32", max_length=64, too_long="truncate", tokens_per_batch=4096)
    right, longer = [], []
    for row in pairs():
        sides = (row["chosen"], row["rejected"])
        chosen, rejected = scorer.score([((("user", row["prompt"]),), sides)])[0].rewards
        right.append(0.5 + 0.5 * np.sign(float(chosen) - float(rejected)))
        longer.append(0.5 + 0.5 * np.sign(len(sides[0]) - len(sides[1])))
    document = read(tmp_path)
    overall = document["evaluation"]["accuracy"]["overall"]
    assert (overall["comparisons"], overall["prompts"]) == (30, 30)
    assert overall["model"]["value"] == pytest.approx(np.mean(right))
    assert overall["length"]["value"] == pytest.approx(max(np.mean(longer), 1 - np.mean(longer)))
    assert document["data"]["rejected"] == {"equal_sides": 1}
    assert document["model"]["max_length"] == 64
    sentence = document["verdict"]["sentence"]
    for words in (sentence[:60], "best rule", "rejected: equal_sides", "as it is", "evaluation.json"):
        assert words in out
    assert "origin human" not in out, "it would repeat the line of all"


def test_scoring_in_windows_loses_and_repeats_nothing(bestkept, model, data, tmp_path, monkeypatch):
    bestkept("evaluate", model, data)
    whole = read(tmp_path)
    seen = []

    def small_windows(asked, **_):
        for window in split_into_windows(asked, characters=60):
            seen.append(window)
            yield window

    monkeypatch.setattr("rm.scorer.split_into_windows", small_windows)
    code, _, err = bestkept("evaluate", model, data)
    assert code == 0, err
    assert len(seen) > 5
    assert read(tmp_path)["evaluation"]["accuracy"] == whole["evaluation"]["accuracy"]


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (["m", "d.jsonl"], ("m", "d.jsonl")),
        (["model.path=m", "d.jsonl"], ("m", "d.jsonl")),
        (["m", "data.path=d.jsonl"], ("m", "d.jsonl")),
        (["model.path=m", "data.path=data/x.jsonl", "data.split=test"], ("m", "data/x.jsonl")),
    ],
)
def test_model_and_data_are_places_or_settings(words, paths):
    config = evaluation_config([*words, "output.path=o"])
    assert (config.model.path, config.data.path) == paths


def test_data_that_is_not_named_is_missed():
    with pytest.raises(ConfigError, match="DATA is missing"):
        evaluation_config(["m", "data.split=test"])


def test_no_row_text_is_printed_or_written(bestkept, model, data, tmp_path):
    _, out, err = bestkept("evaluate", model, data)
    for text in (out, err, *(file.read_text() for file in (tmp_path / "evaluation").iterdir())):
        assert SECRET not in text


def test_the_same_again_gives_the_same_bytes(bestkept, model, data, tmp_path):
    bestkept("evaluate", model, data)
    first = [file.read_bytes() for file in sorted((tmp_path / "evaluation").iterdir())]
    assert len(first) == 2
    bestkept("evaluate", model, data)
    assert [file.read_bytes() for file in sorted((tmp_path / "evaluation").iterdir())] == first


def test_the_temperature_is_stored_with_a_local_model(bestkept, model, data, tmp_path):
    assert load_temperature(model) is None
    bestkept("evaluate", model, data)
    document = read(tmp_path)
    stored = json.loads((model / "calibration.json").read_text())
    assert stored["temperature"] == document["evaluation"]["calibration"]["temperature"]["value"]
    assert (stored["data"], stored["fitted_on"], stored["comparisons"]) == ("pairs.jsonl", "all rows", 30)
    assert load_temperature(model) == stored["temperature"]


def test_one_split_is_evaluated_and_bad_rows_are_counted(bestkept, model, tmp_path):
    for name in ("train", "test"):
        path = write_jsonl(tmp_path / "data" / f"{name}.jsonl", pairs())
    path.write_text("{\n" + path.read_text())
    code, _, err = bestkept("evaluate", model, tmp_path / "data")
    assert (code, "several splits: test, train; name one of them: data.split=NAME" in err) == (3, True)
    code, _, err = bestkept("evaluate", model, tmp_path / "data", "data.split=test")
    assert code == 0, err
    data = read(tmp_path)["data"]
    assert (data["part"], data["rejected"]) == ("all rows of the split test", {"bad_json": 1})


def test_the_temperature_is_left_alone_where_that_is_asked(bestkept, model, data, tmp_path):
    code, _, _ = bestkept("evaluate", model, data, "store_temperature=false", "output.path=here")
    assert (code, (model / "calibration.json").exists()) == (0, False)
    assert json.loads((tmp_path / "here" / "evaluation.json").read_text())["temperature_stored"] is None
    code, _, err = bestkept("evaluate", "owner/name", data, "store_temperature=true")
    assert (code, "not a local directory" in err) == (2, True)


def test_all_work_that_may_take_seconds_is_shown(model, data, tmp_path):
    shown = []

    @contextmanager
    def working(words):
        shown.append(words)
        yield lambda *_: None

    values = {"model": {"path": str(model)}, "data": {"path": str(data)}, "output": {"path": str(tmp_path / "out")}}
    evaluate_model(EvaluateConfig.model_validate({**values, "stress": {"prompts": 0}}), showing_nothing, working)
    assert shown == ["reading preferences", "loading the model", "computing the evaluation"]


def test_held_out_means_what_training_holds_out(bestkept, model, data, tmp_path):
    from rm.conversations import prompt_key

    bestkept("evaluate", model, data, "data.heldout_fraction=0.4")
    keys = [prompt_key((("user", row["prompt"]),)) for row in pairs()]
    expected = sum(int.from_bytes(key[:8], "big") / 2**64 < 0.4 for key in keys)
    document = read(tmp_path)
    assert 0 < expected < 30
    assert document["evaluation"]["accuracy"]["overall"]["comparisons"] == expected
    assert "held-out part" in json.loads((model / "calibration.json").read_text())["fitted_on"]


def test_gold_scores_give_a_curve_and_labels_a_separation(bestkept, model, tmp_path):
    scored = [
        {"prompt": f"{SECRET} {k}", "response": f"good {n} {k}", "score": float(n)} for k in range(6) for n in range(4)
    ]
    path = write_jsonl(tmp_path / "scores.jsonl", scored)
    code, out, err = bestkept("evaluate", model, path, "data.format=scores")
    assert code == 0, err
    curve = read(tmp_path)["evaluation"]["best_of_n"]
    assert (curve["measured_by"], [point["n"] for point in curve["points"]]) == ("gold", [1, 2, 4])
    assert curve["points"][-1]["oracle"]["value"] == 3.0
    assert curve["points"][0]["random"]["value"] == 1.5
    assert "best of n (gold score)" in out
    labelled = [
        {"prompt": f"{SECRET} {k}", "completion": f"good {n} {k}", "label": n % 2 == 0}
        for k in range(6)
        for n in range(4)
    ]
    code, out, err = bestkept("evaluate", model, write_jsonl(tmp_path / "labels.jsonl", labelled))
    assert code == 0, err
    assert read(tmp_path)["evaluation"]["separation"]["accepted"] == 12
    assert "AUC" in out


def test_reward_bench_2_rows(bestkept, model, tmp_path):
    rows = [
        {
            "id": str(k),
            "prompt": f"{SECRET} {k}",
            "chosen": ["good"],
            "rejected": ["bad", "hot", "long"],
            "subset": "Math",
        }
        for k in range(4)
    ]
    rows = [{**row, "num_correct": 1, "total_completions": 4} for row in rows]
    code, out, err = bestkept("evaluate", model, write_jsonl(tmp_path / "rb2.jsonl", rows), "data.format=rewardbench2")
    assert code == 0, err
    scores = read(tmp_path)["evaluation"]["reward_bench_2"]
    assert (scores["subsets"][0]["name"], scores["subsets"][0]["items"]) == ("Math", 4)
    assert "RewardBench 2" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["MODEL", "none.jsonl"], 3, "matches no file"),
        (["nowhere/at/all", "DATA"], 7, "nowhere/at/all"),
        (["MODEL", "DATA", "data.orgin=model"], 2, "did you mean 'origin'"),
        (["MODEL", "DATA", "data.heldout_path=x.jsonl"], 2, "unknown key 'data.heldout_path'"),
        (["MODEL", "DATA", "--fast"], 2, "unknown option --fast"),
        (["MODEL", "DATA", "output.path=pairs.jsonl/x"], 2, "choose another output.path"),
        (["MODEL", "DATA", "bootstrap.resamples=1"], 2, "bootstrap.resamples"),
    ],
)
def test_mistakes_end_with_one_line_and_their_exit_code(bestkept, model, data, words, code, message):
    named = {"MODEL": model, "DATA": data}
    got, _, err = bestkept("evaluate", *(named.get(word, word) for word in words))
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("bestkept: ")
    assert (got, message in last) == (code, True), last


@pytest.mark.parametrize("place", ["file://{home}/a/b", "~/a/b"])
def test_paths_of_the_output_and_the_data_are_those_of_other_commands(
    bestkept, model, data, tmp_path, monkeypatch, place
):
    monkeypatch.setenv("HOME", str(tmp_path))
    before = set(tmp_path.iterdir())
    output = place.format(home=tmp_path)
    assert bestkept("evaluate", model, "none.jsonl", f"output.path={output}")[0] == 3
    assert set(tmp_path.iterdir()) == before, "nothing is made before the checks"
    code, _, err = bestkept("evaluate", model, f"~/{data.name}", f"output.path={output}")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["evaluation.html", "evaluation.json"]
    assert set(tmp_path.iterdir()) - before == {tmp_path / "a"}


def test_nothing_left_to_evaluate_on(bestkept, model, tmp_path):
    path = write_jsonl(tmp_path / "same.jsonl", [{"prompt": SECRET, "chosen": "same", "rejected": "same"}])
    code, _, err = bestkept("evaluate", model, path)
    assert (code, "contains nothing to evaluate" in err, SECRET in err) == (3, True, False)


class Page(HTMLParser):
    """Start tags with their attributes, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def document(*, name="s<script>alert(1)</script>"):
    from support.evaluation_groups import group

    from rm.evaluate import Bootstrap, evaluate

    rng = np.random.default_rng(0)
    groups = [
        group(k, [(0, 1)], responses=4, scores=[3.0, 2.0, 1.0, 0.0], source=f"{name}{k % 2}", lengths=[40, 30, 20, 10])
        for k in range(40)
    ]
    evaluation = evaluate(groups, list(rng.normal(size=(40, 4)) + np.array([1, 0, 0, 0])), bootstrap=Bootstrap(100))
    return {
        "model": {"path": "m<b>"},
        "data": {"path": "d<i>", "part": "all rows", "rejected": {}},
        "truncated": 0,
        "unscored": {},
        "temperature_stored": None,
        "evaluation": evaluation.to_json(),
        "verdict": words_of(evaluation.verdict.to_json()),
    }


def test_the_page_is_whole_self_contained_and_escapes_names():
    text = render(document())
    page = Page(text)
    assert page.open == []
    names = [tag for tag, _ in page.tags]
    assert names.count("svg") == 4
    assert not {"script", "link", "img", "b", "i", "iframe"} & (set(names) - {"i"})
    assert all(attrs.get("class", "").startswith("key") for tag, attrs in page.tags if tag == "i")
    assert not re.search(r"(src|href)=|url\(|@import|https?://", text)
    assert "s&lt;script&gt;" in text
    for tag, attrs in page.tags:
        if tag in ("circle", "line"):
            numbers = [float(attrs[key]) for key in ("cx", "x1", "x2") if key in attrs]
            assert all(0 <= number <= 440 for number in numbers)


def test_every_chart_says_which_decision_it_serves():
    text = render(document())
    assert text.count('<p class="serves">This chart helps to decide ') == text.count("<svg") == 4


def test_an_evaluation_with_one_comparison_still_renders():
    from support.evaluation_groups import group

    from rm.evaluate import evaluate

    def shown(rewards):
        evaluation = evaluate([group("a", [(0, 1)])], [rewards]).to_json()
        return {**document(), "evaluation": evaluation, "verdict": words_of(evaluation["verdict"])}

    assert "fewer than six prompts" in render(shown([1.0, 0.0]))
    empty = shown([float("nan"), 0.0])
    assert "fewer than six prompts" in render(empty)
    assert len(list(evaluation_tables.evaluation_tables(empty, written_to="x"))) == 3


def circles(svg):
    return [float(x) for x in re.findall(r'<circle[^>]* cx="([\d.]+)"', svg)], [
        float(y) for y in re.findall(r'<circle[^>]* cy="([\d.]+)"', svg)
    ]


def test_charts_put_larger_values_higher_and_further_right():
    points = [(0.0, Mark(0.1)), (1.0, Mark(0.5)), (2.0, Mark(0.3))]
    svg = line_chart(
        [Series("model", "model", points)], x_ticks=[(0, "a"), (1, "b"), (2, "c")], x_title="n", y_format=str
    )
    xs, ys = circles(svg)
    assert xs == sorted(xs)
    assert ys[1] < ys[2] < ys[0]
    svg = interval_chart(
        [("a", [Mark(0.2, 0.1, 0.3)]), ("b", [Mark(0.6, 0.5, 0.7)])],
        names=[("model", "model")],
        reference=0.5,
        x_format=str,
    )
    xs, ys = circles(svg)
    assert xs[0] < xs[1]
    assert ys[0] < ys[1]
    whiskers = re.findall(r'class="whisker model" x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)"', svg)
    for (low, high), x in zip(whiskers, xs, strict=True):
        assert float(low) < x < float(high)
        assert x - float(low) == pytest.approx(float(high) - x, abs=0.11)


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        ({"value": 0.612, "low": 0.584, "high": 0.64}, "61.2 [58.4, 64.0]"),
        ({"value": 1.0, "low": None, "high": None}, "100.0"),
        ({"value": None, "low": None, "high": None}, "-"),
    ],
)
def test_estimates_in_words(estimate, words):
    assert percent_interval(estimate) == words


def test_labels_that_have_no_room_are_left_out():
    ticks = [(float(k), f"0.00{k}9") for k in range(10)]
    svg = line_chart([Series("a", "model", [(0.0, Mark(0.0))])], x_ticks=ticks, x_title="gap", y_format=str)
    shown = [float(x) for x in re.findall(r'<text x="([\d.]+)" y="243" text-anchor="middle">0\.00', svg)]
    assert len(shown) == 5
    assert min(np.diff(shown)) > 8.5 * 6


def test_long_names_are_cut_and_kept_as_titles():
    svg = interval_chart([("n" * 90, [Mark(0.5)])], names=[("a", "model")], reference=0.5, x_format=str)
    assert re.search(rf"n+…n+</tspan>.*<title>{'n' * 90}</title>", svg)


def test_stress_tests_are_in_the_table_the_page_and_beside_the_weights(bestkept, model, data, tmp_path):
    code, out, err = bestkept("evaluate", model, data, "stress.prompts=8")
    assert code == 0, err
    document = read(tmp_path)
    tests = {test["name"]: test for test in document["evaluation"]["stress"]["tests"]}
    assert tests["repeated"]["prompts"] == 8
    page = (tmp_path / "evaluation" / "evaluation.html").read_text()
    for words in ("a response to another prompt", "itself twice", "reward without its prompt"):
        assert words in out
        assert words in page
    stored = json.loads((model / "calibration.json").read_text())["evaluation"]
    assert stored["stress"] == document["evaluation"]["stress"]
    assert bestkept("evaluate", model, data, "stress.prompts=0")[0] == 0
    assert read(tmp_path)["evaluation"]["stress"] is None


@pytest.mark.parametrize(("trained", "stores"), [(1, True), (2, False), (30, False)])
def test_an_evaluation_on_prompts_of_the_training_is_noticed(bestkept, model, data, tmp_path, trained, stores):
    """Of 30 prompts; at most one in twenty may be known, by chance or because a prompt is common."""
    store_trained_prompts(model, [Group((("user", row["prompt"]),), ("a", "b")) for row in pairs()[:trained]])
    code, out, err = bestkept("evaluate", model, data, "stress.prompts=0")
    assert code == 0, err
    document = read(tmp_path)
    assert document["data"]["trained_on"] == pytest.approx(trained / 30)
    warning = f"The model was trained on {100 * trained / 30:.1f} % of these prompts"
    assert warning in document["verdict"]["warnings"][0]
    assert warning in out
    assert (document["temperature_stored"] is not None) == stores == (load_evaluation(model) is not None)
    assert ("temperature and verdict are not stored; evaluate it on others" in err) != stores
    assert bestkept("evaluate", model, data, "stress.prompts=0", "store_temperature=true")[0] == 0
    assert warning in told(load_evaluation(model)), "runs repeat it"


def test_an_evaluation_on_other_prompts_has_no_such_warning(bestkept, model, data, tmp_path):
    store_trained_prompts(model, [Group((("user", "another one"),), ("a", "b"))])
    assert bestkept("evaluate", model, data, "stress.prompts=0")[0] == 0
    assert read(tmp_path)["data"]["trained_on"] == 0.0
    assert "trained on" not in read(tmp_path)["verdict"]["warnings"][0]
    assert "trained_on" not in load_evaluation(model)


def failing(name, low, high):
    value = {"value": (low + high) / 2, "low": low, "high": high}
    return {"stress": {"tests": [{"name": name, "prompts": 40, "preferred": value}]}, "verdict": "unknown"}


@pytest.mark.parametrize(
    ("name", "low", "high", "words"),
    [
        ("similar_prompt", 0.5, 0.7, "a response to a similar prompt in only 60.0 [50.0, 70.0] % of 40 prompts"),
        ("similar_prompt", 0.8, 0.95, None),
        ("padded", 0.1, 0.3, "In 80.0 [70.0, 90.0] % of 40 prompts, adding polite phrases"),
        ("padded", 0.3, 0.6, None),
        ("truncated", 0.0, 0.1, None),
    ],
)
def test_a_failed_test_is_a_warning(name, low, high, words):
    from pipelines.report.verdict import warnings

    matched = {"length_matched": {"accuracy": {"value": None, "low": None, "high": None}}}
    lines = list(warnings({**failing(name, low, high), **matched}))
    assert lines == [] if words is None else words in lines[0]


def test_the_numbers_have_units(bestkept, model, data, tmp_path):
    """Every number that is no count is below a place whose unit is named, and every place is one of the document."""
    bestkept("evaluate", model, data)
    document = read(tmp_path)
    units, evaluation = document["units"], document["evaluation"]
    assert units["calibration.nll"] == "nats per comparison"
    places = {place.partition(".")[0] for place in units}
    assert places <= evaluation.keys()
    for name, part in evaluation.items():
        assert name in places or type(part) in (int, str) or part is None or name == "bootstrap", name


def test_the_verdict_is_against_length_behind_a_gate_where_that_is_the_strongest(bestkept, model, encoder, tmp_path):
    """Longer responses about something else are judged worse: the nearer one is right each time, and length never."""
    topics = "water people number word time day look more".split()
    rows = [
        {
            "prompt": f"{one} {one} {k}",
            "chosen": f"{one} {one}",
            "rejected": f"{topics[(k + 3) % 8]} his hot your {k} had",
        }
        for k, one in enumerate(topics)
    ]
    write_jsonl(tmp_path / "topics.jsonl", rows)
    words = ("evaluate", model, "topics.jsonl", "stress.prompts=0")
    code, _, err = bestkept(*words, "output.path=plain")
    assert code == 0, err
    plain = json.loads((tmp_path / "plain" / "evaluation.json").read_text())
    assert plain["evaluation"]["verdict"]["all"]["rule"] == "shorter"  # right each time, too
    rows = [{**row, "chosen": row["chosen"] + " and so on with it" * (k % 2)} for k, row in enumerate(rows)]
    write_jsonl(tmp_path / "topics.jsonl", rows)
    code, out, err = bestkept(*words, f"relevance={{path: {encoder}, gap: 0.0, max_length: 12}}")
    assert code == 0, err
    document = read(tmp_path)
    whole = document["evaluation"]["verdict"]["all"]
    embedder = Embedder.load(encoder, read_embedding(encoder, 12), device="cpu")
    scores = embedder.score([((("user", row["prompt"]),), [row["chosen"], row["rejected"]]) for row in rows])
    nearer = np.mean([one.rewards[0] > one.rewards[1] for one in scores])
    assert nearer > 0.6
    assert (whole["rule"], whole["length"]["value"]) == ("nearer or longer", pytest.approx(nearer))
    assert "taking the nearer or longer response" in document["verdict"]["sentence"]
    assert document["relevance"]["truncated"] == sum(int(one.truncated.sum()) for one in scores)
    assert plain["evaluation"]["gated"] is None
    gated = document["evaluation"]["gated"]
    assert (gated["accuracy"]["value"], gated["decided"]) == (pytest.approx(nearer), 1.0)
    assert (gated["over_rule"]["value"], gated["similar_prompt"]) == (0.0, None)
    page = (tmp_path / "evaluation" / "evaluation.html").read_text()
    assert "behind the relevance gate (gap 0; it decides 100.0 % of comparisons)" in out
    assert "Behind the relevance gate (gap 0; it decides 100.0 % of comparisons)" in page
    assert "the embedding model reads only a part of" in out
    assert load_evaluation(model)["all"]["rule"] == "nearer or longer"


def test_the_gap_of_the_gate_is_settled_on_the_evaluated_responses(bestkept, model, encoder, tmp_path):
    rows = [
        {"prompt": f"word {k}", "chosen": "word people " * (1 + k % 3), "rejected": f"time {k} day"} for k in range(60)
    ]
    write_jsonl(tmp_path / "many.jsonl", rows)
    gate = f"relevance={{path: {encoder}, max_touched: 0.1}}"
    code, out, err = bestkept("evaluate", model, "many.jsonl", "stress.prompts=0", gate)
    assert code == 0, err
    document = read(tmp_path)
    gated = document["evaluation"]["gated"]
    embedder = Embedder.load(encoder, read_embedding(encoder, None), device="cpu")
    scores = embedder.score([((("user", row["prompt"]),), [row["chosen"], row["rejected"]]) for row in rows])
    pairs = np.array([one.rewards for one in scores], dtype=np.float64)
    behind = np.sort(pairs.max(axis=1) - pairs.min(axis=1))
    least = behind[-13]  # 12 of 120 responses may lie further behind
    assert gated["gap"] == pytest.approx(np.ceil(least * 1024) / 1024)
    others = np.array([one.outputs["foreign"] for one in scores], dtype=np.float64)
    assert gated["caught"] == pytest.approx((pairs.max(axis=1)[:, None] - others > gated["gap"]).mean())
    assert (gated["max_touched"], gated["decided"]) == (0.1, pytest.approx((behind > gated["gap"]).mean()))
    assert "settled on these data" in out
    assert "settled on these data" in (tmp_path / "evaluation" / "evaluation.html").read_text()
    assert document["relevance"]["gap"] == "auto"


def test_without_two_responses_to_a_prompt_no_gap_is_settled(bestkept, model, encoder, tmp_path):
    rows = [{"prompt": f"word {k}", "completion": "people", "label": k % 2 == 0} for k in range(20)]
    write_jsonl(tmp_path / "labels.jsonl", rows)
    code, _, err = bestkept("evaluate", model, "labels.jsonl", f"relevance={{path: {encoder}}}")
    assert code == 0, err
    assert "relevance.gap is auto, and no prompt has two responses with a reward and a cosine" in err
    assert read(tmp_path)["evaluation"]["gated"] is None


def test_stress_tests_are_repeated_behind_the_gate(bestkept, model, encoder, data, tmp_path):
    code, out, err = bestkept("evaluate", model, data, "stress.prompts=8", f"relevance={{path: {encoder}, gap: 0.0}}")
    assert code == 0, err
    document = read(tmp_path)
    [test] = [test for test in document["evaluation"]["stress"]["tests"] if test["name"] == "other_prompt"]
    gated = document["evaluation"]["gated"]["other_prompt"]
    assert (gated["name"], gated["prompts"]) == ("other_prompt", test["prompts"])
    assert "preferred to a response to another prompt, %" in out
    assert "duels" not in document["evaluation"]["stress"]
    assert SECRET not in json.dumps(document)
    stored = json.loads((model / "calibration.json").read_text())["evaluation"]
    assert stored["stress"] == document["evaluation"]["stress"]
