"""`bigctl plan`: what it says of an experiment is what formulas, the compiler and the other targets say."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from typing import Any

import jax
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.config.schema import Config
from bigctl.engine import device_memory, dry_run, plan_search, plan_text
from bigctl.engine import experiment as experiments
from bigctl.engine import plan as planning
from bigctl.errors import ConfigError
from bigctl.parallel import mesh as meshes
from bigctl.planning import devices, flops
from bigctl.planning.targets import Target

pytestmark = pytest.mark.fewer

MLP = ["recipe=mlp_cls", "data=breast_cancer", "model.hidden=[64,32]", "train.batch_size=64", "optimizer=adamw"]
GPT = ["recipe=gpt_lm", "model.width=32", "model.layers=2", "model.heads=4", "optimizer=adamw"]
CNN = ["recipe=cnn_cls", "model.channels=[4,8]", "model.hidden=[16]", "train.batch_size=16", "optimizer=adamw"]


def plan(*overrides: str, target: str = "cpu:8") -> planning.Plan:
    return planning.plan(bigctl.compose([*overrides]), planning.target_of(target))


@pytest.fixture(scope="module")
def compiled() -> tuple[planning.Plan, Any, Any]:
    """A plan, the compiler's account of memory, and the shapes of the parameters."""
    config = bigctl.compose([*GPT, "train.batch_size=32", "mesh=fsdp", "mesh.min_shard=64"])
    target = planning.target_of("cpu:8")
    found = devices.find(target)
    with meshes.over(found.devices):
        experiment = experiments.build(config)
        traced, step, batch = planning.compiled_step(experiment)
    costs = planning.of_experiment(experiment, traced, step, batch, target)
    made = planning.of_compiled(experiment, costs, target, found)
    return made, step.memory_analysis(), experiment.programs.abstract_state.params


@pytest.fixture(scope="module")
def gpt(compiled) -> planning.Plan:
    return compiled[0]


def traced_flops(*overrides: str) -> tuple[float, Any]:
    experiment = experiments.build(bigctl.compose([*overrides, "mesh=single"]))
    programs, examples = experiment.programs, experiment.task.example_shapes(experiment.config.train.batch_size)
    traced = programs.step_sent.trace(programs.abstract_state, examples, programs.hparams)
    return flops.count(traced.jaxpr, "cpu").total, experiment


