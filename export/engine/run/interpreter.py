"""The compiled interpreter: walks the operations of a program and calls their kernels, alone or together with other threads.

A program is these arrays (made by program.py):

    steps [operations, 4]               kernel, start of its meta, work items, whether it reads or overwrites what others may be making
    splits [operations, threads + 1]    first work item of each share: as many shares as threads, of about equal cost
    before [operations + 1]             shares that are not empty, of all earlier operations
    spaces [2]                          start of the scratch of the first thread in an arena, floats between those of two threads
    meta, index, constants              numbers of all operations, see ir/conv.py
    arenas [threads, floats]            activations
    job [6 + 2 * tensors]               what is to be done now, and where the caller's tensors are, of whatever types
    sync                                atomics: what threads tell each other

Of a batch, as many samples as the threads can share equally are run whole, each by whoever takes it, in the arena of that thread. The
others are run one after another by all threads in the first arena: each takes its share of an operation, then those that nobody has
begun. Nobody waits for a thread, only for shares that were begun: one that sleeps, or that the system has taken off its core,
holds up nobody. Shares are taken by raising their number in sync to that of the round; a thread that comes late, with numbers of an
earlier job, finds them raised already and takes nothing.
"""

from typing import Any

from numpy.typing import NDArray

from fineprune.ops.simd.atomics import SPACING, add, compare_exchange, exchange, give_way, load, pause, raise_to, store
from fineprune.ops.simd.vectors import floats

from .. import ops  # noqa: F401 - the operations register their kernels
from ..ir.network import KERNELS as COMPILED
from ..jit import jit, jit_cached, jit_inlined
from ..ops import copies

KERNELS = ("load", "save", *sorted(COMPILED))
"""Numbers of the kernels: the first two are transfers, the others those of ops/."""
LOAD, SAVE = range(2)
KERNEL, OP, ITEMS, MEET = range(4)
COUNT, BEGIN, END, ROUND, NEXT_SAMPLE, DONE_BEFORE, TENSORS = range(7)
"""Positions in job: samples, first operation, end of the operations, number of the first round (sample that is shared), numbers of
samples taken and of shares done before this job; then address and bytes a sample of each tensor of the caller."""

GENERATION, DONE, TAKEN, STOP, THREADS = (SPACING * k for k in range(5))
"""Positions in sync: twice the number of jobs (odd while a job is being written), shares and whole samples done, whole samples taken,
whether to stop; then for each thread whether it sleeps; then the shares of all operations."""

START, GO_ON, SERVE = range(3)
"""What a thread is to do in take_part."""

PAUSES = 400
"""Looks at what a thread waits for before it starts to let others run between the looks: some microseconds."""
PATIENCE = 4000
"""Looks before a thread without a job goes to sleep: about a millisecond."""


@jit
def wait_done(sync: NDArray, wanted: int) -> None:
    """Until so many shares are done."""
    looks = 0
    while load(sync, DONE) < wanted:
        looks += 1
        if looks < PAUSES:
            pause()
        else:
            give_way()


@jit
def take_sample(sync: NDArray, end: int) -> int:
    """The number of a whole sample that nobody else has, or -1 where they have reached `end`."""
    while True:
        number = load(sync, TAKEN)
        if number >= end:
            return -1
        if compare_exchange(sync, TAKEN, number, number + 1):
            return number


@jit
def wait_job(sync: NDArray, thread: int, done: int) -> int:
    """The number of a job other than `done`; -1 where none comes for long: then the thread is marked as asleep."""
    own, looks = THREADS + thread * SPACING, 0
    while True:
        generation = load(sync, GENERATION)
        if generation != done and not generation & 1:
            return generation
        looks += 1
        if looks < PAUSES:
            pause()
        else:
            give_way()
        if looks > PATIENCE:
            store(sync, own, 1)
            if load(sync, GENERATION) == done:
                return -1
            store(sync, own, 0)
            looks = 0


@jit_cached
def place(fields: NDArray, at: int, tensor: NDArray, count: int) -> None:
    """Where a flat tensor of the caller lies, and bytes of each of its `count` samples, to fields[at] and the next."""
    fields[at] = tensor.ctypes.data
    fields[at + 1] = tensor.size // count * tensor.itemsize


@jit
def announce(sync: NDArray, job: NDArray, fields: NDArray, sleeping: NDArray) -> int:
    """Write a new job of `fields` COUNT, BEGIN, END and TENSORS on; `sleeping`: becomes 1 for threads that slept. Returns how many did."""
    count, previous = fields[COUNT], job[COUNT]
    add(sync, GENERATION, 1)
    store(job, ROUND, job[ROUND] + previous % len(sleeping))
    store(job, NEXT_SAMPLE, load(sync, TAKEN))
    store(job, DONE_BEFORE, load(sync, DONE))
    store(job, COUNT, count)
    store(job, BEGIN, fields[BEGIN])
    store(job, END, fields[END])
    for k in range(TENSORS, len(fields)):
        store(job, k, fields[k])
    add(sync, GENERATION, 1)
    many = 0
    for thread in range(1, len(sleeping)):
        own, sleeping[thread] = THREADS + thread * SPACING, 0
        if load(sync, own) and exchange(sync, own, 0):
            sleeping[thread] = 1
            many += 1
    return many


