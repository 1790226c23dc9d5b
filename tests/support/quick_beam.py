"""Beam without its repeated look-ups: while a small graph is built and run, half of the time goes into asking the same functions
for their signatures and parsing the same flags anew. Both are remembered here; nothing else of Beam is touched.

Tests marked slow, and every process that a test starts, run Beam as it is.
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

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core
from apache_beam.typehints import decorators

_original_signature = decorators.get_signature
_original_arguments = core.get_function_args_defaults
_original_view = PipelineOptions.view_as
_Memory = dict[bool, weakref.WeakKeyDictionary[Any, Any]]  # by function, of methods bound to an object and of others
_signatures: _Memory = {bound: weakref.WeakKeyDictionary() for bound in (True, False)}
_arguments: _Memory = {bound: weakref.WeakKeyDictionary() for bound in (True, False)}
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


def quick_beam() -> AbstractContextManager[None]:
    return _using(get_signature, get_function_args_defaults, view_as)


def plain_beam() -> AbstractContextManager[None]:
    """Beam as it is, inside `quick_beam` too."""
    return _using(_original_signature, _original_arguments, _original_view)


@contextmanager
def _using(signature: Any, arguments: Any, view: Any) -> Iterator[None]:
    with (
        patch.object(decorators, "get_signature", signature),
        patch.object(core, "get_function_args_defaults", arguments),
        patch.object(PipelineOptions, "view_as", view),
    ):
        yield
