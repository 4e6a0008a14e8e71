"""Wheels of this checkout under other versions, installed into a virtual environment of their own."""

import os
import re
import site
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROTOCOL = re.compile(r"^PROTOCOL = (\d+)$", re.M)


def build(folder: Path, version: str, protocols_later: int = 0) -> Path:
    """What the build backend would make of the package, which is not at hand where tests run without the internet."""
    folder.mkdir(exist_ok=True)
    path = folder / f"training_daemon-{version}-py3-none-any.whl"
    scripts = re.search(r"\[project\.scripts\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.S)
    assert scripts
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: training-daemon\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": "[console_scripts]\n" + scripts[1].replace('"', "") + "\n",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for file in sorted((ROOT / "daemon").rglob("*.py")):
            wheel.writestr(str(file.relative_to(ROOT)), of_protocol(file.read_text(), protocols_later))
        for name, text in about.items():
            wheel.writestr(f"training_daemon-{version}.dist-info/{name}", text)
        record = "".join(f"{name},,\n" for name in wheel.namelist())
        wheel.writestr(f"training_daemon-{version}.dist-info/RECORD", record)
    return path


def of_protocol(text: str, later: int) -> str:
    return PROTOCOL.sub(lambda found: f"PROTOCOL = {int(found[1]) + later}", text)


class Environment:
    """A virtual environment that borrows the libraries of the one in which the tests run."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.commands = folder / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.install(wheel)
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")

    def install(self, wheel: Path) -> None:
        """As people do: pip install --upgrade."""
        python = str(self.commands / "python")
        command = [sys.executable, "-m", "pip", "--python", python, "install", "--upgrade", "--no-deps", "--no-index"]
        alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run([*command, "--no-compile", "-q", str(wheel)], check=True, env=alone, cwd="/")
