"""Statistics on disk and in sums."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fineprune.calibrate.statistics import FACTS, TENSORS, Statistics, fingerprint
from fineprune.common.errors import RunError, UsageError


def statistics(**changes: object) -> Statistics:
    layers = {
        "layer1.0.conv1": {"frequency": torch.arange(6).view(1, 2, 3), "norm": torch.full((1, 2, 3), 0.1, dtype=torch.float64)},
        "conv": {"groups": torch.tensor([0, 1, 1]), "signed": torch.tensor([[[-1e300]]], dtype=torch.float64)},
    }
    facts = {"kind": "blocks", "settings": {"criterion": "l2", "keep": {"conv": 3}}, "samples": 5, "layers": layers}
    return Statistics(**{**facts, **changes})  # type: ignore[arg-type]


def same(a: Statistics, b: Statistics) -> bool:
    tensors = all(torch.equal(v, b.layers[n][k]) and v.dtype == b.layers[n][k].dtype for n, f in a.layers.items() for k, v in f.items())
    return (a.kind, a.settings, a.samples, list(a.layers)) == (b.kind, b.settings, b.samples, list(b.layers)) and tensors


def test_save_and_load_change_nothing(tmp_path: Path) -> None:
    for _ in range(2):  # the second time over older statistics
        statistics().save(tmp_path / "s")
        assert same(statistics(), Statistics.load(tmp_path / "s"))
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_sums_add_and_groups_do_not() -> None:
    twice = statistics() + statistics()
    assert twice.samples == 10
    assert torch.equal(twice.layers["layer1.0.conv1"]["frequency"], 2 * torch.arange(6).view(1, 2, 3))
    assert twice.layers["conv"]["groups"].tolist() == [0, 1, 1]
    assert twice.layers["conv"]["signed"].item() == -2e300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "weights"}, "statistics differ in kind: 'blocks' and 'weights'; only parts of one calibration add up"),
        ({"settings": {"criterion": "l1", "keep": {"conv": 3}}}, "statistics differ in criterion: 'l2' and 'l1'"),
        ({"settings": {"criterion": "l2"}}, "statistics differ in keep: {'conv': 3} and None"),
    ],
)
def test_parts_of_other_calibrations_do_not_add(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        statistics() + statistics(**changes)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    statistics().save(tmp_path / "s")
    file = tmp_path / "s" / TENSORS
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(RunError, match=rf"{TENSORS} does not match the hash in {FACTS}; it was truncated or altered, delete .*s and calib"):
        Statistics.load(tmp_path / "s")
    file.unlink()
    with pytest.raises(RunError, match=rf"cannot read .*{TENSORS} \(No such file or directory\); delete .*s and calibrate again"):
        Statistics.load(tmp_path / "s")


def test_truncated_facts_and_another_schema_are_named(tmp_path: Path) -> None:
    statistics().save(tmp_path / "s")
    facts = tmp_path / "s" / FACTS
    text = facts.read_text()
    facts.write_text(text[: len(text) // 2])
    with pytest.raises(RunError, match=f"{FACTS} is not valid JSON"):
        Statistics.load(tmp_path / "s")
    facts.write_text(text.replace('"schema": 2', '"schema": 7'))
    with pytest.raises(RunError, match=f"{FACTS} has schema 7, this version reads 2"):
        Statistics.load(tmp_path / "s")


def test_a_folder_without_statistics_is_refused_both_ways(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"holds no statistics \({FACTS} is missing\); run `fineprune calibrate` first"):
        Statistics.load(tmp_path)
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    for folder in (tmp_path, thesis):
        with pytest.raises(UsageError, match="exists and holds no statistics; choose another output folder"):
            statistics().save(folder)
    assert thesis.read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    statistics().save(tmp_path / "empty")


def test_fingerprint_tells_networks_and_masks_apart() -> None:
    def network(bias: float = 0) -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 1, dtype=torch.bfloat16), nn.BatchNorm2d(3))
        nn.init.ones_(model[0].weight)
        nn.init.constant_(model[0].bias, bias)
        return model

    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    prints = [fingerprint(network()), fingerprint(network(1)), fingerprint(network(), {"0": mask}), fingerprint(network(), {"0": ~mask})]
    assert len(set(prints)) == 4
    assert fingerprint(network()) == prints[0]
    assert fingerprint(network(), {"0": mask}) != fingerprint(network(), {"1": mask})
