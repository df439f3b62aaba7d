import pytest
import yaml

from astra_accel.doctor import launches
from astra_accel.doctor.launches import look_at_launch, reasons_against
from astra_accel.doctor.machine import Device, Machine, look_at_machine
from astra_accel.launching import accelerate_configs


def machine(num_gpus=0, cores=4, bf16=True):
    devices = [Device(f"cuda:{index}", 80.0, 79.0, bf16) for index in range(num_gpus)]
    cpu = [Device("cpu", None, None, True)]
    kind = "cuda" if num_gpus else "cpu"
    return Machine("Linux x86_64", cores, 8.0, 4.0, 10.0, threads=1, kind=kind, devices=devices or cpu)


def fitting(of):
    return {name for name, file in accelerate_configs().items() if look_at_launch(file, of).fits}


def settings(name, **changed):
    return yaml.safe_load(accelerate_configs()[name].read_text()) | changed


def test_a_machine_without_gpus_runs_those_for_cpus():
    assert fitting(machine()) == {"cpu_1", "cpu_2"}
    assert fitting(machine(cores=1)) == {"cpu_1"}


def test_a_machine_with_gpus_runs_all_that_want_no_more(monkeypatch):
    monkeypatch.setattr(launches, "can_be_found", lambda module: module == "deepspeed")

    assert fitting(machine(num_gpus=1)) == {"cpu_1", "cpu_2", "single_gpu"}
    assert fitting(machine(num_gpus=8)) == set(accelerate_configs())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (reasons_against(settings("fsdp2"), machine()), "is for GPUs, and there is none"),
        (reasons_against(settings("multi_gpu"), machine(4)), "comes to 8, but there are 4 devices; set it to 4"),
        (
            reasons_against(settings("multi_node"), machine(4)),
            "comes to 8 on this machine, but there are 4 devices; set it to 8",
        ),
        (reasons_against(settings("single_gpu"), machine(1, bf16=False)), "mixed_precision is bf16, in which not all"),
        (reasons_against(settings("cpu_2"), machine(cores=1)), "num_processes is 2, but there are 1 cores"),
    ],
)
def test_why_not(found, expected):
    (reason,) = found
    assert expected in reason


def test_deepspeed_has_to_be_there(monkeypatch):
    monkeypatch.setattr(launches, "can_be_found", lambda module: False)

    (reason,) = reasons_against(settings("zero2"), machine(8))
    assert "needs DeepSpeed: " in reason
    assert "[deepspeed]" in reason


def test_several_machines_are_told_what_to_do():
    launch = look_at_launch(accelerate_configs()["multi_node"], machine(8))

    assert "on each of 2 machines, with its own --machine_rank" in launch.notes[0]


def test_nothing_fits_without_torch():
    without = Machine("Linux x86_64", 4, 8.0, 4.0, 10.0, problem="torch can't be imported")
    launch = look_at_launch(accelerate_configs()["cpu_1"], without)

    assert (launch.fits, launch.notes) == (False, ["needs torch"])


def test_this_machine(tmp_path):
    found = look_at_machine(tmp_path / "not" / "there")

    assert found.cores >= 1
    assert 0 < found.free_gb < found.memory_gb < 10_000
    assert found.disk_gb > 0
    assert found.threads >= 1
    assert found.devices
    assert found.problem is None
