"""Files and contents that are no checkpoint of this network are named for what they are, with what to do instead."""

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from fineprune.common.errors import FinepruneError, RunError, UsageError
from fineprune.models.zoo import ModelSpec, build, load_checkpoint
from support.mutations import mutations


def small() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 5))


def refused(path: Path, message: str, error: type[FinepruneError] = RunError, model: nn.Module | None = None) -> None:
    model = model or small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message) as caught:
        load_checkpoint(model, path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return stream.getvalue()


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty; copy or download it again"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "is a Git LFS pointer .* `git lfs pull`"),
    "web page": (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>", "is a web page, .*; download the file itself"),
    "error page": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(64), "is an HDF5 file, as Keras and TensorFlow write them; give the PyTorch checkpoint"),
    "ONNX of torch": (b"\x08\x08\x12\x07pytorch\x1a\x052.0.0:" + bytes(64), "is an ONNX file, .*give the PyTorch checkpoint"),
    "ONNX of helper": (b"\x08\x0e:3\n\x0c\n\x01x\x12\x01y", "is an ONNX file"),
    "NumPy array": (b"\x93NUMPY\x01\x00v\x00{'descr'", "is a NumPy array"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(64), "is compressed; unpack it"),
    "tar": (tarred(), "is a tar archive; unpack it"),
    "index of shards": (
        b'{"metadata": {"total_size": 1}, "weight_map": {}}',
        "is a text .JSON., perhaps the index of several weights files",
    ),
    "npz": (zipped(**{"arr_0.npy": b"\x93NUMPY"}), "is a zip archive of NumPy arrays"),
    "zip of others": (zipped(readme=b"", model__weights=b""), "is a zip archive of readme, model/weights, not of torch.save"),
    "Keras 3": (zipped(**{"metadata.json": b"{}", "model.weights.h5": b""}), "zip archive of metadata.json, model.weights.h5"),
    "other pickle": (pickle.dumps({"a": np.ones(3)}, protocol=4), "holds objects other than weights|was not written by torch.save"),
    "other archive of weights": (zipped(w__data__pkl=b"", **{"w/data.pkl": b"\x80\x02}."}), "truncated or not a checkpoint"),
    "text": (b"these are not weights\n", "is truncated or not a checkpoint; copy or download it again"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_files_that_are_something_else(kind: str, name: str, tmp_path: Path) -> None:
    content, message = FILES[kind]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message if kind not in ("text",) or name == "w.pt" else "not a safetensors file")


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_programs_are_named_and_not_run(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.ones(1)), tmp_path / "scripted.pt")
    refused(tmp_path / "scripted.pt", r"is a TorchScript archive.*torch.jit.load\(FILE\).state_dict\(\)")
    (tmp_path / "exported.pt2").write_bytes(zipped(net__archive_format=b"pt2", net__data__weights=b""))
    refused(tmp_path / "exported.pt2", "is an exported program")
    torch.save(small(), tmp_path / "module.pt")
    refused(tmp_path / "module.pt", r"holds objects other than weights \(torch.nn.*save model.state_dict\(\) alone")


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.pth").write_bytes(b"x")
    refused(tmp_path / "weights", "is a folder; give a weights file in it: model.pth", UsageError)
    (tmp_path / "manifest.json").write_text("{}")
    refused(tmp_path, "is a folder: a bundle, .* name it alone", UsageError)


