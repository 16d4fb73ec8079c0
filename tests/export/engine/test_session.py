"""Sessions against ONNX Runtime over the zoo's families, masked at random: batches, threads, fallback, feeds, life and death."""

import copy
import gc
import logging
import os
import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir

from fineprune.common.errors import RunError, UsageError
from fineprune.export.engine import Session
from fineprune.export.engine.run.runtime import EngineRuntime
from support.onnx_graphs import conv_graph, run_onnxruntime
from support.tolerances import ONNX_LOGITS

QUICK = [
    ("lenet", {}, (3, 32, 32)),
    ("resnet20", {"width": 7}, (3, 18, 14)),
    ("resnet20", {"width": 8, "shortcut": "A"}, (3, 16, 16)),
    ("resnet18-3stage", {"width": 5}, (3, 15, 13)),
    ("wrn10", {"k": 1}, (3, 16, 16)),
]
SLOW = [
    ("vgg13", {}, (3, 32, 32)),
    ("cifar-resnet18", {"width": 16}, (3, 17, 17)),
    ("resnet50-3stage", {"width": 5}, (3, 15, 13)),
    ("torchvision:resnet18", {}, (3, 64, 47)),
    ("torchvision:mobilenet_v2", {"width_mult": 0.25}, (3, 33, 33)),
    ("torchvision:mobilenet_v3_small", {"width_mult": 0.25}, (3, 33, 40)),
    ("torchvision:shufflenet_v2_x0_5", {}, (3, 40, 33)),
    ("torchvision:squeezenet1_1", {}, (3, 35, 33)),
    ("torchvision:efficientnet_b0", {}, (3, 40, 40)),
    ("torchvision:googlenet", {}, (3, 40, 40)),
    ("torchvision:densenet121", {}, (3, 40, 40)),
]
FAMILIES = QUICK + SLOW


def close(actual: NDArray, expected: NDArray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=ONNX_LOGITS[0], atol=ONNX_LOGITS[1] * max(1.0, float(np.abs(expected).max())))


def batch(count: int, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, *shape), np.float32)


@pytest.mark.parametrize("channels", [5, 16, 40])
def test_depthwise_layers_read_one_layout_alone(channels: int) -> None:
    """The caller's tensor is NCHW, and the kernel has the channels in its lanes."""
    weights = np.random.default_rng(1).standard_normal((channels, 1, 3, 3))
    model = conv_graph((channels, 9, 6), (channels, 9, 6), weights, pads=(1, 1, 1, 1), group=channels)
    content, x = ir.serde.serialize_model(model).SerializeToString(), batch(2, (channels, 9, 6))
    with Session(content) as session:
        close(session.run(None, {"x": x})[0], run_onnxruntime(content, x))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], bytes]:
    """The bytes of a family, exported once."""
    pytest.importorskip("torch")
    from fineprune.export.exporter import export_onnx
    from fineprune.models.zoo.registry import build
    from support.masked_networks import mask_randomly

    made: dict[int, bytes] = {}

    def get(number: int) -> bytes:
        if number not in made:
            name, args, shape = FAMILIES[number]
            path = tmp_path_factory.mktemp("family") / "network.onnx"
            export_onnx(mask_randomly(build(name, seed=number, **args), shape), shape, path)
            made[number] = path.read_bytes()
        return made[number]

    return get


def _families() -> list[Any]:
    name = ["-".join([name, *map(str, args.values())]) for name, args, _ in FAMILIES]
    slow = [() if number < len(QUICK) else pytest.mark.slow for number in range(len(FAMILIES))]
    return [pytest.param(number, id=name[number], marks=slow[number]) for number in range(len(FAMILIES))]


@pytest.mark.parametrize("number", _families())
def test_families_are_what_onnxruntime_computes(number: int, exported: Callable, caplog: pytest.LogCaptureFixture) -> None:
    content, shape = exported(number), FAMILIES[number][2]
    with caplog.at_level(logging.INFO), Session(content) as alone, Session(content, threads=2) as two:
        for count in (1, 3, 8):
            x = batch(count, shape, seed=count)
            [expected], [y], [again] = [run_onnxruntime(content, x)], alone.run(None, {"input": x}), two.run(None, {"input": x})
            close(y, expected)
            np.testing.assert_array_equal(again, y)
    assert "run in ONNX Runtime" not in caplog.text


@pytest.mark.parametrize("which", ["packed", "plain", "dense"])
def test_every_kind_of_convolution(which: str, request: pytest.FixtureRequest) -> None:
    """With plain=True the im2col of standard operators: reshapes to five dimensions run in ONNX Runtime."""
    path = request.getfixturevalue(which).path
    with Session(path) as session:
        x = batch(3, (3, 11, 7))
        close(session.run(None, {"input": x})[0], run_onnxruntime(path.read_bytes(), x))


