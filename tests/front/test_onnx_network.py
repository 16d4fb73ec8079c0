"""An ONNX file without its code: compressed, exported, measured; the bundle needs neither file nor code."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import fineprune
from fineprune.common.errors import FinepruneError, RunError, UsageError
from fineprune.common.files import sha256
from fineprune.common.progress import Silent
from fineprune.compressor.bake import masked_layers
from fineprune.export.exporter import export_onnx
from fineprune.models.zoo import ModelSpec
from fineprune.networks import open_bundle, open_model
from support.command import fineprune as run
from support.command import succeed
from support.onnx_networks import exits, exported, graph, saved, tokens
from support.tolerances import ONNX_LOGITS

SIZE = (3, 12, 12)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures without labels, and the same in folders of two classes."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("onnx")
    draw = np.random.default_rng(0)
    for index in range(40):
        for place in (folder / "photos", folder / "labelled" / ("dark", "light")[index % 2]):
            place.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(120 * (index % 2), 120 + 120 * (index % 2), (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def network(photos: Path) -> Path:
    return exported(exits(), photos / "net.onnx", SIZE)


@pytest.fixture(scope="module")
def bundle(network: Path, photos: Path) -> Path:
    """Half of the multiply-adds pruned, weights reconstructed; the file is gone afterwards."""
    moved = shutil.copy(network, photos / "moved.onnx")
    output = photos / "bundle"
    result = succeed("compress", moved, "--data", f"imagefolder:{photos}/photos", "--prune", 0.5, "--epochs", 0, "--output", output)
    assert "reconstructed: test agreement with the dense network" in result.out + result.err
    assert "random" not in result.err
    Path(moved).unlink()
    return output


def outputs(path: Path, x: torch.Tensor) -> Any:
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def test_half_of_a_file_is_pruned_exported_and_equal(bundle: Path, photos: Path, tmp_path: Path) -> None:
    facts = json.loads((bundle / "manifest.json").read_text())
    assert facts["model"] == {"name": "moved.onnx", "args": {}} and abs(facts["conv_macs_kept"] - 0.5) < 0.03
    succeed("export", bundle, "--data", f"imagefolder:{photos}/photos", "--output", tmp_path / "small.onnx")
    masked = fineprune.load(bundle)
    assert {name for name, _ in masked_layers(masked)} >= {"stem.0", "grouped", "side"}
    x = torch.randn(5, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.testing.assert_allclose(outputs(tmp_path / "small.onnx", x), masked(x).numpy(), *ONNX_LOGITS)
    weights = [layer.masked_weight() for _, layer in masked_layers(masked)]
    assert 0.3 < sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights) < 0.7


def test_other_commands_take_the_bundle_or_the_file(bundle: Path, network: Path, photos: Path, tmp_path: Path) -> None:
    assert succeed("macs", bundle, "--json").json()["macs"] < succeed("macs", network, "--json").json()["macs"]
    succeed("report", bundle, "--output", tmp_path / "r.html")
    assert "moved.onnx" in (tmp_path / "r.html").read_text()
    labelled = ("--data", f"imagefolder:{photos}/labelled")
    assert 0 <= succeed("eval", network, *labelled, "--json").json()["accuracy"] <= 1
    succeed("calibrate", "--model", network, *labelled, "--fwp", 0.5, "--output", tmp_path / "statistics")
    again = succeed(
        "compress", bundle, "--data", f"imagefolder:{photos}/photos", "--fwp", 0.2, "--epochs", 0, "--output", tmp_path / "more"
    )
    assert again and (tmp_path / "more" / "network.onnx").read_bytes() == (bundle / "network.onnx").read_bytes()


def test_a_file_is_trained_and_fine_tuned(network: Path, photos: Path, tmp_path: Path) -> None:
    labelled = ("--data", f"imagefolder:{photos}/labelled")
    once = ("--epochs", 1, "--batch-size", 8, "--no-augment")
    succeed("train", "--model", network, *labelled, *once, "--output", tmp_path / "trained")
    trained = ("--model", network, "--checkpoint", tmp_path / "trained" / "model.safetensors")
    succeed("compress", *trained, *labelled, *once, "--fwp", 0.3, "--output", tmp_path / "b")
    facts = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert set(facts["accuracy"]) >= {"dense", "finetuned"} and "measure" not in facts["accuracy"]
    before, after = open_model(ModelSpec(name=str(network))).model.state_dict(), fineprune.load(tmp_path / "b").state_dict()
    assert not torch.equal(before["norm.running_mean"], after["norm.running_mean"]), "BatchNorm of a file is trained, too"


def test_python_takes_the_name_of_a_file(network: Path, tmp_path: Path) -> None:
    inputs = torch.randn(48, *SIZE, generator=torch.Generator().manual_seed(0))
    bundle = fineprune.compress(str(network), inputs, prune=0.5, epochs=0, exclude="stem.0", progress=Silent())
    fineprune.to_onnx(bundle, tmp_path / "small.onnx", samples=inputs[:4], progress=Silent())
    own = fineprune.prepare(open_bundle(_saved(bundle, tmp_path / "b")).model, bundle)
    fineprune.finish(own, bundle, output=tmp_path / "own")
    with torch.no_grad():
        assert torch.equal(fineprune.load(tmp_path / "own")(inputs), fineprune.load(tmp_path / "b")(inputs))
    assert "stem.0" not in bundle.masks["fwp"] and "grouped" in bundle.masks["fwp"]


def _saved(bundle: fineprune.Bundle, folder: Path) -> Path:
    bundle.save(folder)
    return folder


def test_sizes_are_those_of_the_file(network: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"takes inputs of 3x12x12, not 1x16x16; give --data-arg channels=3 --data-arg image_size=12"):
        fineprune.compress(str(network), torch.randn(8, 1, 16, 16), prune=0.5, epochs=0, progress=Silent())
    pool = graph([onnx.helper.make_node("GlobalAveragePool", ["x"], ["y"])], shape=("n", 3, "h", "w"))
    path = saved(pool, tmp_path / "open.onnx")
    result = run("macs", path)
    assert result.code == 2 and "open.onnx leaves its input size open; give --input CxHxW" in result.err
    assert open_model(ModelSpec(name=str(path)), input_shape=(3, 5, 7)).input_shape == (3, 5, 7)
    with pytest.raises(UsageError, match="takes no arguments, got width"):
        open_model(ModelSpec(name=str(network), args={"width": 3}))


def test_images_of_data_get_the_size_of_the_file(network: Path, photos: Path, tmp_path: Path) -> None:
    from PIL import Image

    for picture in (photos / "labelled").glob("*/*.png"):
        place = tmp_path / "larger" / picture.parent.name / picture.name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(picture).resize((20, 17)).save(place)
    found = succeed("eval", "--model", network, "--data", f"imagefolder:{tmp_path}/larger", "--json")
    assert 0 <= json.loads(found.out)["accuracy"] <= 1
    result = run("eval", "--model", network, "--data", f"imagefolder:{tmp_path}/larger", "--data-arg", "image_size=20")
    assert result.code == 2 and "takes inputs of 3x12x12, not 3x20x20; give --data-arg image_size=12" in result.err


def test_outputs_that_are_probabilities_are_said(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("ReduceMean", ["x"], ["p"], axes=[2, 3], keepdims=0), onnx.helper.make_node("Softmax", ["p"], ["y"])]
    lines: list[str] = []

    class Said(Silent):
        def log(self, message: str) -> None:
            lines.append(message)

    open_model(ModelSpec(name=str(saved(graph(nodes, opset=13), tmp_path / "net.onnx"))), progress=Said())
    assert len(lines) == 1 and "ends in Softmax" in lines[0]


def edited(bundle: Path, folder: Path, graph_bytes: bytes, *, hashed: bool) -> Path:
    shutil.copytree(bundle, folder)
    (folder / "network.onnx").write_bytes(graph_bytes)
    if hashed:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["sha256"]["network.onnx"] = sha256(folder / "network.onnx")
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_edited_graph_reads_no_other_file_and_takes_no_memory(bundle: Path, tmp_path: Path) -> None:
    content = (bundle / "network.onnx").read_bytes()
    with pytest.raises(RunError, match=r"network\.onnx does not match the hash"):
        open_bundle(edited(bundle, tmp_path / "a", content + b"\0", hashed=False))
    (tmp_path / "secret").write_bytes(bytes(4096))
    model = onnx.load_model_from_string(content)
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    with pytest.raises(RunError, match=r"network\.onnx cannot be read: its graph names another file"):
        open_bundle(edited(bundle, tmp_path / "b", model.SerializeToString(), hashed=True))
    model = onnx.load_model_from_string(content)
    next(t for t in model.graph.initializer if len(t.dims) == 4).dims[0] = 2**40
    with pytest.raises(RunError, match=r"network\.onnx cannot be read: that has [\d,]+ weights, and the bundle holds"):
        open_bundle(edited(bundle, tmp_path / "c", model.SerializeToString(), hashed=True))
    for name, garbage in (("d", b"ab" * 99), ("e", b"")):
        with pytest.raises(FinepruneError, match=r"network\.onnx cannot be read: its graph"):
            open_bundle(edited(bundle, tmp_path / name, garbage, hashed=True))


def test_a_manifest_opens_no_onnx_file_by_its_name(bundle: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "b"))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]["network.onnx"]
    manifest["model"]["name"] = str(network)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="which a file does not run by itself"):
        open_bundle(folder)


def test_a_network_that_is_no_classifier_needs_no_labels(tmp_path: Path) -> None:
    """Outputs of any shape: reconstruction is layer by layer."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 2, 2, stride=2)).eval()
    path = exported(model, tmp_path / "dense.onnx", (3, 8, 8))
    inputs = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(32, 2, 16, 16)
    bundle = fineprune.compress(str(path), (inputs, targets), loss=nn.functional.mse_loss, prune=0.5, epochs=0, progress=Silent())
    assert bundle.graph is not None and bundle.facts["conv_macs_kept"] < 0.65


