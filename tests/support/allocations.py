"""The memory that a computation uses on the CPU, as recorded by PyTorch's allocator."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def allocated_peak(compute: Callable[[], Any]) -> int:
    """The most bytes that `compute` had allocated at a time, beyond what was there before."""
    gc.collect()  # what is freed meanwhile, and was there before, would count as room
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        compute()
    events = [event for event in recording.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
