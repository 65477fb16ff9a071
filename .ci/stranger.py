"""What README and docs promise, done as a stranger does it: the first command twice, then every command on the run that it left.

From a clone in a folder with an awkward name, with the environment that `.ci/run` made, but without a network, without git and
without a home that can be written.

    .venv/bin/python .ci/stranger.py
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).parent.parent
TOOLS = ("bash", "sh", "env", "uname")  # all that is on the PATH beside Python; git is not
_COMMAND = re.compile(r'python -m (?:psgjax|experiments)[^`#|"\n]*')
_PLACEHOLDER = re.compile(r"\b(DIR|FOLDER|FILE|HOST|NAME|RUN|images\.npz|real\.npz|folder/)")


def documented() -> list[str]:
    """Every command in README and docs, each once, in their order."""
    pages = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
    texts = [page.read_text("utf-8").replace("\\\n", " ") for page in pages]  # a command goes on behind a backslash
    found = [match.strip() for text in texts for match in _COMMAND.findall(text)]
    return list(dict.fromkeys(found))


def isolated(command: str, clone: Path, work: Path) -> subprocess.CompletedProcess[str]:
    """A command in the clone, without a network."""
    bare = [
        "env",
        "-i",
        f"HOME={work / 'home'}",
        f"PATH={TOP / '.venv' / 'bin'}:{work / 'bin'}",
        "TERM=dumb",
        "bash",
        "-c",
        command,
    ]
    alone = ["unshare", "--user", "--map-root-user", "--net", *bare]
    return subprocess.run(alone, cwd=clone, capture_output=True, text=True, check=False)


def expect(command: str, clone: Path, work: Path, said: str = "") -> None:
    """Run it; end here unless its status is 0 and it says what is expected."""
    started = time.monotonic()
    done = isolated(command, clone, work)
    print(f"status {done.returncode}, {time.monotonic() - started:.0f} s: {command}", flush=True)
    if done.returncode or said not in done.stdout or "Traceback" in done.stderr:
        sys.exit(f"{done.stdout}{done.stderr}\nexpected: status 0{' and ' + repr(said) if said else ''}")


def main() -> None:
    """All of it, in a folder that is deleted afterwards."""
    first = next(
        line.strip() for line in (TOP / "README.md").read_text("utf-8").splitlines() if "-m experiments.mnist" in line
    )
    first = first.rpartition("&& ")[2]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        clone = work / "a b [1] 한글" / "clone"
        clone.parent.mkdir()
        (work / "home").touch()  # a file: nothing can be made below it, not even by root
        (work / "bin").mkdir()
        for tool in TOOLS:
            (work / "bin" / tool).symlink_to(str(shutil.which(tool)))
        subprocess.run(["git", "clone", "--quiet", TOP, clone], check=True)
        (clone / ".venv").symlink_to(TOP / ".venv")

        expect(first, clone, work, "report: ")
        expect(first, clone, work, "finished already")
        helped = set()
        for command in documented():
            words = shlex.split(command)
            on_a_run = words[2] == "psgjax" and "runs/mnist" in command
            missing = [word for word in words if word.endswith(".safetensors")]  # no method of the quick run diverges
            if on_a_run and not missing and not _PLACEHOLDER.search(command):
                expect(command, clone, work)
            else:
                helped.add(shlex.join(words[: 4 if words[2] == "psgjax" else 3]))
        for command in sorted(helped):
            expect(f"{command} --help", clone, work)


if __name__ == "__main__":
    os.environ.pop("PSGJAX_MNIST_DIR", None)
    main()
