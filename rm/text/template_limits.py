"""Limits on chat templates, which are programs and may loop forever, or build gigabytes of text.

Time is limited by a thread that raises an error in any thread that renders for too long. It cannot interrupt a single operation,
so operations with large results (`"a" * 10**10`, `|center(10**10)`) are checked before they run, and joined texts afterwards:
they are no larger than their parts together. The output of ordinary templates is unchanged.
"""

from __future__ import annotations

import ctypes
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from functools import lru_cache, wraps
from types import BuiltinMethodType, MethodType
from typing import Any, NamedTuple

from jinja2.compiler import CodeGenerator, Frame
from jinja2.nodes import Add, BinExpr, Concat
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rm.identity import ModelError

MOST_SECS = 20.0  # computing time for one conversation
MOST_CHARACTERS = 2**28  # in a text; an entry of a list counts as 8
_MOST_BITS = 2**20  # in an integer
_POLL_SECS = 0.5
_WIDE = re.compile(
    r"%%|(%(?:\([^)]*\))?[-+ #.\d]*\d{7}|\{[^{}]*:[^{}]*\d{7})"
)  # group 1: a width of millions in a format


class TemplateLimitError(Exception):
    """A template call that exceeds a limit, named by the message."""


class _Call(NamedTuple):
    clock: int  # of the thread's computing time


_calls: dict[int, _Call] = {}  # thread → the call that it is in
_watchers: list[threading.Thread] = []


def render_chat(
    tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, *, answer: bool = False
) -> str:
    """Return the text of a tokenizer's chat template, with `answer` including the beginning of an answer. Raises the template's
    own errors, and `ModelError` if it exceeds a limit."""
    _install()
    options = {"tools": tools, "tokenize": False, "add_generation_prompt": answer}
    try:
        return run_bounded(lambda: str(tokenizer.apply_chat_template(messages, **options)))
    except TemplateLimitError as error:
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path} {error} for one conversation; correct it, in chat_template.jinja or "
            "tokenizer_config.json beside the weights"
        ) from error


def run_bounded(render: Callable[[], str]) -> str:
    """Return the result of `render`. Raises `TemplateLimitError` if it takes too long, or builds too large a text."""
    if not (_watchers and _watchers[-1].is_alive()):  # a fork ends the thread
        _watchers[:] = [threading.Thread(target=_watch, name="template-limits", daemon=True)]
        _watchers[-1].start()
    thread = threading.get_ident()
    _calls[thread] = _Call(time.pthread_getcpuclockid(thread) if _CPU_CLOCKS else time.CLOCK_MONOTONIC)
    try:
        return render()
    except MemoryError as error:
        raise TemplateLimitError("runs out of memory") from error
    finally:
        _calls.pop(thread, None)


_CPU_CLOCKS = hasattr(time, "pthread_getcpuclockid")  # not on macOS


def _watch() -> None:
    """Raise an error in every thread whose call takes too long, repeatedly until it ends: a template may catch the error."""
    begun: dict[int, tuple[_Call, float]] = {}
    while True:
        time.sleep(_POLL_SECS)
        for thread, call in list(_calls.items()):
            try:
                now = time.clock_gettime(call.clock)
            except OSError:  # the thread has ended
                continue
            known, start = begun.get(thread, (None, now))
            if known is not call:
                begun[thread] = call, now
            elif now - start > MOST_SECS and _calls.get(thread) is call:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TooLongError))


class _TooLongError(TemplateLimitError):
    def __str__(self) -> str:
        return f"computes for more than {MOST_SECS:g} s"


def _size_of(value: Sized) -> int:
    return len(value) if isinstance(value, str) else 8 * len(value)


def _refuse_size(size: int) -> None:
    if size > MOST_CHARACTERS:
        raise TemplateLimitError(f"builds more than {MOST_CHARACTERS:,} characters")


