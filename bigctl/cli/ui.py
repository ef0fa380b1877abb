"""Show all runs and sweeps in the browser of this machine; curves of running experiments are live."""

from __future__ import annotations

import argparse
from pathlib import Path

from bigctl.cli import common

EXAMPLES = """\
Reachable from this machine only (127.0.0.1), by the address that is printed, which has a token in it, and read-only.
From elsewhere: ssh -L 8765:127.0.0.1:8765 HOST

examples:
  bigctl ui                        http://127.0.0.1:8765/?token=..., or another port if that one is taken
  bigctl ui --port 0 --root /data/runs
"""
PORT = 8765


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder with the runs; default: runs")
    parser.add_argument("--sweeps", type=Path, metavar="DIR", help="folder with the sweeps; default: sweeps")
    parser.add_argument(
        "--port",
        type=common.whole("port", 0, 65535),
        metavar="N",
        help=f"default: {PORT}, or a free one; 0: a free one",
    )


def run(options: argparse.Namespace) -> int:
    from bigctl.errors import ConfigError
    from bigctl.reports import find, server
    from bigctl.runs.directory import ROOT

    for flag, folder in (("--root", options.root), ("--sweeps", options.sweeps)):
        if folder is not None and not folder.is_dir():
            raise ConfigError("is not a folder", where=f"{flag} {folder}")
    site = server.Site(options.root or ROOT, options.sweeps or find.SWEEPS)
    try:
        serving = server.listen(site, PORT if options.port is None else options.port)
    except OSError as error:
        if options.port is not None:
            said = f"cannot be used: {error.strerror}"
            raise ConfigError(said, where=f"--port {options.port}", hint="--port 0 takes a free one") from error
        serving = server.listen(site, 0)
    with serving:
        try:
            print(f"{serving.address}  (Ctrl-C ends it)", flush=True)
            serving.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:  # the normal way to end it
            pass
    return 0
