"""Files that would run code, or fill the memory, are refused before they do."""

import io
import os
import pathlib
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from psgjax.commands import evaluate
from psgjax.data import layout

PACKAGED = ("--reference", "packaged")


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def header(shape, dtype="|u1"):
    """A .npy file that announces an array and holds none of it."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def zipped(content, name="images.npy"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def png(width, height):
    """A PNG that announces far more pixels, and holds one."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, format="PNG")
    ihdr = b"IHDR" + struct.pack(">2I", width, height) + buffer.getvalue()[24:29]
    return buffer.getvalue()[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + buffer.getvalue()[33:]


def archived(path, array):
    np.savez(path, images=array)
    return path.read_bytes()


HOSTILE = {
    "a pickle": ("a.npz", lambda path: pickle.dumps(Trap(path / "trapped")), "pickle"),
    "a pickled .npy": (
        "a.npy",
        lambda path: header("(1,)", "|O") + pickle.dumps(Trap(path / "trapped")),
        "allow_pickle",
    ),
    "a pickled member": (
        "a.npz",
        lambda path: archived(path / "a.npz", np.array([Trap(path / "trapped")], object)),
        "allow_pickle",
    ),
    "code as a header": ("a.npy", lambda path: header(f"__import__('os').mkdir('{path}/trapped')"), "cannot be read"),
    "announced and not there": ("a.npy", lambda path: header("(99999999, 28, 28)"), "cannot be read"),
    "announced: an exabyte": ("a.npz", lambda path: zipped(header(f"({2**60},)")), "cannot be read"),
    "a bomb": (
        "a.npz",
        lambda path: zipped(header("(20000, 28, 28)") + bytes(20000 * 784)),
        "unpacks to 15,680,128 bytes",
    ),
    "no array": ("a.npz", lambda path: zipped(b"text"), "something else"),
    "a path upwards": ("a.npz", lambda path: zipped(b"text", "../../trapped"), "something else"),
    "a damaged archive": ("a.npz", lambda path: zipped(bytes(9999))[:-40], "cannot be read"),
    "flipped bits": (
        "a.npz",
        lambda path: zipped(bytes(range(256))).replace(bytes([7, 8]), bytes([9, 9])),
        "cannot be read",
    ),
    "a huge PNG": ("c/a.png", lambda path: png(100_000, 100_000), "cannot be read as an image"),
    "a large PNG": ("c/a.png", lambda path: png(12_000, 12_000), "is 12000x12000; at most 16,777,216 pixels are read"),
    "a cut PNG": ("c/a.png", lambda path: png(28, 28), "cannot be read as an image"),
    "PostScript": ("c/a.png", lambda path: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_before_they_run_or_fill_memory(name, tmp_path, monkeypatch, capsys):
    path, make, message = HOSTILE[name]
    monkeypatch.setattr(layout, "MOST_BYTES", 10_000_000)
    (tmp_path / "c").mkdir()
    (tmp_path / path).write_bytes(make(tmp_path))
    given = tmp_path / path
    Image.init()  # Pillow imports its formats when it first fails to recognise a file: not that file's memory
    tracemalloc.start()
    status = evaluate.main([str(given.parent if given.suffix == ".png" else given), *PACKAGED])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == sorted({"c", path.split("/")[0]})
    if "announced" not in name:  # numpy reserves what is announced, and the system hands out no page of it
        assert peak < 5_000_000


def test_a_folder_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(layout, "MOST_BYTES", 10 * 64 * 64 - 1)
    for i in range(10):
        Image.new("L", (64, 64)).save(tmp_path / f"{i}.png")
    assert evaluate.main([str(tmp_path), *PACKAGED]) == 2
    assert "unpacks to 40,960 bytes" in capsys.readouterr().err