class _Generator(CodeGenerator):
    """Jinja's compiler, with a check of the results of `~` and of chains of `+`."""

    def visit_Concat(self, node: Concat, frame: Frame) -> None:
        self.write("environment.check_size(")
        super().visit_Concat(node, frame)
        self.write(")")

    def visit_Add(self, node: BinExpr, frame: Frame) -> None:
        inner = vars(self).setdefault("_inner", set())
        inner.update(id(side) for side in (node.left, node.right) if isinstance(side, Add))
        if id(node) in inner:
            super().visit_Add(node, frame)
            return
        self.write("environment.check_size(")
        super().visit_Add(node, frame)
        self.write(")")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of chat templates, with limits."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(("*", "**", "%"))

    @staticmethod
    def concat(texts: Iterable[str]) -> str:
        """Join the texts of a template, or of one of its blocks."""
        texts = list(texts)
        _refuse_size(sum(map(len, texts)))
        return "".join(texts)

    @staticmethod
    def check_size(value: Any) -> Any:
        """Return the result of `+` or `~`, after a check of its size."""
        if isinstance(value, str | list | tuple):
            _refuse_size(_size_of(value))
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute a product, power or remainder."""
        if operator == "%":
            if isinstance(left, str):
                _check_format(left, *(right if isinstance(right, tuple) else (right,)))
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * max(0, right)
            if bits > _MOST_BITS:
                raise TemplateLimitError(f"computes with integers of more than {_MOST_BITS:,} bits")
        else:
            for many, count in ((left, right), (right, left)):
                if isinstance(count, int) and isinstance(many, str | list | tuple):
                    _refuse_size(_size_of(many) * count)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        """Return a text's method with a check before it, and the sandbox's own wrapper; None if it needs neither."""
        check = _METHODS.get(value.__name__) if isinstance(value, (MethodType, BuiltinMethodType)) else None
        if check is None:  # nor does the sandbox put anything around it
            return None
        method = super().wrap_str_format(value)
        if not isinstance(text := value.__self__, str):
            return method

        def checked(*args: Any, **options: Any) -> Any:
            check(text, *args, **options)
            return (method or value)(*args, **options)

        return checked

    def from_string(self, *args: Any, **options: Any) -> Any:
        """Compile a template."""
        self.filters.update({name: _checked(self.filters[name], check) for name, check in _FILTERS.items()})
        return super().from_string(*args, **options)


@lru_cache(maxsize=1)
def _install() -> None:
    """Let transformers compile chat templates with these limits."""
    from transformers.utils import chat_template_utils

    if not hasattr(chat_template_utils, "ImmutableSandboxedEnvironment"):
        raise ImportError(
            "transformers has no ImmutableSandboxedEnvironment for chat templates; install a supported version"
        )
    chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment


def _checked(apply: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    first = 1 if hasattr(apply, "jinja_pass_arg") else 0  # the environment, or a context

    @wraps(apply)
    def checked(*args: Any, **options: Any) -> Any:
        check(*args[first:], **options)
        return apply(*args, **options)

    return checked


def _check_format(form: Any, /, *args: Any, **options: Any) -> None:
    widths = [value for value in (*args, *options.values()) if isinstance(value, int)]
    nested = max(widths, default=0) > MOST_CHARACTERS and re.search(r"%[^a-z]*\*|\{[^}]*\{", str(form))
    if nested or any(match[1] for match in _WIDE.finditer(str(form))):
        _refuse_size(MOST_CHARACTERS + 1)


def _check_width(value: Any, /, *args: Any, **options: Any) -> None:
    """Check a width that every line of a text, or entry of a list, may have."""
    widest = max((given for given in (*args, *options.values()) if isinstance(given, int)), default=0)
    if widest > 10_000:
        _refuse_size(widest * (1 + len(value) if isinstance(value, str | list | tuple) else 1))


def _check_replace(text: Any, /, old: Any = "", new: Any = "", *_: Any, **_options: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    if len(new) > len(old):
        _refuse_size(len(text) + text.count(old) * (len(new) - len(old)))


def _check_join(separator: Any, texts: Any = (), /, *_: Any) -> None:
    if isinstance(texts, str | list | tuple):
        _refuse_size(len(separator) * len(texts) + sum(len(text) for text in texts if isinstance(text, str)))


def _check_translate(text: str, table: Any = None, /) -> None:
    if isinstance(table, dict):
        longest = max((len(value) for value in table.values() if isinstance(value, str)), default=1)
        _refuse_size(len(text) * longest)


def _check_sum(values: Any, /, attribute: Any = None, start: Any = 0) -> None:
    """Check a sum of lists, which copies the result so far at every step."""
    if isinstance(start, list | tuple) and isinstance(values, list | tuple):
        _refuse_size(len(values) * sum(len(value) for value in values if isinstance(value, list | tuple)))


_METHODS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "expandtabs"), _check_width),
    "format": _check_format,
    "format_map": lambda form, values, /: _check_format(form, *values.values()),
    "replace": _check_replace,
    "join": _check_join,
    "translate": _check_translate,
}
_FILTERS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "indent", "batch", "slice"), _check_width),
    "format": _check_format,
    "replace": _check_replace,
    "join": lambda texts, /, d="", *_, **_options: _check_join(str(d), texts),
    "tojson": lambda _, /, *args, **options: _check_width("", *args, **options),
    "sum": _check_sum,
}
