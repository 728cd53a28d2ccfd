"""Run all benchmarks: `python -m benchmarks`, or some of them: `python -m benchmarks dicom nifti`."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import benchmarks

names = sys.argv[1:] or [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_")]
for name in names:
    print(f"\n=== {name}", flush=True)
    # A process each, so that one benchmark's memory and compiled kernels do not flatter the next.
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
