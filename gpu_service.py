"""The text service's start in this folder: `python gpu_service.py`, `uvicorn gpu_service:app --port 8765`.

The program is `src/gpu_service.py`, which an installation has as a module of the same name. It is run here as this module, since
links between files do not survive every way in which a folder is copied.
"""

from pathlib import Path

_SOURCE = Path(__file__).parent / "src" / "gpu_service.py"
exec(compile(_SOURCE.read_text(encoding="utf-8"), str(_SOURCE), "exec"))  # noqa: S102 - a file of this very folder
