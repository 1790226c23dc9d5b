from __future__ import annotations

import pytest

from pipelines.config import RunConfig, TrainConfig, load, validate
from pipelines.config.settings_list import KINDS, settings_of
from pipelines.errors import ConfigError

MINIMAL = "input: {path: in.jsonl}\nmodel: {path: m}\noutput: {path: out}\n"


def load_text(tmp_path, text, overrides=(), kind=RunConfig):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load(kind, str(path), overrides)


def test_defaults_are_best_of_n(tmp_path):
    config = load_text(tmp_path, MINIMAL)
    assert config.select[0].best_of_n.keep == 1
    assert config.scores_path == "out/scores"
    assert load_text(tmp_path, MINIMAL + "scores: {path: s}\n").scores_path == "s"


def test_overrides_are_yaml_and_win(tmp_path):
    overrides = ["model.max_length=99", "select=[{threshold: {min_reward: 0.5}}]", "output.license=mit"]
    config = load_text(tmp_path, MINIMAL, overrides)
    assert config.model.max_length == 99
    assert config.select[0].threshold.min_reward == 0.5
    assert config.output.license == "mit"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "limit: {}\n", r"unknown key 'limit'; did you mean 'limits'\?"),
        (
            "input: {path: a, colums: {}}\nmodel: {path: m}\noutput: {path: o}\n",
            r"unknown key 'input\.colums'; did you mean 'columns'\?",
        ),
        (
            MINIMAL + "select: [{best_of_n: {kep: 1}}]\n",
            r"unknown key 'select\.0\.best_of_n\.kep'; did you mean 'keep'\?",
        ),
        (MINIMAL + "select: [{best_of_n: {}, threshold: {min_reward: 1}}]\n", r"select\.0.*expected exactly one of"),
        (MINIMAL + "select: [{}]\n", "expected exactly one of best_of_n, threshold"),
        (
            MINIMAL + "limits: {max_rejected_fraction: 2}\n",
            r"limits\.max_rejected_fraction is 2: .*less than or equal to 1",
        ),
        ("input: {path: []}\nmodel: {path: m}\noutput: {path: o}\n", r"input\.path"),
        ("model: {path: m}\noutput: {path: o}\n", "input is missing"),
        (MINIMAL + "select: [{threshold: {min_reward: .nan}}]\n", "finite"),
        ("- a\n", "contains list; expected a mapping"),
        ("input: {path: [}\n", "not valid YAML at line 1"),
    ],
)
def test_mistakes_are_named_with_their_path(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_text(tmp_path, text)


TWO = "input: {path: in.jsonl}\nmodel: [{path: a}, {path: b}]\noutput: {path: out}\n"


def test_one_model_or_several(tmp_path):
    one = load_text(tmp_path, MINIMAL)
    listed = load_text(tmp_path, MINIMAL.replace("{path: m}", "[{path: m}]"))
    assert one == listed
    assert listed.models == [listed.model]
    two = load_text(tmp_path, TWO, ["ensemble.combine=lower_bound"])
    assert [model.path for model in two.models] == ["a", "b"]
    assert two.ensemble.settings == {"combine": "lower_bound", "penalty": 1.0}
    assert load_text(tmp_path, TWO).ensemble.settings == {"combine": "mean"}
    twice = load_text(tmp_path, TWO, ["model=[{path: a}, {path: a, max_length: 99}]"])
    assert [model.max_length for model in twice.models] == [4096, 99]
    assert load_text(tmp_path, MINIMAL, ["model=null", "scores.column=r"]).models == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=[]", r"model is list: .*at least 1 item"),
        (
            "model=[{path: a}, {pth: b}]",
            r"model\.1\.path is missing.*unknown key 'model\.1\.pth'; did you mean 'path'\?",
        ),
        ("model=[{path: a}, {path: b, dtype: int4}]", r"model\.1\.dtype is 'int4'"),
        (
            "model=[{path: a}, {path: b}, {path: a, tokens_per_batch: 9}]",
            r"model: model\.0 and model\.2 are the same, 'a', .*name each model once",
        ),
        ("model=[{path: a}, {path: 's3://user:hunter2@b'}]", r"model\.1\.path is 's3://\*\*\*@b': .*credentials"),
        (
            "model=a",
            r"model is 'a': expected a mapping with some of the keys path, .*; write it as model: {KEY: VALUE}$",
        ),
        ("ensemble.combine=median", r"ensemble\.combine is 'median': .*expected one of mean, min, lower_bound"),
        (
            "ensemble.penalty=2",
            r"ensemble: penalty has no effect without combine: lower_bound; remove it, or give",
        ),
        ("ensemble={combine: min, penalty: 2}", r"no effect without combine: lower_bound"),
        ("ensemble={combine: lower_bound, penalty: -1}", r"ensemble\.penalty is -1: .*greater than or equal to 0"),
        ("ensemble={combine: lower_bound, penalty: .inf}", r"ensemble\.penalty is inf: .*finite"),
        ("ensemble.combin=min", r"unknown key 'ensemble\.combin'; did you mean 'combine'\?"),
        ("scores.column=reward", r"rewards come from model\.path or from scores\.column, and both are given"),
        (
            "select=[{best_of_n: {min_probability: 0.9}}]",
            r"select\.0\.best_of_n .* an ensemble has no calibration; give it",
        ),
        ("output.add=[probability]", r"probability, .* an ensemble has no calibration; remove it"),
    ],
)
def test_mistakes_of_ensembles(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load_text(tmp_path, TWO, [override])


@pytest.mark.parametrize("model", ["{path: a}", "[{path: a}]", "null"])
def test_an_ensemble_takes_two_models(tmp_path, model):
    column = ["scores.column=r"] if model == "null" else []
    with pytest.raises(
        ConfigError, match=r"model names [01] of the two or more models that it combines; remove it, or"
    ):
        load_text(tmp_path, TWO, [f"model={model}", "ensemble={combine: mean}", *column])


def test_an_ensemble_takes_the_temperature_that_a_step_is_given(tmp_path):
    step = "select=[{best_of_n: {min_probability: 0.9, temperature: 0.5}}]"
    assert load_text(tmp_path, TWO, [step]).select[0].best_of_n.temperature == 0.5


def test_all_mistakes_come_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, "input: {pth: x}\nmodel: {path: m, dtype: int4}\n")
    for part in ("'input.pth'", "input.path is missing", "model.dtype is 'int4'", "output is missing"):
        assert part in caught.value.message


