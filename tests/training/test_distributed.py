"""Several processes on 127.0.0.1 train one run: they lose one to SIGKILL, end with one line each, and go on to the same result."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from experiments import mnist
from psgjax.runs.metrics import read_lines


def met():
    """Whether processes can meet on 127.0.0.1: a container without any network has no loopback either."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        try:
            socket.create_connection(server.getsockname(), 1).close()
        except OSError:
            return False
    return True


pytestmark = [pytest.mark.uncovered, pytest.mark.skipif(not met(), reason="there is no loopback network")]

# A run as the command makes it, which saves more often than a user's.
PROGRAM = """
import sys
from psgjax.training import loop
loop._SAVE_SECONDS, loop._CALL_SECONDS = 0.3, 0.1
from experiments import mnist
sys.exit(mnist.main())
"""
RUN = "--methods psg --data.source packaged --data.train-images 64 --batch-size 8 --evaluation-epochs 0"
RUN += " --network.name mlp --network.width 4"


class Group:
    """So many processes that train together on four devices in all."""

    def __init__(self, folder, count, epochs):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-c", PROGRAM, *RUN.split(), "--epochs", str(epochs), "--out", str(folder)]
        command += ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--processes", str(count), "--process"]
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(4 // count)}
        self.processes = [
            subprocess.Popen([*command, str(i)], env=environment, stderr=subprocess.PIPE, text=True)
            for i in range(count)
        ]

    def ends(self):
        """Exit status and standard error of each, all within some minutes however busy the machine is."""
        ended = [process.communicate(timeout=400) for process in self.processes]
        return [(process.returncode, text) for process, (_, text) in zip(self.processes, ended, strict=True)]


def lines(folder):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(folder / "psg/metrics.jsonl")]


def saved(folder):
    return [int(path.name) for path in (folder / "psg/checkpoints").glob("[0-9]*") if path.name.isdigit()]


def nearly(value):
    """Sums over devices are made in another order by other numbers of them."""
    if isinstance(value, list):
        return [nearly(inner) for inner in value]
    if isinstance(value, dict):
        return {name: nearly(inner) for name, inner in value.items()}
    return pytest.approx(value, abs=2e-3)


@pytest.mark.long
def test_processes_lose_one_and_go_on_to_the_same_result(tmp_path):
    """Four processes lose one, and two go on: the run is that of one process with one device."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert mnist.main([*RUN.split(), "--epochs", "10", "--out", str(whole)]) == 0
    group = Group(cut, 4, epochs=10)
    while len(lines(cut)) < 2 or not saved(cut):
        assert group.processes[0].poll() is None, group.processes[0].communicate()[1]
        time.sleep(0.05)
    group.processes[-1].send_signal(signal.SIGKILL)
    *others, killed = group.ends()
    assert killed[0] == -signal.SIGKILL
    for status, error in others:
        assert status == 1, error
        assert "error: " in error
    assert 0 < max(saved(cut)) < 8 * 10
    for status, error in Group(cut, 2, epochs=10).ends():
        assert status == 0, error
    assert lines(cut) == nearly(lines(whole))
    assert (cut / "report.html").exists()


def test_a_mistake_ends_every_process(tmp_path):
    (tmp_path / "file").write_text("")
    for status, _ in Group(tmp_path / "file", 2, epochs=1).ends():
        assert status != 0
