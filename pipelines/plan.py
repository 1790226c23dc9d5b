"""The plan of a run, decided once by the launcher and frozen: input files, column mapping, model fingerprint.

Each model of an ensemble has its own plan, as if it were the only model. The ensemble has one more, for the stages after scoring.
The launcher lists and describes files, and opens one of them to detect its columns; it never reads the corpus.

    plans = make_plans(config)
    paths = plans.save(scores)  # workers read the plan by `plan_at(paths.whole)`
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from pipelines.config import ModelConfig, RunConfig
from pipelines.config.signals import EmbeddingConfig
from pipelines.corpus import Fragment, InputFile, RawFragment, Unit, read_raw_fragments
from pipelines.corpus.columns.detection import detect, refuse_missing_field
from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.corpus.columns.value_kinds import FirstRows
from pipelines.corpus.files import with_copy
from pipelines.corpus.listing import first_columns, list_files
from pipelines.corpus.ngram_index import INDEX, resolve_measures
from pipelines.corpus.own_files import places_of, refuse_places
from pipelines.corpus.parquet import refuse_types
from pipelines.corpus.reward_source import name_of, reward_fields, template_warnings
from pipelines.errors import ConfigError, InputError, StorageError, join_names
from pipelines.storage import publish
from pipelines.storage.canonical_json import digest
from pipelines.storage.files import absolute, join, read_bytes

COMBINE_VERSION = 1
"""Increased by hand whenever the same rewards and settings combine to different rewards."""

log = logging.getLogger(__name__)

# No reward depends on these fields. A selection that uses one includes it in its own settings.
_NOT_IN_HASH = ("model", "temperature", "comparable", "evaluations")


@dataclass(frozen=True)
class Plan:
    """The frozen inputs of a run; written once, read by every worker."""

    files: tuple[InputFile, ...]  # sorted by key, the order of the output
    mapping: RowMapping
    rows_per_fragment: int
    max_row_bytes: int
    model: Mapping[str, Any]  # how to load it; for an ensemble, its members by name and fingerprint
    identity: Mapping[str, Any]  # hashes of weights and tokenizer, and the rest of the fingerprint
    fingerprint: str
    temperature: float | None = None  # from the model's calibration.json; no reward depends on it
    comparable: bool = True  # whether rewards of different prompts are known to be comparable
    evaluations: Mapping[str, Any] = field(
        default_factory=dict
    )  # fingerprint of a model → the one in its calibration.json
    measures: tuple[Mapping[str, Any], ...] = ()  # settings of measures without a model, see `score.side_files`
    signals: Mapping[str, Any] = field(default_factory=dict)  # name of a signal → name and fingerprint of its model

    @cached_property
    def hash(self) -> str:
        """Hash of everything that the result depends on; the model's location is excluded."""
        fields = self._hashed_fields()
        for file in fields["files"]:
            del file["copy"]
        return digest(fields)

    @property
    def input_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def content_hash(self) -> str:
        """Like `hash`, without the location and version of files, which change when a file is copied or touched."""
        fields = self._hashed_fields()
        fields["files"] = [(file.key, file.size) for file in self.files]
        return digest(fields)

    def _hashed_fields(self) -> dict[str, Any]:
        fields = self.to_json()
        for name in _NOT_IN_HASH:
            fields.pop(name, None)
        if self.signals:
            fields["signals"] = {name: model["fingerprint"] for name, model in self.signals.items()}
        return fields

    def measure_fingerprint(self, settings: Mapping[str, Any]) -> str:
        """The fingerprint of a measure, which names the directory of its side files; it depends on no model."""
        context = {"mapping": self.mapping.to_json(), "max_row_bytes": self.max_row_bytes}
        return digest({"measure": dict(settings), **context})[:24]

    @property
    def fingerprints(self) -> list[str]:
        """The fingerprints of the rewards and of the measures."""
        return [self.fingerprint, *map(self.measure_fingerprint, self.measures)]

    def fragments(self, file: InputFile, unit: Unit, *, as_planned: bool = False) -> Iterator[Fragment]:
        """A unit's fragments under this plan's settings; with `as_planned`, the file must be the version that was listed."""
        return (raw.parse(self.mapping) for raw in self.raw_fragments(file, unit, as_planned=as_planned))

    def raw_fragments(self, file: InputFile, unit: Unit, *, as_planned: bool = False) -> Iterator[RawFragment]:
        """The same, before their rows are parsed."""
        return read_raw_fragments(
            file,
            unit,
            self.mapping,
            rows_per_fragment=self.rows_per_fragment,
            max_row_bytes=self.max_row_bytes,
            as_planned=as_planned,
            beside=self._beside,
        )

    def reading_key(self, file: InputFile, unit: Unit) -> Hashable:
        """Everything that `raw_fragments` depends on, including the file's version; the same for all models of a run."""
        return file, unit, self.mapping, self.rows_per_fragment, self.max_row_bytes, *self._beside

    @property
    def _beside(self) -> list[str]:
        return [measure["column"] for measure in self.measures if measure["kind"] == "column"]

    def to_json(self) -> dict[str, Any]:
        return {
            "files": [file._asdict() for file in self.files],
            "mapping": self.mapping.to_json(),
            "rows_per_fragment": self.rows_per_fragment,
            "max_row_bytes": self.max_row_bytes,
            "model": dict(self.model),
            "identity": dict(self.identity),
            "fingerprint": self.fingerprint,
            "temperature": self.temperature,
            "comparable": self.comparable,
            **({"evaluations": dict(self.evaluations)} if self.evaluations else {}),
            **({"measures": [*map(dict, self.measures)]} if self.measures else {}),
            **({"signals": dict(self.signals)} if self.signals else {}),
        }

    @property
    def file_name(self) -> str:
        """The name of the plan file."""
        return f"{digest(self.to_json())[:32]}.json"

    def save(self, scores: str) -> str:
        """Write the plan file below the scores directory and return its path. Raises `StorageError` if that fails."""
        path = join(scores, "plans", self.file_name)
        # without indentation, which takes 2 s for 100,000 files
        publish.create(path, json.dumps(self.to_json(), sort_keys=True).encode())
        return path

    @classmethod
    def load(cls, path: str) -> Plan:
        """Read a plan file. Raises `StorageError` if it is missing."""
        data = read_bytes(path)
        if data is None:
            raise StorageError(f"the plan file {path} is missing; run the same command again")
        fields = json.loads(data)
        fields["files"] = tuple(InputFile(**file) for file in fields["files"])
        fields["mapping"] = RowMapping.from_json(fields["mapping"])
        fields["measures"] = tuple(fields.get("measures", ()))
        return cls(**fields)


