"""What a file names is not imported, called or read by itself."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import fineprune
from fineprune.cli.options import open_data_like
from fineprune.common.errors import UsageError
from fineprune.common.progress import Silent
from fineprune.latency import _calibration_samples
from fineprune.models.zoo import ModelSpec
from fineprune.networks import Network, network_of, open_bundle
from fineprune.recipe import read_recipe
from fineprune.trust import data_names, named_again, recipe_names, require_data
from support.command import Result
from support.command import fineprune as run

Bundle = Callable[[Callable[[dict[str, Any]], None]], Path]


def naming(model: dict[str, Any] | None = None, data: str | None = None) -> Callable[[dict[str, Any]], None]:
    """Edits a manifest so that it names them."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["model"] = model or manifest["model"]
        manifest["data"]["spec"] = data or manifest["data"]["spec"]

    return change


class Lines(Silent):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


def system(canary: Path) -> dict[str, Any]:
    return {"name": "os:system", "args": {"command": f"touch {canary}"}}


def commands(folder: Path) -> list[list[object]]:
    """All that take a bundle and need its network."""
    return [["macs", folder], ["eval", folder], ["bench", folder], ["export", folder, "--output", folder.parent / "m.onnx"]]


def assert_refused(result: Result, *parts: str) -> None:
    assert result.code == 2, result.err
    assert result.err.startswith("fineprune: ") and result.err.count("\n") == 1, result.err
    for part in parts:
        assert part in result.err


def test_a_manifest_runs_no_function(bundle: Bundle, canary: Path) -> None:
    folder = bundle(naming(model=system(canary)))
    asked = f"--trust os:system --trust 'command=touch {canary}'"
    for arguments in commands(folder):
        assert_refused(run(*arguments), f"{folder}/manifest.json names the network os:system", "--model os:system", asked)
        # Naming the code is not naming the text that it is handed.
        assert_refused(run(*arguments, "--trust", "os:system"), f"names the network command=touch {canary}")
        assert_refused(run(*arguments, "--model", "os:system"), f"names the network command=touch {canary}")
    with pytest.raises(UsageError, match=r"names the network os:system.*the module itself, or trust=\['os:system', "):
        fineprune.load(folder)
    assert not canary.exists()