def test_a_transformer_for_one_sample_is_pruned_and_exported_for_any_number(tmp_path: Path) -> None:
    path = exported(tokens(), tmp_path / "net.onnx", (3, 8, 12), "dynamo, one sample")
    inputs = torch.randn(24, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    weights = {"ratio": 0.5, "layer_types": ("conv2d", "linear")}
    bundle = fineprune.compress(str(path), inputs, fwp=weights, ffp=0, epochs=0, output=tmp_path / "b", progress=Silent())
    assert {"patches", "attention.out_proj"} <= bundle.masks["fwp"].keys() and len(bundle.masks["fwp"]) == 4
    masked = fineprune.load(tmp_path / "b")
    export_onnx(masked, (3, 8, 12), tmp_path / "small.onnx")
    with torch.no_grad():
        np.testing.assert_allclose(outputs(tmp_path / "small.onnx", inputs[:5]), masked(inputs[:5]).numpy(), *ONNX_LOGITS)


def test_a_recipe_reads_a_file_on_the_users_word_alone(network: Path, photos: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'output = "{tmp_path}/run"\n[model]\nname = "{network}"\n[data]\nspec = "imagefolder:{photos}/labelled"\n'
        '[train]\nepochs = 1\nbatch_size = 8\n[compress]\nfwp = 0.3\npreset = "taylor"\n'
        "[finetune]\nepochs = 0\n[export]\nparity_samples = 4\n"
    )
    refused = run("run", recipe)
    assert refused.code == 2 and f"--trust {network}" in refused.err
    words = [word for name in (network, f"imagefolder:{photos}/labelled", tmp_path / "run") for word in ("--trust", name)]
    succeed("run", recipe, *words)
    assert (tmp_path / "run" / "bundle" / "network.onnx").is_file() and (tmp_path / "run" / "compressed.onnx").is_file()
