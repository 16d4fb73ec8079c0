"""Bundles on disk: bit-exact, whole or absent, and never in the place of something else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fineprune.common.errors import RunError, UsageError
from fineprune.compressor.bake import bake, masks_of
from fineprune.compressor.bundle import MANIFEST, MASKS, WEIGHTS, Bundle, check_storable, check_target, is_bundle, same_bits
from support.networks import samples, varied

FACTS = {"model": {"name": "varied"}, "asked": {"ffp": 0.37}, "note": "käse"}


def masked(seed: int = 0) -> nn.Module:
    """Masks of 105, 175, 36, 72, 36, 270 and 1 elements, few of them whole bytes."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) < 0.5

    ffp = {"stem": random(3, 7, 5), "down": random(6, 3, 2), "pointwise": random(4, 7, 5)}
    fwp = {"down": random(5, 6, 3, 3), "grouped": random(4, 3, 3, 2), "depthwise": random(4, 1, 3, 3)}
    return bake(varied(seed), {"ffp": ffp, "fwp": fwp}).eval()


def bundle(seed: int = 0) -> Bundle:
    return Bundle.of(masked(seed), FACTS, {"down": torch.tensor([0, 1, 1, 0, 2])})


def test_a_round_trip_is_bit_exact(tmp_path: Path) -> None:
    model, images = masked(), samples(4, dtype=torch.float64).images
    bundle().save(tmp_path / "b")
    loaded = Bundle.load(tmp_path / "b")
    assert loaded.facts == FACTS
    assert loaded.groups["down"].tolist() == [0, 1, 1, 0, 2]
    for got, expected in ((loaded.masks["ffp"], masks_of(model)["ffp"]), (loaded.masks["fwp"], masks_of(model)["fwp"])):
        assert got.keys() == expected.keys()
        assert all(got[name].dtype == torch.bool and torch.equal(got[name], expected[name]) for name in expected)
    restored = loaded.restore(varied(seed=9))
    assert not restored.training
    assert torch.equal(restored(images), model(images))
    for name, value in model.state_dict().items():
        expected = model.get_submodule("down").masked_weight() if name == "down.weight" else value  # type: ignore[operator]
        if name not in ("grouped.weight", "depthwise.weight"):
            assert torch.equal(restored.state_dict()[name], expected), name