@pytest.mark.parametrize("place", ["file", "module"])
def test_a_manifest_imports_no_module(place: str, bundle: Bundle, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(canary.parent)
    Path("evil.py").write_text(f"open({str(canary)!r}, 'w').close()\n\n\ndef net():\n    pass\n")
    name = "evil.py:net" if place == "file" else "evil:net"
    for arguments in commands(bundle(naming(model={"name": name, "args": {}}))):
        assert_refused(run(*arguments), f"names the network {name}", f"--trust {name}")
    folder = bundle(naming(data=name))
    for command in (["eval", folder], ["export", folder, "--output", "m.onnx"]):
        assert_refused(run(*command), f"names the data {name}", f"--trust {name}")
    log = Lines()
    assert _calibration_samples(open_bundle(folder), log).shape == (16, 1, 32, 32)
    read = f"the data {name} that {folder}/manifest.json names are not read by themselves"
    assert log.lines == [f"{read}: inputs are noise (--data gives real ones; in Python: samples)"]
    assert not canary.exists()


@pytest.mark.parametrize("spec", ["npz:{}", "imagefolder:{}", "cifar10:{}", "fashion-mnist:{}"])
def test_a_manifest_opens_no_path(spec: str, bundle: Bundle, tmp_path: Path) -> None:
    spec = spec.format(tmp_path / "private")
    folder = bundle(naming(data=spec))
    assert_refused(run("eval", folder), f"{folder}/manifest.json names the data {spec}", f"give --data {spec}, or --trust {spec}")
    result = run("export", folder, "--output", tmp_path / "m.onnx")
    assert_refused(result, f"names the data {spec}")


def test_commands_ask_for_no_more_than_they_use(bundle: Bundle, tmp_path: Path) -> None:
    assert run("macs", bundle(naming(data="npz:/private.npz"))).code == 0
    folder = bundle(naming(model=system(tmp_path)))
    assert run("report", folder).code == 0


def test_torchvision_downloads_nothing(bundle: Bundle) -> None:
    for args in ({"weights": "DEFAULT"}, {"pretrained": True}, {"weights_backbone": "DEFAULT"}):
        assert run("macs", bundle(naming(model={"name": "torchvision:squeezenet1_1", "args": args}))).code == 2


def test_a_recipe_runs_and_opens_nothing(canary: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f"output = '/outside'\n[model]\nname = 'os:system'\nargs = {{ command = 'touch {canary}' }}\ncheckpoint = 'w.pt'\n"
        "[data]\nspec = 'npz:/private.npz'\n[compress]\nffp = 0.3\n[finetune]\nepochs = 1\n"
        "asynchronous = { algorithm = 'asgd', engine = 'ray', address = 'ray://far:1' }\n"
    )
    names = ["os:system", f"command=touch {canary}", "w.pt", "npz:/private.npz", "ray://far:1", "/outside"]
    assert_refused(run("run", recipe), f"{recipe} names {', '.join(names)}: code, files and folders of yours")
    trust = [f"--trust '{name}'" if " " in name else f"--trust {name}" for name in names]
    assert f"run it with {' '.join(trust)} (in Python" in run("run", recipe).err
    assert_refused(run("run", recipe, "--output", tmp_path / "o", "--trust", "os:system"), f"{recipe} names command=touch")
    with pytest.raises(UsageError, match="names command=touch"):
        fineprune.run(recipe, trust=["os:system"])
    assert not canary.exists()


def test_statistics_run_nothing(canary: Path, tmp_path: Path) -> None:
    options = ["--model", "lenet", "--data", "digits", "--ffp", 0.2, "--samples", 16]
    assert run("calibrate", *options, "--output", tmp_path / "s").code == 0
    facts = json.loads((tmp_path / "s" / "blocks" / "statistics.json").read_text())
    facts["settings"] |= {"network": "os:system", "data": "os:system", "model": system(canary)}
    (tmp_path / "s" / "blocks" / "statistics.json").write_text(json.dumps(facts))
    result = run("compress", *options, "--epochs", 0, "--statistics", tmp_path / "s", "--output", tmp_path / "b")
    assert result.code == 2 and not canary.exists()


def test_what_the_user_names_again_runs(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to give one's word: --trust, --model, a module, trust= in Python."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from fineprune.models.zoo import build\n\n\ndef net(kind='', **args):\n    return build(kind or 'lenet', **args)\n"
    )
    args = {"kind": "lenet", "in_channels": 1, "num_classes": 10}
    folder = bundle(naming(model={"name": "mine.py:net", "args": args}))
    assert run("macs", folder, "--trust", "mine.py:net", "--trust", "kind=lenet").code == 0
    assert run("macs", folder, "--model", "mine.py:net", "--model-arg", "kind=lenet").code == 0
    assert run("macs", folder, "--model", "mine.py:net", "--trust", "kind=lenet").code == 0
    assert_refused(run("macs", folder, "--model", "lenet"), "is of the network mine.py:net with", "not lenet")
    different = run("macs", folder, "--model", "mine.py:net", "--model-arg", "in_channels=3")
    assert_refused(different, "not mine.py:net with in_channels=3; give --model as its manifest does")
    assert_refused(run("macs", folder, "--model-arg", "kind=lenet"), "--model-arg belongs to --model")
    assert fineprune.load(folder, trust=["mine.py:net", "kind=lenet"]) is not None
    assert fineprune.load(folder, fineprune.models.zoo.build("lenet", in_channels=1)) is not None


def test_a_bundle_of_a_network_without_a_name_takes_one(bundle: Bundle) -> None:
    folder = bundle(lambda manifest: manifest.update(model=None))
    assert_refused(run("macs", folder), "was made from a network without a name")
    assert run("macs", folder, "--model", "lenet", "--model-arg", "in_channels=1").code == 0


def test_what_this_process_made_is_the_users_own(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("from fineprune.models.zoo import build\n\n\ndef net():\n    return build('lenet', in_channels=1)\n")
    read = fineprune.Bundle.load(bundle(naming(model={"name": "own.py:net", "args": {}}, data="own.py:data")))
    made = replace(read, folder=None)
    with pytest.raises(UsageError, match=r"names the network own\.py:net"):
        network_of(read)
    assert network_of(made).trust == ("own.py:net", "own.py:data") == network_of(read, trust=["own.py:net", "own.py:data"]).trust
    made.save("again")
    with pytest.raises(UsageError, match=r"names the network own\.py:net"):
        open_bundle("again")


def test_data_named_again_are_split_and_resized_alike(sound: Path, bundle: Bundle, tmp_path: Path) -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", images=generator.integers(0, 256, (60, 40, 40), np.uint8), labels=np.arange(60) % 10)

    def change(manifest: dict[str, Any]) -> None:
        manifest["data"] |= {"spec": f"npz:{tmp_path}/d.npz", "image_size": 32, "validation": 0.3, "seed": 5}

    folder = bundle(change)
    named = [run("eval", folder, *options, "--split", "validation", "--json").json() for options in (
        ["--trust", f"npz:{tmp_path}/d.npz"], ["--data", f"npz:{tmp_path}/d.npz"],
    )]  # fmt: skip
    assert named[0] == named[1] and named[0]["samples"] == 14


def test_a_path_among_the_arguments_of_data_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Naming the data again does not name the file of labels that a manifest adds to them."""
    arguments = {"spec": "imagefolder:photos", "labels": "/private", "seed": 3}
    assert data_names(arguments) == ["imagefolder:photos", "labels=/private"]
    asked = r"names the data labels=/private, .* give --data imagefolder:photos --data-arg labels=/private, or --trust labels=/private "
    with pytest.raises(UsageError, match=asked):
        require_data(arguments, ["imagefolder:photos"], "b/manifest.json")
    require_data(arguments, data_names(arguments), "b/manifest.json")
    assert named_again(None, arguments) == " --data imagefolder:photos --data-arg labels=/private"
    assert named_again(ModelSpec(name="resnet20"), {"spec": "cifar10"}) == ""
    opened: list[object] = []
    monkeypatch.setattr("fineprune.models.data.load_data", lambda **given: opened.append(given))
    monkeypatch.setattr("fineprune.networks.load_arguments", lambda facts: arguments)
    network = Network(model=nn.Identity(), spec=None, input_shape=(1, 1, 1), data={})
    options = {"data": "imagefolder:photos", "data_args": (), "trust": ()}
    with pytest.raises(UsageError, match="names the data labels=/private"):
        open_data_like(options, network)
    open_data_like({**options, "trust": ["labels=/private"]}, network)
    assert opened == [arguments]


@pytest.mark.parametrize("args", [{"width": 40_000}, {"width": 2**40}, {"width": 4, "num_classes": 2**62}])
def test_a_network_larger_than_the_weights_is_not_built(args: dict[str, Any], bundle: Bundle) -> None:
    result = run("macs", bundle(naming(model={"name": "resnet110", "args": args})))
    assert_refused(result, "needs the network resnet110: ")
    assert "weights, and the bundle holds" in result.err or "are too large" in result.err


def test_our_own_recipes_need_no_word() -> None:
    for path in (Path(__file__).parents[2] / "recipes").glob("*.toml"):
        assert recipe_names(read_recipe(path), output_given=False) == []
