"""`bestkept inspect`: every field, its meaning and its default."""

from __future__ import annotations

from pydantic import model_validator

from pipelines.config.base import Strict
from pipelines.config.corpus import InputFiles, RowLimits
from pipelines.config.model import ReadingModel
from pipelines.config.train import PreferencesConfig


class InspectConfig(Strict):
    """`bestkept inspect`; settings of files have the same names as in `run` and `train`."""

    input: InputFiles
    """The files, read as a corpus."""
    data: PreferencesConfig
    """The same files, read as preferences."""
    model: ReadingModel | None = None
    """The model whose template and tokens are shown; its weights are not loaded."""
    limits: RowLimits = RowLimits()
    """The size above which rows are not read."""

    @model_validator(mode="after")
    def _one_path(self) -> InspectConfig:
        if self.input.path != self.data.path:
            raise ValueError(
                "input.path and data.path differ, and one path is inspected; give it as PATH instead of both"
            )
        if None not in (self.input.split, self.data.split) and self.input.split != self.data.split:
            raise ValueError("input.split and data.split differ, and one split is inspected; give one of them")
        return self

    @property
    def files(self) -> InputFiles:
        """The files to inspect."""
        return self.input.model_copy(update={"split": self.input.split or self.data.split})
