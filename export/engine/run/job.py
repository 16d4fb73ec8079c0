"""What a thread of a program is given: where everything lies, what is to be done, and what threads tell each other. Numbers alone.

A program (ir/program.py) that runs is these arrays, whose addresses and lengths follow each other in a *table*:

    fields, sleeping [threads]          what the next job is to be; threads that have to be woken for it (1)
    steps, meta, index, constants       of the program
    kernels [operations]                addresses of compiled functions
    splits [operations, threads + 1]    first work item of each share: as many shares as threads, of about equal cost
    before [operations + 1]             shares that are not empty, of all earlier operations
    spaces                              numbers by SPACES
    arenas [threads, floats]            activations
    job [TENSORS + 2 * tensors]         what is to be done now, and where the caller's tensors are, of whatever types
    sync                                atomics
"""

TABLE = ("fields", "sleeping", "steps", "meta", "index", "constants", "kernels", "splits", "before", "spaces", "arenas", "job", "sync")
"""Their order."""
FIELDS, SLEEPING, STEPS, META, INDEX, CONSTANTS, KERNELS, SPLITS, BEFORE, SPACES, ARENAS, JOB, SYNC = range(0, 2 * len(TABLE), 2)
"""Positions of their addresses in the table."""

MEMBERS, ARENA, SCRATCH, OWN_SCRATCH = range(4)
"""Positions in spaces: threads, floats of an arena, start of the scratch of the first thread in it, floats from there to the next's."""

COUNT, BEGIN, END, ROUND, NEXT_SAMPLE, DONE_BEFORE, TENSORS = range(7)
"""Positions in job: samples, first operation, end of the operations, number of the first round (sample that is shared), numbers of
samples taken and of shares done before this job; then address and bytes a sample of each tensor of the caller."""

SPACING = 16
"""int64s between atomics: each has cache lines of its own (two of them, since cores fetch pairs)."""
GENERATION, DONE, TAKEN, STOP, THREADS = (SPACING * k for k in range(5))
"""Positions in sync: twice the number of jobs (odd while a job is being written), shares and whole samples done, whole samples taken,
whether to stop; then for each thread whether it sleeps; then the shares of all operations."""

START, GO_ON, SERVE = range(3)
"""What a thread is to do in take_part (interpreter.py)."""