def test_masks_are_packed_eight_to_a_byte_and_dropped_weights_are_zero(tmp_path: Path) -> None:
    model = bake(
        nn.Sequential(nn.Conv2d(1, 1, 3)), {"ffp": {"0": torch.tensor([[[True, False, True], [True, True, True], [True, True, True]]])}}
    )
    Bundle.of(model, {}).save(tmp_path / "b")
    assert load_file(tmp_path / "b" / MASKS)["0/ffp"].tolist() == [0b10111111, 0b10000000]
    weights = bundle().weights["down.weight"]
    mask = masks_of(masked())["fwp"]["down"]
    assert (weights[~mask] == 0).all()
    assert (weights[mask] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_network_in_another_precision_comes_back_in_the_one_of_the_bundle(dtype: torch.dtype) -> None:
    of_double = bundle()
    restored = of_double.restore(varied().to(dtype))
    assert {value.dtype for value in restored.state_dict().values() if value.is_floating_point()} == {torch.float64}
    images = samples(2, dtype=torch.float64).images
    assert torch.equal(restored(images), of_double.restore(varied())(images))


def test_layers_that_share_weights_keep_what_any_of_them_keeps() -> None:
    dense = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    dense[1].weight = dense[0].weight
    first, second = torch.zeros(2, 2, 3, 3, dtype=torch.bool), torch.zeros(2, 2, 3, 3, dtype=torch.bool)
    first[0], second[:, 0] = True, True
    model, x = bake(dense, {"fwp": {"0": first, "1": second}}).eval(), torch.ones(1, 2, 9, 9)
    held = Bundle.of(model, {})
    assert torch.equal(held.restore(dense)(x), model(x))
    for name in ("0.weight", "1.weight"):
        assert torch.equal(held.weights[name] != 0, first | second)
    assert torch.equal(Bundle.of(bake(dense, {"fwp": {"0": first}}), {}).weights["0.weight"], dense[0].weight), "the other layer is dense"


def test_the_same_bundle_makes_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        bundle().save(tmp_path / name)
    for file in (MANIFEST, WEIGHTS, MASKS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_bundle_holds_copies() -> None:
    model = masked()
    held = Bundle.of(model, {})
    before = {name: value.clone() for name, value in held.weights.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in held.weights.items())


def test_a_network_without_masks_is_a_bundle_too(tmp_path: Path) -> None:
    Bundle.of(varied(), {}).save(tmp_path / "b")
    assert Bundle.load(tmp_path / "b").masks["ffp"] == {}


class Versioned(nn.Conv2d):
    """Refuses a state dict without its version, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        if metadata.get("version") != 2:
            raise ValueError(f"version should be 2 instead of {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Stateful(nn.ReLU):
    """Keeps extra state, which may be a tensor or anything else."""

    def __init__(self, extra: Any = None) -> None:
        super().__init__()
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def with_buffers(**buffers: Tensor) -> nn.Module:
    module = nn.Sequential(nn.Conv2d(3, 2, 3))
    for name, value in buffers.items():
        module.register_buffer(name, value)
    return module


def renaming() -> nn.Module:
    """Its state dict has other names than its parameters, and its loading puts them back."""

    def wrap(_: nn.Module, state: dict[str, Any], __: str, ___: Any) -> None:
        for name in list(state):
            state[f"net.{name}"] = state.pop(name)

    def unwrap(_: nn.Module, state: dict[str, Any], *__: Any) -> None:
        for name in list(state):
            state[name.removeprefix("net.")] = state.pop(name)

    module = nn.Sequential(nn.Conv2d(3, 2, 3))
    module.register_state_dict_post_hook(wrap)
    module.register_load_state_dict_pre_hook(unwrap)
    return module


ODD = {
    "versions": lambda: nn.Sequential(nn.Conv2d(3, 3, 3), Versioned(3, 2, 1)),
    "tensor as extra state": lambda: nn.Sequential(nn.Conv2d(3, 2, 3), Stateful(torch.tensor([1, 2]))),
    "plain extra state": lambda: nn.Sequential(nn.Conv2d(3, 2, 3), Stateful({"steps": 3, "on": True, "scales": [0.5, None]})),
    "hooks": renaming,
    "kinds": lambda: with_buffers(
        scalar=torch.tensor(3), flag=torch.tensor(True), flags=torch.tensor([True, False]), empty=torch.zeros(0, 3),
        turned=torch.arange(6.0).reshape(2, 3).T, masked=torch.tensor([0.0, -torch.inf]),
    ),
    "half": lambda: nn.Sequential(nn.Conv2d(3, 2, 3)).to(torch.bfloat16),
    "names": lambda: nn.ModuleDict({"0": nn.Conv2d(3, 2, 3), "a/ffp": nn.Conv2d(2, 2, 1), "groups": nn.PReLU(), "ö" * 99: nn.PReLU()}),
}  # fmt: skip
"""Networks whose first layer is named 0, and with what is hard to keep."""


@pytest.mark.parametrize("kind", ODD)
def test_whatever_a_network_keeps_comes_back(kind: str, tmp_path: Path) -> None:
    dense = ODD[kind]()
    names = ["0", "a/ffp"] if kind == "names" else ["0"]
    masks = {name: torch.arange(dense.get_submodule(name).weight.numel()) % 3 > 0 for name in names}  # type: ignore[union-attr]
    masks = {name: mask.view(dense.get_submodule(name).weight.shape) for name, mask in masks.items()}  # type: ignore[union-attr, arg-type]
    held = Bundle.of(bake(dense, {"fwp": masks}), {}, {name: torch.zeros(2, dtype=torch.int64) for name in names})
    check_storable(held)
    held.save(tmp_path / "b")
    fresh = ODD[kind]()
    for module in fresh.modules():
        if isinstance(module, Stateful):
            module.extra = None
    for value in fresh.state_dict().values():
        if isinstance(value, Tensor):
            value.zero_()
    again = Bundle.of(Bundle.load(tmp_path / "b").restore(fresh), {})
    assert all(same_bits(value, again.weights[name]) for name, value in held.weights.items())
    assert (again.values, again.weights.keys(), again.masks["fwp"].keys()) == (held.values, held.weights.keys(), set(names))
    for name in names:
        weight = held.weights[f"net.{name}.weight" if kind == "hooks" else f"{name}.weight"]
        assert torch.equal(weight != 0, masks[name])


@pytest.mark.parametrize("extra", [object(), {1: "x"}, (1, 2), {"k": torch.zeros(1)}], ids=str)
def test_state_that_no_bundle_can_hold_is_named(extra: object) -> None:
    kind = type(extra).__name__
    with pytest.raises(UsageError, match=rf"the state '1\._extra_state' of the network is a {kind}, and a bundle holds tensors and plain"):
        Bundle.of(nn.Sequential(nn.Conv2d(3, 2, 3), Stateful(extra)), {})


def test_a_weight_that_no_file_can_hold_is_named() -> None:
    held = Bundle.of(with_buffers(sparse=torch.ones(1)), {})
    held.weights["sparse"] = torch.eye(3).to_sparse()
    with pytest.raises(UsageError, match="sparse of the network cannot be stored"):
        check_storable(held)


def test_bundles_of_earlier_versions_are_restored_with_the_networks_own_versions(tmp_path: Path) -> None:
    Bundle.of(ODD["versions"](), {}).save(tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / MANIFEST).read_text())
    assert manifest.pop("state")["metadata"]["1"] == {"version": 2}
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(manifest))
    assert Bundle.load(tmp_path / "b").restore(ODD["versions"]()).get_submodule("1").weight.shape == (2, 3, 1, 1)


def test_a_file_that_reads_back_otherwise_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle(0).save(tmp_path / "b")
    write = Path.write_bytes
    flip = lambda self, content: write(self, content[:-1] + bytes([content[-1] ^ (self.suffix == ".safetensors")]))  # noqa: E731
    monkeypatch.setattr(Path, "write_bytes", flip)
    with pytest.raises(RunError, match=r"of the bundle .*b was read back otherwise than it was written; check the disk"):
        bundle(1).save(tmp_path / "b")
    assert torch.equal(Bundle.load(tmp_path / "b").weights["head.weight"], bundle(0).weights["head.weight"])


ACCURACY = {"dense": 0.9, "masked": 0.2, "finetuned": 0.8, "split": "test", "samples": 50}


def test_accuracies_belong_to_the_weights_that_they_were_measured_on(tmp_path: Path) -> None:
    shape = {"input_shape": (3, 7, 5)}
    measured = Bundle.of(masked().float(), {**shape, "accuracy": ACCURACY})
    assert measured.facts["accuracy"] == ACCURACY
    measured.save(tmp_path / "b")
    loaded = Bundle.load(tmp_path / "b")
    model = loaded.restore(varied().float())
    assert Bundle.of(model, loaded.facts).facts == loaded.facts == measured.facts
    with torch.no_grad():
        model.head.weight.mul_(2)  # type: ignore[operator, union-attr]
    trained = Bundle.of(model, loaded.facts).facts
    note = "the compressed network was not measured with these weights"
    assert trained["accuracy"] == {"dense": 0.9, "split": "test", "samples": 50, "note": note}
    assert Bundle.of(model, {**loaded.facts, "accuracy": {**ACCURACY, "finetuned": 0.7}}).facts["accuracy"]["finetuned"] == 0.7, "new"
    assert trained["macs"] == loaded.facts["macs"]
    other_masks = Bundle.of(bake(varied().float(), {"fwp": {"down": torch.eye(3).expand(5, 6, 3, 3) > 0}}), loaded.facts).facts
    assert other_masks["macs"]["macs"] != loaded.facts["macs"]["macs"] and "masked" not in other_masks["accuracy"]
    manifest = json.loads((tmp_path / "b" / MANIFEST).read_text())
    del manifest["measured_on"]  # as earlier versions wrote it
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(manifest))
    assert Bundle.load(tmp_path / "b").facts == loaded.facts


@pytest.mark.parametrize("file", [WEIGHTS, MASKS])
def test_files_that_are_missing_truncated_or_altered_are_named(file: str, tmp_path: Path) -> None:
    bundle().save(tmp_path / "b")
    path = tmp_path / "b" / file
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], b""):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=f"{file} does not match the hash in {MANIFEST}; it was truncated or altered, compress again"):
            Bundle.load(tmp_path / "b")
    path.unlink()
    with pytest.raises(RunError, match=f"{file} is missing; the bundle is incomplete, compress again"):
        Bundle.load(tmp_path / "b")


def edit_manifest(folder: Path, **changes: object) -> None:
    facts = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**facts, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 9}, f"{MANIFEST} has schema 9, this version reads 1; compress again or use the version that wrote it"),
        ({"sha256": None}, f"{MANIFEST}: sha256 is None and not a table; it was edited, compress again"),
        ({"mask_shapes": []}, rf"{MANIFEST}: mask_shapes is \[\] and not a table; it was edited, compress again"),
        ({"mask_shapes": {"stem": {"ffp": [3, 7, 50]}}}, r"stem/ffp does not hold a mask of shape \[3, 7, 50\]; the bundle is damaged"),
        ({"mask_shapes": {"stem": {"ffp": [-3, -7, 5]}}}, r"mask_shapes.stem.ffp\[0\] is -3 and not from 0 to"),
        ({"mask_shapes": {"other": {"ffp": [1]}}}, r"other/ffp does not hold a mask of shape \[1\]; the bundle is damaged"),
    ],
)
def test_an_edited_manifest_is_named(changes: dict, message: str, tmp_path: Path) -> None:
    bundle().save(tmp_path / "b")
    edit_manifest(tmp_path / "b", **changes)
    with pytest.raises(RunError, match=message):
        Bundle.load(tmp_path / "b")


def test_a_truncated_manifest_is_named(tmp_path: Path) -> None:
    bundle().save(tmp_path / "b")
    manifest = tmp_path / "b" / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:40])
    with pytest.raises(RunError, match=f"{MANIFEST} is not valid JSON"):
        Bundle.load(tmp_path / "b")


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no bundle at .*nowhere; check the path"):
        Bundle.load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=rf"is not a bundle \({MANIFEST} is missing\); name the output folder of `fineprune compress`"):
        Bundle.load(tmp_path)
    assert not is_bundle(tmp_path)


def test_another_network_is_refused() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3)

    with pytest.raises(RunError, match=r"the bundle does not fit the network Other: .* rebuild it with the arguments of its manifest"):
        bundle().restore(Other())
    wider = varied()
    wider.head = nn.Linear(5, 4)
    with pytest.raises(RunError, match=r"the bundle does not fit the network Varied: .*head.weight.*3, 5.*4, 5"):
        bundle().restore(wider)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    model = masked()
    model.norm.running_var[2] = value  # type: ignore[index, operator, union-attr]
    with pytest.raises(RunError, match=r"norm.running_var has NaN or infinite values; the bundle was not written"):
        Bundle.of(model, {})


def test_an_older_bundle_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    target = tmp_path / "b"
    bundle(0).save(target)
    bundle(1).save(target)
    assert torch.equal(Bundle.load(target).weights["head.weight"], bundle(1).weights["head.weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds 'notes.txt' beside the old bundle and would be replaced; choose another output folder"):
        bundle(0).save(target)
    for name in ("file", "folder/thesis.tex"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    for other in ("file", "folder"):
        with pytest.raises(UsageError, match=f"{other} exists and is not a bundle; choose another output folder"):
            bundle(0).save(tmp_path / other)
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty")
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "mine"


def no_way_to(target: Path, move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
    """`move`, which fails when a new folder is to become `target` (the old one may come back)."""

    def moves_elsewhere(self: Path, to: Path) -> Path:
        if Path(to) == target and self.name != "replaced":
            raise OSError(28, "No space left on device")
        return move(self, to)

    return moves_elsewhere


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("step", ["tensors", "manifest", "rename"])
def test_a_failed_save_leaves_what_was_there(step: str, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "b"
    if old:
        bundle(0).save(target)

    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "tensors":
        monkeypatch.setattr("fineprune.compressor.bundle.sha256", fail)
    elif step == "manifest":
        monkeypatch.setattr("fineprune.compressor.bundle.write_json", fail)
    else:
        monkeypatch.setattr(Path, "rename", no_way_to(target, Path.rename))
        monkeypatch.setattr(Path, "replace", no_way_to(target, Path.replace))
    with pytest.raises(RunError, match=r"cannot write .*b: No space left on device; check its folder's permissions and free space"):
        bundle(1).save(target)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == (["b"] if old else [])
    if old:
        assert torch.equal(Bundle.load(target).weights["head.weight"], bundle(0).weights["head.weight"])