def test_tuned_sessions_compute_the_same(packed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fineprune.export.engine.passes import tune

    monkeypatch.setattr(tune.KEEPER, "folder", tmp_path)
    x = batch(2, (3, 11, 7))
    for _ in range(2):
        with Session(packed.path, tune=True) as session:
            close(session.run(None, {"input": x})[0], run_onnxruntime(packed.path.read_bytes(), x))
    [times] = tmp_path.glob("times-*.json")
    times.write_text("{damaged")
    with Session(packed.path, tune=True) as session:
        close(session.run(None, {"input": x})[0], run_onnxruntime(packed.path.read_bytes(), x))
    assert "filters" in times.read_text()


def test_inputs_and_outputs_are_described(packed: Any) -> None:
    with Session(packed.path) as session:
        [x], [y] = session.get_inputs(), session.get_outputs()
    assert (x.name, x.shape, x.type) == ("input", ["batch", 3, 11, 7], "tensor(float)")
    assert (y.name, y.shape, y.type) == ("logits", ["batch", 5], "tensor(float)")


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "an array for each of input, got nothing"),
        ({"x": batch(1, (3, 11, 7))}, "got 'x'"),
        ({"input": batch(1, (3, 11, 7)).astype(np.float64)}, "got float64 array"),
        ({"input": [[1.0]]}, "got list"),
        ({"input": batch(1, (3, 11, 7)).astype(">f4")}, "got >f4 array"),
        ({"input": batch(1, (3, 11, 7)), "x": 0}, "got 'input', 'x'"),
        ({"input": batch(1, (3, 7, 11))}, r"has shape \['batch', 3, 11, 7\], got \[1, 3, 7, 11\]"),
        ({"input": batch(1, (3, 11))}, r"got \[1, 3, 11\]"),
        ({"input": batch(0, (3, 11, 7))}, "the batch is empty"),
        ([batch(1, (3, 11, 7))], "got list"),
    ],
)
def test_wrong_feeds_are_refused(feeds: Any, message: str, packed: Any) -> None:
    with Session(packed.path) as session, pytest.raises(UsageError, match=message):
        session.run(None, feeds)


def test_wrong_arguments_are_refused(packed: Any, tmp_path: Path) -> None:
    for threads in (0, -1, 1.5, True, 10**6):
        with pytest.raises(UsageError, match="threads is a whole number from 1 to"):
            Session(packed.path, threads=threads)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"cannot read .*nothing\.onnx"):
        Session(tmp_path / "nothing.onnx")
    with pytest.raises(UsageError, match="a path or the bytes of an ONNX file, got int"):
        Session(7)  # type: ignore[arg-type]
    with Session(packed.path) as session, pytest.raises(UsageError, match="no output 'y'; it has logits"):
        session.run(["y"], {"input": batch(1, (3, 11, 7))})


def test_strided_and_foreign_arrays_are_read_right(packed: Any) -> None:
    x = batch(4, (3, 11, 7))
    with Session(packed.path) as session:
        [y] = session.run(["logits"], {"input": x})
        np.testing.assert_array_equal(session.run(None, {"input": np.asfortranarray(x)})[0], y)
        np.testing.assert_array_equal(session.run(None, {"input": np.repeat(x, 2, 0)[::2]})[0], y)


def test_not_a_number_does_not_stay(packed: Any) -> None:
    x = batch(1, (3, 11, 7))
    with Session(packed.path) as session:
        [y] = session.run(None, {"input": x})
        for bad in (np.nan, np.inf, -np.inf):
            session.run(None, {"input": np.full_like(x, bad)})
        np.testing.assert_array_equal(session.run(None, {"input": x})[0], y)


def test_several_python_threads(packed: Any) -> None:
    inputs = [batch(1 + k % 3, (3, 11, 7), seed=k) for k in range(8)]
    with Session(packed.path, threads=2) as session:
        expected = [session.run(None, {"input": x})[0] for x in inputs]
        wrong: list[int] = []

        def use(number: int) -> None:
            for _ in range(40):
                if not np.array_equal(session.run(None, {"input": inputs[number]})[0], expected[number]):
                    wrong.append(number)

        users = [threading.Thread(target=use, args=(number,)) for number in range(8)]
        for user in users:
            user.start()
        for user in users:
            user.join()
    assert not wrong


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fineprune-")]


def test_no_thread_is_left(packed: Any) -> None:
    session = Session(packed.path, threads=3)
    assert len(workers()) == 2
    session.close()
    session.close()
    assert not workers()
    for use in (lambda x: session.run(None, {"input": x}), session.profile):
        with pytest.raises(UsageError, match="the session is closed"):
            use(batch(1, (3, 11, 7)))
    forgotten = Session(packed.path, threads=2)
    assert len(workers()) == 1
    del forgotten
    gc.collect()
    assert not workers()


