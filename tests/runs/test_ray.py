"""A Ray cluster of two workers with logical GPUs, sweeps that join it, and what is left when any of them is killed."""

import os
import re
import secrets
import signal
import subprocess
import sys

import pytest
import yaml

from child_sweeps import wait_for
from replicate.runs import sweep, units

pytestmark = pytest.mark.cluster
pytest.importorskip("ray")

CLUSTER = """
import sys
import ray
ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
print("address", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
# In every worker: whoever opens the checkpoint at step 20 dies of it, so many times in all.
KILLER = """
import os, signal, sys
def hook(event, args):
    if event == "open" and "step20-" in str(args[0]) and "config.json" in str(args[0]):
        folder, times = os.environ.get("REPLICATE_TEST_DEATHS", " 0").split()[-2:]
        deaths = len(os.listdir(folder))
        if deaths < int(times):
            os.mkdir(os.path.join(folder, str(deaths)))
            os.kill(os.getpid(), signal.SIGKILL)
if "REPLICATE_TEST_DEATHS" in os.environ:
    sys.addaudithook(hook)
"""

# Whoever joins a cluster must have its token: one that these tests make up.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a cluster that lives as long as these tests."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "sitecustomize.py").write_text(KILLER)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env={**os.environ, **TOKEN, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    said = next((line for line in process.stdout if line.startswith("address ")), None)
    assert said, "the cluster did not start"
    yield said.split()[1]
    process.stdin.close()
    process.wait(60)


@pytest.fixture
def driver(params, home, cluster):
    """Starts ``replicate sweep``, or another ``command``, on the cluster, in a process of its own."""
    (home / "p.yaml").write_text(yaml.safe_dump(params.model_dump()))
    started = []

    def start(*options, command="sweep", **environment):
        command = [sys.executable, "-m", "replicate", command, "-f", str(home / "p.yaml"), "--engine", "ray"]
        started.append(
            subprocess.Popen(
                [*command, "--address", cluster, *options],
                env={**os.environ, **TOKEN, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process, status=0):
    """How many jobs a sweep says it did, and how many it found; and its lines of failures."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    done, found = re.search(r"(\d+) jobs done, (\d+) found", out).groups()
    return int(done), int(found), [line for line in err.splitlines() if line.startswith("failed: ")]


def test_one_gpu_a_job_leaves_the_records_of_a_run_in_one_process(params, driver, contents, unbroken):
    assert ended(driver("--gpus-per-job", "1")) == (12, 0, [])
    assert contents(params) == unbroken


def test_drivers_that_race_do_every_job_once(params, driver, contents, unbroken):
    said = [ended(process) for process in [driver("--gpus-per-job", "1"), driver("--gpus-per-job", "0.5")]]
    assert sum(done for done, _, _ in said) == 12
    assert all((done + found, failed) == (12, []) for done, found, failed in said)
    assert contents(params) == unbroken


def test_a_driver_that_is_killed_is_started_again_without_loss(params, driver, contents, unbroken):
    folder = units.store_of(params).folder
    first = driver("--gpus-per-job", "1")
    wait_for(lambda: len(list(folder.glob("*/*.json"))) >= 3 or first.poll() is not None)
    first.send_signal(signal.SIGKILL)
    first.wait()
    survivors = contents(params)
    assert 3 <= len(survivors) < 12
    assert ended(driver("--gpus-per-job", "1")) == (12 - len(survivors), len(survivors), [])
    assert contents(params) == unbroken


def test_a_worker_that_is_killed_is_replaced(params, home, driver, contents, unbroken):
    (home / "deaths").mkdir()
    process = driver("--gpus-per-job", "1", REPLICATE_TEST_DEATHS=f"{home / 'deaths'} 2")
    assert ended(process) == (12, 0, [])
    assert len(list((home / "deaths").iterdir())) == 2
    assert contents(params) == unbroken


def test_a_job_of_which_three_workers_died_is_a_failed_row(params, home, driver, contents, unbroken):
    (home / "deaths").mkdir()
    process = driver(command="measure", REPLICATE_TEST_DEATHS=f"{home / 'deaths'} 1000")
    done, found, failed = ended(process, status=1)
    assert (done, found, len({*failed})) == (2, 0, 1)
    assert "measure at stage1-step20-" in failed[0]
    assert "its worker died 3 times: WorkerCrashedError" in failed[0]
    assert len(list((home / "deaths").iterdir())) == 3
    assert contents(params).items() <= unbroken.items()


def test_gpus_that_this_machine_lacks_are_refused_at_once(params):
    with pytest.raises(
        ValueError, match=r"^--gpus-per-job: expected at most 0, got 3; give --gpus-per-job 0"
    ):
        sweep.sweep(params, engine="ray", gpus_per_job=3.0, progress=False)
