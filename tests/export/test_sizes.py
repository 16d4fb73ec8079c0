"""Files of any height and width."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.common.errors import RunError, UsageError
from fineprune.common.inputs import Structured
from fineprune.compressor.bake import bake
from fineprune.export.engine.run.session import Session
from fineprune.export.engine.run.sizes import MOST_SIZES, Sizes
from fineprune.export.parity import check_parity
from fineprune.export.sizes import of_another_size
from support.onnx_graphs import run_onnxruntime
from support.tolerances import ONNX_LOGITS

SHAPE = (3, 8, 6)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))))


def masked(kind: str = "fwp") -> nn.Module:
    random = torch.Generator().manual_seed(0)
    shape = (8, 4, 3) if kind == "ffp" else (8, 8, 3, 3)
    return bake(Network().eval(), {kind: {"second": torch.rand(shape, generator=random) < 0.5}})


def images(height: int, width: int) -> Tensor:
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_a_file_of_any_size_computes_the_network_at_every_size(export: Callable) -> None:
    exported = export(masked(), SHAPE, dynamic_size=True)
    content = exported.path.read_bytes()
    [given] = onnx.load_from_string(content).graph.input
    assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == ["batch", 3, "height", "width"]
    fixed = export(masked(), SHAPE).report
    assert exported.report.layers == fixed.layers and exported.report.layers[1].macs < exported.report.layers[1].macs_dense
    rtol, atol = ONNX_LOGITS
    with Session(exported.path) as session:
        assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
        for size in ((8, 6), (13, 10), (8, 6)):
            x = images(*size)
            with torch.no_grad():
                expected = exported.model(x).numpy()
            np.testing.assert_allclose(run_onnxruntime(content, x.numpy()), expected, rtol=rtol, atol=atol)
            np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], expected, rtol=rtol, atol=atol)
        assert session.profile(images(8, 6).numpy(), repeats=1)
        with pytest.raises(UsageError, match=r"input 'input' has shape \['batch', 3, 'height', 'width'\], got \[3, 2, 8, 6\]"):
            session.run(None, {"input": images(8, 6).numpy()[:, :2]})
    with pytest.raises(UsageError, match="the session is closed"):
        session.run(None, {"input": images(8, 6).numpy()})


def test_several_inputs_have_sizes_of_their_own(export: Callable) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.depth = Network(), nn.Conv2d(1, 2, 1)

        def forward(self, image: Tensor, depth: Tensor) -> Tensor:
            return self.image(image).mean((2, 3)) + self.depth(depth).mean((2, 3))

    sample = Structured({"image": images(8, 6), "depth": images(5, 7)[:, :1]}, 3, lambda model, given: model(**given))
    exported = export(Two().eval(), sample, dynamic_size=True)
    shapes = [[dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in onnx.load(exported.path).graph.input]
    assert shapes == [["batch", "", "height", "width"], ["batch", "", "height_2", "width_2"]]
    another = of_another_size(sample)
    assert isinstance(another, Structured) and another.value["image"].shape == (2, 3, 16, 18)
    assert check_parity(exported.model, exported.path, another, engine=True).passed


def test_masks_of_blocks_and_networks_of_one_size_are_refused(export: Callable) -> None:
    with pytest.raises(UsageError, match=r"masks of blocks belong to images of one size, and second has one: .* --ffp 0"):
        export(masked("ffp"), SHAPE, dynamic_size=True)
    flat = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 48, 3)).eval()
    with pytest.raises(
        RunError, match=r"Sequential is made for images of one size \(2 images of 3x16x18 end in: .*\); export it without --dynamic-size"
    ):
        export(flat, SHAPE, dynamic_size=True)


def test_sessions_are_kept_for_the_sizes_that_came_last(export: Callable) -> None:
    made, closed = list[str](), list[str]()

    class Kept:
        def __init__(self, content: tuple[bytes, str]) -> None:
            self.where = content[1]
            sizes = [dim.dim_value for dim in onnx.load_from_string(content[0]).graph.input[0].type.tensor_type.shape.dim]
            made.append(f"{sizes[2]}x{sizes[3]}")

        def close(self) -> None:
            closed.append(self.where)

    sizes = Sizes(export(masked(), SHAPE, dynamic_size=True).path.read_bytes(), "net.onnx", Kept)
    feeds = [{"input": images(8, 4 + number).numpy()} for number in range(MOST_SIZES + 1)]
    for one in (*feeds[:MOST_SIZES], feeds[0], feeds[MOST_SIZES]):
        sizes.session(one)
    assert made == [f"8x{4 + number}" for number in range(MOST_SIZES + 1)]
    assert closed == ["net.onnx for 3x8x5"]
    sizes.close()
    assert len(closed) == MOST_SIZES + 1
