"""Devices to compile for: simulated ones of this machine, or those of a machine that is not here.

XLA compiles for GPUs and TPUs on machines that have neither, from a description (`jax.experimental.topologies`): libtpu
has those of TPUs, for a GPU the CUDA plugin takes one as text. Without either, the program that a CPU would run stands
in, on as many simulated devices.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from bigctl import memory
from bigctl.errors import ConfigError
from bigctl.planning.targets import Chip, Target

if TYPE_CHECKING:
    import jax

EXTRAS = {"gpu": "plan-gpu", "tpu": "plan-tpu"}


@dataclass(frozen=True)
class Found:
    """What a step is compiled for.

    Attributes:
        devices: all of the target.
        exact: whether they are of the target's kind; else the CPU's program stands in.
        notes: what is to be said of that.
        options: of the compiler, besides those of the program.
    """

    devices: Sequence[jax.Device]
    exact: bool
    notes: tuple[str, ...] = ()
    options: Mapping[str, bool] = field(default_factory=dict)


def find(target: Target) -> Found:
    """The devices of a target.

    Raises:
        ConfigError: where the plugin is of another version than jax, or knows no such machine.
    """
    with _without_remarks():
        return _find(target)


def _find(target: Target) -> Found:
    platform = target.chip.platform
    if platform == "cpu":
        return Found(simulated(target.devices), exact=True)
    missing = _missing(platform)
    if missing:
        extra = EXTRAS[platform]

        command = f"pip install 'bigctl[{extra}]'"
        note = (
            f"an estimate, from the program that a CPU would run: {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed; {command} compiles for {target.chip.name} itself"
        )
        return Found(simulated(target.devices), exact=False, notes=(note,))
    if platform == "gpu":
        _check_versions()
    import jax

    # Triton's products are chosen by trying, which takes a device: jax 0.11 refuses deterministic programs without one.
    refused = platform == "gpu" and jax.__version_info__ >= (0, 11)
    options = {"xla_gpu_enable_triton_gemm": False} if refused else {}
    return Found(_described(target), exact=True, options=options)


def stand_in(target: Target, why: str) -> Found:
    """Simulated devices in place of a target whose compiler refuses the program."""
    return Found(simulated(target.devices), exact=False, notes=(why,))


def prepare_environment() -> None:
    """What libtpu and the plugins read when jax starts: no device is looked for. Called before jax is imported."""
    if "jax" not in sys.modules:
        os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _without_remarks(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "JAX plugin .* is not compatible")  # see `_check_versions`
        import jax  # noqa: F401


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Leave out what libraries of CUDA, as they are loaded, write past every setting where there is no driver."""
    if sys.stderr is None:  # it was closed, and its number may be that of another file by now
        yield
        return
    with tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        shown = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            kept.seek(0)
            with contextlib.suppress(OSError):  # nobody can be told
                os.write(2, b"".join(line for line in kept if not _REMARK.search(line)))


_REMARK = re.compile(rb"Could not find cuda drivers|before absl::InitializeLog\(\) is called")


def simulated(count: int) -> Sequence[jax.Device]:
    """CPU devices that programs can be compiled for, however many this process has."""
    import jax
    from jaxlib import xla_client

    own = [device for device in jax.devices() if device.platform == "cpu"]
    if len(own) >= count:
        return own[:count]
    client = cast(Any, xla_client.make_cpu_client(num_devices=count))
    return cast("Sequence[jax.Device]", client.devices())


def _missing(platform: str) -> list[str]:
    wanted = {"tpu": ["libtpu"], "gpu": ["jax-cuda*-pjrt", "jax-cuda*-plugin"]}[platform]
    return [name for name in wanted if not _versions(name)]


def _versions(name: str) -> dict[str, str]:
    """Installed packages of a name, in which * is the version of CUDA."""
    found = {}
    for each in [name] if "*" not in name else [name.replace("*", number) for number in ("12", "13")]:
        try:
            found[each] = importlib.metadata.version(each)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _check_versions() -> None:
    """Raise ConfigError where CUDA plugins are of another version than jax, whose programs they may not read."""
    import jaxlib

    own = jaxlib.__version__
    others = {
        package: version
        for package, version in {**_versions("jax-cuda*-pjrt"), **_versions("jax-cuda*-plugin")}.items()
        if version.split(".")[:3] != own.split(".")[:3]
    }
    if others:
        told = " and ".join(f"{package} is {version}" for package, version in others.items())
        wanted = " ".join(f"'{package}=={own}'" for package in others)
        raise ConfigError(f"{told}, jax is {own}", where="--target", hint=f"pip install {wanted}")


