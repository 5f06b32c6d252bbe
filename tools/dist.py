"""
Build the source distribution and the wheel: ``python tools/dist.py [DIRECTORY]``, by default into ``dist``.

The same sources give the same bytes, so that anybody can check what was released. Their time is ``SOURCE_DATE_EPOCH``; without
it that of the last commit, or else 1980. setuptools heeds it in wheels only. A source distribution has the times, the modes and
the owner of the files, so it is packed again, and the wheel is made from that: nothing that lies about in the checkout gets in.
"""

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

PROJECT = Path(__file__).resolve().parent.parent
EARLIEST = 315_532_800
"""The first second that a wheel, which is a zip file, can have: 1980 in UTC."""


def epoch() -> int:
    """
    Find the time of the sources, in seconds since 1970.

    :raises SystemExit: when ``SOURCE_DATE_EPOCH`` is not a number.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is None:
        asked = ["git", "-C", str(PROJECT), "log", "-1", "--format=%ct"]
        try:
            given = subprocess.run(asked, capture_output=True, text=True).stdout.strip() or str(EARLIEST)
        except OSError:
            given = str(EARLIEST)
    if not given.isdecimal():
        raise SystemExit(f"SOURCE_DATE_EPOCH is {given!r}: give seconds since 1970, or unset it")
    return max(int(given), EARLIEST)


def repack(path: Path, time: int) -> None:
    """
    Pack a ``.tar.gz`` again: in alphabetical order, with one time, and nobody's files.

    :param time: seconds since 1970.
    """
    packed = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = time, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=time) as compressed:
        compressed.write(packed.getvalue())


def main(target: Path) -> None:
    """
    Build.

    :param target: the directory that receives them.
    :raises SystemExit: when building fails; it has said why.
    """
    time = epoch()
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(time)}
    with TemporaryDirectory() as folder:
        run(["build", "--no-isolation", "--sdist", "--outdir", folder, str(PROJECT)], environment)
        (sources,) = Path(folder).glob("*.tar.gz")
        repack(sources, time)
        run(
            ["pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, str(sources)],
            environment,
        )
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(Path(folder).iterdir()):
            shutil.copyfile(path, target / path.name)
            print(target / path.name)


def run(command: list[str], environment: dict[str, str]) -> None:
    """
    Run a module of Python's.

    :raises SystemExit: when it fails; it has said why.
    """
    done = subprocess.run([sys.executable, "-m", *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


if __name__ == "__main__":
    os.umask(0o022)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("dist"))