@jit_cached
def halt(sync: NDArray) -> None:
    """The next job is to stop."""
    store(sync, STOP, 1)


@jit_inlined
def transfer(kernel: int, first: int, last: int, number: int, job: NDArray, arena: NDArray, meta: NDArray, op: int) -> None:
    """Between sample `number` of a tensor of the caller and the arena."""
    tensor = copies.fields(meta, op).tensor
    size = job[TENSORS + 2 * tensor + 1]
    outside = floats(job[TENSORS + 2 * tensor] + number * size, (size + 3) // 4)  # of a last slot that is not whole nobody touches more
    source, target = (outside, arena) if kernel == LOAD else (arena, outside)
    copies.copy(first, last, source, target, meta, op)  # one call: each is translated with all that it calls


def _dispatch() -> Any:
    """perform(kernel, first, ..., op): one operation, by the registered function of its kernel.

    Written out as one chain of branches: Numba took three seconds more for functions that were made of the registry and called each other.
    """
    given = "first, last, scratch, arena, constants, index, meta, op"
    branches = [f"    if kernel == {KERNELS.index(name)}:\n        return {name}({given})" for name in COMPILED]
    names = dict(COMPILED)
    exec("\n".join([f"def perform(kernel, {given}):", *branches]), names)
    return jit_inlined(names["perform"])


perform = _dispatch()


@jit_inlined
def sample(
    number: int,
    turn: int,
    thread: int,
    threads: int,
    begin: int,
    end: int,
    done: int,
    scratch: int,
    steps: NDArray,
    splits: NDArray,
    before: NDArray,
    meta: NDArray,
    index: NDArray,
    constants: NDArray,
    arena: NDArray,
    job: NDArray,
    sync: NDArray,
) -> None:
    """The operations of a sample: whole where `turn` is 0, else what this thread can take of round `turn`.

    done: shares that are done when those before the first operation are.
    """
    shares = THREADS + threads * SPACING
    for k in range(begin, end):
        kernel, op = steps[k, KERNEL], steps[k, OP]
        if turn and steps[k, MEET]:
            wait_done(sync, done + before[k] - before[begin])
        for other in range(threads if turn else 1):
            first, last = splits[k, 0], steps[k, ITEMS]
            if turn:
                share = (thread + other) % threads
                first, last = splits[k, share], splits[k, share + 1]
                at = shares + (k * threads + share) * SPACING
                if first == last or load(sync, at) >= turn or raise_to(sync, at, turn) >= turn:
                    continue
            if kernel in (LOAD, SAVE):
                transfer(kernel, first, last, number, job, arena, meta, op)
            else:
                perform(kernel, first, last, scratch, arena, constants, index, meta, op)
            if turn:
                add(sync, DONE, 1)


@jit_cached
def take_part(
    role: int,
    thread: int,
    threads: int,
    seen: int,
    fields: NDArray,
    sleeping: NDArray,
    steps: NDArray,
    splits: NDArray,
    before: NDArray,
    spaces: NDArray,
    meta: NDArray,
    index: NDArray,
    constants: NDArray,
    arenas: NDArray,
    job: NDArray,
    sync: NDArray,
) -> int:
    """A thread's part of the job.

    START: of a new one, which is announced here; where threads slept, the caller wakes them first and calls again to GO_ON. Returns how
    many slept, so that 0 means done. SERVE: of every job that is not `seen`. Returns the last one when there has been no new one for a
    while, or -1 when told to stop. One function for all, and one call of each kernel in it: compiling takes seconds.
    """
    if role == START:
        asleep = announce(sync, job, fields, sleeping)
        if asleep:
            return asleep
    while True:
        if role == SERVE:
            generation = wait_job(sync, thread, seen)
            if generation < 0:
                return seen
            if load(sync, STOP):
                return -1
            seen = generation
        count, begin, end = load(job, COUNT), load(job, BEGIN), load(job, END)
        first_round, taken, done = load(job, ROUND), load(job, NEXT_SAMPLE), load(job, DONE_BEFORE)
        if role == SERVE and load(sync, GENERATION) != seen:
            continue  # the others did without this thread, and the next job is being written
        shared = count % threads
        whole, turn = count - shared, 0
        each = before[end] - before[begin]
        while True:
            arena, scratch = thread, spaces[0]
            if turn == 0:
                number = take_sample(sync, taken + whole) - taken
                if number < 0:
                    turn = 1
                    done += whole
            if turn > 0:
                if turn > shared:
                    break
                number, arena, scratch = whole + turn - 1, 0, spaces[0] + thread * spaces[1]
                wait_done(sync, done)
            now = first_round + turn if turn else 0
            sample(
                number,
                now,
                thread,
                threads,
                begin,
                end,
                done,
                scratch,
                steps,
                splits,
                before,
                meta,
                index,
                constants,
                arenas[arena],
                job,
                sync,
            )
            if turn == 0:
                add(sync, DONE, 1)
            else:
                turn += 1
                done += each
        if role != SERVE:
            wait_done(sync, done)
            return 0
