"""The process that measures what a model takes of memory: `python -m bigctl.inference.exporters.memory_process FOLDER`
prints bytes. Linux alone tells.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bigctl.inference.exporters.peak_memory import INPUTS, JAX, ONNX, WEIGHTS

_PROCESS = Path("/proc/self")


def main() -> int:
    if not (_PROCESS / "status").exists():
        return 1
    folder = Path(sys.argv[1])
    with np.load(folder / INPUTS) as file:
        inputs = dict(file)
    answer = (_of_onnx if (folder / ONNX).exists() else _of_jax)(folder, inputs)
    answer()  # so that the code of the runtime is there already
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # what has been freed would be used again, uncounted
        ctypes.CDLL(None).malloc_trim(0)
    (_PROCESS / "clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _bytes("VmRSS")
    answer()
    print(max(0, _bytes("VmHWM") - before))
    return 0


def _of_onnx(folder: Path, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
    from bigctl.inference.exporters.onnx_session import Loaded

    return lambda: Loaded(folder / ONNX)(inputs)


def _of_jax(folder: Path, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
    import jax
    from jax import export

    model = export.deserialize(bytearray((folder / JAX).read_bytes()))
    with np.load(folder / WEIGHTS) as file:
        shapes = {name: jax.ShapeDtypeStruct(file[name].shape, file[name].dtype) for name in file.files}
    compiled = jax.jit(model.call).lower(shapes, inputs).compile()

    def answer() -> None:
        with np.load(folder / WEIGHTS) as file:
            weights = {name: jax.device_put(file[name]) for name in file.files}
        jax.block_until_ready(compiled(weights, inputs))

    return answer


def _bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", (_PROCESS / "status").read_text(encoding="ascii"), re.M)
    if found is None:
        raise SystemExit(1)
    return 1024 * int(found[1])


if __name__ == "__main__":
    sys.exit(main())
