"""What XLA is asked for on each kind of device, with the reason; given to `jax.jit` program by program, never through
`XLA_FLAGS`, which are the user's. Free of jax.

Tried on an H100 and left as XLA has them, for a step of GPT-2 took as long (within 2%) or longer: command buffers off,
the latency-hiding scheduler, products without Triton.
"""

from __future__ import annotations

Options = dict[str, bool | int | str]

# What XLA does by itself but for convolutions: YNNPACK's code runs them on one core unless kernels are large.
_CONVOLUTIONS_ON_ALL_CORES: Options = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}

# XLA compiles each fused operation by itself (its "fusion emitters"), or all of them together as it did before. The
# latter takes half of the time for a small model, and twice as long for a BERT. What it makes is 2 to 10% slower for
# convolutions, 7 to 28% for an MLP, whose steps make up for 0.9 s of compiling when they are 50,000. The XLA of jax
# 0.12 knows the emitters alone. Fewer optimizations save a fifth to two fifths of what is left; a step of a small model
# takes as long, one of a BERT 2% longer. And where its code is not cut into 32 parts, which as many cores compile, a
# fifth of the processor's time is saved, and none by the clock lost on two cores; it was not tried on more.
_IN_ONE_PART: Options = {"xla_cpu_parallel_codegen_split_count": 1}
_SOON: Options = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1, **_IN_ONE_PART}
_AT_ONCE: Options = {**_SOON, "xla_backend_optimization_level": 0}


def compiler_options(platform: str, *, deterministic: bool, pictures: bool = False, small: bool = False) -> Options:
    """Of the programs that train, on "cpu", "gpu" or "tpu"; of `pictures`, most are made of convolutions; `small` ones
    are of tables and have few arrays of parameters."""
    if platform == "gpu" and deterministic:
        return {"xla_gpu_deterministic_ops": True}  # no sums by atomics, no kernels chosen by their time
    if platform == "cpu" and not pictures:
        # Operations in the order that takes the least memory: an eighth less temporaries for BERT, and as quick.
        return {"xla_cpu_scheduler_type": 1, **(_SOON if small else {})}
    return options_of_use(platform, pictures=pictures)


def options_of_use(platform: str, *, pictures: bool, small: bool = False, soon: bool = False) -> Options:
    """Of the programs that ask a model without training it. A `small` one that is asked of few examples is compiled
    `soon`: with nothing optimized, in a fifth of the time, to code that takes one to five times as long. Of others the
    emitters' code takes as long, or for a GELU on thousands of rows half as long, as code without them."""
    if platform != "cpu":
        return {}
    if pictures:
        return dict(_CONVOLUTIONS_ON_ALL_CORES)
    if soon:
        return dict(_AT_ONCE)
    return {"xla_backend_optimization_level": 1} if small else {}


def options_of_one_call(platform: str, *, small: bool = False) -> Options:
    """Of a program that runs once: on a CPU what fewer optimizations compile in a third to four fifths of the time, to
    the same bits (with jax 0.12 a few numbers differ in the last); of a small model in three fifths of that."""
    if platform != "cpu":
        return {}
    return dict(_SOON) if small else {"xla_backend_optimization_level": 1}


_SOON_COPIED = 2**17
"""Bytes which are copied so soon that it does not matter how: an MLP of 10,000 parameters, its optimizer too."""


def options_of_copies(platform: str, size: int) -> Options:
    """Of a program that computes nothing, but copies so many bytes at a time. On a CPU such code compiles in a fourth
    of the time where nothing is optimized, and copies megabytes four times as slowly; with fewer optimizations it is
    as quick as with all."""
    if platform != "cpu":
        return {}
    if size <= _SOON_COPIED:
        return dict(_AT_ONCE)
    return {"xla_backend_optimization_level": 1}


OF_A_CPU: Options = {
    **compiler_options("cpu", deterministic=True, small=True),
    **options_of_use("cpu", pictures=True),
}
"""All that is asked for on a CPU, to find out with one program whether this XLA knows it."""


def told(options: Options) -> str:
    """As a plan and `bigctl doctor` say them."""
    return ", ".join(f"{name}={str(value).lower()}" for name, value in options.items())
