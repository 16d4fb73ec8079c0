"""Names from files reach the terminal, the page and figures as the text that they are."""

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fineprune.cli.render import print_table, say
from fineprune.common.progress import Bars
from fineprune.common.text import printable
from fineprune.models.data.load import data_from_arrays
from fineprune.models.training.sampling.loss_log import SampleFacts
from fineprune.pictures import write_picture
from fineprune.report import write_report
from fineprune.training_report import contact_sheet, suspects_csv
from support.command import fineprune as run

ESCAPE = "\x1b[31mred\x1b]0;title\x07\x9b2J\r\n\u202e"
MARKUP = "[red]a[/red][/] :smile: <script>alert(1)</script> $\\frac{a}$ \ud800"
SPELLED = r"\x1b[31mred\x1b]0;title\x07\x9b2J\r\n\u202e"


def assert_plain(text: str) -> None:
    """Nothing but letters, and lines that end."""
    assert all(c.isprintable() or c == "\n" for c in text), text


def test_what_a_terminal_acts_on_is_spelled_out() -> None:
    assert printable(ESCAPE) == SPELLED
    assert printable("résumé 日本 ✓ [x]") == "résumé 日本 ✓ [x]"
    assert printable(printable(ESCAPE)) == SPELLED


def test_tables_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(ESCAPE, ["layer", "value"], [[MARKUP, ESCAPE], ["b", "[/]"]])
    say(MARKUP + ESCAPE)
    shown = capsys.readouterr().out
    assert_plain(shown)
    for text in (printable(MARKUP), SPELLED, "[/]"):
        assert text in shown


def test_bars_and_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = Bars()
    stream = io.StringIO()
    bars._console.file = stream
    bars.log(MARKUP + ESCAPE)
    assert_plain(stream.getvalue())
    assert stream.getvalue() == f"{printable(MARKUP)}{SPELLED}\n"
    bars._console._force_terminal, bars._console._color_system = True, None
    assert list(bars(range(2), total=2, description=lambda: MARKUP + ESCAPE)) == [0, 1]
    assert "\x1b[31m" not in stream.getvalue() and "\x07" not in stream.getvalue()
    assert "[red]a[/red]" in stream.getvalue()


def test_errors_name_what_is_in_a_file(tmp_path: Path, bundle: Callable[..., Path]) -> None:
    save_file({f"{MARKUP[:-2]}{ESCAPE}": torch.zeros(1)}, tmp_path / "w.safetensors")
    failures = [
        run("eval", "--model", "lenet", "--data", "digits", "--checkpoint", tmp_path / "w.safetensors"),
        run("macs", bundle(lambda manifest: manifest.update(model={"name": f"{ESCAPE}:f", "args": {}}))),
        run("macs", bundle(lambda manifest: manifest.update(model={"name": MARKUP, "args": {}}))),
        run("eval", tmp_path / ESCAPE),
        run("--debug", "eval", tmp_path / ESCAPE),
    ]
    for result in failures:
        assert result.code, result
        assert_plain(result.err)


def test_the_page(bundle: Callable[..., Path], tmp_path: Path) -> None:
    evil = MARKUP + ESCAPE

    def change(manifest: dict[str, Any]) -> None:
        manifest["model"] = {"name": evil, "args": {}}
        manifest["accuracy"]["split"] = evil
        for layer in manifest["macs"]["layers"]:
            layer["name"] = evil + layer["name"]
        manifest["mask_shapes"] = {}

    times = {"batch_size": 1, "threads": 1, "median_ms": 2.0, "p25_ms": 1.0, "p75_ms": 3.0}
    bench = {"rows": [{"runtime": evil, **times}], "config": {"rounds": 1}, "machine": {"cpu": evil, "usable_cores": 1}}
    write_report(bundle(change), tmp_path / "r.html", bench=bench)
    page = (tmp_path / "r.html").read_text()
    assert_plain(page)
    scripts = re.findall(r"<script[^>]*>", page)
    assert scripts == ["<script>"] and "&lt;script&gt;" in page
    assert "<script>alert" not in page and "script-src 'sha256-" in page, "the browser runs the page's own script alone"
    assert not re.search(r"<[^>]*alert\(1\)", page)
    assert page.count(r"$\frac{a}$") >= 4, "as text, not as a formula"


def test_folders_of_classes(tmp_path: Path) -> None:
    """A class is a folder's name, which may hold bytes that are no text; the table and the contact sheet of suspects show it."""
    images = (torch.zeros(12, 8, 8, dtype=torch.uint8), torch.arange(12) % 2)
    data = data_from_arrays("mine", images, classes=[MARKUP, os.fsdecode(b"\xff") + ESCAPE])
    losses = torch.rand(3, len(data.train), generator=torch.Generator().manual_seed(0))
    chosen, facts = torch.arange(4), SampleFacts.of(losses)
    write_picture(contact_sheet(chosen, facts, losses, data, "title"), tmp_path / "sheet.svg")
    table = suspects_csv({"high-loss": chosen}, facts, losses, data)
    for text in (table, (tmp_path / "sheet.svg").read_text()):
        assert_plain(text)
        assert SPELLED in text and r"\udcff" in text