def with_first(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    state = dict(small().state_dict())
    state["0.weight"] = change(state["0.weight"])
    return state


CONTENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "float8": (lambda: with_first(lambda w: w.to(torch.float8_e4m3fn)), "0.weight holds float8_e4m3fn numbers .* before .* quantized"),
    "int8": (lambda: with_first(lambda w: w.to(torch.int8)), "0.weight holds int8 numbers"),
    "bool": (lambda: with_first(lambda w: w > 0), "0.weight holds bool numbers"),
    "quantized": (lambda: with_first(lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)), "0.weight is a quantized tensor"),
    "sparse": (lambda: with_first(lambda w: w.to_sparse()), "0.weight is a sparse tensor; save .* dense"),
    "complex": (
        lambda: with_first(lambda w: w.to(torch.complex64)),
        "0.weight holds complex64 numbers where the network has float32; save real weights",
    ),
    "meta": (lambda: with_first(lambda w: w.to("meta")), "0.weight has no values .*meta device"),
    "too large for a float": (lambda: with_first(lambda w: w.double() * 1e300), "0.weight holds .* NaN or infinite"),
    "expanded beyond memory": (lambda: with_first(lambda w: torch.ones(1).expand(2**40)), r"0.weight \(1099511627776,\) instead of"),
    "two networks": (
        lambda: {f"{part}.{k}": v for part in ("student", "teacher") for k, v in small().state_dict().items()},
        "several networks that fit .student., teacher",
    ),
    "two dicts": (
        lambda: {"first": small().state_dict(), "second": small().state_dict()},
        "holds no state dict but a dict with 'first', 'second'",
    ),
    "weight_norm": (
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 5)
        ).state_dict(),
        "computed by torch.nn.utils.parametrize; call torch.nn.utils.parametrize.remove_parametrizations",
    ),
    "spectral_norm": (
        lambda: nn.Sequential(
            parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 5)
        ).state_dict(),
        "parametrize.remove_parametrizations",
    ),
    "weight_norm of old": (
        lambda: {"0.weight_g": torch.ones(3, 1, 1, 1), "0.weight_v": torch.ones(3, 2, 3, 3), "0.bias": torch.ones(3)},
        "the weights of 0 are computed by weight_norm; call torch.nn.utils.remove_weight_norm",
    ),
}


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("kind", CONTENTS)
def test_contents_that_are_no_weights_of_this_network(kind: str, tmp_path: Path) -> None:
    make, message = CONTENTS[kind]
    torch.save(make(), tmp_path / "w.pt")
    refused(tmp_path / "w.pt", message)


def test_a_network_with_parametrizations_takes_its_own(tmp_path: Path) -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(2, 3, 3)))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    assert load_checkpoint(model, tmp_path / "w.pt") == ()
    assert parametrize.is_parametrized(model[0])
    pruned = nn.Sequential(prune.l1_unstructured(nn.Conv2d(2, 3, 3), "weight", 0.5))
    torch.save(pruned.state_dict(), tmp_path / "w.pt")
    assert load_checkpoint(pruned, tmp_path / "w.pt") == ()


def test_what_was_chosen_and_left_out_is_said(tmp_path: Path) -> None:
    state = small().state_dict()
    path = tmp_path / "w.pt"
    torch.save({"state_dict": state, "state_dict_ema": state}, path)
    assert load_checkpoint(small(), path) == (
        f"{path}: the weights under 'state_dict' are taken; to use the averaged ones under 'state_dict_ema', save those alone",
    )
    torch.save({"model_ema": state}, path)
    assert load_checkpoint(small(), path) == (f"{path}: the averaged weights under 'model_ema' are taken, there are no others",)
    torch.save({**{f"model.{k}": v for k, v in state.items()}, "loss.weight": torch.ones(3)}, path)
    assert load_checkpoint(small(), path) == (f"{path}: the weights under 'model.' are taken; 1 left out (loss.weight)",)
    torch.save({**state, "epoch": 3}, path)
    assert load_checkpoint(small(), path) == (f"{path}: 1 beside the weights and left out (epoch)",)


def test_a_network_that_wraps_the_saved_one(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "w.pt")
    wrapped = nn.Sequential()
    wrapped.add_module("backbone", small())
    nn.init.zeros_(wrapped.get_parameter("backbone.0.weight"))
    load_checkpoint(wrapped, tmp_path / "w.pt")
    assert torch.equal(wrapped.get_parameter("backbone.0.weight"), small().state_dict()["0.weight"])


def test_the_weights_of_a_masked_network(tmp_path: Path) -> None:
    torch.save({**small().state_dict(), "0.ffp_mask": torch.ones(2, 6, 6, dtype=torch.bool)}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", r"is of a network with masks \(0.ffp_mask\).*; name the bundle instead")


def inferring() -> nn.Module:
    with torch.inference_mode():
        return small()


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(small(), {nn.Linear})


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (inferring, "0.weight of the network was made under torch.inference_mode"),
        (lambda: small().to("meta"), "0.weight of the network has no values .*meta.*; build the network on the CPU"),
        (quantized, "of the network is no tensor .it is quantized"),
    ],
)
def test_networks_whose_weights_cannot_be_changed(make: Callable[[], nn.Module], message: str, tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "w.pt")
    with pytest.raises(UsageError, match=message):
        load_checkpoint(make(), tmp_path / "w.pt")


@pytest.mark.parametrize("kind", ["half", "bfloat16", "double", "lazy"])
def test_networks_of_other_numbers_take_weights(kind: str, tmp_path: Path) -> None:
    lazy = nn.Sequential(nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(5))
    model = lazy if kind == "lazy" else getattr(small(), kind)()
    torch.save(small().state_dict(), tmp_path / "w.pt")
    load_checkpoint(model, tmp_path / "w.pt")
    torch.testing.assert_close(model[0].weight.float(), small()[0].weight, rtol=0.01, atol=0.01)


