"""Units of input files, and their keys."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.corpus import InputFile, UnitKey, files, split_units, unit_of

LARGEST = 2**31 - 1


@pytest.mark.parametrize("key", [(0, 0), (0, LARGEST), (3, 5), (LARGEST, 0), (LARGEST, LARGEST)])
def test_a_packed_key_unpacks_to_its_numbers(key):
    assert UnitKey.unpack(UnitKey(*key).pack()) == key


def test_packed_columns_are_the_packed_keys_in_order():
    keys = [UnitKey(3, 5), UnitKey(0, LARGEST), UnitKey(LARGEST, LARGEST), UnitKey(LARGEST, 0)]
    columns = np.array(keys, np.int32)
    packed = UnitKey.pack_columns(columns[:, 0], columns[:, 1])
    assert packed.dtype == np.int64
    assert packed.tolist() == [key.pack() for key in keys]
    assert [keys[at] for at in np.argsort(packed)] == sorted(keys)


def test_a_unit_is_known_by_its_number_and_none_where_the_file_has_no_such_unit(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RANGE_BYTES", 10)
    path = tmp_path / "part.jsonl"
    path.write_bytes(b"{}\n" * 8 + b"\n")
    file = InputFile(str(path), path.name, "jsonl", None, 25, "1")
    assert [unit_of(file, number) for number in range(4)] == [*split_units(file), None]
