"""The input files, their columns, and the size of their rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.config.base import PathText, Strict


class Columns(Strict):
    """The input columns by role; needed only if detection fails. A path names a field of records: `request.prompt`."""

    messages: str | None = None
    """Whole conversations; the last assistant turn is the response."""
    prompt: str | None = None
    """Text, or a list of messages."""
    response: str | None = None
    """One response per row: text, an assistant message, or a list with one."""
    responses: str | None = None
    """A list of responses per row: texts, messages, or records, whose field may be named: `outputs.text`."""
    input: str | None = None
    """Additional input, appended to the prompt after an empty line (Alpaca)."""
    system: str | None = None
    """A system prompt, put before the conversation."""
    tools: str | None = None
    """The tools that a conversation may call: a list, or that list as JSON; passed to the model's template and to the output."""
    source: str | None = None
    """The origin of a row; copied to score files and output."""
    chosen: str | None = None
    """With `format: preferences`: the preferred response of a pair."""
    rejected: str | None = None
    """With `format: preferences`: the other response of the pair."""

    @model_validator(mode="after")
    def _one_role_each(self) -> Columns:
        named = [name for name in self.model_dump().values() if name is not None]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ValueError(f"column {twice[0]!r} is named for two roles; give each role its own column")
        if self.response is not None and self.responses is not None:
            raise ValueError("response and responses exclude each other; name the one that the rows have")
        return self


class InputFiles(Strict):
    """The files of a corpus, and the roles of their columns."""

    path: PathText | Annotated[list[PathText], Field(min_length=1)] = Field(examples=["corpus/*.parquet"])
    """Files, globs, or directories of Parquet, JSON lines, JSON arrays, CSV, TSV or Arrow (`datasets.save_to_disk`); local or
    any fsspec URL (s3://, gs://, ...). A file with another extension, if named explicitly, is recognised by its first bytes."""
    split: str | None = None
    """The split to read, if names of files or folders contain one, as in `train-00000-of-00002.parquet` or
    `test/data-00000-of-00001.arrow`. Required if there are several splits, which are never mixed."""
    format: Literal[
        "auto", "messages", "sharegpt", "prompt_response", "responses_list", "alpaca", "hh", "preferences"
    ] = "auto"
    """The layout of the rows; `auto` detects it from their columns and values. `hh`: transcripts, "Human: ... Assistant:
    ...", complete ones in `columns.messages` or open-ended ones in `columns.prompt`. `preferences`: pairs, rankings, grades
    or verdicts, in the formats of `bestkept train`; all responses of a row are scored, and numbered from best to worst by its
    judgement."""
    columns: Columns = Columns()
    """The columns by role; needed only if detection fails."""
    response: Literal["last_turn", "after_last_user"] | None = None
    """The response of a conversation: its last turn, or everything after the last user turn (tool calls, their results, the
    answer). If unset, the first rows decide; `bestkept inspect` reports the choice and the reason."""
    repeated_prompt: Literal["cut", "keep"] | None = None
    """Whether prompts that responses repeat at the front, as generators that return the whole text do, are removed (`cut`) or
    kept. If unset, they are removed if nearly all of the first rows have one, with a warning."""

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else list(self.path)


class RowLimits(Strict):
    max_row_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Maximum size of a row; larger rows are rejected."""


class InputConfig(InputFiles):
    carry: list[str] = []
    """Additional columns to keep in the score files, as text."""
    group_by: Literal["prompt"] | list[str] = "prompt"
    """The group in which responses compete: the same prompt, or equal values in these columns. Prompts are compared in
    Unicode form NFC, in which `é` as one character equals a letter with a combining accent; each row keeps its own text."""
    rows_per_fragment: int = Field(default=2048, ge=1)
    """Rows per score file, the most that an interruption loses. Changing it rescores the corpus."""
