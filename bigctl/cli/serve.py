"""Answer requests with trained models, over HTTP."""

from __future__ import annotations

import argparse
from pathlib import Path

from bigctl.cli import common
from bigctl.cli.eval import step_argument

EXAMPLES = """\
Reachable from this machine only, unless --host says otherwise. Keys: --api-key-file, or BIGCTL_API_KEYS (with commas).
Needs the extra `serve`: pip install 'bigctl[serve]'

examples:
  bigctl serve runs/cnn_cls                               POST /predict on http://127.0.0.1:8000, /docs tells more
  bigctl serve cnn_cls bert_cls --port 9000               several: POST /models/cnn_cls/predict
  bigctl serve cnn_cls --host 0.0.0.0 --api-key-file keys.txt
  bigctl serve gpt_lm                                     OpenAI's /v1/completions and /v1/chat/completions
  bigctl serve runs/cnn_cls/onnx                          what bigctl export wrote
  bigctl serve sealed --passphrase-file secret.txt        what --encrypt wrote
  bigctl serve smollm2                                    packaged weights; or a Hugging Face folder of a Llama
  curl -F file=@digit.png http://127.0.0.1:8000/predict
"""
PORT = 8000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run directory, a name under runs/, a folder that `bigctl export` wrote (of "
        "language models all but onnx), packaged weights (smollm2), or a Hugging Face folder of a GPT or a Llama",
    )
    parser.add_argument(
        "--port", type=common.whole("port", 0, 65535), default=PORT, metavar="N", help=f"default: {PORT}; 0: a free one"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="a name that clients may use for this machine besides localhost, such as that of a proxy in front",
    )  # fmt: skip
    common.add_passphrase(parser)
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="keys, one a line; clients send one")
    parser.add_argument(
        "--max-body", type=common.whole("size in MiB", 1, 4096), default=16, metavar="MIB",
        help="of a request, in MiB; default: 16",
    )  # fmt: skip
    parser.add_argument(
        "--max-queue", type=common.whole("number of requests", 1, 10**6), default=256, metavar="N",
        help="requests that may wait for a model, others are refused (429); default: 256",
    )  # fmt: skip
    parser.add_argument(
        "--slots", type=common.whole("number of texts", 1, 16), default=8, metavar="N",
        help="texts that a language model writes at once, up to 16; default: 8",
    )  # fmt: skip
    parser.add_argument(
        "--drain", type=common.whole("number of seconds", 0, 3600), default=30, metavar="SECONDS",
        help="that requests in flight have after SIGTERM; default: 30",
    )  # fmt: skip
    parser.add_argument(
        "--reload", type=common.whole("number of seconds", 0, 10**6), default=10, metavar="SECONDS",
        help="between two looks whether a run has a new best checkpoint, which is then served; 0: never; default: 10",
    )  # fmt: skip
    parser.add_argument("--log-contents", action="store_true", help="log what is asked and answered, too")
    parser.add_argument("--step", default="best", help="checkpoint: best, last, or a step; default: best")
    common.add_run_plugins(parser)


def run(options: argparse.Namespace) -> int:
    from bigctl.errors import RunError
    from bigctl.serving.settings import Settings, read_keys

    step = step_argument(options.step)
    _require_packages()
    host = options.host.removeprefix("[").removesuffix("]")
    settings = Settings(
        host=host, port=options.port, max_body=options.max_body * 2**20, max_queue=options.max_queue,
        slots=options.slots,
        drain=float(options.drain), keys=read_keys(options.api_key_file), log_contents=options.log_contents,
        allowed_hosts=tuple(options.allow_host), reload=float(options.reload),
        passphrase=common.passphrase(options.passphrase_file, options.runs),
    )  # fmt: skip
    from bigctl.serving import server
    from bigctl.serving.naming import name_of

    names = [name_of(given) for given in options.runs]
    if twice := [name for name in names if names.count(name) > 1]:
        hint = "serve runs whose folders have different names"
        raise RunError(f"two runs are called {twice[0]!r}", where=options.runs[names.index(twice[0])], hint=hint)
    with server.listen(settings) as listening:
        from bigctl.serving import loading, log
        from bigctl.serving.app import Site

        log.take_warnings()
        models = [
            loading.load(name, given, settings, step=step, plugins=options.plugin)
            for name, given in zip(names, options.runs, strict=True)
        ]
        site = Site(models, settings)
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        server.serve(site, listening)
    return 0


def _require_packages() -> None:
    """Raises ConfigError, naming the extra, without the packages of the extra `serve`."""
    import importlib.util

    from bigctl.errors import ConfigError

    names = {"starlette": "starlette", "uvicorn": "uvicorn", "python-multipart": "python_multipart"}
    missing = [name for name, module in names.items() if importlib.util.find_spec(module) is None]
    if missing:
        what = f"bigctl serve needs {' and '.join(missing)}"
        raise ConfigError(what, hint="pip install 'bigctl[serve]'")