class Versioned(nn.Linear):
    """Loads by the version of its state dict, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *rest: Any) -> None:
        assert local_metadata.get("version") in (1, 2)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_the_versions_of_modules_are_kept(prefix: str, tmp_path: Path) -> None:
    saved = nn.Sequential(Versioned(2, 3))
    outer = nn.Module()
    outer.add_module(prefix.rstrip(".") or "none", saved)
    torch.save(outer.state_dict() if prefix else saved.state_dict(), tmp_path / "w.pt")
    model = nn.Sequential(Versioned(2, 3))
    load_checkpoint(model, tmp_path / "w.pt")
    assert torch.equal(model[0].weight, saved[0].weight)
    save_file(saved.state_dict(), tmp_path / "w.safetensors")  # keeps no versions: they are those of the network whose names it has
    load_checkpoint(model, tmp_path / "w.safetensors")
    torch.save(dict(saved.state_dict()) | {"0.bias": torch.ones(7)}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "does not fit this network: .*", model=model)


@pytest.mark.parametrize(
    ("made", "asked", "hint"),
    [
        ({"name": "resnet8", "shortcut": "A"}, {"name": "resnet8"}, "it fits resnet8 with other arguments; give --model-arg shortcut=A$"),
        ({"name": "resnet8", "width": 6, "num_classes": 7}, {"name": "resnet8"}, "give --model-arg width=6 --model-arg num_classes=7$"),
        (
            {"name": "resnet14", "in_channels": 1, "shortcut": "A"},
            {"name": "resnet8", "in_channels": 3},
            "it fits resnet14 .*give --model resnet14 --model-arg in_channels=1 --model-arg shortcut=A$",
        ),
        ({"name": "wrn10", "k": 2}, {"name": "wrn10"}, "give --model-arg k=2$"),
        ({"name": "lenet", "num_classes": 3}, {"name": "vgg13"}, "give --model lenet --model-arg num_classes=3$"),
        ({"name": "own.py:net", "planes": 6, "kind": "wide"}, {"name": "own.py:net"}, "give --model-arg kind=wide --model-arg planes=6$"),
        (
            {"name": "torchvision:shufflenet_v2_x0_5", "num_classes": 3},
            {"name": "torchvision:shufflenet_v2_x0_5"},
            "give --model-arg num_classes=3$",
        ),
        ({"name": "lenet"}, {"name": "own.py:net"}, "build the model with the arguments that it was trained with$"),
    ],
)
def test_the_arguments_that_would_fit_are_named(
    made: dict[str, Any], asked: dict[str, Any], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fineprune.models.zoo.fitting._SECONDS", 600)
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "from typing import Literal\nfrom torch import nn\n\n\ndef net(planes: int = 4, kind: Literal['slim', 'wide'] = 'slim'):\n"
        "    return nn.Sequential(nn.Conv2d(3, planes, 3), nn.Conv2d(planes, planes, 3) if kind == 'wide' else nn.ReLU())\n"
    )
    spec = ModelSpec(name=asked.pop("name"), args=asked)
    torch.save(build(ModelSpec(name=made.pop("name"), args=made), seed=0).state_dict(), tmp_path / "w.pt")
    with pytest.raises(RunError, match=hint):
        load_checkpoint(build(spec, seed=0), tmp_path / "w.pt", spec)


FORMATS: dict[str, Callable[[dict[str, torch.Tensor], Path], None]] = {
    "zip": lambda state, path: torch.save(state, path),
    "legacy": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda state, path: save_file(state, path),
}


@pytest.mark.parametrize("form", FORMATS)
def test_mutated_files_are_refused_in_one_line_or_loaded(form: str, tmp_path: Path) -> None:
    model = small()
    path = tmp_path / "w.pt"
    FORMATS[form](model.state_dict(), path)
    outcomes = set()
    for content in mutations(path.read_bytes(), count=120, seed=5):
        path.write_bytes(content)
        try:
            load_checkpoint(model, path)
            outcomes.add("loaded")
        except FinepruneError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes == {"loaded", "refused"}


def test_archives_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}.")
        archive.writestr("w/data/0", bytes(70 << 20))
    refused(tmp_path / "w.pt", r"bytes and claims to hold 73,4\d\d,\d\d\d, which is not read")
