"""Runs that several processes share: one of them makes each."""

from pathlib import Path

import pytest
from shared_folder import claimed


def test_a_lock_has_one_owner_and_goes_with_the_block(tmp_path: Path) -> None:
    lock = tmp_path / "runs" / "a.lock"
    with claimed(lock) as first, claimed(lock) as second, claimed(tmp_path / "b.lock") as other:
        assert (first, second, other) == (True, False, True)
    assert list(tmp_path.rglob("*.lock")) == []
    with claimed(lock) as again:
        assert again


def test_a_run_that_broke_off_may_be_claimed_anew(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with pytest.raises(ZeroDivisionError), claimed(lock):
        raise ZeroDivisionError
    with claimed(lock) as mine:
        assert mine


def test_a_lock_that_another_process_took_away_is_no_error(tmp_path: Path) -> None:
    with claimed(tmp_path / "a.lock"):
        (tmp_path / "a.lock").unlink()
