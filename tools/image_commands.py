"""
Print what ``packaging/Dockerfile`` does to make mqhooks' environment, for a machine without Docker: ``python
tools/image_commands.py ROOT | SETTINGS=nanomq.conf sh -e`` does it below a directory, and checks a configuration with it.
"""

import json
import re
import shlex
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def instructions(stage: int) -> list[tuple[str, str]]:
    """
    Read a stage of the Dockerfile.

    :returns: the instructions after ``FROM``, each with what follows its name.
    """
    text = (PROJECT / "packaging" / "Dockerfile").read_text("utf-8")
    text = re.sub(r" *\\\n *", " ", re.sub(r"^ *#.*\n", "", text, flags=re.M))
    lines = re.split(r"^FROM .+$", text, flags=re.M)[stage + 1].strip().splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line)]


def commands(root: str) -> list[str]:
    """
    Write the first stage as shell commands.

    :param root: stands for ``/``.
    """

    def below(text: str) -> str:
        return re.sub(r"(?<![\w/.-])/(?=(?:opt|src|wheels)\b)", f"{shlex.quote(root)}/", text)

    lines = [f"mkdir -p {shlex.quote(root)}/src {shlex.quote(root)}/opt"]
    for name, rest in instructions(0):
        if name == "WORKDIR":
            lines.append(f"cd {below(rest) if rest != '/' else shlex.quote(root)}")
        elif name == "COPY":
            *sources, target = rest.split()
            paths = " ".join(shlex.quote(str(PROJECT / source)) for source in sources)
            lines.append(f"mkdir -p {Path(target).parent} && cp -r {paths} {target}")
        elif name == "RUN":
            lines.append(re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", below(rest)))
    last = dict(instructions(1))
    start = [f"{root}/opt/mqhooks/bin/{json.loads(last['ENTRYPOINT'])[0]}", *json.loads(last["ENTRYPOINT"])[1:]]
    return [*lines, f"cd {shlex.quote(root)}", f'{shlex.join([*start, "--config"])} "$SETTINGS" --check']


if __name__ == "__main__":
    print("\n".join(commands(sys.argv[1])))