def _described(target: Target) -> Sequence[Any]:
    from jax.experimental import topologies

    try:
        if target.chip.platform == "gpu":
            config = GPUS[target.chip.name] + _cudnn()
            found = topologies.get_topology_desc(
                platform="cuda", topology_name="", topology=target.topology, target_config=config
            )
        else:
            extra: dict[str, Any] = {"num_slices": target.slices} if target.slices > 1 else {}
            if target.devices == 1:
                extra["chips_per_host_bounds"] = (1, 1, 1)
            found = topologies.get_topology_desc(platform="tpu", topology_name=target.topology, **extra)
    except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
        said = re.sub(r"\s+", " ", str(error)).strip()[:200]
        raise ConfigError(
            f"{target.text[:60]!r}: the compiler knows no such machine: {said}",
            where="--target",
            hint=f"try {target.chip.name}-16" if target.chip.platform == "tpu" else f"try {target.chip.name}:8",
        ) from error
    return list(found.devices)


def _cudnn() -> str:
    """Which cuDNN the machine is told to have: that which is installed, else the one that jax asks for at least."""
    found = next(iter(_versions("nvidia-cudnn-cu*").values()), "9.10")
    major, minor = (found.split(".") + ["0"])[:2]
    return f" dnn_version_info {{ major: {major} minor: {minor} }}"


_LIMITS = """threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
 threads_per_core_limit: 2048 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
 registers_per_core_limit: 65536 registers_per_block_limit: 65536 driver_version: "13.0.0" runtime_version: "12.8.0" """
GPUS = {
    "h100": f"""gpu_device_info {{ {_LIMITS} core_count: 132 fpus_per_core: 128 shared_memory_per_core: 233472
 shared_memory_per_block_optin: 232448 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
 device_memory_size: 84942979072
 cuda_compute_capability {{ major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }} }}
 platform_name: "CUDA" runtime_version {{ major: 12 minor: 8 }} device_description_str: "NVIDIA H100 80GB HBM3" """,
    "a100": f"""gpu_device_info {{ {_LIMITS} core_count: 108 fpus_per_core: 64 shared_memory_per_core: 167936
 shared_memory_per_block_optin: 166912 memory_bandwidth: 2039000000000 l2_cache_size: 41943040 clock_rate_ghz: 1.41
 device_memory_size: 85091090432 cuda_compute_capability {{ major: 8 minor: 0 }} }}
 platform_name: "CUDA" runtime_version {{ major: 12 minor: 8 }} device_description_str: "NVIDIA A100-SXM4-80GB" """,
}
"""What XLA asks of a GPU (`GpuTargetConfigProto`), from NVIDIA's tables of compute capabilities and data sheets."""


def this_cpu(devices: int = 1) -> Chip:
    """What this machine does in products of matrices and in copies, by trying both for some milliseconds.

    By time on its processors, not by the clock: what else runs here is not to count.
    """
    import numpy as np

    a = np.ones((768, 768), np.float32)
    rate = 2 * 768**3 / _fastest(lambda: a @ a)
    source = np.ones(2**22, np.float32)
    into = np.empty_like(source)
    bandwidth = 2 * source.nbytes / _fastest(lambda: np.copyto(into, source))
    return Chip(
        "cpu", "cpu", rate, rate, memory.limit() // max(1, devices), bandwidth, near=bandwidth / 3, far=bandwidth / 3
    )


def _fastest(work: Callable[[], object], times: int = 4) -> float:
    seconds, cores = [], os.cpu_count() or 1
    for _ in range(times):
        clock, start = time.perf_counter(), time.process_time()
        work()
        on_processors = time.process_time() - start
        seconds.append(min(time.perf_counter() - clock, max(on_processors / cores, 1e-6)))
    return min(seconds)