@pytest.mark.parametrize("field", ["input.path", "output.path", "scores.path", "model.path"])
@pytest.mark.parametrize("scheme", ["s3", "HTTPS"])
def test_credentials_in_urls_are_refused_and_not_repeated(tmp_path, field, scheme):
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, MINIMAL, [f"{field}={scheme}://user:hunter2@bucket/x.jsonl"])
    assert "credentials" in caught.value.message
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("override", ["model", "=3", "model.path.x=1", "select=[", "model.dtype=["])
def test_bad_overrides(tmp_path, override):
    with pytest.raises(ConfigError, match="override"):
        load_text(tmp_path, MINIMAL, [override])


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load(RunConfig, str(tmp_path / "none.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(RunConfig, str(tmp_path / "binary.yaml"))


def test_train_config(tmp_path):
    text = "data: {path: p.jsonl}\nmodel: {path: m}\noutput: {path: o}\n"
    config = load_text(tmp_path, text, ["train.epochs=2"], TrainConfig)
    assert (config.train.epochs, config.train.learning_rate) == (2, None)
    with pytest.raises(ConfigError, match="seed is -1"):
        load_text(tmp_path, text, ["train.seed=-1"], TrainConfig)
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        load_text(tmp_path, text, ["train.epoch=2"], TrainConfig)


def test_date_expands(tmp_path):
    path = load_text(tmp_path, MINIMAL, ["output.path=out/{date}"]).output.path
    assert len(path) == len("out/2026-01-01")
    assert "{" not in path


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("7", "input.path is 7: expected text, or a list of texts"),
        ("s3://key:secret@bucket/x", "input.path is 's3://***@bucket/x': URL contains credentials"),
        ("[a, 's3://key:secret@bucket/x']", "input.path.1 is 's3://***@bucket/x': URL contains credentials"),
        ("[]", "input.path is list: List should have at least 1 item"),
        ("[a, 7]", "input.path is list: expected text, or a list of texts"),
    ],
)
def test_a_value_of_several_forms_is_named_once_by_its_key(tmp_path, value, words):
    (tmp_path / "c.yaml").write_text("input: {path: x}\nmodel: {path: m}\noutput: {path: o}\n")
    with pytest.raises(ConfigError) as caught:
        load(RunConfig, str(tmp_path / "c.yaml"), [f"input.path={value}"])
    assert words in caught.value.message
    assert caught.value.message.count("input.path") == 1
    assert "[" not in caught.value.message
    assert "secret" not in caught.value.message


