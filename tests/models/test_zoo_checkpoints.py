"""Loading weights: every accepted form gives the same network, everything else one clear line and an untouched model."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fineprune.common.errors import RunError, UsageError
from fineprune.models.zoo import build, load_checkpoint

State = dict[str, torch.Tensor]


@pytest.fixture
def trained() -> State:
    return build("resnet20", width=3, shortcut="A", seed=1).state_dict()


@pytest.fixture
def model() -> nn.Module:
    return build("resnet20", width=3, shortcut="A", seed=2)


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "best_prec1": 91.5, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1}},
    "net": lambda s: {"net": s, "acc": 90},
    "model_state_dict": lambda s: {"model_state_dict": s},
    "nested": lambda s: {"model": {"state_dict": s}},
    "data parallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled data parallel": lambda s: {"net": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "without counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    "half precision": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    "bfloat16": lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()},
    "double precision": lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
    "Lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 3, "loops": {}, "callbacks": {}},
    "Lightning, with a loss": lambda s: {"state_dict": {**{f"net.{k}": v for k, v in s.items()}, "loss.weight": torch.ones(10)}},
    "Lightning, compiled": lambda s: {"state_dict": {f"model._orig_mod.{k}": v for k, v in s.items()}},
    "parts compiled and parallel": lambda s: {k.replace("layer1.", "layer1.module._orig_mod."): v for k, v in s.items()},
    "averaged (SWA)": lambda s: {"n_averaged": torch.tensor(5), **{f"module.{k}": v for k, v in s.items()}},
    "averaged beside": lambda s: {"state_dict": s, "state_dict_ema": {k: torch.zeros_like(v) for k, v in s.items()}},
    "averaged by Lightning": lambda s: {
        **{f"model.{k}": v for k, v in s.items()},
        **{f"ema_model.module.{k}": v * 0 for k, v in s.items()},
    },
    "averaged alone": lambda s: {"model_ema": {"n_averaged": torch.tensor(5), **{f"module.{k}": v for k, v in s.items()}}},
    "averaged alone (timm)": lambda s: {"state_dict_ema": s, "epoch": 3},
    "under a name of one's own": lambda s: {"best_weights": s, "epoch": 3, "history": [0.5]},
    "counters beside": lambda s: {**s, "epoch": 3, "best": 0.5, "total_ops": torch.tensor([1e9]), "layer1.total_params": torch.ones(1)},
    "pruned": lambda s: {new: v for k, value in s.items() for new, v in split(k, value).items()},
}


def split(name: str, value: torch.Tensor) -> State:
    """As torch.nn.utils.prune stores a convolution's weight."""
    if "conv" not in name:
        return {name: value}
    mask = (value != value.flatten()[0]).float()
    value.mul_(mask)
    return {f"{name}_orig": torch.where(mask.bool(), value, 7.0), f"{name}_mask": mask}


@pytest.mark.parametrize("form", FORMS)
def test_accepted_forms(tmp_path: Path, trained: State, model: nn.Module, form: str) -> None:
    load_checkpoint(model, save(tmp_path / "w.pt", FORMS[form](trained)))
    for key, value in trained.items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol={"half precision": 1e-3, "bfloat16": 1e-2}.get(form, 0))


def test_legacy_torch_format(tmp_path: Path, trained: State, model: nn.Module) -> None:
    torch.save({"state_dict": trained}, tmp_path / "w.th", _use_new_zipfile_serialization=False)
    load_checkpoint(model, tmp_path / "w.th")
    assert torch.equal(model.state_dict()["conv1.weight"], trained["conv1.weight"])


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_safetensors_by_suffix_and_by_content(tmp_path: Path, trained: State, model: nn.Module, name: str) -> None:
    save_file(trained, tmp_path / name)
    load_checkpoint(model, tmp_path / name)
    assert torch.equal(model.state_dict()["linear.weight"], trained["linear.weight"])


def test_a_network_whose_own_names_begin_with_module(tmp_path: Path) -> None:
    own = nn.Sequential()
    own.add_module("module", nn.Linear(2, 3))
    load_checkpoint(own, save(tmp_path / "w.pt", {"module.weight": torch.ones(3, 2), "module.bias": torch.zeros(3)}))
    assert own.get_parameter("module.weight").sum() == 6