def test_sleeping_threads_wake(packed: Any) -> None:
    x = batch(3, (3, 11, 7))
    with Session(packed.path, threads=2) as session:
        [y] = session.run(None, {"input": x})
        for _ in range(3):
            threading.Event().wait(0.05)
            np.testing.assert_array_equal(session.run(None, {"input": x})[0], y)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_after_a_fork(packed: Any) -> None:
    x = batch(1, (3, 11, 7))
    with Session(packed.path, threads=2) as session:
        [y] = session.run(None, {"input": x})
        child = os.fork()
        if child == 0:
            same = False
            try:
                same = np.array_equal(session.run(None, {"input": x})[0], y)
            finally:
                os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        np.testing.assert_array_equal(session.run(None, {"input": x})[0], y)


def test_copies_are_refused(packed: Any) -> None:
    with Session(packed.path) as session:
        for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled; send the path"):
                duplicate(session)


def test_profile_names_every_layer(packed: Any) -> None:
    with Session(packed.path, threads=2) as session:
        records = session.profile(batch(2, (3, 11, 7)), repeats=3)
    convs = {record.name: record for record in records if record.macs_dense}
    facts = {layer.name: layer for layer in packed.report.layers}
    assert set(facts) <= set(convs)
    for name, layer in facts.items():
        assert (convs[name].macs_dense, convs[name].macs) == (layer.macs_dense, layer.macs)
        assert convs[name].kernel in convs[name].reason
    assert all(record.seconds >= 0 for record in records)


def test_runtime_for_benchmarks(packed: Any) -> None:
    runtime = EngineRuntime("engine", packed.path)
    x = batch(2, (3, 11, 7))
    for threads in (1, 2):
        runtime.load(threads)
        close(runtime.run(x), run_onnxruntime(packed.path.read_bytes(), x))
        runtime.close()
    assert not workers()
    with pytest.raises(UsageError, match="no ONNX file"):
        EngineRuntime("engine", packed.path.with_name("nothing.onnx")).load(1)


def foreign() -> bytes:
    """Conv -> Softplus (unknown to the engine) -> Conv -> Add of both -> two outputs."""
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(4, 3, 3, 3)), "v": random.normal(size=(4, 4, 1, 1))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Softplus", ["a"], ["b"], name="soft"),
        helper.make_node("Conv", ["b", "v"], ["c"], name="second"),
        helper.make_node("Add", ["c", "b"], ["d"], name="sum"),
        helper.make_node("Relu", ["x"], ["e"], name="relu"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 5, 6])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size, 5, 6]) for name, size in (("d", 4), ("e", 3))]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "network", [x], outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def test_what_the_engine_does_not_know_runs_in_onnxruntime(caplog: pytest.LogCaptureFixture) -> None:
    import onnxruntime

    content, x = foreign(), batch(3, (3, 5, 6))
    reference = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    with caplog.at_level(logging.INFO), Session(content, threads=2) as session:
        for y, expected in zip(session.run(None, {"x": x}), reference, strict=True):
            close(y, expected)
        [only] = session.run(["e"], {"x": x})
        close(only, reference[1])
    assert "1 nodes from 'soft' to 'soft' run in ONNX Runtime: Softplus (operator)" in caplog.text
    with pytest.raises(RunError, match=r"Softplus .soft. is not computed by the engine .*fallback=True"):
        Session(content, fallback=False)


def test_what_is_easy_stays_between_nodes_of_onnxruntime(caplog: pytest.LogCaptureFixture) -> None:
    """Softplus -> Relu, HardSwish -> Softplus -> Conv -> Softplus: the convolution alone is worth the way."""
    names = (f"t{k}" for k in range(9))
    nodes, last = [], "x"
    for op_type, *inputs in (("Softplus",), ("Relu",), ("HardSwish",), ("Softplus",), ("Conv", "w"), ("Softplus",), ("Relu",)):
        nodes.append(helper.make_node(op_type, [last, *inputs], [next(names)]))
        last = nodes[-1].output[0]
    weights = np.random.default_rng(0).standard_normal((4, 3, 2, 2), np.float32)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape]) for name, shape in (("x", (3, 5, 6)), (last, (4, 4, 5))))
    graph = helper.make_graph(nodes, "network", [x], [y], [numpy_helper.from_array(weights, "w")])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    x = batch(2, (3, 5, 6))
    with caplog.at_level(logging.INFO), Session(content) as session:
        close(session.run(None, {"x": x})[0], run_onnxruntime(content, x))
    assert "4 nodes from 't0' to 't3'" in caplog.text and "2 nodes from 't5' to 't6'" in caplog.text


def test_other_opsets_run_in_onnxruntime(packed: Any, caplog: pytest.LogCaptureFixture) -> None:
    content = foreign()
    model = onnx.load_from_string(content)
    model.opset_import[0].version = 13
    x = batch(2, (3, 5, 6))
    with caplog.at_level(logging.INFO), Session(model.SerializeToString()) as session:
        close(session.run(None, {"x": x})[0], run_onnxruntime(content, x))
    assert "5 nodes from 'first' to 'relu'" in caplog.text


def test_the_engine_needs_no_torch() -> None:
    import subprocess

    code = (
        "import sys; import fineprune.export.engine.run.runtime, fineprune.export.engine.run.interpreter; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
