"""Arguments of the data on the command line."""

from pathlib import Path

import pytest

from fineprune.cli.options import open_data
from support.command import fineprune
from support.image_files import write_images


def test_every_argument_reaches_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "d", {"x": 20}, size=(100, 100))
    (tmp_path / "labels.csv").write_text("".join(f"{i:03}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(20)))
    (tmp_path / "names.txt").write_text("ant\ncat\ndog\n")
    pairs = ["crop=1.0", "channels=1", "image_size=100", "validation=0", f"classes={tmp_path}/names.txt", f"labels={tmp_path}/labels.csv"]
    data = open_data({"data": f"imagefolder:{tmp_path}/d", "data_args": pairs})
    assert data.classes == ("ant", "cat", "dog") and data.input_shape == (1, 100, 100) and data.crop == 1.0
    assert capsys.readouterr().err.endswith("no image to train on for 1 of 3 classes: ant\n")


def test_odd_data_are_said_beside_the_result(tmp_path: Path) -> None:
    for part in ("Train", "Valid"):
        write_images(tmp_path / part, {"a": 4, "b": 4}, size=(16, 16))
    spec = f"imagefolder:{tmp_path}"
    result = fineprune("eval", "--model", "lenet", "--data", spec, "--data-arg", "channels=1", "--data-arg", "image_size=32", "--json")
    assert result.json()["samples"] == 8
    assert "2 classes (a, b), train 7, validation 1, test 8; Valid/ is the test part, for there is no test/" in result.err
