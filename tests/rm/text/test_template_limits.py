# ruff: noqa: E501
"""Chat templates that loop, or build more text than there is memory."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import corpus_rows, write_jsonl
from support.tiny_models import CHAT_TEMPLATE, word_tokenizer
from transformers.utils import chat_template_utils

from rm.conversations import UnusableError
from rm.identity import ModelError
from rm.text import template_limits
from rm.text.templates import Template

ONE = (("user", "the prompt"),)
MANY = (("system", "be short"), ("user", "one two"), ("assistant", "so"), ("user", "the\n\n prompt's <b>"))


def template(text: str) -> Template:
    tokenizer = word_tokenizer(pair=False)
    tokenizer.chat_template = text
    return Template.of(tokenizer, causal=True, max_length=64, too_long="truncate")


LOOPS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set l = range(9999)|list %}{% for a in l %}{% for b in l %}{% for c in l %}{% endfor %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% for a in range(99) %}{{ m(n) if n > 9**9 }}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endmacro %}"
    "{% for a in range(9999) %}{{ m(1) }}{% endfor %}",
    "{{ lipsum(n=10**9) }}",
    "{{ range(99999)|map('string')|map('upper')|list|length }}{% for a in range(99999) %}{{ range(99999)|sum }}{% endfor %}",
    "{% for x in range(99999) %}{% for y in range(999) %}{% for z in range(999) %}{{ x|int('9') }}{% endfor %}{% endfor %}{% endfor %}",
]


@pytest.mark.parametrize("text", LOOPS)
def test_a_template_that_loops_ends_with_an_error(text, monkeypatch):
    monkeypatch.setattr(template_limits, "MOST_SECS", 0.2)
    monkeypatch.setattr(template_limits, "_POLL_SECS", 0.05)
    with pytest.raises(
        ModelError, match=r"^the chat template of .* computes for more than 0\.2 s for one conversation; correct"
    ):
        template(text).render(ONE, "good")
    assert template(CHAT_TEMPLATE).render(ONE, "good")[0]  # and nothing is left over
    assert not template_limits._calls


TEXTS = [
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{% set x = [0] * 10**10 %}",
    "{{ ('a' * 10**5) * 10**5 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ 'a'.center(10**10) }}",
    "{{ ('\\t' * 10**5).expandtabs(tabsize=10**5) }}",
    "{{ 'a'|center(10**10) }}",
    "{{ 'a\\nb'|indent(10**10) }}",
    "{{ [1]|batch(10**10, 0)|list }}",
    "{{ [[1]]|tojson(indent=10**10) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (10**10, 1) }}",
    "{{ '%9999999999d'|format(1) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ '{:>{w}}'.format(1, w=10**10) }}",
    "{{ '{x:>9999999999}'.format_map({'x': 1}) }}",
    "{{ '{}'['format'](1) ~ '{:9999999999}'['format'](1) }}",
    "{% set x = 'a' * 10**6 %}{{ x.replace('a', x) }}",
    "{% set x = 'a' * 10**6 %}{{ x|replace('a', x) }}",
    "{% set x = 'a' * 10**6 %}{{ x.join(x) }}",
    "{% set x = 'a' * 10**6 %}{{ x|list|join(x) }}",
    "{% set x = 'a' * 10**6 %}{{ x|list|join(d=x) }}",
    "{% set x = 'a' * 10**6 %}{{ x.translate({97: x}) }}",
    "{% set x = [range(9999)|list] * 9999 %}{{ x|sum(start=[])|length }}",
    "{% set x = 'a' * 10**6 %}{% for i in range(9999) %}{{ x }}{% endfor %}",
    "{% set x = 'a' * 10**6 %}{% macro m() %}{% for i in range(9999) %}{{ x }}{% endfor %}{% endmacro %}{{ m()|length }}",
    "{% set x = 'a' * 10**6 %}{% set y %}{% for i in range(9999) %}{{ x }}{% endfor %}{% endset %}{{ y|length }}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x + '' %}{% endfor %}",
    "{% set ns = namespace(x=[0]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% macro m(x, n) %}{{ m(x + x, n - 1) + 'a' if n }}{% endmacro %}{{ m('a', 99) }}",
    "{% if false %}{{ 'a' * 10**10 }}{% endif %}{{ ('a' * 10**10)|length }}",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_template_that_builds_too_much_ends_with_an_error(text, monkeypatch):
    monkeypatch.setattr(template_limits, "MOST_CHARACTERS", 2**24)
    with pytest.raises(
        ModelError, match=r"chat template of .* (builds more than 16,777,216 characters|computes with integers) "
    ):
        template(text).render(ONE, "good")


def test_other_errors_of_a_template_reject_the_row():
    for text in (
        "{{ raise_exception('no') }}",
        "{{ 1 // 0 }}",
        "{% if %}",
        "{{ range(10**9) }}",
        "{{ ''.__class__.__mro__ }}",
    ):
        with pytest.raises(UnusableError, match="template_error"):
            template(text).render(ONE, "good")


PIECES = [
    "{% for m in messages %}{{ '<' + m.role + '>' + m['content'] + '\\n' }}{% endfor %}",
    "{% for m in messages %}{{ m.content.replace('o', '00').strip().center(9, '*') ~ m.content|replace('t', 'T') ~ 7 }}{% endfor %}",
    "{{ messages|map(attribute='role')|join(', ') }}{{ ' | '.join(['a', 'b']) }}{{ messages|tojson(indent=2) }}",
    "{{ '%s-%5d|%*d' % ('a', 3, 4, 5) }}{{ '%s'|format('x') }}{{ '{:>5}{k}{}'.format(1, 2, k='form') }}{{ '{a}'.format_map({'a': 1}) }}",
    "{{ 3 * 4 + 2 ** 5 % 7 - 1.5 * 2 }}{{ '-' * 3 }}{{ [1, 2] * 2 + [3] }}{{ 2 ** 0.5 }}{{ (1, 2) + (3,) }}{{ -7 % 3 }}",
    "{% macro m(x, function='f', context='c') %}{{ x ~ function ~ context }}{% endmacro %}{{ m('a', function='g', context='d') }}",
    "{{ 'a\\tb'.expandtabs(4) }}{{ 'x'.zfill(3) }}{{ 'ab'.translate({97: 'c'}) }}{{ 'a\\nb'|indent(2) }}{{ [1, 2, 3]|batch(2, 0)|list }}",
    "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.content ~ loop.index + '' %}{% endfor %}{{ ns.t }}",
    "{{ [[1], [2]]|sum(start=[]) }}{{ [1, 2]|sum }}{{ 'text 12345678 {}'.format(1) }}{{ '100 %% 12345678' % () }}{{ undefined + 'a' }}",
    "{{ bos_token }}{% set x %}a{% for m in messages %}{{ m.role|upper + '1' }}{% endfor %}{% endset %}{{ x|trim * 2 }}{{ '<b>'|e + 'a' }}",
]


@given(pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=4), many=st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_ordinary_template_renders_what_it_did(pieces, many):
    text, prompt = "".join(pieces), MANY if many else ONE
    bounded = template(text)
    got = outcome(bounded, prompt)
    compile_bounded = chat_template_utils._compile_jinja_template
    chat_template_utils._compile_jinja_template.cache_clear()
    chat_template_utils.ImmutableSandboxedEnvironment = template_limits.ImmutableSandboxedEnvironment
    try:
        expected = outcome(bounded, prompt)
    finally:
        chat_template_utils.ImmutableSandboxedEnvironment = template_limits.BoundedEnvironment
        compile_bounded.cache_clear()
    assert got == expected


def outcome(template, prompt):
    try:
        return template.render(prompt, "good answer")
    except UnusableError as error:
        return str(error), str(error.__cause__)


def test_a_call_is_not_interrupted_for_the_time_of_others(monkeypatch):
    """What counts is the computing time of its own thread, not the time that passes."""
    monkeypatch.setattr(template_limits, "MOST_SECS", 0.1)
    monkeypatch.setattr(template_limits, "_POLL_SECS", 0.02)
    stop = threading.Event()
    busy = threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)])
    busy.start()
    try:
        assert template_limits.run_bounded(lambda: time.sleep(0.5) or "slept") == "slept"
    finally:
        stop.set()
        busy.join()


def test_a_forked_process_watches_too(monkeypatch):
    monkeypatch.setattr(template_limits, "MOST_SECS", 0.2)
    monkeypatch.setattr(template_limits, "_POLL_SECS", 0.05)
    assert template(CHAT_TEMPLATE).render(ONE, "good")[0]
    child = os.fork()
    if child == 0:
        try:
            template(LOOPS[0]).render(ONE, "good")
        except ModelError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "plan", "run", "train", "evaluate"])
def test_commands_end_with_the_exit_code_of_a_model(command, bestkept, chat, tmp_path, monkeypatch):
    monkeypatch.setattr(template_limits, "MOST_SECS", 0.3)
    model, path = shutil.copytree(chat, tmp_path / "model"), write_jsonl(tmp_path / "a.jsonl", corpus_rows())
    pairs = write_jsonl(
        tmp_path / "p.jsonl", [{"prompt": f"p{k}", "chosen": "good", "rejected": "bad"} for k in range(9)]
    )
    (model / "chat_template.jinja").unlink(missing_ok=True)
    settings_path = model / "tokenizer_config.json"
    settings_path.write_text(json.dumps({**json.loads(settings_path.read_text()), "chat_template": LOOPS[0]}))
    settings = {"model": {"path": str(model)}, "output": {"path": str(tmp_path / "out")}}
    read = {"data": {"path": str(pairs)}} if command == "train" else {"input": {"path": str(path)}}
    (tmp_path / "c.yaml").write_text(json.dumps({**settings, **read}))
    words = {"inspect": [path, f"model.path={model}"], "evaluate": [model, pairs, f"output.path={tmp_path}/out"]}
    code, _, err = bestkept(command, *words.get(command, [tmp_path / "c.yaml"]))
    assert (code, f"the chat template of {model} computes for more than" in err) == (7, True), err
