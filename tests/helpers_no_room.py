"""A full disk where no other can be mounted: a library before the C library that says ENOSPC."""

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("no_room.c")


class Preloaded:
    """Everything that creates or grows a file below a folder fails while this disk is taken away."""

    name = "LD_PRELOAD that says ENOSPC (namespaces are refused here)"
    kinds = ("bytes",)

    def __init__(self, place: Path, root: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        assert compiler, "neither namespaces nor a C compiler: a full disk cannot be made here"
        library, self._flag = place / "no_room.so", place / "full"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
        self.environment = {"LD_PRELOAD": str(library), "NO_ROOM_FLAG": str(self._flag), "NO_ROOM_ROOT": str(root)}

    def take(self, kind: str, rest: int) -> None:
        self._flag.touch()

    def give_back(self) -> None:
        self._flag.unlink(missing_ok=True)
