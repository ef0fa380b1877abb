"""Compiled text of CPUs, GPUs and TPUs is read for what it says: messages, loops, what is held, what is computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bigctl.planning import collectives, devices, hlo, liveness, roofline

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
GROUPS = {
    # a list, as GPUs print it
    "replica_groups={{0,2,4,6},{1,3,5,7}}, use_global_device_ids=true": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "replica_groups={}, to_apply=%add": [[0, 1, 2, 3, 4, 5, 6, 7]],
    # counted
    "replica_groups=[4,2]<=[8], use_global_device_ids=true": [[0, 1], [2, 3], [4, 5], [6, 7]],
    "replica_groups=[2,4]<=[4,2]T(1,0), dimensions={1}": [[0, 2, 4, 6], [1, 3, 5, 7]],
    # axes of a mesh, as jax 0.10 has them printed
    "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_2'}, dimensions={0}": [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ],
    "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, dimensions={0}": [[0, 1, 2, 3, 4, 5, 6, 7]],
    "replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}, x": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}, dimensions={0}": [[0, 1, 2, 3], [4, 5, 6, 7]],
}
TPU = """HloModule jit_run, is_scheduled=true, entry_computation_layout={()->()}

%async_collective_fusion.1 (param_0: bf16[16,256]) -> bf16[128,256] {
  %param_0 = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.7 = bf16[128,256]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=45, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}, metadata={op_name="jit(run)/jvp()/dot_general" stack_frame_id=1}
  ROOT %custom-call.9 = (bf16[16,256]{1,0}, bf16[128,256]{1,0}, u32[]{:S(2)}, /*index=3*/u32[]{:S(2)}) custom-call(%all-gather.7), custom_call_target="AsyncCollectiveStart"
}

%body (p: (s32[], f32[64])) -> (s32[], f32[64]) {
  %p = (s32[], f32[64]{0:T(128)}) parameter(0)
  %get-tuple-element.1 = f32[64]{0:T(128)} get-tuple-element(%p), index=1
  %all-reduce.3 = f32[64]{0:T(128)} all-reduce(%get-tuple-element.1), channel_id=46, replica_groups=[1,8]<=[8], to_apply=%add
  %get-tuple-element.2 = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %tuple.1 = (s32[], f32[64]) tuple(%get-tuple-element.2, %all-reduce.3)
}

%condition (p.1: (s32[], f32[64])) -> pred[] {
  %p.1 = (s32[], f32[64]{0:T(128)}) parameter(0)
  %get-tuple-element.3 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %constant.5 = s32[]{:T(128)} constant(12)
  ROOT %compare.1 = pred[]{:T(512)} compare(%get-tuple-element.3, %constant.5), direction=LT
}

