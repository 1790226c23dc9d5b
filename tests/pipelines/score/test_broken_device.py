"""A device that breaks is not bad data: nothing is published for its fragment, the process ends, and the next run completes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.corpora import TIMED, corpus_rows, write_jsonl

from pipelines.commands.run import default_scorer, run_curation
from pipelines.errors import BrokenDeviceError, ModelLoadError, StorageError, carrying_errors, from_text
from pipelines.plan import make_plans
from pipelines.runtime import machine, progress
from pipelines.score.load_model import LoadScorer, ending_with_device, process_name
from pipelines.score.score_columns import refuse_broken_model

ROWS = corpus_rows(30, 4)
ERROR = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"


@dataclass
class BreakingDevice:
    """Loads the plan's model onto a device that breaks at this batch, counted from 1; with `once`, in one process only."""

    batch: int
    once: str | None = None

    def __call__(self, plan):
        scorer = LoadScorer()(plan)
        forward, done = scorer._forward, []

        def breaking(rows, batch):
            done.append(len(rows))
            if len(done) >= self.batch and self._here():
                raise torch.AcceleratorError(ERROR)
            return forward(rows, batch)

        scorer._forward = breaking
        return scorer

    def _here(self) -> bool:
        if self.once is None:
            return True
        try:
            with Path(self.once).open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return Path(self.once).read_text() == str(os.getpid())
        return True


@pytest.fixture
def make(tmp_path, make_config, causal):
    """(name, workers) → a configuration whose scores and output have that name; a fragment has several batches."""
    for number in range(2):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", ROWS[number::2])

    def config(name, workers=1):
        return make_config(
            tmp_path / "in",
            model={"path": str(causal), "tokens_per_batch": 100},
            input={"rows_per_fragment": 12},
            scores={"path": str(tmp_path / f"{name}-scores")},
            output={"path": str(tmp_path / name)},
            runner={"workers": workers},
            report={"write": False},
        )

    progress.reset()
    return config


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name not in TIMED}


def score_files(tmp_path, name) -> dict[str, bytes]:
    found = files(tmp_path / f"{name}-scores")
    return {path: content for path, content in found.items() if not path.startswith("plans") and "totals" not in path}


def assert_part(tmp_path, name, *, of) -> int:
    """Assert that what is there of one run are score files of the other; return their number."""
    some, whole = score_files(tmp_path, name), score_files(tmp_path, of)
    assert some.items() < whole.items()
    assert not (tmp_path / name / "manifest.json").exists()
    return len(some)


@pytest.mark.parametrize("batch", [1, 10])
def test_a_device_that_breaks_rejects_no_row_and_the_next_run_completes(tmp_path, make, batch):
    run_curation(make("whole"), scorer=default_scorer(make("whole")))
    with pytest.raises(StorageError, match=r"the device failed .*device-side assert.*no row caused this.*same command"):
        run_curation(make("broken"), scorer=BreakingDevice(batch))
    published = assert_part(tmp_path, "broken", of="whole")
    assert published == 0 if batch == 1 else published >= 1
    outcome = run_curation(make("broken"), scorer=default_scorer(make("broken")))
    assert outcome.manifest["rejected"] == {}
    assert files(tmp_path / "broken-scores") == files(tmp_path / "whole-scores")
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


@pytest.mark.slow
def test_workers_whose_device_breaks_are_replaced_once(tmp_path, make, monkeypatch, caplog):
    monkeypatch.setattr(machine, "count_cores", lambda: 2)
    whole = make("whole", 2)
    run_curation(whole, scorer=default_scorer(whole))
    # one device breaks at its tenth batch, and the worker that takes its place has a sound one
    run_curation(make("once", 2), scorer=BreakingDevice(10, once=str(tmp_path / "broke")))
    assert "has lost its device (AcceleratorError: CUDA error: device-side assert triggered)" in caplog.text
    assert "another takes its place" in caplog.text
    assert files(tmp_path / "once") == files(tmp_path / "whole")
    # every device breaks at its first batch
    with pytest.raises(
        StorageError, match=r"lost its device .*as the one before it did; finished scores are kept.*nvidia-smi"
    ):
        run_curation(make("broken", 2), scorer=BreakingDevice(1))
    assert assert_part(tmp_path, "broken", of="whole") == 0
    run_curation(make("broken", 2), scorer=default_scorer(whole))
    assert files(tmp_path / "broken-scores") == files(tmp_path / "whole-scores")
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_a_runner_s_worker_ends_with_its_device():
    """So that the runner starts another; the launcher's own process raises what it reports."""
    with pytest.raises(RuntimeError) as raised, carrying_errors(), ending_with_device(process_name()):
        raise BrokenDeviceError("it broke")
    assert "it broke" in from_text(str(raised.value)).message
    program = (
        "from pipelines.errors import BrokenDeviceError\n"
        "from pipelines.score.load_model import ending_with_device\n"
        "try:\n"
        "    with ending_with_device('another'): raise BrokenDeviceError('it broke')\n"
        "finally: print('it lives on')\n"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    ended = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert ended.returncode == 5
    assert "it lives on" not in ended.stdout
    assert "it broke" in ended.stderr


@pytest.mark.parametrize(
    ("reasons", "error"),
    [
        ([None] * 2 + ["model_error"] * 18, r"fails on 18 of the responses of a fragment \(20 responses\)"),
        (["too_long"] * 500 + ["model_error"] * 16, r"fails on every response of a fragment \(16 responses\)"),
        (["too_long"] * 500 + ["nan_reward"] * 16, r"gives NaN for every response of a fragment \(16 responses\)"),
        (["nan_reward"] * 19 + [None], None),
        (["nan_reward"] * 10 + ["model_error"] * 10, "fails on every response"),
        ([None] * 3 + ["model_error"] * 17, None),
        (["model_error"] * 15, None),
        (["too_long"] * 500, None),
        (["out_of_memory"] * 10 + ["model_error"] * 10, None),
    ],
)
def test_a_fragment_where_the_model_fails_on_nearly_all_that_it_reads_ends_the_run(reasons, error, make):
    plan = make_plans(make("any")).whole
    if error is None:
        refuse_broken_model(reasons, plan)
    else:
        with pytest.raises(ModelLoadError, match=error):
            refuse_broken_model(reasons, plan)
