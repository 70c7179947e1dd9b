"""Where the time of one step goes, by kind of operation, as torch.profiler sees it. Knows no job.

An operation is sorted by its name, by what stands around it and, within the node of a layer and its LoRA, by its
shapes: a product that is as narrow as LoRA's ranks is LoRA's own. A backward operation belongs where the forward
operation of its sequence number did. The profiler slows a step down, Python most of all: read shares, not seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import perf_counter

import torch
from jobs import ATTENTION, CONTROL, DATA, ELEMENTWISE, OPERATIONS, OPTIMIZER, OUTSIDE, PRODUCTS
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import set_checkpoint_early_stop

ENGINE = "autograd::engine"
NODES = ("_Node", "_NodeBackward")
"""Of linear layers and their LoRA (``controls/linear``), forward and backward; their own time is Python's."""
PRODUCT_NAMES = frozenset(
    {"aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise"}
)
CLIPPING = ("aten::_foreach", "aten::linalg_vector_norm")
"""What clips the gradient: no forward of ours uses it, and nothing stands around it."""


class StepProfile:
    """Profiles from :meth:`start` to :meth:`stop`, on the thread that calls both.

    Args:
        device: On CUDA what counts is the time of an operation's kernels.
        narrow: Most columns that a product of LoRA's has: K·r for each layer of one input; 0 where there is no LoRA.
    """

    def __init__(self, device: str = "cpu", narrow: int = 0) -> None:
        self._cuda, self._narrow = device == "cuda", narrow

    def start(self) -> None:
        """Start."""
        # A recomputation that stops early, by an exception, would leave its operations without an end.
        self._whole = set_checkpoint_early_stop(False)
        self._whole.__enter__()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        self._profiler = profile(activities=activities, acc_events=True, record_shapes=True)
        self._profiler.__enter__()
        self._started = perf_counter()

    def stop(self) -> dict[str, float]:
        """Return the seconds of each of ``OPERATIONS``; their sum is the time since the start."""
        if self._cuda:
            torch.cuda.synchronize()
        total = perf_counter() - self._started
        self._profiler.__exit__(None, None, None)
        self._whole.__exit__(None, None, None)
        seconds = sorted_time(self._profiler.events() or (), self._narrow, cuda=self._cuda)
        seconds[OUTSIDE] = max(0.0, total - sum(seconds.values()))
        return seconds


def sorted_time(events: Iterable[FunctionEvent], narrow: int = 0, *, cuda: bool = False) -> dict[str, float]:
    """Return the seconds of each group but ``OUTSIDE``, on CUDA of the kernels that operations start."""
    ordered = sorted((e for e in events if e.device_type == DeviceType.CPU), key=lambda event: event.time_range.start)
    seconds = dict.fromkeys(OPERATIONS[:-1], 0.0)
    forward: dict[int, str] = {}
    for event in ordered:
        around = _around(event)
        node = next((e for e in around if e.name.startswith(ENGINE)), None)
        backward = node is not None and not _recomputed(around)
        before = forward.get(node.sequence_nr) if node and backward else None
        group = group_of(
            [e.name for e in around], before, is_narrow(event.input_shapes or (), narrow) if narrow else None
        )
        if node is None and event.sequence_nr >= 0:
            forward[event.sequence_nr] = group  # the last to see a number is the one that makes the node of it
        if event.name not in NODES and not event.name.startswith("ProfilerStep"):
            seconds[group] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
    return seconds


def is_narrow(shapes: Iterable[Sequence[int]], narrow: int) -> bool:
    """Whether a matrix among ``shapes`` has a side of at most ``narrow``."""
    return any(len(shape) == 2 and min(shape) <= narrow for shape in shapes)


def group_of(names: Sequence[str], forward: str | None = None, narrow: bool | None = None) -> str:
    """Return the group of an operation.

    Args:
        names: Its own, then of what stands around it, from inside to outside.
        forward: In backward, the group of the forward operation that this one belongs to.
        narrow: Whether it is on a matrix as narrow as LoRA's; ``None`` where there is no LoRA.
    """
    if narrow is not None and any(name in NODES for name in names):
        return PRODUCTS if names[0] in PRODUCT_NAMES and not narrow else CONTROL
    for name in names:
        if name.startswith("Optimizer."):
            return OPTIMIZER
        if name.startswith("enumerate(DataLoader)"):
            return DATA
    if forward == ATTENTION:
        return forward
    if any("scaled_dot_product" in name or "varlen_attn" in name for name in names):
        return ATTENTION
    if any(name.startswith(CLIPPING) for name in names):
        return OPTIMIZER
    return PRODUCTS if names[0] in PRODUCT_NAMES else ELEMENTWISE


def _recomputed(around: Sequence[FunctionEvent]) -> bool:
    """Whether an operation in backward is of a forward that is run again: gradients are on there, so it has a number.

    It is run for the node of the graph that first wants something of it, and is not that node's.
    """
    return any(e.name.startswith("aten::") and e.sequence_nr >= 0 for e in around)


def _around(event: FunctionEvent) -> list[FunctionEvent]:
    """Return an event and what stands around it."""
    found = []
    now: FunctionEvent | None = event
    while now is not None:
        found.append(now)
        now = now.cpu_parent
    return found
