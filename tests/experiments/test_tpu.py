"""experiments/tpu.py: what it reads out of a compiled program, and what it says where there is no libtpu."""

import importlib.metadata

import pytest

from experiments import tpu

PROGRAM = """
  %all-reduce.1 = (f32[4,4,64,128]{3,2,1,0:T(8,128)S(1)}, f32[64]{0:T(128)}) all-reduce(%a, %b), channel_id=1, to_apply=%add
  %all-gather.2 = bf16[2,3]{1,0} all-gather(%c), dimensions={0}
  %all-reduce-start.3 = u8[128,28,28,1]{3,2,1,0} all-reduce-start(%d), channel_id=3
  %all-reduce-done.3 = u8[128,28,28,1]{3,2,1,0} all-reduce-done(%all-reduce-start.3)
  %fusion.4 = f32[10]{0} fusion(%all-reduce.1), kind=kLoop, calls=%all-gather_computation
"""


def test_collectives_are_counted_with_the_bytes_of_their_results():
    assert tpu.collectives(PROGRAM) == {
        "all-reduce": {"count": 2, "bytes": 4 * (4 * 4 * 64 * 128 + 64) + 128 * 28 * 28},
        "all-gather": {"count": 1, "bytes": 2 * 6},
    }


def test_without_libtpu_the_command_says_what_to_install(capsys, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(tpu, "version", missing)
    monkeypatch.setattr(tpu.os, "environ", {})
    assert tpu.main(["--methods", "psg"]) == 2
    assert "psgjax[tpu]" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--methods", "nobody"], ["--batch-size", "0"], ["--mesh.data", "-1"]])
def test_mistakes_are_one_line(arguments, capsys, monkeypatch):
    monkeypatch.setattr(tpu.os, "environ", {})
    assert tpu.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
