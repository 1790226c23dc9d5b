"""Scheduled runs over a corpus whose new rows drift: exit code 4 before the pointer moves, and how a version is accepted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.corpora import write_jsonl

from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.errors import RejectedError
from pipelines.finish.versions import read_latest


def write_night(folder, number, scale):
    rewards = scale * np.random.default_rng(number).normal(5.0, 1.0, 40)
    rows = [
        {"prompt": f"prompt {number} {k // 2}", "response": f"answer {k}", "judge": float(reward)}
        for k, reward in enumerate(rewards)
    ]
    write_jsonl(folder / f"{number}.jsonl", rows)


def settings(tmp_path, **limits):
    return RunConfig.model_validate(
        {
            "input": {"path": str(tmp_path / "in" / "*.jsonl")},
            "scores": {"column": "judge"},
            "output": {"path": str(tmp_path / "out"), "versions": True},
            "limits": limits,
        }
    )


@pytest.mark.slow
def test_a_night_at_a_fifth_of_the_rewards_ends_with_4_and_moves_no_pointer(tmp_path):
    limited = settings(tmp_path, max_reward_shift=0.5)
    write_night(tmp_path / "in", 0, 1.0)
    first = run_curation(limited, scorer=None).version_run.version
    write_night(tmp_path / "in", 1, 0.2)
    for _ in range(2):  # the same again, where the version is complete by now
        with pytest.raises(
            RejectedError, match=r"a shift of -\d\.\d+ standard deviations, more than limits\.max_r"
        ) as error:
            run_curation(limited, scorer=None)
        assert error.value.exit_code == 4
        assert read_latest(str(tmp_path / "out")).version == first
    (drifted,) = (tmp_path / "out").glob("versions/*/drift.json")
    told = json.loads(drifted.read_text())
    assert (told["against"], told["rows"], told["responses"]) == (first, "new", {"old": 40, "new": 40})
    accepted = run_curation(settings(tmp_path, max_reward_shift=9.0), scorer=None)
    assert accepted.already_complete
    assert read_latest(str(tmp_path / "out")).version == accepted.version_run.version != first


@pytest.mark.slow
def test_the_page_of_a_version_shows_the_drift_without_any_limit(tmp_path):
    write_night(tmp_path / "in", 0, 1.0)
    first = run_curation(settings(tmp_path), scorer=None).version_run
    assert "Since version" not in (tmp_path / "out" / "versions" / first.version / "report.html").read_text()
    write_night(tmp_path / "in", 1, 0.2)
    second = run_curation(settings(tmp_path), scorer=None).version_run
    assert read_latest(str(tmp_path / "out")).version == second.version
    page = (tmp_path / "out" / "versions" / second.version / "report.html").read_text()
    told = json.loads((tmp_path / "out" / "versions" / second.version / "drift.json").read_text())
    assert f"Since version {first.version}" in page
    assert f"{told['reward']['shift']:+.2f}" in page
    assert f"standard deviations from that of version {first.version}" in page  # the first screen warns of it
    written = json.loads((tmp_path / "out" / "versions" / second.version / "report.json").read_text())
    assert written["units"]["reward"] == "raw output of the reward model"


def test_limits_on_drift_need_versions_and_reports(tmp_path):
    values = settings(tmp_path, max_reward_shift=0.5).model_dump(exclude_unset=True)
    for change in ({"output": {"path": "out"}}, {"report": {"write": False}}):
        with pytest.raises(ValueError, match=r"limits\.max_reward_shift compares a version with the one before"):
            RunConfig.model_validate({**values, **change})
