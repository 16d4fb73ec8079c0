"""The page in headless Chromium: no errors, no requests, masks that can be browsed, readable on a phone."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fineprune.compressor.bundle import Bundle
from fineprune.report import masks as mask_section
from fineprune.report import write_report
from support.browser import CHROMIUM, Page, browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; Debian's package is called chromium")

PHONE = {"width": 390, "height": 844, "mobile": True}
RAN = "console.log(`ran`)"
"""A script that leaves a message; one that waits for an answer would stop the browser, and with it the test."""
CAPTIONS = "[...document.querySelectorAll('#browser figcaption')].map((one) => one.textContent)"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def given(bundle: Path) -> Bundle:
    return Bundle.load(bundle)


def shown(chromium: Page, bundle: Bundle, folder: Path, place: str = "", **window: Any) -> list[str]:
    """Captions of the drawings of a page that was opened at `place`."""
    write_report(bundle, folder / "r.html")
    chromium.open(f"{(folder / 'r.html').as_uri()}{place}", **window)
    chromium.wait("document.querySelectorAll('#browser canvas').length > 0")
    captions: list[str] = chromium.value(CAPTIONS)
    return captions


def outside(chromium: Page) -> list[str]:
    """What the page asked for beside itself and what it carries."""
    return [address for address in chromium.requests if not address.startswith(("file:///", "data:"))]


def test_it_is_quiet_and_alone(chromium: Page, given: Bundle, tmp_path: Path) -> None:
    shown(chromium, given, tmp_path)
    assert (chromium.messages, outside(chromium)) == ([], [])
    assert sum(address.startswith("file:///") for address in chromium.requests) == 1
    markup = (tmp_path / "r.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']?(?!data:|#)[^"'> ]+""", markup)


FOREIGN = f'<img src="http://127.0.0.1:9/x.png"><script>{RAN}</script></header>'


def test_what_is_foreign_to_the_page_neither_loads_nor_runs(chromium: Page, given: Bundle, tmp_path: Path) -> None:
    shown(chromium, given, tmp_path)
    page = (tmp_path / "r.html").read_text()
    (tmp_path / "foreign.html").write_text(page.replace("</header>", FOREIGN, 1))
    chromium.open((tmp_path / "foreign.html").as_uri())
    refused = " ".join(chromium.messages)
    assert "img-src" in refused and "script-src" in refused and "Content Security Policy" in refused
    assert "ran" not in chromium.messages


