"""What a training run tells: rows of figures, the bar, TensorBoard's files."""

import struct
from pathlib import Path

import pytest
import torch

from thinktalk.parallel import Ranks
from thinktalk.train import board, journal
from thinktalk.train.board import Board, crc32c, record
from thinktalk.train.journal import Journal, curve

ALONE = Ranks(0, 1, 0, torch.device("cpu"), None)
# One event as TensorBoard 2.20 writes it: at 1700000000.25 s, step 300, loss 0.125, right -3.
GOLDEN = bytes.fromhex(
    "290000000000000037ff5f000900001040fc54d94110ac022a1b0a0b0a046c6f7373150000003e0a0c0a0572696768"
    "7415000040c0c561f08b"
)


def tell(journal: Journal) -> None:
    """Two steps of two parts each, which count for a quarter and three quarters of a step."""
    for loss in (1.0, 2.0):
        journal.part(0.25, {"loss": torch.tensor(loss)})
        journal.part(0.75, {"loss": torch.tensor(2 * loss), "rare": torch.tensor(loss)})
        journal.step(3 * loss, skipped=loss > 1)


def test_rows_are_means_by_share(tmp_path: Path) -> None:
    with Journal(tmp_path, ALONE, name="stage", steps=9, first=4) as told:
        tell(told)
        told.part(0.0, {"loss": torch.tensor(torch.nan), "rare": torch.tensor(7.0)})
        told.row(6)
        tell(told)
        told.row(8)
        told.evaluated(8, {"right": 0.5})
        told.evaluated(8, {})
    first, second, test = curve(tmp_path)
    expected = {"step": 6, "loss": 2.625, "rare": 1.5, "gradient": 4.5, "skipped": 1}
    assert {k: v for k, v in first.items() if k != "seconds"} == expected
    assert second == first | {"step": 8, "seconds": second["seconds"]}
    assert test == {"step": 8, "test_right": 0.5}


def test_the_bar_shows_rate_loss_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "BAR_INTERVAL_S", 0)
    with Journal(tmp_path, ALONE, name="stage", steps=9, first=4) as told:
        tell(told)
        told.row(6)
        told.step(0.0, skipped=False)
    shown = capsys.readouterr().err.split("\r")[-1]
    assert "stage: " in shown and " 7/9 " in shown and "loss=2.625" in shown
    assert "<00:00" in shown and "it/s" in shown


def test_a_disk_that_is_full_costs_a_row_and_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / journal.LOG_FILE).mkdir()  # nothing can be appended to it
    with Journal(tmp_path, ALONE, name="stage", steps=9, first=4) as told:
        tell(told)
        told.row(6)
    assert "a row of" in caplog.text and "is lost" in caplog.text


def test_checksums_are_those_of_rfc_3720() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes([255] * 32)) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_tensorboard_gets_its_own_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board.time, "time", lambda: 1700000000.25)
    written = Board(tmp_path)
    written.add(300, {"loss": 0.125, "right": -3.0})
    assert written.path.name.startswith("events.out.tfevents.1700000000.25")
    start = record(b"\x09" + struct.pack("<d", 1700000000.25) + b"\x1a\x0dbrain.Event:2")
    assert written.path.read_bytes() == start + GOLDEN


def test_rows_go_to_tensorboard_where_it_is_wanted(tmp_path: Path) -> None:
    for name, wanted in (("without", False), ("with", True)):
        with Journal(tmp_path / name, ALONE, name="a", steps=9, first=4, board=wanted) as told:
            tell(told)
            told.row(6)
            told.evaluated(6, {"right": 0.5})
    assert not (tmp_path / "without" / journal.BOARD_FOLDER).exists()
    (file,) = (tmp_path / "with" / journal.BOARD_FOLDER).iterdir()
    content = file.read_bytes()
    assert all(name in content for name in (b"loss", b"rare", b"gradient", b"test_right"))
