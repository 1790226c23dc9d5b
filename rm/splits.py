"""The splits of a data set, by the names of its files and folders."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NAMED = re.compile(
    r"(train|training|validation|valid|val|dev|test|testing|eval|evaluation|heldout|holdout)(?![a-z])", re.IGNORECASE
)
_SHARD = re.compile(r"(.+)-\d{3,}-of-\d{3,}\..*")
_BESIDE_ARROW = ("dataset_info.json", "state.json", "dataset_dict.json")


class SplitError(ValueError):
    """Several splits instead of one, or no split of the wanted name; the message names the splits and no setting."""


def split_of(key: str) -> str | None:
    """Return the split named by a file, or else by its innermost folder that names one; None if neither does.

    >>> split_of("data/test_sft-00000-of-00002.parquet"), split_of("train_1.jsonl"), split_of("test/data-00000-of-00001.arrow")
    ('test_sft', 'train', 'test')
    """
    *folders, name = key.split("/")
    shard = _SHARD.fullmatch(name)
    if named := _NAMED.match(name):
        return shard[1] if shard else named[1]
    for folder in reversed(folders):
        if (named := _NAMED.match(folder)) is not None and re.fullmatch(r"\w+", folder):
            return folder
    return None


def take_split(keys: Sequence[str], wanted: str | None) -> list[str]:
    """Return the keys of the wanted split, or of the only one, with those that name no split. Raises `SplitError`.

    From the files of `datasets.save_to_disk` only the data are taken, without descriptions and caches.
    """
    keys = _data_of(keys)
    splits = {key: split_of(key) for key in keys}
    named = sorted({split for split in splits.values() if split is not None})
    if wanted is not None:
        if wanted not in named:
            known = f"the splits {', '.join(named)}" if named else "no split"
            raise SplitError(f"its files name {known}, and {wanted!r} is wanted")
        return [key for key in keys if splits[key] == wanted]
    if len(named) > 1:
        raise SplitError(f"its files belong to several splits: {', '.join(named)}")
    return list(keys)


def _data_of(keys: Sequence[str]) -> list[str]:
    if not any(key.endswith(".arrow") for key in keys):
        return list(keys)
    saved = {key.rpartition("/")[0] for key in keys if key.rpartition("/")[2] == "state.json"}
    return [
        key
        for key in keys
        if (name := key.rpartition("/")[2]) not in _BESIDE_ARROW
        and not (name.startswith("cache-") and key.rpartition("/")[0] in saved)
    ]