LAUGHS = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: {path: x}\n", r"has the key 'output' twice, in lines 3 and 4; remove one of them"),
        ("scores: {path: a, path: b}\n", r"has the key 'path' twice, in line 4"),
        ("runner: {options: {a: " + "[" * 40 + "]" * 40 + "}}\n", "nested deeper than 32 levels"),
        ("runner: " + "{options: " * 3000 + "\n", "nested deeper than 32 levels"),
        ("runner: {options: {a: " + "[" * 3000 + "\n", "nested deeper than 32 levels"),
        ("runner: {options: {a: " + "[" * 40 + "\n", "nested deeper than 32 levels"),
        ("runner: {options: {a: " + "[" * 20 + "\n", "not valid YAML"),
        ("runner: {options: {a: &a [*a]}}\n", "nested deeper than 32 levels"),
        (f"a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n{LAUGHS}", "contains more than 1,000,000 values"),
        (f"report: {{samples: {'9' * 5000}}}\n", "not valid YAML at line 4, column 19"),
        ("report: {samples: 2026-99-99}\n", "not valid YAML at line 4, column 19"),
        ("report: {samples: !!timestamp x}\n", "not valid YAML at line 4, column 19"),
        ('report: {gold: "\\U00110000"}\n', "not valid YAML"),
        ('report: {gold: "\\ud800"}\n', r"contains half of a surrogate pair"),
        (f"report: {{samples: 0x{'f' * 9000}}}\n", "report.samples is an integer of 36,000 bits: "),
        (f"report: {{samples: {'x' * 9000}}}\n", r"report\.samples is 'x{149}\.\.\.x{149}': "),
        (
            "runner: {options: {n: -0x20000000000000}}\n",
            "runner.options: expected an integer of at most 9007199254740991",
        ),
        (
            "select: [{top: {rows: 1, per: source, quotas: {a: 1" + "0" * 30 + "}}}]\n",
            r"quotas: expected an integer of at most",
        ),
        ('scores: {path: "a\\0b"}\n', "scores.path is .*a path must not contain a NUL character"),
        (f"scores: {{path: sub/{'ä' * 128}}}\n", "scores.path is .*a name in a path must not exceed 255 bytes"),
        (f"limits: {{{', '.join(f'k{n}: 1' for n in range(300))}}}\n", "'limits.k19'; .*; 280 more mistakes"),
        (f"report: {{gold: {'x' * 9000}}}\n", r"report\.gold names the column 'x{400,500}\.\.\.x{400,500}"),
        ("limits: {max_rejected_fraction: .nan}\n", "max_rejected_fraction is nan: .*finite"),
    ],
)
def test_text_that_is_no_configuration(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_text(tmp_path, MINIMAL + text)
    assert len(caught.value.message) < 4000


def test_a_merged_key_may_be_given_again(tmp_path):
    text = MINIMAL + "runner: {options: {a: &a {n: 1, m: 2}, b: &b {<<: *a, n: 3}, c: {<<: *b, m: 4}}}\n"
    assert load_text(tmp_path, text).runner.options == {
        "a": {"n": 1, "m": 2},
        "b": {"n": 3, "m": 2},
        "c": {"n": 3, "m": 4},
    }


@pytest.mark.parametrize("value", ["[" * 3000, "[" * 50 + "]" * 50, "{a: 1, a: 2}", "9" * 5000, "2026-99-99"])
def test_overrides_that_are_no_values(tmp_path, value):
    with pytest.raises(ConfigError, match=r"override 'runner\.options=.*the value ") as caught:
        load_text(tmp_path, MINIMAL, [f"runner.options={value}"])
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("command", KINDS)
def test_every_integer_has_an_upper_bound_and_every_number_is_finite(command):
    numbers = [row for row in settings_of(command) if row.type.startswith(("integer", "number"))]
    assert len(numbers) > 3
    for row in numbers:
        value = 10**30 if row.type.startswith("integer") else float("inf")
        name = row.name.replace("[]", "")
        for override in (f"{name}={value}".replace("=inf", "=.inf"), f"{name}=.nan"):
            text = override if "[]" not in row.name else listed(row.name, override.partition("=")[2])
            with pytest.raises(ConfigError) as caught:
                validate(KINDS[command], {}, [text], where="x")
            assert row.name.rpartition(".")[2] in caught.value.message, text


def listed(name: str, value: str) -> str:
    """`select[].top.rows` → `select=[{top: {rows: 3}}]`."""
    outer, _, inner = name.partition("[].")
    parts = inner.split(".")
    return f"{outer}=[{''.join(f'{{{part}: ' for part in parts)}{value}{'}' * len(parts)}]"
