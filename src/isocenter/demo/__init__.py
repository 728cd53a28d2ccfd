"""`isocenter demo`: the main job shown end to end, on a phantom whose truth is known or on a scan of one's own.

A server is started as a child process and used as any client would: words over BiomedParse's protocol, clicks over MONAI
Label's. What comes back is compared with the truth, written as files, drawn, and the lines to do the same by hand are
printed. A second patient, five visits with two lesions under treatment, is followed from scan to report.
"""

from __future__ import annotations

import time
from pathlib import Path

from isocenter.cli.console import out, working
from isocenter.demo.child import free_port, server
from isocenter.demo.show import Show


def run(*, source: Path | None, folder: Path, port: int, stay: bool) -> None:
    """The whole demonstration. stay: leave the server running until interrupted."""
    console = out()
    console.print("[bold]Isocenter[/bold]: a scan in, a mask out, on this machine. Research use only; not a medical device.")
    folder.mkdir(parents=True, exist_ok=True)
    chosen = free_port(port)
    started = time.perf_counter()
    with server(chosen, folder / "server.log") as child:
        # The server warms up while the scan is made or read.
        show = Show(console, folder)
        show.open(source)
        show.heading("The server")
        with working("Starting; the first start compiles the kernels, which takes up to a minute"):
            child.wait_ready()
        taken = "" if chosen == port else f" (port {port} is taken)"
        console.print(f"   {child.wire.base}{taken}, ready after {time.perf_counter() - started:.1f} s")
        show.words(child.wire)
        show.clicks(child.wire)
        show.keep()
        if source is None:
            show.follow()
        show.by_hand(child.wire)
        if stay:
            console.print(f"\n[bold green]The server stays up at {child.wire.base}[/bold green] until you press Ctrl-C.")
            try:
                child.process.wait()
            except KeyboardInterrupt:
                console.print("\nStopped.")