def refused(model: nn.Module, path: Path, error: type[Exception], message: str) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(error, match=message) as caught:
        load_checkpoint(model, path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_mismatches_are_named_and_counted(tmp_path: Path, trained: State, model: nn.Module) -> None:
    changed = {k: v for k, v in trained.items() if not k.startswith("layer1.0.conv")}
    changed |= {f"extra{i}": torch.ones(1) for i in range(5)}
    changed["linear.weight"] = torch.zeros(100, 12)
    refused(
        model,
        save(tmp_path / "w.pt", changed),
        RunError,
        r"does not fit this network: 2 missing \(layer1.0.conv1.weight, layer1.0.conv2.weight\); "
        r"5 unexpected \(extra0, extra1, extra2 and 2 more\); 1 wrongly shaped \(linear.weight \(100, 12\) instead of \(10, 12\)\)",
    )


def test_wrong_architecture(tmp_path: Path, model: nn.Module) -> None:
    refused(model, save(tmp_path / "w.pt", build("lenet").state_dict()), RunError, "does not fit this network: .* missing .* unexpected")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_weights(tmp_path: Path, trained: State, model: nn.Module, value: float) -> None:
    trained["layer2.1.conv1.weight"][0, 1, 2, 0] = value
    refused(model, save(tmp_path / "w.pt", trained), RunError, "layer2.1.conv1.weight holds 1 NaN or infinite values")


def test_missing_file_and_folder(tmp_path: Path, model: nn.Module) -> None:
    refused(model, tmp_path / "none.pt", UsageError, "none.pt does not exist")
    refused(model, tmp_path, UsageError, "is a folder")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_truncated(tmp_path: Path, trained: State, model: nn.Module, zipped: bool, kept: float) -> None:
    path = tmp_path / "w.pt"
    torch.save(trained, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refused(model, path, RunError, "w.pt is truncated or not a checkpoint")


def test_truncated_safetensors(tmp_path: Path, trained: State, model: nn.Module) -> None:
    path = tmp_path / "w.safetensors"
    save_file(trained, path)
    path.write_bytes(path.read_bytes()[:-10])
    refused(model, path, RunError, "w.safetensors is truncated or not a safetensors file")


def test_other_content(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are not weights\n")
    refused(model, path, RunError, "notes.txt is truncated or not a checkpoint; copy or download it again")
    refused(model, save(tmp_path / "list.pt", [1, 2]), RunError, "holds no state dict but list")
    refused(model, save(tmp_path / "dict.pt", {"epoch": 3}), RunError, "holds no state dict but a dict with 'epoch'")
    refused(model, save(tmp_path / "mixed.pt", {"w": torch.ones(1), "epochs": [3]}), RunError, r"1 not tensors \(epochs\)")


class Payload:
    """Would run code if it were unpickled."""

    def __reduce__(self) -> tuple:
        return (os.mkdir, ("unpickled",))


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: State, model: nn.Module, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": trained, "x": Payload()}, "w.pt", _use_new_zipfile_serialization=zipped)
    refused(model, Path("w.pt"), RunError, r"holds objects other than weights \(posix.mkdir\).*save model.state_dict\(\) alone")
    assert not Path("unpickled").exists()


def test_numpy_scalars_are_refused_with_a_remedy(tmp_path: Path, trained: State, model: nn.Module) -> None:
    content = {"state_dict": trained, "best": np.float64(91.5)}
    refused(model, save(tmp_path / "w.pt", content), RunError, r"holds objects other than weights \(numpy.*save model.state_dict\(\) alone")


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "file"), [("resnet20", "resnet20-12fca82f.th"), ("resnet32", "resnet32-d509ac18.th")])
def test_public_checkpoints_load_strictly(name: str, file: str) -> None:
    path = Path(os.environ.get("FINEPRUNE_DATA", ""), "checkpoints", file)
    if not path.is_file():
        pytest.skip("FINEPRUNE_DATA does not point to a folder with checkpoints/")
    load_checkpoint(build(name, shortcut="A"), path)
    with pytest.raises(RunError, match=r"10 missing \(layer2.0.shortcut.0.weight"):
        load_checkpoint(build(name, shortcut="B"), path)


def test_the_state_of_a_masked_network_is_named_for_what_it_is(model: nn.Module, trained: State, tmp_path: Path) -> None:
    content = {**trained, "conv1.ffp_mask": torch.ones(3, 32, 32, dtype=torch.bool)}
    message = r"is of a network with masks \(conv1\.ffp_mask\).*; name the bundle instead, or in Python load the state into fineprune.load"
    refused(model, save(tmp_path / "w.pt", content), RunError, message)


def test_modules_that_ask_for_their_version_are_loaded(tmp_path: Path) -> None:
    """torchvision's MNASNet refuses a state dict without."""

    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
            if metadata.get("version") != 2:
                raise ValueError(f"version should be 2 instead of {metadata.get('version')}")
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    trained = nn.Sequential(Versioned(2, 3))
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    model = nn.Sequential(Versioned(2, 3))
    load_checkpoint(model, tmp_path / "w.safetensors")
    assert torch.equal(model[0].weight, trained[0].weight)