class PlanPaths(NamedTuple):
    """The paths of the plan files."""

    whole: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Plans:
    """The plan of the stages after scoring, and the plans that are scored; with a single model both are the same.

    Members are sorted by fingerprint, whatever their order in the configuration; this order determines the results.
    """

    whole: Plan
    members: tuple[Plan, ...]
    indexes: Mapping[str, bytes] = field(default_factory=dict)  # hash of an index of test prompts → the index

    def with_signals(self, signals: Mapping[str, Plan], models: Mapping[str, ModelConfig | EmbeddingConfig]) -> Plans:
        """These plans and those of the signals' models, which score after the others."""
        if not signals:
            return self
        named = {
            name: {"name": name_of(models[name]), "revision": models[name].revision, "fingerprint": plan.fingerprint}
            | ({} if plan.comparable else {"comparable": False})
            | ({"embedding": plan.model["embedding"]} if "embedding" in plan.model else {})
            for name, plan in signals.items()
        }
        return Plans(replace(self.whole, signals=named), (*self.members, *signals.values()))

    def save(self, scores: str) -> PlanPaths:
        """Write the plan files. Raises `StorageError` if the scores directory is not writable."""
        for settings in self.whole.measures:
            if "index" in settings:  # the workers that measure rows read it
                folder = join(scores, self.whole.measure_fingerprint(settings))
                publish.create(join(folder, INDEX), self.indexes[settings["index"]])
        members = tuple(member.save(scores) for member in self.members)
        return PlanPaths(self.whole.save(scores) if len(members) > 1 else members[0], members)


