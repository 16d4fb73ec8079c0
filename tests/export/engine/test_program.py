"""The parts between file and kernels: the choice of layouts, memory, shares of work, compiled code on disk."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.export.engine.ir.conv import ConvShape
from fineprune.export.engine.ir.network import KERNELS, LAYOUTS, Box, Candidate, Layer, Piece
from fineprune.export.engine.ir.program import MEET, _split
from fineprune.export.engine.kept import KEEPER
from fineprune.export.engine.ops.assemble import Assemble
from fineprune.export.engine.ops.conv import Conv
from fineprune.export.engine.ops.maps import Map
from fineprune.export.engine.passes.layouts import choose, conversion_cost
from fineprune.export.engine.passes.memory import GUARD, Key, arena
from fineprune.export.engine.passes.program import build, planned
from fineprune.export.engine.run import job
from fineprune.export.engine.run.threads import Team
from fineprune.ops.machine_code import Code
from support.engine_layers import BOX, add, conv, mapped, relu


def test_a_map_may_write_over_what_nobody_reads_later() -> None:
    layers: list[Layer] = [conv("a", "x"), mapped("sigmoid", "s", "a"), mapped("silu", "t", "s"), add("s", "t", "y")]
    x = np.random.default_rng(0).standard_normal((1, *BOX), np.float32)
    outputs = []
    for kept in (["y"], ["a", "s", "t", "y"]):  # those read from outside last until the end
        program = build(layers, dict.fromkeys("xasty", BOX), ["x"], kept)
        results = [np.empty((1, *BOX), np.float32) for _ in kept]
        Team(program, 1).run(1, [x, *results])
        outputs.append(results[-1])
    np.testing.assert_array_equal(*outputs)


def cost(layers: list[Layer], found: list[list[Candidate]], layouts: tuple[str, ...]) -> float:
    """The sum that the choice minimises, from its definition."""
    total, homes, copies = 0.0, {}, set()
    for layer, candidates, layout in zip(layers, found, layouts, strict=True):
        options = [c for c in candidates if c.layout == layout]
        if candidates and not options:
            return np.inf
        best = min(options, key=lambda c: c.seconds) if options else None
        total += best.seconds if best else (0 if layout == "NHWC" else 50e-12 * np.prod(BOX))
        for position, name in enumerate(layer.inputs):
            free = best is not None and best.any_input and position == 0
            if not free and homes.get(name, layout) != layout:
                copies.add((name, layout))
        homes[layer.output] = layout
    return total + len(copies) * conversion_cost(BOX)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_choice_of_layouts_is_the_best_of_all(data: st.DataObject) -> None:
    layers: list[Layer] = []
    found: list[list[Candidate]] = []
    names = ["x"]
    for k in range(data.draw(st.integers(1, 7))):
        sources = tuple(data.draw(st.sampled_from(names)) for _ in range(data.draw(st.integers(1, 2))))
        if data.draw(st.booleans()):
            layers.append(conv(f"t{k}", *sources))
            kinds = data.draw(st.sampled_from([LAYOUTS, LAYOUTS, ("NHWC",), ("NCHW",)]))
            seconds = {layout: data.draw(st.integers(1, 9)) * 1e-7 for layout in kinds}
            found.append([Candidate(kernel="k", layout=at, any_input=data.draw(st.booleans()), seconds=seconds[at]) for at in kinds])
        else:
            layers.append(Map(name=f"t{k}", inputs=sources, output=f"t{k}", function="identity" if len(sources) == 1 else "add"))
            found.append([])
        names.append(f"t{k}")
    chosen = choose(layers, dict.fromkeys(names, BOX), found)
    best = min(cost(layers, found, layouts) for layouts in itertools.product(LAYOUTS, repeat=len(layers)))
    assert cost(layers, found, tuple(choice.layout for choice in chosen)) == pytest.approx(best, abs=1e-11)


@settings(max_examples=80, deadline=None)
@given(
    tensors=st.lists(
        st.tuples(
            st.sampled_from([(3, 4, 5), (16, 4, 5), (17, 1, 1)]),
            st.sampled_from(LAYOUTS),
            st.integers(0, 12),
            st.integers(0, 5),
            st.tuples(*[st.integers(0, 2)] * 4),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_living_tensors_never_overlap(tensors: list[Any]) -> None:
    keys = [Key(str(k), tensor[1]) for k, tensor in enumerate(tensors)]
    uses = {key: [first, first + length] for key, (_, _, first, length, _) in zip(keys, tensors, strict=True)}
    plan = arena({k: t[0] for k, t in zip(keys, tensors, strict=True)}, {k: t[4] for k, t in zip(keys, tensors, strict=True)}, uses)
    spans = {}
    for key in keys:
        v = plan.views[key]
        m = v.margins
        spans[key] = (
            v.at(0, -m[0], -m[1]),
            v.at(v.channels - 1, v.height - 1 + m[2], v.width - 1 + m[3]) + max(1, v.pixel_stride - v.channels + 1),
        )
        assert spans[key][0] >= GUARD and spans[key][1] <= plan.size - GUARD
    for one, other in itertools.combinations(keys, 2):
        apart = spans[one][1] <= spans[other][0] or spans[other][1] <= spans[one][0]
        if plan.buffers[one] == plan.buffers[other]:
            assert max(uses[one]) < min(uses[other]) or max(uses[other]) < min(uses[one])
            assert (plan.views[one].row_stride, plan.views[one].margins) == (plan.views[other].row_stride, plan.views[other].margins)
        else:
            assert apart


@pytest.mark.parametrize(("last", "shared"), [(3, True), (4, False)])
def test_a_tensor_may_lie_over_one_at_its_last_use(last: int, shared: bool) -> None:
    first, second = Key("first", "NHWC"), Key("second", "NHWC")
    plan = arena({first: BOX, second: BOX}, {}, {first: [0, last], second: [3, 5]}, {second: first})
    assert (plan.buffers[first] == plan.buffers[second]) == shared


def test_a_tensor_alone_shares_no_buffer() -> None:
    first, second, third = (Key(name, "NHWC") for name in ("first", "second", "third"))
    plan = arena(dict.fromkeys((first, second, third), BOX), {}, {first: [0, 1], second: [2, 3], third: [4, 5]}, alone={second})
    assert plan.buffers[first] == plan.buffers[third] != plan.buffers[second]


@pytest.mark.parametrize("threads", [1, 3])
def test_what_no_piece_covers_is_zero_in_every_run(threads: int) -> None:
    """Earlier tensors of the same size would leave their numbers in its zeros."""
    piece = Piece(source=0, size=(2, 3, 5), start=(1, 0, 0), step=(2, 2, 1), to=(1, 2, 0))
    padded = Assemble(name="p", inputs=("a",), output="p", pieces=(piece,))
    layers: list[Layer] = [conv("z", "x"), conv("a", "z"), padded, conv("b", "a", "p"), conv("c", "b")]
    team = Team(build(layers, dict.fromkeys("xzapbc", BOX), ["x"], ["p", "c"]), threads)
    for seed in range(3):
        x, p, c = np.random.default_rng(seed).standard_normal((5, *BOX), np.float32), *np.full((2, 5, *BOX), 7, np.float32)
        team.run(5, [x, p, c])
        outside = np.ones(BOX, bool)
        outside[1:3, 2:5] = False
        assert not p[:, outside].any() and p[:, ~outside].all()
    team.close()


@pytest.mark.parametrize(("channels", "copied"), [((16, 32), 0), ((16, 5), 1), ((5, 16), 2)])
@pytest.mark.parametrize("threads", [1, 3])
def test_parts_are_made_where_they_are_joined(channels: tuple[int, int], copied: int, threads: int) -> None:
    boxes: dict[str, Box] = {"x": BOX, "a": (channels[0], 6, 5), "b": (channels[1], 6, 5), "y": (sum(channels), 6, 5)}
    layers: list[Layer] = []
    for name, filters in zip("ab", channels, strict=True):
        weights = np.random.default_rng(filters).standard_normal((filters, 4, 3, 3), np.float32)
        shape = ConvShape(channels=4, filters=filters, height=6, width=5, kernel=(3, 3), pads=(1, 1, 1, 1))
        layers.append(Conv(name=name, inputs=("x",), output=name, shape=shape, weights=weights, bias=np.ones(filters, np.float32)))
    pieces = tuple(Piece(source=k, size=boxes[name], to=(k * channels[0], 0, 0)) for k, name in enumerate("ab"))
    layers.append(Assemble(name="y", inputs=("a", "b"), output="y", pieces=pieces))
    x = np.random.default_rng(0).standard_normal((1, *BOX), np.float32)
    outputs = []
    for kept in (["y"], ["a", "b", "y"]):
        program = build(layers, boxes, ["x"], kept, nhwc)
        results = [np.empty((1, *boxes[name]), np.float32) for name in kept]
        team = Team(program, threads)
        team.run(1, [x, *results])
        team.close()
        copies = sum(operation.name == "y" for operation in program.operations)
        assert copies == (copied if len(kept) == 1 else 2)
        outputs.append(results)
    np.testing.assert_array_equal(outputs[0][0], outputs[1][2])
    np.testing.assert_array_equal(outputs[0][0], np.concatenate(outputs[1][:2], 1))


def nhwc(layers: Any, boxes: Any, found: Any) -> Any:
    return [[candidate for candidate in some if candidate.layout == "NHWC"] for some in found]


def chain(make: Any = build) -> Any:
    """x -> a -> b (+ x) -> c, and d of a: every kind of dependence between operations."""
    layers: list[Layer] = [conv("a", "x"), conv("b", "a"), add("b", "x", "s"), relu("s", "r"), conv("c", "r"), conv("d", "a")]
    return make(layers, dict.fromkeys("xabsrcd", BOX), ["x"], ["c", "d"])


def test_threads_meet_between_writing_and_reading() -> None:
    program = chain()
    meets = program.steps[:, MEET]
    instructions = {instruction.name: instruction for instruction in chain(planned).list}
    made = [instructions[operation.name] for operation in program.operations]
    pairs = [
        (i, j)
        for j, reader in enumerate(made)
        for i, writer in enumerate(made[:j])
        if writer is not reader and writer.writes in reader.reads
    ]
    assert len(pairs) >= 6
    for i, j in pairs:
        assert meets[i + 1 : j + 1].any(), f"nobody waits between {made[i].name} and {made[j].name}"
    assert not meets.all()  # what does not depend on each other goes on


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_any_number_of_threads_gives_the_same(threads: int) -> None:
    """More threads than cores, batches below and above their number, sleeps in between, hundreds of jobs."""
    program, random = chain(), np.random.default_rng(0)
    alone, team = Team(program, 1), Team(program, threads)
    try:
        for number in range(150):
            count = int(random.integers(1, 2 * threads + 2))
            x = random.standard_normal((count, *BOX), np.float32)
            expected, got = ([np.zeros((count, *BOX), np.float32) for _ in "cd"] for _ in range(2))
            alone.run(count, [x, *expected])
            team.run(count, [x, *got])
            for one, other in zip(expected, got, strict=True):
                np.testing.assert_array_equal(other, one)
            if number % 50 == 0:
                interpreter_naps(team)
    finally:
        team.close()


def interpreter_naps(team: Team) -> None:
    """Wait until the threads sleep."""
    import time

    own = [job.THREADS + thread * job.SPACING for thread in range(1, team.threads)]
    deadline = time.monotonic() + 20
    while not all(team._sync[at] for at in own):
        assert time.monotonic() < deadline, "the threads never go to sleep"
        time.sleep(0.01)


@given(costs=st.lists(st.floats(0.01, 10), min_size=1, max_size=30), threads=st.integers(1, 6))
def test_shares_are_runs_of_about_equal_cost(costs: list[float], threads: int) -> None:
    ends = _split(np.array(costs), threads)
    assert ends[0] == 0 and ends[-1] == len(costs) and ends == sorted(ends)
    shares = [sum(costs[a:b]) for a, b in itertools.pairwise(ends)]
    assert max(shares) <= sum(costs) / threads + max(costs) + 1e-9


UNCOMPILED = """
import numba, numpy as np
assert numba.config.DISABLE_JIT
from test_program import *
program = chain()
x = np.random.default_rng(0).standard_normal((3, *BOX), np.float32)
results = []
for threads in (1, 2):
    outputs = [np.zeros_like(x), np.zeros_like(x)]
    team = Team(program, threads)
    team.run(3, [x, *outputs])
    team.close()
    results.append(outputs)