@pytest.mark.parametrize("model", ["nano", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_flops_of_a_language_model_are_those_of_the_formula(model: str) -> None:
    """6 a parameter and token, and those of attention, of a step with AdamW; within 3%."""
    counted, experiment = traced_flops("recipe=gpt_lm", f"model={model}", "optimizer=adamw", "train.batch_size=8")
    by_formula = 8 * experiment.task.flops_per_example(experiment.parameter_shapes)
    assert counted == pytest.approx(by_formula, rel=0.03)


def test_flops_of_a_network_for_tables_are_those_by_hand() -> None:
    layers = [(30, 64), (64, 32), (32, 2)]
    by_hand = 2 * 64 * (3 * sum(a * b for a, b in layers) - layers[0][0] * layers[0][1])
    assert traced_flops(*MLP)[0] == pytest.approx(by_hand, rel=0.03)


def test_flops_of_a_convolutional_network_are_those_by_hand() -> None:
    convs = [26 * 26 * 4 * 9 * 1, 11 * 11 * 8 * 9 * 4]
    dense = [5 * 5 * 8 * 16, 16 * 10]
    by_hand = 2 * 16 * (3 * sum(convs) - convs[0] + 3 * sum(dense))  # nothing needs the gradient of the pictures
    assert traced_flops(*CNN)[0] == pytest.approx(by_hand, rel=0.03)


def test_each_device_computes_its_part(gpt: planning.Plan) -> None:
    assert gpt.costs.flops_per_device == pytest.approx(gpt.costs.flops_per_step / 8, rel=0.1)
    assert gpt.to_json()["flops_per_token"] == gpt.costs.flops_per_step / (32 * 64)


def test_memory_is_the_compilers_and_its_parts_add_up(compiled) -> None:
    found, analysis, params = compiled
    told = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes
    told += analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    memory = found.costs.memory
    assert memory.peak == told == sum(memory.parts.values())
    assert all(count >= 0 for count in memory.parts.values()), memory.parts
    assert memory.parts["optimizer"] == pytest.approx(2 * memory.parts["parameters"], rel=0.01)
    whole = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    assert whole / 8 <= memory.parts["parameters"] < whole / 4  # those that are cut
    assert memory.parts["activations"] > memory.parts["gradients"] > 0
    assert any("models/" in each.path for each in memory.largest)
    assert [each.bytes for each in memory.largest] == sorted((each.bytes for each in memory.largest), reverse=True)


def test_parameters_are_gathered_over_the_axis_that_cuts_them(gpt: planning.Plan) -> None:
    gathered = [each for each in gpt.costs.collectives if each.kind == "all-gather"]
    assert gathered and {each.axes for each in gathered} == {("fsdp",)}


def test_without_the_plugin_the_cpus_program_stands_in_and_says_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(devices, "_versions", lambda name: {})
    assert main(["plan", *MLP, "train.precision=bfloat16", "--target", "h100:8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["exact"] and "bigctl[plan-gpu]" in found["notes"][0] and "estimate" in found["notes"][0]
    assert found["devices"] == 8 and found["memory"]["available_bytes"] == 84_942_979_072
    assert 0 < found["step_seconds"]["low"] < found["step_seconds"]["high"]
    assert 0 < found["mfu"]["low"] < found["mfu"]["high"] < 1
    assert {"flops_per_step", "collectives", "kernels"} <= found.keys() and found["memory"]["peak_bytes"] > 0
    assert found["memory"]["headroom_bytes"] == 84_942_979_072 - found["memory"]["peak_bytes"]


def test_a_plugin_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(devices, "_versions", lambda name: {"jax-cuda12-pjrt": "0.4.1"})
    assert main(["plan", *MLP, "--target", "h100:8"]) == 2
    said = capsys.readouterr().err
    assert "jax-cuda12-pjrt is 0.4.1, jax is" in said and "pip install 'jax-cuda12-pjrt==" in said


def test_a_target_that_there_is_not_and_a_mesh_that_does_not_divide_are_refused(capsys) -> None:
    assert main(["plan", *MLP, "--target", "h10:8"]) == 2
    assert "did you mean h100" in capsys.readouterr().err
    assert main(["plan", *GPT, "mesh.tensor=8", "mesh.data=1", "--target", "cpu:8"]) == 2
    assert "mesh.tensor=4" in capsys.readouterr().err
    assert main(["plan", *MLP, "train.batch_size=60", "--target", "cpu:8"]) == 2
    said = capsys.readouterr().err
    assert "56" in said and "64" in said


@pytest.mark.slow
def test_a_search_ranks_meshes_and_batches_by_examples_a_second(capsys) -> None:
    assert main(["plan", *MLP, "--target", "cpu:2", "--search", "--json"]) == 0
    tried = json.loads(capsys.readouterr().out)["tried"]
    assert {"mesh.data=2 mesh.fsdp=1 mesh.tensor=1", "mesh.data=1 mesh.fsdp=2 mesh.tensor=1"} <= {
        each["overrides"] for each in tried
    }
    assert any("train.batch_size=256" in each["overrides"] for each in tried) and all(each["fits"] for each in tried)
    rates = [each["examples_per_s"] for each in tried]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("name", ["h100:8x2", "v5e-16", "v6e-256:slices=2", "cpu:8"])
@pytest.mark.parametrize("asked", [(), ("mesh.dcn=2", "mesh.data=1", "mesh.fsdp=4"), ("mesh=context",)])
def test_a_search_tries_meshes_of_all_devices_whose_slices_share_the_batch(name: str, asked: tuple[str, ...]) -> None:
    target, config = planning.target_of(name), bigctl.compose([*GPT, "train.batch_size=64", *asked])
    found = [{**config.mesh.axes, **{key.removeprefix("mesh."): size for key, size in changes.items()}}
             for changes in plan_search.meshes_of(config, target)]  # fmt: skip
    assert found and all(math.prod(sizes.values()) == target.devices for sizes in found)
    assert {sizes["dcn"] for sizes in found} == {target.slices}
    assert any(sizes["tensor"] == 2 for sizes in found)


@pytest.mark.slow
def test_a_search_without_anything_that_fits_says_what_the_least_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = bigctl.compose([*MLP, "train.batch_size=4"])
    state = state_bytes(config)
    with pytest.raises(ConfigError, match="the least takes .* KiB on each device, which has"):
        plan_search.search(config, with_memory("cpu:1", state + 1000), lambda point: None)


def with_memory(name: str, count: int) -> Target:
    """A target whose devices have so many bytes each."""
    target = planning.target_of(name)
    return dataclasses.replace(target, chip=dataclasses.replace(target.chip, memory=count))


def state_bytes(config: Config) -> int:
    return device_memory.bytes_per_device(experiments.build(config).programs.carried_state)


def test_an_error_of_all_meshes_is_told_as_it_is(capsys) -> None:
    command = ["plan", *GPT, "model=llama", "--target", "cpu:2"]  # which lacks its context
    assert main(command) == 2
    expected = capsys.readouterr().err
    assert main([*command, "--search"]) == 2
    assert capsys.readouterr().err.endswith(expected) and "model.context" in expected


def test_what_cannot_fit_by_its_state_alone_is_not_compiled_in_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, compile_step = [], planning.compiled_step

    def spied(experiment: Any, options: Any = None) -> Any:
        compiled.append(experiment.devices["mesh"])
        return compile_step(experiment, options)

    monkeypatch.setattr(planning, "compiled_step", spied)
    config = bigctl.compose([*MLP, "mesh.min_shard=1"])
    state = state_bytes(config)
    with pytest.raises(ConfigError, match="nothing fits cpu:2: .* take at least .* and a device has 1000 B"):
        plan_search.search(config, with_memory("cpu:2", 1000), lambda point: None)
    with pytest.raises(ConfigError) as raised:
        plan_search.search(config, with_memory("h100", 2 * state // 5), lambda point: None)
    assert raised.value.hint == "about 3 devices would hold them: plan for h100:4, or make the model smaller"
    assert compiled == []
    seen: list[str] = []
    with contextlib.suppress(ConfigError):  # whether half the state and the rest of a step fit is not asked here
        plan_search.search(config, with_memory("cpu:2", state - 1), seen.append)
    assert seen[:2] == ["mesh.data=2 mesh.fsdp=1 mesh.tensor=1", "mesh.data=1 mesh.fsdp=2 mesh.tensor=1"]
    assert compiled and all(mesh["fsdp"] == 2 for mesh in compiled)


def test_a_dry_run_tells_the_same_memory() -> None:
    report = dry_run.report(bigctl.compose([*MLP, "mesh=single"]))
    assert report["memory"]["peak_bytes"] > report["memory"]["parameters_bytes"] > 0
    assert report["memory"]["headroom_bytes"] > 0
    assert "memory per device" in dry_run.text(report).splitlines()


def test_what_stands_out_is_said(gpt: planning.Plan) -> None:
    lines = plan_text.lines(gpt.to_json())
    text = "\n".join(lines)
    assert "memory per device" in text and "headroom" in text and "all-gather" in text and "attention by einsum" in text
    single = plan(*MLP, "mesh=single", target="cpu:8")
    assert any("7 of 8 devices" in line for line in planning.stands_out(single))
