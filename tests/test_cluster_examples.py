"""The files for containers, SLURM and Kubernetes: their syntax, their commands, and the clusters that they describe."""

import json
import os
import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import keras_resnet
from keras_resnet.cli.app import app
from keras_resnet.training.distribution import cluster

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
STAND_INS = {
    # What a cluster would do: each writes down what it was called with
    "keras-resnet": 'printf "%s\\n" "$TF_CONFIG" "$@" > "$LOG/${SLURM_NODEID-$JOB_COMPLETION_INDEX}"; exit $STATUS',
    "scontrol": '[ $1 = requeue ] && echo "$@" > "$LOG/$1" || printf "gpu%s\\n" 3 4 5 | head -n $SLURM_NNODES',
    "srun": 'shift; for SLURM_NODEID in $(seq 0 $((SLURM_NNODES - 1))); do export SLURM_NODEID; "$@"; done',
}
SLURM = {"SLURM_JOB_NODELIST": "gpu[3-5]", "SLURM_JOB_ID": "17"}
WORDS = ["--workdir", "runs/my photos", "--dataset", "digits"]


@pytest.fixture
def run_script(tmp_path):
    """Runs a script with stand-ins for the cluster's commands: the exit status, and {file: lines} that they wrote."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "log").mkdir()

    def run(*command, status=0, **variables):
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = {"PATH": path, "LOG": str(tmp_path / "log"), "STATUS": str(status), **variables}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert not done.stderr
        return done.returncode, {path.name: path.read_text().splitlines() for path in (tmp_path / "log").iterdir()}

    return run


def parsed(words):
    """{option: value} of a command line of keras-resnet; raises click's UsageError for an unknown option."""
    command = get_command(app).commands[words[0]]
    values = command.make_context(words[0], [*words[1:]], resilient_parsing=False).params
    keras_resnet.get_spec(values["model"] or "resnet20"), keras_resnet.get_recipe(values["recipe"])
    return values


def clusters(calls, monkeypatch):
    """The Clusters that the processes see, in the order of their index, from the first line of each call."""
    for _, lines in sorted(calls.items()):
        monkeypatch.setenv("TF_CONFIG", lines[0])
        yield cluster()


def documents(name):
    return list(yaml.safe_load_all((EXAMPLES / name).read_text()))


def test_slurm_on_one_node(run_script):
    subprocess.run(["bash", "-n", EXAMPLES / "slurm.sh"], check=True)
    status, calls = run_script("bash", EXAMPLES / "slurm.sh", *WORDS, SLURM_NNODES="1", **SLURM)
    assert (status, [*calls]) == (0, ["0"])
    tf_config, *words = calls["0"]
    values = parsed(words)
    assert tf_config == "" and words[-4:] == WORDS
    assert values["resume"] and values["checkpoint_every"] and values["workdir"] == "runs/my photos"


@pytest.mark.parametrize(("status", "again"), [(143, ["requeue 17"]), (1, None), (130, None)])
def test_slurm_queues_a_run_again_that_was_stopped_by_sigterm(status, again, run_script):
    ended, calls = run_script("bash", EXAMPLES / "slurm.sh", *WORDS, status=status, SLURM_NNODES="1", **SLURM)
    assert ended == status and calls.get("requeue") == again


def test_slurm_on_several_nodes_describes_the_cluster_to_each(run_script, monkeypatch):
    status, calls = run_script("bash", EXAMPLES / "slurm.sh", *WORDS, SLURM_NNODES="3", **SLURM)
    found = [*clusters(calls, monkeypatch)]
    assert status == 0 and [it.index for it in found] == [0, 1, 2]
    assert {it.addresses for it in found} == {("gpu3:2222", "gpu4:2222", "gpu5:2222")}


def test_kubernetes_on_one_machine():
    (job,) = documents("kubernetes_job.yaml")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    values = parsed(container["args"])
    mounted = {it["mountPath"]: it["name"] for it in container["volumeMounts"]}
    assert values["resume"] and mounted.keys() == {f"/{values[name].split('/')[1]}" for name in ("dataset", "workdir")}
    assert {*mounted.values()} == {it["name"] for it in pod["volumes"]}
    codes = [rule["onExitCodes"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert codes == [{"containerName": container["name"], "operator": "In", "values": [143]}]


def test_kubernetes_on_several_machines(run_script, monkeypatch):
    service, job = documents("kubernetes_machines.yaml")
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    (machines,) = container["env"]
    assert service["spec"]["selector"] == {"job-name": name} and service["metadata"]["name"] == pod["subdomain"]
    assert {spec["completions"], spec["parallelism"], int(machines["value"])} == {4}
    for index in range(4):
        command = [*container["command"][2:], *container["args"]]
        _, calls = run_script(*command, JOB_COMPLETION_INDEX=str(index), MACHINES=machines["value"])
    found = [*clusters(calls, monkeypatch)]
    assert [it.index for it in found] == [0, 1, 2, 3]
    # a pod of an indexed Job has the name JOB-INDEX in the domain of its Service
    assert {it.addresses for it in found} == {tuple(f"{name}-{index}.{pod['subdomain']}:2222" for index in range(4))}
    values = parsed(calls["0"][1:])
    assert values["resume"] and values["workdir"].startswith("s3://")


def test_the_container_installs_what_setup_cfg_names():
    text = (EXAMPLES / "Dockerfile").read_text()
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    assert {*re.findall(r"STORAGE=(\w+)", text)} == {"s3", "gcs"} <= {*extras}
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.M)[1])
    commands = [line.split("=")[0].strip() for line in setup["options.entry_points"]["console_scripts"].split("\n")]
    assert entry == ["tini", "--", "keras-resnet"] and entry[-1] in commands
    python = re.search(r"^FROM python:([\d.]+)-slim$", text, re.M)[1]
    assert f"Python {python} " in (ROOT / "constraints.txt").read_text().splitlines()[0]
