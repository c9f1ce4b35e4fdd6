"""The progress bar: only on a terminal, only for long work, and gone at the end."""

import io
from types import SimpleNamespace

import pytest

from ckptkit.cli import progress
from ckptkit.cli.progress import Bar


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    shown = Screen()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=shown))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    return shown


def test_it_fills_and_vanishes(screen: Screen) -> None:
    with Bar(2_000_000) as bar:
        bar.advance(500_000)
        bar.advance(1_500_000)
        bar.phase("verify", 1_000_000, 2_000_000)
    first, second, third, end = screen.getvalue().split("\r")[1:]
    assert "500 kB/2.00 MB" in first
    assert first.count("━") < second.count("━")
    assert "─" not in second
    assert "verify 1.00 MB/2.00 MB" in third
    assert end == "\x1b[K"
    assert all(len(text.replace("\x1b[K", "")) <= 80 for text in (first, second, third))


def test_quick_work_shows_nothing(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 60.0)
    with Bar(100) as bar:
        bar.advance(100)
    assert screen.getvalue() == ""


def test_quiet_and_pipes_show_nothing(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    with Bar(100, quiet=True) as bar:
        bar.advance(100)
    assert screen.getvalue() == ""
    pipe = io.StringIO()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=pipe))
    with Bar(100) as bar:
        bar.advance(100)
    assert pipe.getvalue() == ""


def test_it_is_cleared_when_the_work_fails(screen: Screen) -> None:
    with pytest.raises(KeyboardInterrupt), Bar(100) as bar:
        bar.advance(50)
        raise KeyboardInterrupt
    assert screen.getvalue().endswith("\r\x1b[K")
