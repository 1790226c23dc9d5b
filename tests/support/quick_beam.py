"""Beam without its repeated look-ups, which take more than half of the time in which a small graph is built and run: signatures
of functions, the state of `DoFn` classes, parsing of flags, and the globals of all modules, to measure a side input. The first
three are cached here, the last is omitted; nothing else is changed.

Tests marked slow, and every process that a test starts, run Beam unchanged.
"""

from __future__ import annotations

import copy
import inspect
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import objsize
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.worker import statecache
from apache_beam.transforms import core, userstate
from apache_beam.typehints import decorators

_original_signature = decorators.get_signature
_original_arguments = core.get_function_args_defaults
_original_specs = userstate.get_dofn_specs
_original_size = statecache.get_deep_size
_original_view = PipelineOptions.view_as
_Memory = dict[bool, weakref.WeakKeyDictionary[Any, Any]]  # by function, of methods bound to an object and of others
_signatures: _Memory = {bound: weakref.WeakKeyDictionary() for bound in (True, False)}
_arguments: _Memory = {bound: weakref.WeakKeyDictionary() for bound in (True, False)}
_Specs = tuple[set[userstate.StateSpec], set[userstate.TimerSpec]]
_specs: weakref.WeakKeyDictionary[type, dict[frozenset[str], _Specs]] = weakref.WeakKeyDictionary()
_parsed: dict[tuple[type, tuple[str, ...]], Any] = {}


def get_signature(func: Callable[..., Any]) -> inspect.Signature:
    """`get_signature` of Beam, remembered for plain functions and for methods bound to whatever object."""
    return _remembered(_signatures, _original_signature, func)


def get_function_args_defaults(func: Callable[..., Any]) -> tuple[list[str], list[Any]]:
    """`get_function_args_defaults` of Beam, remembered likewise; the lists are the caller's own."""
    names, defaults = _remembered(_arguments, _original_arguments, func)
    return [*names], [*defaults]


def _remembered(memory: _Memory, original: Callable[[Any], Any], func: Callable[..., Any]) -> Any:
    bound = isinstance(func, types.MethodType)
    key = func.__func__ if bound else func
    if not isinstance(key, types.FunctionType):
        return original(func)
    known = memory[bound].get(key)
    if known is None:
        known = memory[bound][key] = original(func)
    return known


def get_dofn_specs(dofn: core.DoFn) -> _Specs:
    """`get_dofn_specs` of Beam, remembered by class and names of attributes, unless one of these is a method."""
    attributes = vars(dofn)
    if any(isinstance(value, types.MethodType) for value in attributes.values()):
        return _original_specs(dofn)
    known, key = _specs.setdefault(type(dofn), {}), frozenset(attributes)
    if key not in known:
        known[key] = _original_specs(dofn)
    states, timers = known[key]
    return {*states}, {*timers}


def get_deep_size(*objects: Any) -> int:
    """`get_deep_size` of Beam's cache of side inputs, which would leave out what is global in some module."""
    return objsize.get_deep_size(
        *objects,
        get_size_func=statecache._size_func,
        get_referents_func=statecache._get_referents_func,
        filter_func=statecache._filter_func,
        exclude_modules_globals=False,
    )


def view_as(self: PipelineOptions, cls: type[PipelineOptions]) -> PipelineOptions:
    """`PipelineOptions.view_as`, with what the flags say to a class parsed once."""
    if self._flags is None or cls.__init__ is not PipelineOptions.__init__:
        return _original_view(self, cls)
    key = (cls, tuple(self._flags))
    if key not in _parsed:
        _parsed[key] = copy.deepcopy(_original_view(self, cls)._visible_options)
    view = cls.__new__(cls)
    view._flags, view._visible_options = self._flags, copy.deepcopy(_parsed[key])
    for name, value in vars(view._visible_options).items():
        self._all_options.setdefault(name, value)
    view._all_options = self._all_options
    return view


_QUICK = (get_signature, get_function_args_defaults, get_dofn_specs, get_deep_size, view_as)
_PLAIN = (_original_signature, _original_arguments, _original_specs, _original_size, _original_view)


def quick_beam() -> AbstractContextManager[None]:
    return _using(*_QUICK)


def plain_beam() -> AbstractContextManager[None]:
    """Beam as it is, inside `quick_beam` too."""
    return _using(*_PLAIN)


@contextmanager
def _using(signature: Any, arguments: Any, specs: Any, size: Any, view: Any) -> Iterator[None]:
    with (
        patch.object(decorators, "get_signature", signature),
        patch.object(core, "get_function_args_defaults", arguments),
        patch.object(userstate, "get_dofn_specs", specs),
        patch.object(statecache, "get_deep_size", size),
        patch.object(PipelineOptions, "view_as", view),
    ):
        yield