def make_plans(config: RunConfig) -> Plans:
    """List and freeze the inputs, and resolve the mapping and the models' identities.

    Raises `InputError` (nothing matches, unknown kind, columns not found), `ModelLoadError`, and `ConfigError` if two
    models of an ensemble are the same, or if the input's pattern could match a file of the output or of the scores.
    """
    refuse_places("input.path", config.input.paths, places_of(config))
    files = tuple(list_files(config.input, skip_bad_files=config.limits.skip_bad_files))
    limits = config.limits
    if not limits.trust_unversioned:
        _refuse_unversioned(files)
    names, rows, where = first_columns(files, max_row_bytes=limits.max_row_bytes, skip_bad_files=limits.skip_bad_files)
    detected = detect(
        names,
        rows=rows,
        format=config.input.format,
        columns=config.input.columns,
        carry=config.input.carry,
        group_by=[] if config.input.group_by == "prompt" else config.input.group_by,
        where=where,
        reward=config.scores.column,
        response=config.input.response,
        repeated_prompt=config.input.repeated_prompt,
    )
    for note in detected.notes:
        log.warning("%s: %s", where, note)
    mapping = detected.mapping
    if (file := next(file for file in files if file.path == where)).kind == "parquet":
        refuse_types(file, mapping)
    scores = absolute(config.scores_path)
    files = tuple(with_copy(file, scores, max_row_bytes=limits.max_row_bytes) for file in files)
    for name, signal in config.signals.items():
        if signal.column is not None and not {signal.column, signal.column.partition(".")[0]} & {*names}:
            raise InputError(_no_such_column(name, signal.column, where, names))
        if signal.column is not None and signal.column not in names:
            refuse_missing_field(FirstRows([*names], [*rows]), f"signals.{name}.column", signal.column, where)
    models: Sequence[ModelConfig | None] = config.models or [None]
    measures, indexes = resolve_measures(config.measures)
    for model in [*config.models, *config.signal_models.values()]:
        for warning in template_warnings(model, rows, mapping):
            log.warning("model.path %s: %s", name_of(model), warning)
    plans = [
        Plan(
            files=files,
            mapping=mapping,
            rows_per_fragment=config.input.rows_per_fragment,
            max_row_bytes=config.limits.max_row_bytes,
            measures=measures,
            **reward_fields(config, model, mapping),
        )
        for model in models
    ]
    rewards = Plans(plans[0], (plans[0],)) if len(plans) == 1 else _ensemble(config, plans)
    signals = {
        name: replace(rewards.members[0], measures=(), **reward_fields(config, model, mapping))
        for name, model in config.signal_models.items()
    }
    return replace(rewards.with_signals(signals, config.signal_models), indexes=indexes)


def _no_such_column(signal: str, column: str, where: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(column, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "name one of them, or a field of one: COLUMN.FIELD"
    return f"signals.{signal}.column names {column!r}, and {where} has {join_names(names)}; {hint}"


def _refuse_unversioned(files: Sequence[InputFile]) -> None:
    unversioned = next((file for file in files if file.size and not file.version), None)
    if unversioned is not None:
        raise InputError(
            f"input file {unversioned.path} has no version: its store gives neither checksum nor modification time, so other "
            "text of equal size would pass for what was scored; copy the files to a disk or a bucket, or, if they never change, "
            "set limits.trust_unversioned=true"
        )


def _ensemble(config: RunConfig, plans: Sequence[Plan]) -> Plans:
    """The plans of an ensemble, from the `plans` of `config.models` in the same order."""
    fingerprints = [plan.fingerprint for plan in plans]
    for number, fingerprint in enumerate(fingerprints):
        first = fingerprints.index(fingerprint)
        if first < number:
            raise ConfigError(
                f"model.{first} {config.models[first].path!r} and model.{number} {config.models[number].path!r} have the same "
                "weights and settings, and would count twice; name each model once"
            )
    order = sorted(range(len(plans)), key=lambda number: fingerprints[number])
    members, models = [plans[number] for number in order], [config.models[number] for number in order]
    settings: dict[str, Any] = {"ensemble": config.ensemble.settings, "combine_version": COMBINE_VERSION}
    if config.ensemble.names:  # the ensemble's score files also contain the rewards of these models
        settings["names"] = [config.ensemble.names[number] for number in order]
    named = [
        {"name": name_of(model), "revision": model.revision, "fingerprint": plan.fingerprint}
        for model, plan in zip(models, members, strict=True)
    ]
    whole = replace(
        members[0],
        model={"members": named},
        identity={**settings, "members": [member.identity for member in members]},
        fingerprint=digest({**settings, "members": sorted(fingerprints)})[:24],
        temperature=None,
        comparable=all(member.comparable for member in members),
        evaluations={name: value for member in members for name, value in member.evaluations.items()},
    )
    # measured once, while the first model reads the text
    return Plans(whole, (members[0], *(replace(member, measures=()) for member in members[1:])))


def sweep(scores: str, plans: Plans, output: str | None = None) -> None:
    """Remove unfinished files of killed runs from the folders that this run writes to; see `storage.stores.local`."""
    folders = [
        scores,
        join(scores, "plans"),
        *(join(scores, plan.fingerprint) for plan in (plans.whole, *plans.members)),
        *(file.copy for file in plans.whole.files if file.copy is not None),
    ]
    if output is not None:
        folders += [output, join(output, "data"), join(output, "rejected")]
    removed = publish.sweep(dict.fromkeys(folders))
    if removed:
        log.info("removed %d unfinished files of killed runs", removed)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return the configuration with absolute local paths, since workers may have a different working directory."""
    output = config.output.model_copy(update={"path": absolute(config.path)})
    return config.model_copy(update={"output": output})


@lru_cache(maxsize=2)
def plan_at(path: str) -> Plan:
    """The plan in a plan file; cached, since plan files never change."""
    return Plan.load(path)
