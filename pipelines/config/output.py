"""The data set that a run writes, its report, and its upload."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipelines.config.base import PathText, Strict, refuse_unused


class HubConfig(Strict):
    """A data set repository on the Hugging Face Hub. The token comes from HF_TOKEN, or from `hf auth login`."""

    repo: str
    """`organisation/name`, or `user/name`; created if it does not exist."""
    private: bool | None = None
    """Whether a newly created repository is visible only to its owners; default: yes. An existing one is not changed."""
    revision: str | None = Field(default=None, min_length=1)
    """A branch instead of the default one; created if it does not exist."""

    @field_validator("repo")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        parts = value.split("/")
        named = all(re.fullmatch(r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", part, re.ASCII) for part in parts)
        if len(parts) != 2 or not named or "--" in value or ".." in value or value.endswith(".git") or len(value) > 96:
            raise ValueError("expected organisation/name, of letters, digits, '-', '_' and '.', at most 96 characters")
        return value


def _bare_repo(value: Any) -> Any:
    return {"repo": value} if isinstance(value, str) else value


class OutputConfig(Strict):
    path: PathText = Field(examples=["curated"])
    """Directory of the curated data set; one selection per path. `{date}` expands to today's date in UTC."""
    versions: bool = False
    """Whether repeated runs over a growing corpus write versions: `path` is then a root, each run writes to `versions/ID` in
    it, and `latest.json` names the last complete one (`bestkept latest`). ID is the same for the same files, model and
    settings."""
    shape: Literal["messages", "prompt_completion", "preference", "original"] = "messages"
    """The layout of the rows; `preference` is for the rules `pairs` and `preferences`."""
    include_columns: list[str] = []
    """Additional columns of the input, besides those of the shape."""
    add: list[Literal["rank", "margin", "probability", "flipped"]] = []
    """Additional columns computed from the rewards: `rank` within the prompt (1 is best); `margin`, the gap to the next worse
    response (null for the worst) or, with the rule `preferences`, to the rejected one; `probability`, sigma(margin / T) with
    T from the model's `calibration.json`; and `flipped`: whether `preferences` has swapped the sides."""
    rows_per_shard: int = Field(default=100_000, ge=1)
    """Maximum number of rows in a shard."""
    bytes_per_shard: int = Field(default=512 * 2**20, ge=1)
    """Bytes of text after which a shard ends, before compression; a shard has at least one row."""
    test_fraction: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Expected share of prompts that go to `data/test-*.parquet` instead of `data/train-*.parquet`, each with all its kept
    responses. A hash of the prompt alone (with `input.group_by`, of the group) decides, so that no prompt changes sides as
    the corpus grows. Default: no split."""
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the hash that chooses the test prompts."""
    license: str | None = None
    """The license named in the dataset card."""
    push_to_hub: Annotated[HubConfig | None, BeforeValidator(_bare_repo)] = None
    """Upload the finished data set to this repository: `organisation/name`, or a mapping of `repo`, `private` and `revision`.
    `scores/` and `rejected/` are not uploaded."""

    @field_validator("path")
    @classmethod
    def _expand(cls, value: str) -> str:
        return value.replace("{date}", datetime.now(UTC).strftime("%Y-%m-%d"))

    @model_validator(mode="after")
    def _seed_is_used(self) -> OutputConfig:
        used = self.test_fraction is not None or not self.split_seed  # the value of the printed example changes nothing
        refuse_unused(self, {"split_seed"}, used=used, by="test_fraction")
        return self

    @model_validator(mode="after")
    def _uploads_from_here(self) -> OutputConfig:
        if self.push_to_hub is not None and "://" in self.path:
            raise ValueError(
                f"push_to_hub uploads from a directory of this machine, and path is {self.path}; give a local path, or leave "
                "push_to_hub out and upload a copy of the finished output"
            )
        return self


class ReportConfig(Strict):
    """`report.html`, with its numbers in `report.json` and its conversations in `samples.parquet`."""

    write: bool = True
    """Whether to write the report, for which the score files are read again after selection."""
    samples: int = Field(default=10, ge=0, le=100)
    """Number of conversations of each kind in the report: the best, the worst, those at the border, and the closest calls.
    With 0, the report contains no text of the corpus."""
    gold: str | None = None
    """A column under `input.carry` with the true quality of each response, as a number or as true and false. The report
    measures best-of-n by it; rules never see it."""
    report_to: list[Literal["mlflow", "trackio"]] = []
    """Trackers that receive the numbers and settings of a run when it ends, as `train.report_to` does for training; each is
    configured by its own environment variables."""