def test_without_the_policy_it_would(chromium: Page, given: Bundle, tmp_path: Path) -> None:
    shown(chromium, given, tmp_path)
    page = (tmp_path / "r.html").read_text().replace("</header>", FOREIGN, 1)
    (tmp_path / "foreign.html").write_text(re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", page))
    chromium.open((tmp_path / "foreign.html").as_uri())
    assert outside(chromium) == ["http://127.0.0.1:9/x.png"] and "ran" in chromium.messages
    assert "Content Security Policy" not in " ".join(chromium.messages)


def test_masks_are_browsed_by_layer_and_channel(chromium: Page, given: Bundle, tmp_path: Path) -> None:
    blocks, weights = given.masks["ffp"], given.masks["fwp"]
    assert "grouped" in blocks and "grouped" in weights, "or this test says nothing"
    captions = shown(chromium, given, tmp_path, "#layer=2&channel=4")
    mask = weights["grouped"][6:, 1]  # 6 channels in 2 groups: channel 4 is the second of those that filters 6 to 11 read
    assert f"blocks of channel 4: {int(blocks['grouped'][4].sum())} of {blocks['grouped'][4].numel()} kept" in captions
    assert f"kernels of channel 4, a tile for each filter: {int(mask.sum())} of {mask.numel()} weights kept" in captions
    chromium.value("document.querySelector('#browser select').value = 0")
    chromium.value("document.querySelector('#browser select').dispatchEvent(new Event('change'))")
    first = weights["stem"]
    chromium.wait(f"{CAPTIONS}.some((one) => one.includes('{int(first.sum())} of {first.numel()} weights kept'))")
    assert chromium.value("location.hash") == "#layer=0&channel=0"
    chromium.value("document.querySelector('.pictures a[href$=\"=2\"]').click()")
    chromium.wait(f"{CAPTIONS}.some((one) => one.includes('blocks of channel 0: {int(blocks['grouped'][0].sum())} of'))")
    chromium.value("document.querySelectorAll('#browser button')[1].click()")
    chromium.wait(f"{CAPTIONS}.some((one) => one.includes('blocks of channel 1: {int(blocks['grouped'][1].sum())} of'))")
    assert chromium.messages == []


def test_drawings_show_the_bits_of_the_mask(chromium: Page, given: Bundle, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)  # bits that no other order of them gives
    given.masks["ffp"]["grouped"] = torch.rand(given.masks["ffp"]["grouped"].shape, generator=generator) > 0.5
    shown(chromium, given, tmp_path, "#layer=2&channel=3")
    mask = given.masks["ffp"]["grouped"][3]
    pixels = chromium.value(
        "(() => { const c = document.querySelector('#browser canvas');"
        "return [c.height, c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, k) => k % 4 == 0)]; })()"
    )
    assert pixels == [*mask.shape, [31 if kept else 255 for kept in mask.flatten().tolist()]]


def test_weights_alone_and_averages_are_drawn(chromium: Page, given: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = replace(given, masks={**given.masks, "ffp": {}})
    assert not any("blocks" in caption for caption in shown(chromium, weights, tmp_path))
    monkeypatch.setattr(mask_section, "BUDGET", 0)
    captions = shown(chromium, given, tmp_path, "#layer=2&channel=99")
    assert [caption.split(":")[0] for caption in captions] == ["blocks, all channels together", "weights, averaged over cells"]
    assert chromium.messages == []


def test_names_from_files_are_text(chromium: Page, given: Bundle, tmp_path: Path) -> None:
    evil = f"</script><img src=x onerror={RAN}><script>{RAN}</script>"
    masks = {kind: {evil + name: mask for name, mask in of_kind.items()} for kind, of_kind in given.masks.items()}
    shown(chromium, replace(given, masks=masks), tmp_path)
    assert chromium.messages == [] and outside(chromium) == []
    assert chromium.value("document.querySelector('#browser option').textContent").startswith(evil)


def test_a_phone_shows_it_without_scrolling_sideways(chromium: Page, given: Bundle, tmp_path: Path) -> None:
    shown(chromium, given, tmp_path, **PHONE)
    assert chromium.value("document.documentElement.scrollWidth") == 390
    assert chromium.value("parseFloat(getComputedStyle(document.body).fontSize)") == 16
    outer = "[...document.querySelectorAll('body *')].filter((one) => !one.closest('.wide, pre, svg'))"
    wide = f"{outer}.filter((one) => one.getBoundingClientRect().right > 391)"
    assert chromium.value(f"{wide}.map((one) => one.outerHTML.slice(0, 80))") == []


def test_it_is_useful_without_scripts(chromium: Page, given: Bundle, tmp_path: Path) -> None:
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        write_report(given, tmp_path / "r.html")
        chromium.open((tmp_path / "r.html").as_uri())
        assert chromium.value("document.querySelector('#browser').hidden")
        pictures = chromium.value("[...document.querySelectorAll('.pictures img')].map((one) => one.complete && one.naturalWidth > 0)")
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)
    assert len(pictures) == len(given.masks["ffp"]) + len(given.masks["fwp"]) and all(pictures)


def test_the_page_of_a_large_network_stays_small(given: Bundle, tmp_path: Path) -> None:
    """Masks as those of a ResNet-50: 20 million weights, 3 million blocks, half of them at random, which nothing packs."""
    chance = torch.Generator().manual_seed(0)
    weights = {f"layer{k}": torch.rand(512, 512, 3, 3, generator=chance) > 0.5 for k in range(9)}
    blocks = {f"layer{k}": torch.rand(512, 28, 28, generator=chance) > 0.5 for k in range(8)}
    write_report(replace(given, masks={"ffp": blocks, "fwp": weights}), tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size < 4e6
