"""The compiled interpreter: walks the operations of a program and calls their kernels, alone or together with other threads.

What it is given: job.py. Of a batch, as many samples as the threads can share equally are run whole, each by whoever takes it, in the
arena of that thread. The others are run one after another by all threads in the first arena: each takes its share of an operation, then
those that nobody has begun. Nobody waits for a thread, only for shares that were begun: one that sleeps, or that the system has taken off
its core, holds up nobody. Shares are taken by raising their number in sync to that of the round; a thread that comes late, with numbers
of an earlier job, finds them raised already and takes nothing.
"""

from typing import Any

from numba import types
from numpy.typing import NDArray

from fineprune.ops.numba_door import ir
from fineprune.ops.simd.atomics import add, compare_exchange, exchange, give_way, load, pause, raise_to, store
from fineprune.ops.simd.declare import Emitter, operation
from fineprune.ops.simd.vectors import floats, ints, longs

from ..ir.network import KERNELS as REGISTERED
from ..ir.program import ITEMS, MEET, OP, TENSOR
from ..jit import Entry, jit, jit_merged
from .job import (
    ARENA,
    ARENAS,
    BEFORE,
    BEGIN,
    CONSTANTS,
    COUNT,
    DONE,
    DONE_BEFORE,
    END,
    FIELDS,
    GENERATION,
    INDEX,
    JOB,
    KERNELS,
    MEMBERS,
    META,
    NEXT_SAMPLE,
    OWN_SCRATCH,
    ROUND,
    SCRATCH,
    SERVE,
    SLEEPING,
    SPACES,
    SPACING,
    SPLITS,
    START,
    STEPS,
    STOP,
    SYNC,
    TABLE,
    TAKEN,
    TENSORS,
    THREADS,
)

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


def _call(e: Emitter) -> Any:
    number = ir.IntType(64)
    given = [e.builder.ptrtoint(e.data(k), number) if isinstance(e.types[k], types.Array) else e.args[k] for k in range(1, len(e.args))]
    kind = ir.FunctionType(number, [number] * len(given))
    return e.builder.call(e.builder.inttoptr(e.args[0], kind.as_pointer()), given)


@operation(_call)
def call(
    address: int, first: int, last: int, scratch: int, arena: NDArray, constants: NDArray, index: NDArray, meta: NDArray, op: int
) -> int:
    """The kernel at an address (of a twin: with a number) does the work items first <= k < last; see ir/conv.py."""
    list(REGISTERED.values())[address].run(first, last, scratch, arena, constants, index, meta, op)
    return 0


@jit_merged
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
    kernels: NDArray,
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
        step, split = k * (TENSOR + 1), k * (threads + 1)
        op, tensor = steps[step + OP], steps[step + TENSOR]
        if turn and steps[step + MEET]:
            wait_done(sync, done + before[k] - before[begin])
        for other in range(threads if turn else 1):
            first, last = 0, steps[step + ITEMS]
            if turn:
                share = (thread + other) % threads
                first, last = splits[split + share], splits[split + share + 1]
                at = shares + (k * threads + share) * SPACING
                if first == last or load(sync, at) >= turn or raise_to(sync, at, turn) >= turn:
                    continue
            if tensor < 0:
                call(kernels[k], first, last, scratch, arena, constants, index, meta, op)
            else:
                place = TENSORS + 2 * tensor
                size = job[place + 1]
                outside = floats(job[place] + number * size, (size + 3) // 4)  # of a last slot that is not whole nobody touches more
                call(kernels[k], first, last, scratch, arena, outside, index, meta, op)
            if turn:
                add(sync, DONE, 1)


@jit_merged
def listed(table: NDArray, position: int) -> NDArray:
    """The int64 numbers whose address and length stand at a position."""
    return longs(table[position], table[position + 1])


def _take_part(role: int, thread: int, seen: int, table: int) -> int:
    """A thread's part of the job; table: address of what job.py says.

    START: of a new one, which is announced here; where threads slept, the caller wakes them first and calls again to GO_ON. Returns how
    many slept, so that 0 means done. SERVE: of every job that is not `seen`. Returns the last one when there has been no new one for a
    while, or -1 when told to stop. One function for all: compiling takes seconds.
    """
    t = longs(table, 2 * len(TABLE))
    steps, kernels, splits, before, meta = listed(t, STEPS), listed(t, KERNELS), listed(t, SPLITS), listed(t, BEFORE), listed(t, META)
    index, constants = ints(t[INDEX], t[INDEX + 1]), floats(t[CONSTANTS], t[CONSTANTS + 1])
    spaces, job, sync = listed(t, SPACES), listed(t, JOB), listed(t, SYNC)
    threads = spaces[MEMBERS]
    if role == START:
        asleep = announce(sync, job, listed(t, FIELDS), listed(t, SLEEPING))
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
            own, scratch = thread, spaces[SCRATCH]
            if turn == 0:
                number = take_sample(sync, taken + whole) - taken
                if number < 0:
                    turn = 1
                    done += whole
            if turn > 0:
                if turn > shared:
                    break
                number, own, scratch = whole + turn - 1, 0, spaces[SCRATCH] + thread * spaces[OWN_SCRATCH]
                wait_done(sync, done)
            now = first_round + turn if turn else 0
            arena = floats(t[ARENAS] + own * spaces[ARENA] * 4, spaces[ARENA])
            sample(
                number, now, thread, threads, begin, end, done, scratch,
                steps, kernels, splits, before, meta, index, constants, arena, job, sync,
            )  # fmt: skip
            if turn == 0:
                add(sync, DONE, 1)
            else:
                turn += 1
                done += each
        if role != SERVE:
            wait_done(sync, done)
            return 0


take_part = Entry("take_part", _take_part)