ENTRY %main.1 (a: bf16[16,256], b: (s32[], f32[64])) -> (s32[], f32[64]) {
  %a = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(0)
  %b = (s32[], f32[64]{0:T(128)}) parameter(1)
  %fusion.1 = bf16[128,256]{1,0:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%async_collective_fusion.1
  %fusion.2 = bf16[128,256]{1,0:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%async_collective_fusion.1
  ROOT %while.1 = (s32[], f32[64]{0:T(128)}) while(%b), condition=%condition, body=%body
}
"""  # noqa: E501


@pytest.mark.parametrize("attributes", GROUPS)
def test_groups_of_devices_are_read_in_every_form(attributes: str) -> None:
    assert collectives.replica_groups(attributes, 8) == GROUPS[attributes]


def test_groups_in_an_unknown_form_are_no_guess() -> None:
    with pytest.raises(ValueError, match="not known"):
        collectives.replica_groups("replica_groups=other(3)", 8)


def test_groups_belong_to_axes() -> None:
    assert collectives.axes_of([0, 1], MESH) == ("tensor",)
    assert collectives.axes_of([0, 2], MESH) == ("fsdp",)
    assert collectives.axes_of([0, 2, 4, 6], MESH) == ("data", "fsdp")


def test_a_message_of_a_tpu_that_runs_beside_others_counts_once_and_those_of_a_loop_as_often_as_it_runs() -> None:
    found = collectives.collectives(hlo.parse(TPU), {"fsdp": 8})
    assert [(each.kind, each.dtype, each.count) for each in found] == [
        ("all-gather", "bf16", 1),
        ("all-reduce", "f32", 12),
    ]
    assert found[0].bytes == 7 * 16 * 256 * 2
    assert found[1].bytes == pytest.approx(12 * 2 * 7 / 8 * 64 * 4)


def test_what_slices_of_a_tpu_send_each_other_is_read_from_messages_of_their_hosts() -> None:
    text = """HloModule m
ENTRY %e (a: bf16[8,128], t: token[]) -> token[] {
  %a = bf16[8,128]{1,0} parameter(0)
  %t = token[] parameter(1)
  %send.1 = (bf16[8,128]{1,0}, u32[], token[]) send(%a, %t), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %done = token[] send-done(%send.1), channel_id=4, is_host_transfer=true
}"""  # noqa: E501
    (only,) = collectives.collectives(hlo.parse(text), {"dcn": 2, "fsdp": 16})
    assert (only.kind, only.axes, only.dtype, only.count) == ("all-reduce", ("dcn",), "bf16", 1)
    assert (only.bytes, only.first) == (8 * 128 * 2, (0, 16))


def test_messages_of_one_channel_count_each_as_all_of_a_shard_map_have_the_same() -> None:
    text = """HloModule m
ENTRY %e (a: f32[8,64], b: f32[8,64]) -> (f32[64,64], f32[64,64]) {
  %a = f32[8,64]{1,0} parameter(0)
  %b = f32[8,64]{1,0} parameter(1)
  %c = f32[64,64]{1,0} all-gather(%a), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %d = f32[64,64]{1,0} all-gather(%b), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  ROOT %t = (f32[64,64], f32[64,64]) tuple(%c, %d)
}"""
    (only,) = collectives.collectives(hlo.parse(text), {"fsdp": 8})
    assert (only.count, only.bytes) == (2, 2 * 7 * 8 * 64 * 4)


@pytest.mark.parametrize(("step", "times"), [(1, 12), (2, 6), (5, 3)])
def test_a_loop_that_counts_in_steps_runs_less_often(step: int, times: int) -> None:
    counted = f"""  %constant.6 = s32[]{{:T(128)}} constant({step})
  %add.9 = s32[]{{:T(128)}} add(%get-tuple-element.2, %constant.6)
  ROOT %tuple.1 = (s32[], f32[64]) tuple(%add.9, %all-reduce.3)"""
    text = TPU.replace("  ROOT %tuple.1 = (s32[], f32[64]) tuple(%get-tuple-element.2, %all-reduce.3)", counted)
    assert text != TPU
    looped = collectives.collectives(hlo.parse(text), {"fsdp": 8})[1]
    assert looped.count == times


def test_messages_of_a_shard_map_on_a_tpu_count_once_for_each_chain() -> None:
    shared = "f32[64,64]{1,0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}"
    fusions = "".join(
        f"""
%async.{i} (p: f32[8,64]) -> f32[64,64] {{
  %p = f32[8,64]{{1,0}} parameter(0)
  ROOT %g.{i} = {shared}, frontend_attributes={{chain_id="{chain}"}}
}}
"""
        for i, chain in enumerate((1, 1, 2))
    )
    calls = "".join(f"  %f.{i} = f32[64,64]{{1,0}} fusion(%a), kind=kCustom, calls=%async.{i}\n" for i in range(3))
    entry = f"ENTRY %e (a: f32[8,64]) -> f32[64,64] {{\n  %a = f32[8,64]{{1,0}} parameter(0)\n{calls}}}"
    text = f"HloModule m\n{fusions}\n{entry}"
    (only,) = collectives.collectives(hlo.parse(text), {"fsdp": 8})
    assert (only.count, only.bytes) == (2, 2 * 7 * 8 * 64 * 4)


def test_sixteen_bits_that_a_cpu_adds_in_32_count_as_sixteen() -> None:
    text = """HloModule m
ENTRY %e (a: f32[8,64]) -> f32[8,64] {
  %a = f32[8,64]{1,0} parameter(0)
  ROOT %all-reduce.1 = f32[8,64]{1,0} all-reduce(%a), channel_id=6, replica_groups=[4,2]<=[8], to_apply=%add.1.clone_promoted
}"""  # noqa: E501
    (only,) = collectives.collectives(hlo.parse(text), MESH)
    assert (only.dtype, only.axes, only.bytes) == ("bf16", ("tensor",), 8 * 64 * 2)


def test_a_gpus_products_are_counted_by_what_cublas_is_told() -> None:
    text = """HloModule m
ENTRY %e (a: bf16[512,64], b: bf16[64,32]) -> bf16[512,32] {
  %a = bf16[512,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  ROOT %g = (bf16[512,32]{1,0}, s8[4]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}"""  # noqa: E501
    assert roofline.computed(hlo.parse(text)) == 2 * 512 * 32 * 64


@pytest.fixture(scope="module")
def compiled():
    """Two layers over 8 devices: rows of the first are cut over `a`, and everything else over both axes."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=devices.simulated(8))

    def shape(*sizes: int, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=NamedSharding(mesh, spec))

    def loss(w: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.tanh(x @ w[0]) @ w[1]).sum()

    whole = PartitionSpec()
    weights = (shape(64, 128, spec=whole), shape(128, 64, spec=whole))
    return jax.jit(jax.grad(loss)).lower(weights, shape(256, 64, spec=PartitionSpec(("a", "b")))).compile()


def test_gradients_over_a_mesh_are_added_up_by_rings(compiled) -> None:
    found = collectives.collectives(hlo.parse(compiled.as_text()), {"a": 2, "b": 4})
    assert {(each.kind, each.axes, each.group) for each in found} == {("all-reduce", ("a", "b"), 8)}
    assert sum(each.bytes for each in found) == pytest.approx(2 * 7 / 8 * 2 * 64 * 128 * 4)


def test_what_is_held_at_most_is_what_the_compiler_says(compiled) -> None:
    module = hlo.parse(compiled.as_text())
    held = sum(each.bytes for each in liveness.fullest(module))
    said = compiled.memory_analysis()
    most = said.temp_size_in_bytes + said.output_size_in_bytes  # where results are to be, temporaries may lie before
    assert 0.65 * said.temp_size_in_bytes <= held <= 1.35 * most
    assert any("test_text.py" in each.place and each.backward for each in liveness.fullest(module))


def test_products_in_compiled_text_are_those_that_were_written(compiled) -> None:
    one = 2 * (256 // 8) * 64 * 128
    assert roofline.computed(hlo.parse(compiled.as_text())) == 5 * one  # forward 2, gradients 2 + 1
