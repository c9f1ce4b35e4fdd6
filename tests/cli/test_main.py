"""The frame of the command line: exit codes, errors, help, what a terminal sees."""

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ckptkit as ck
import ckptkit.cli
from ckptkit.core.errors import CkptError
from tests.house import samples
from tests.support import Result, environment

Run = Callable[..., Result]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return samples.safetensors(tmp_path / "x.safetensors")


def on_terminal(*argv: str, columns: int = 80, **changes: str) -> str:
    """What `ckptkit ARGV…` shows on a terminal that wide."""
    parent, child = pty.openpty()
    env = environment(COLUMNS=str(columns), TERM="xterm", **changes)
    if "NO_COLOR" not in changes:
        env.pop("NO_COLOR")
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptkit", *argv], stdin=child, stdout=child, stderr=child, env=env
    )
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 65536):
            shown += piece
    except OSError:  # Linux: the other end is closed
        pass
    finally:
        os.close(parent)
    assert process.wait(60) == 0
    return shown.decode().replace("\r\n", "\n")


def test_help_is_grouped_and_lists_every_command(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    for word in ("Look:", "Change:", "inspect", "show", "convert", "formats", "_CKPTKIT_COMPLETE"):
        assert word in done.stdout
    assert run().stdout == done.stdout


def test_help_says_what_each_command_does_in_a_line(run: Run) -> None:
    assert "..." not in run("--help").stdout.partition("Options:")[2]  # click's mark of a sentence cut short


def test_options_of_convert_stand_under_headings(run: Run) -> None:
    shown = run("convert", "--help").stdout
    headings = [
        "What to take:",
        "What to change:",
        "ONNX:",
        "What may be lost:",
        "How to write:",
        "How to print:",
    ]
    assert sorted(headings, key=shown.index) == headings
    for option in ("--include", "--rules", "--into", "--allow-loss", "--verify", "--json", "--help"):
        assert shown.count(f"  {option} ") + shown.count(f", {option} ") >= 1, option
    assert "SRC\n" not in shown.partition("What to take:")[2]


@pytest.mark.parametrize("command", ["inspect", "show", "convert", "formats"])
def test_help_of_each_command_has_examples(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert done.code == 0
    assert f"\n    ckptkit {command}" in done.stdout.partition("Examples:")[2]


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"ckptkit {ckptkit.__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["no-such-command"],
        ["inspect"],
        ["inspect", "--no-such-option", "x"],
        ["convert", "a"],
        ["convert", "a", "b.pt", "--max-shard-size", "much"],
        ["convert", "a", "b.pt", "--metadata", "novalue"],
        ["inspect", "a", "--sort", "colour"],
    ],
)
def test_a_misunderstood_command_line_is_an_error(run: Run, argv: list[str]) -> None:
    done = run(*argv)
    assert done.code == 2
    assert done.stdout == ""
    first, hint = done.stderr.splitlines()
    assert first.startswith("error[usage]: ")
    assert hint.startswith("hint: ckptkit")
    assert hint.endswith("--help")


def test_errors_are_json_where_json_was_asked_for(run: Run) -> None:
    for argv in (["show", "missing", "w", "--json"], ["show", "missing", "w", "--format", "json"]):
        done = run(*argv)
        assert done.code == 2
        assert done.stderr == ""
        assert done.json["schema"] == "ckptkit.error/1"
        assert (done.json["code"], done.json["where"]) == ("not-found", "missing")
        assert set(done.json) == {"schema", "code", "message", "where", "hint"}
    assert run("convert", "a", "--json").json["code"] == "usage"


def test_what_a_file_says_is_escaped_in_errors(run: Run) -> None:
    done = run("show", "a\x1b]0;x\x07\n\u202eb\udcff", "w")
    assert done.code == 2
    assert all(line.isprintable() for line in done.stderr.splitlines())
    assert "\\x1b]0;x\\x07\\n\\u202eb" in done.stderr


def test_names_from_files_make_no_lines_of_their_own(run: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    forged = "w\nerror[forged]: it's \\ \x9b all lost"
    path = tmp_path / "x.pt"
    torch.save({forged: torch.zeros(1)}, path)
    shown = [run("show", path, forged[:-1]), run("inspect", path, "--include", forged[:-1])]
    for done in shown:
        assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
            done.stderr.split(":")[0],
            "hint",
        ]
        assert "w\\nerror[forged]" in done.stderr.splitlines()[1]


