"""The results of `score`, `select` and `curate`: tables with their counts, paths and warnings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.config import RunConfig
from pipelines.errors import ConfigError, StorageError

if TYPE_CHECKING:
    import datasets
    import numpy.typing as npt
    import pandas
    import pyarrow


def _to_frame(table: pyarrow.Table) -> pandas.DataFrame:
    """Return a table as a DataFrame, with lists and mappings instead of Arrow's numpy arrays."""
    import pandas as pd
    import pyarrow as pa

    frame = table.to_pandas()
    for column in table.schema:
        if pa.types.is_nested(column.type):
            frame[column.name] = pd.Series(table[column.name].to_pylist(), index=frame.index, dtype=object)
    return frame


@dataclass(frozen=True, eq=False)
class Scores:
    """The rewards of a corpus, in its order; `select` takes them any number of times."""

    path: str
    """The directory of the score files."""
    table: pyarrow.Table = field(repr=False)
    """One row per response: `file`, `row` (in the file, from 0), `response_index` (in the row, from 0), `reward` (float32, raw;
    null where rejected), `reason` (null where scored), `prompt_tokens`, `response_tokens`, `truncated`, `source`, and carried
    columns as `carry.NAME`."""
    counts: dict[str, Any]
    """Numbers of responses: `read`, `scored`, `rejected` by reason, `truncated`; also numbers of `rows` and `tokens`."""
    config: RunConfig = field(repr=False)
    """The configuration of the scoring."""
    _folder: Any = field(default=None, repr=False)  # removed with this object, where no output was given

    @property
    def rewards(self) -> npt.NDArray[np.float32]:
        """The raw rewards, float32 [responses], in the order of the corpus; NaN if a response was rejected."""
        rewards: npt.NDArray[np.float32] = self.table["reward"].to_numpy().astype(np.float32)
        return rewards

    def __len__(self) -> int:
        """Return the number of responses."""
        return int(self.table.num_rows)

    def to_pandas(self) -> pandas.DataFrame:
        """Return `table` as a pandas DataFrame."""
        return _to_frame(self.table)

    def to_dataset(self) -> datasets.Dataset:
        """Return `table` as a `datasets.Dataset`."""
        from datasets import Dataset

        return Dataset(self.table)


@dataclass(frozen=True, eq=False)
class Curated:
    """A data set that has been curated."""

    path: str
    """The directory of the data set: Parquet shards in `data/`, a card, `manifest.json` and, from `curate`, `report.html`."""
    manifest: dict[str, Any] = field(repr=False)
    """The content of `manifest.json`: settings, counts, shards and warnings; empty where the call did not wait for a service."""
    already_complete: bool = False
    """True if an earlier call with the same inputs and settings made the data set."""
    _folder: Any = field(default=None, repr=False)  # removed with this object, where no output was given

    @property
    def counts(self) -> dict[str, Any]:
        """Numbers of responses: `read`, `scored`, `kept`, and more; `kept_prompts` and `prompts` count prompts."""
        return dict(self.manifest.get("counts", {}))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the users of the data set."""
        return tuple(self.manifest.get("warnings", ()))

    @property
    def report(self) -> str | None:
        """The path of `report.html`; None if none was written."""
        return f"{self.path}/report.html" if self.manifest.get("report") else None

    def __len__(self) -> int:
        """Return the number of rows in all splits."""
        return sum(shard["rows"] for shard in self.manifest.get("shards", ()))

    def to_arrow(self, split: str = "train") -> pyarrow.Table:
        """Return the rows of a split as an Arrow table in memory; all rows are in `train`, unless `output.test_fraction` is set.

        Raises `ConfigError` for an unknown split, `StorageError` if the data set is missing.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        from pipelines.storage.files import join, read_bytes

        names = [shard["name"] for shard in self.manifest.get("shards", ())]
        wanted = [name for name in names if name.rpartition("/")[2].startswith(f"{split}-")]
        if not wanted:
            splits = sorted({name.rpartition("/")[2].partition("-")[0] for name in names})
            known = f"has {', '.join(splits)}; name one of these" if splits else "has no splits yet"
            raise ConfigError(f"there is no split {split!r}: {self.path} {known}")
        tables = []
        for name in wanted:
            data = read_bytes(join(self.path, name))
            if data is None:
                raise StorageError(f"{join(self.path, name)} is gone; make the same call again")
            tables.append(pq.read_table(pa.BufferReader(data)))
        return pa.concat_tables(tables)

    def to_pandas(self, split: str = "train") -> pandas.DataFrame:
        """Return the rows of a split as a pandas DataFrame. Raises as `to_arrow` does."""
        return _to_frame(self.to_arrow(split))

    def to_dataset(self, split: str = "train") -> datasets.Dataset:
        """Return the rows of a split as a `datasets.Dataset` in memory. Raises as `to_arrow` does.

        For a data set that does not fit into memory, use `datasets.load_dataset(curated.path)`.
        """
        from datasets import Dataset

        return Dataset(self.to_arrow(split))