a, b, c = (layer.weights for layer in (conv("a", "x"), conv("b", "a"), conv("c", "r")))
from support.reference import masked_conv2d
bias = np.ones(4)
first = masked_conv2d(x, a, bias, None, padding=1)
expected = masked_conv2d(np.maximum(masked_conv2d(first, b, bias, None, padding=1) + x, 0), c, bias, None, padding=1)
for outputs in results:
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-4, atol=2e-3)
np.testing.assert_array_equal(results[0], results[1])
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1]), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path, **environment}, capture_output=True, text=True
    )


def test_uncompiled() -> None:
    done = run_python(UNCOMPILED, NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0, done.stderr


KEPT = """
import numpy as np
from fineprune.export.engine import jit, kept
from fineprune.export.engine.ops.softmax import run

made = []
jit.COMPILER.code = lambda function, code=jit.COMPILER.code: made.append(function) or code(function)
arena, numbers = np.zeros(64, np.float32), run_meta
run(0, 1, 0, arena, np.zeros(1, np.float32), np.zeros(1, np.int32), numbers, 0)
assert abs(arena[:4] - 0.25).max() < 1e-6, arena
print(len(made), kept.KEEPER.folder)
""".replace("run_meta", "np.array([0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 4, 1])")


def test_compiled_code_is_kept(tmp_path: Path) -> None:
    first, second = (run_python(KEPT, NUMBA_CACHE_DIR="", XDG_CACHE_HOME=str(tmp_path)) for _ in range(2))
    assert first.stdout.startswith(f"1 {tmp_path / 'fineprune'}"), first.stderr
    assert second.stdout.startswith(f"0 {tmp_path / 'fineprune'}"), second.stderr


ALONE = """
import numpy as np
from fineprune.export.engine import kept
from test_program import *

names = []
kept.address = lambda name, make, address=kept.address: names.append(name) or address(name, make)
team = Team(build([mapped("sigmoid", "y", "x")], dict.fromkeys("xy", BOX), ["x"], ["y"]), 1)
x, y = np.ones((1, *BOX), np.float32), np.zeros((1, *BOX), np.float32)
team.run(1, [x, y])
assert abs(y - 1 / (1 + np.exp(-1))).max() < 1e-6
print(sorted(set(names)), sorted(path.name.rpartition("-")[0] for path in kept.KEEPER.folder.iterdir()))
"""


def test_a_program_compiles_what_it_uses_alone(tmp_path: Path) -> None:
    done = run_python(ALONE, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout == f"{['copy', 'map', 'take_part']} {['copy', 'map', 'take_part']}\n", done.stderr


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_need_nothing_of_python(name: str) -> None:
    """So that they are linked where Numba is not loaded."""
    packed = KEEPER.read(name)
    code = Code.unpack(bytes(packed)) if packed else KERNELS[name].entry.code()
    assert [need for need in code.needs if need.startswith(("Py", "numba", "NRT"))] == []