def test_ready_commands_can_be_pasted(run: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    forged = "b\nerror[forged]: it's \\ \x9b lost"
    path = tmp_path / "x.pt"
    torch.save({"generator": {"w": torch.zeros(1)}, forged: {"w": torch.zeros(2)}}, path)
    done = run("convert", path, tmp_path / "y.safetensors")
    ready = [line for line in done.stderr.splitlines()[1:] if "forged" in line]
    assert len(ready) == 1
    words = (
        subprocess.run(["bash", "-c", f"printf '%s\\0' {ready[0].strip()}"], capture_output=True, check=True)
        .stdout.decode()
        .split("\0")
    )
    assert words[-2] == forged


def test_a_defect_is_one_line(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr("ckptkit.cli.inspect.read_with", broken)
    monkeypatch.delenv("CKPTKIT_DEBUG", raising=False)
    done = run("inspect", model)
    assert done.code == 2
    first, hint = done.stderr.splitlines()
    assert first == "error[internal]: ZeroDivisionError: oh\\nno"
    assert "CKPTKIT_DEBUG=1" in hint
    monkeypatch.setenv("CKPTKIT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run("inspect", model)


def test_an_interrupt_ends_with_130(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ckptkit.cli.inspect.read_with", interrupted)
    done = run("inspect", model)
    assert (done.code, done.stderr) == (130, "")


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    header = {f"n{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(50_000)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptkit", "inspect", str(path), "--lines"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"n0\tuint8\t[0]\t0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_take_nothing(model: Path, tmp_path: Path, closed: str) -> None:
    """Nor does a file opened later stand in the place of one."""
    copy = tmp_path / "copy.safetensors"
    for command in (["inspect", str(model)], ["convert", str(model), str(copy)], ["inspect", "missing"]):
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "ckptkit", *command],
            capture_output=True,
            env=environment(),
            check=False,
        )
        assert done.returncode == (2 if "missing" in command else 0)
        assert b"internal" not in done.stdout + done.stderr
    assert ck.read(copy).keys() == ck.read(model).keys()


def test_what_is_ignored_stays_ignored(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""
    seen: list[object] = []
    monkeypatch.setattr(
        "ckptkit.cli.inspect.read_with", lambda *_: seen.append(signal.getsignal(signal.SIGHUP))
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run("inspect", model)
        assert seen == [signal.SIG_IGN]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_real_interrupt() -> None:
    script = "import ckptkit.cli.inspect as i, time; i.read_with = lambda *_: time.sleep(60)\n"
    script += "print('ready', flush=True)\nimport sys; sys.exit(ckptkit.cli.main(['inspect', 'x']))"
    process = subprocess.Popen(
        [sys.executable, "-c", "import ckptkit.cli\n" + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, b"")


def test_a_terminal_is_never_overrun_and_a_pipe_never_cut(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    name = "encoder." + "block." * 20 + "weight"
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    for columns in (40, 80, 200):
        shown = on_terminal("inspect", str(path), columns=columns, NO_COLOR="1")
        assert max(map(len, shown.splitlines())) <= columns
        assert (name in shown) == (columns == 200)
        assert "float32" in shown
    assert name in run("inspect", path).stdout


def test_colour_only_on_a_terminal(run: Run, model: Path) -> None:
    coloured = on_terminal("inspect", str(model), columns=120)
    assert "\x1b[1m" in coloured
    plain = on_terminal("inspect", str(model), columns=120, NO_COLOR="1")
    assert "\x1b" not in plain
    assert "\x1b" not in run("inspect", model).stdout
    for code in ("\x1b[0m", "\x1b[1m"):
        coloured = coloured.replace(code, "")
    assert coloured == plain


def test_completion_knows_the_commands() -> None:
    script = "from ckptkit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(_CKPTKIT_COMPLETE="bash_complete", COMP_WORDS="ckptkit in", COMP_CWORD="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "plain,inspect\n"


def test_output_in_a_narrow_encoding_does_not_fail(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ckptkit", "inspect", str(model)],
        env=environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0"),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


def test_report_has_no_hint_line_without_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    ckptkit.cli.report(CkptError("not-found", "no such file", "x"))
    assert capsys.readouterr().err == "error[not-found]: no such file — x\n"


def test_an_ambiguous_section_gives_ready_commands(run: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    path = tmp_path / "two models.pt"
    torch.save({"netG": {"w": torch.zeros(2)}, "netD": {"w": torch.zeros(2)}}, path)
    assert run("inspect", path).code == 0
    done = run("convert", path, tmp_path / "y.safetensors")
    assert done.code == 2
    commands = [line[6:] for line in done.stderr.splitlines()[1:]]
    assert commands[0] == f"ckptkit convert '{path}' {tmp_path / 'y.safetensors'} --section netG"
    assert {command.rpartition(" ")[2] for command in commands} >= {"netG", "netD"}
    for command in commands:
        assert run(*shlex.split(command)[1:], "-n").code == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("style", ["text", "json"])
def test_a_full_disk_is_said(model: Path, style: str) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ckptkit", "inspect", str(model), "--format", style]
        done = subprocess.run(command, env=environment(), stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error[no-space]: ")
    assert b"Traceback" not in done.stderr
