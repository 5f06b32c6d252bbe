"""
Generate ``mqhooks/pb`` from ``proto``: ``python tools/generate_pb.py [DIRECTORY]``.

The documents' files import each other by bare name, and protoc's Python output does the same, so these imports are pointed
into the package afterwards.
"""

import re
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROJECT = Path(__file__).resolve().parent.parent
SOURCES = PROJECT / "proto"


def generate(target: Path) -> None:
    """
    Write the modules and their stubs.

    :param target: the directory that receives them; what protoc generated there before is replaced.
    :raises SystemExit: when protoc refuses a file; it has said why on standard error.
    """
    for old in target.glob("*_pb2.py*"):
        old.unlink()
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={SOURCES}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--python_out={target}",
            f"--pyi_out={target}",
            *(str(path) for path in sorted(SOURCES.glob("*.proto"))),
        ]
    )
    if status:
        raise SystemExit(status)
    for module in sorted(target.glob("*_pb2.py*")):
        text = module.read_text(encoding="utf-8")
        module.write_text(re.sub(r"^import (\w+_pb2) as", r"from mqhooks.pb import \1 as", text, flags=re.M), "utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROJECT / "mqhooks" / "pb")
