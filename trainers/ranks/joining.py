"""Join the processes that a launcher started to one run, and part again however it ends.

Rank 0 speaks to the user: it tells its own errors and those of the others, which end silently.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from trainers.ranks.agreement import check_same_code
from trainers.ranks.launch import Launch, launched
from trainers.ranks.lifeline import Lifeline, RankFailed
from trainers.ranks.peers import Agreed, Peers

LONGEST_WAIT = timedelta(hours=6)
"""Of one rank for another, which may be sampling long responses; one that ended is told at once."""
HEARSAY_SECONDS = 5.0
"""How long after a collective has failed the reason may be on its way."""

_joined: list[Peers] = []


class Told(SystemExit):
    """This rank has failed, and rank 0 tells the user why."""


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[Peers]:
    """The processes of this run while it lasts; where they have been joined already, the same.

    `device`: what --device says. Raises RankFailed, or what ended it, on every rank when one fails;
    ValueError for processes that would share a GPU.
    """
    launch = launched()
    if launch.size == 1 or _joined:
        yield _joined[0] if _joined else Peers()
        return
    is_ours = not dist.is_initialized()
    lifeline = _connect(launch, device)
    _joined.append(Peers(launch))
    before = signal.signal(signal.SIGTERM, _ending(lifeline))
    try:
        check_same_code(_joined[0])
        with _quiet(launch):
            yield _joined[0]
        _joined[0].most(0)  # nobody leaves while another needs it
        lifeline.done()
    except BaseException as error:
        _part(error, lifeline)
        raise
    else:
        if is_ours:
            dist.destroy_process_group()
    finally:
        _joined.clear()
        signal.signal(signal.SIGTERM, before)


def _part(error: BaseException, lifeline: Lifeline) -> None:
    """Tell the others what ended this rank, unless they know; raise what the user is to read."""
    if isinstance(error, Agreed):
        lifeline.done()
        return
    failure = _cause(error, lifeline)
    if failure is None:
        is_told = lifeline.fail(in_words(error))
        if isinstance(error, Exception):
            get_error_handler().record_exception(error)  # torchrun's last words then hold it
    else:
        lifeline.done()
        is_told = lifeline.speaks_for_others
    if lifeline.rank > 0 and is_told and not os.environ.get("GRADLAB_TRACEBACK"):
        raise Told(2) from error
    if failure is not None and failure is not error:
        raise failure from error


def _connect(launch: Launch, device: str) -> Lifeline:
    """Start what the ranks compute with and what they watch each other by."""
    is_cuda = device_of(launch, device).startswith("cuda")
    if is_cuda:
        torch.cuda.set_device(launch.local_rank)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if is_cuda else "gloo"
        dist.init_process_group(backend, timeout=LONGEST_WAIT)
    lifeline = Lifeline(launch.rank, launch.size)
    where = [lifeline.listen(is_one_machine=launch.is_one_machine) if launch.rank == 0 else None]
    dist.broadcast_object_list(where, src=0)
    if launch.rank > 0 and where[0] is not None:
        lifeline.connect(*where[0])
    lifeline.watch()
    return lifeline


@contextlib.contextmanager
def _quiet(launch: Launch) -> Iterator[None]:
    """Warnings of what all ranks do are rank 0's to tell."""
    with warnings.catch_warnings():
        if launch.rank > 0:
            warnings.simplefilter("ignore")
        yield


def _cause(error: BaseException, lifeline: Lifeline) -> RankFailed | None:
    """Another rank's failure, where this rank's error only follows from it."""
    if isinstance(error, RankFailed):
        return error
    if type(error) is RuntimeError or isinstance(error, dist.DistError):
        # A connection that the dead rank has left; who it was is heard in a moment.
        _listen(lifeline)
    return lifeline.failure


def _listen(lifeline: Lifeline) -> None:
    until = time.monotonic() + HEARSAY_SECONDS
    while lifeline.failure is None and time.monotonic() < until:
        time.sleep(0.05)


def _ending(lifeline: Lifeline) -> Callable[[int, FrameType | None], None]:
    def end(number: int, frame: FrameType | None) -> None:
        """The launcher ends the others when a rank has failed: why is heard first."""
        _listen(lifeline)
        raise lifeline.failure or KeyboardInterrupt("stopped by SIGTERM")

    return end


def device_of(launch: Launch, asked: str) -> str:
    """The device of this process where `--device` is `asked`.

    Raises ValueError where the processes of a machine would share one.
    """
    if launch.size == 1 or asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return asked
    if asked.startswith("cuda:") and launch.local_size > 1:
        raise ValueError(
            f"--device {asked} with {launch.local_size} processes on this machine: they would all "
            "use it; expected --device cuda, which gives each its own"
        )
    if asked not in ("auto", "cuda"):
        return asked
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < launch.local_size:
        raise ValueError(
            f"{launch.local_size} processes were started on this machine and torch sees {count} "
            f"CUDA devices; start {max(count, 1)} with --nproc-per-node {max(count, 1)}, or train "
            "on CPUs with --device cpu"
        )
    return f"cuda:{launch.local_rank}"


def in_words(error: BaseException) -> str:
    """An error for somebody who does not see where it was raised."""
    said = str(error)
    if isinstance(error, KeyboardInterrupt):
        return said or "stopped"
    return said if isinstance(error, ValueError) and said else f"{type(error).__name__}: {said}"
