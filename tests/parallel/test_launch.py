"""Launchers: what is written is what torchrun, bash, Slurm and Kubernetes accept, and stops and begins again."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import parse_args

from lmworks.core.errors import ConfigError, ParallelError
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.launch import (
    Job,
    LaunchConfig,
    job_name,
    jobset_manifest,
    pytorchjob_manifest,
    require_mesh,
    slurm_script,
    torchrun_line,
)

JOB = Job("life-base", "lmworks", ("pretrain", "--config", "runs/a b/base.yaml"))


def torchrun_options(words: list[str]):
    assert words[0] == "torchrun"
    return parse_args(words[1:])


def test_the_line_is_torchruns():
    line = shlex.split(torchrun_line(JOB, LaunchConfig(nodes="1:4", processes_per_node=8, head="10.0.0.1")))
    settings = ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120", "OMP_NUM_THREADS=1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"]
    assert line[:3] == settings
    read = torchrun_options(line[3:])
    assert (read.nnodes, read.nproc_per_node, read.rdzv_endpoint) == ("1:4", "8", "10.0.0.1:29500")
    assert (read.rdzv_backend, read.max_restarts, read.module) == ("c10d", 3, True)
    assert [read.training_script, *read.training_script_args] == ["lmworks", *JOB.arguments]
    alone = torchrun_options(shlex.split(torchrun_line(JOB, LaunchConfig(processes_per_node=2)))[2:])
    assert alone.standalone
    with pytest.raises(ConfigError, match=r"2 nodes need to know where they meet.*`head`"):
        torchrun_line(JOB, LaunchConfig(nodes="2"))


def test_names_are_dns_labels():
    assert job_name("The Life", "base_2.") == "the-life-base-2"
    assert len(job_name("x" * 80, "base")) == 40


@pytest.mark.parametrize(
    ("nodes", "problem"), [("4:1", "ends before it begins"), ("0", "should match"), ("two", "should match")]
)
def test_impossible_ranges_are_refused(nodes: str, problem: str):
    with pytest.raises(ConfigError, match=problem):
        LaunchConfig.parse({"nodes": nodes})


def test_the_mesh_is_checked_for_every_number_of_hosts():
    elastic = LaunchConfig.parse({"nodes": "1:2", "processes_per_node": 2})
    require_mesh(elastic, ParallelConfig(shard=-1), rows_per_step=8)
    with pytest.raises(ParallelError, match=r"on 1 of nodes '1:2', 2 a node: .*= 4 ranks, and there are 2 processes"):
        require_mesh(elastic, ParallelConfig(shard=4), rows_per_step=8)
    with pytest.raises(ParallelError, match=r"on 2 of nodes '1:2'.* 6 rows of a step do not divide"):
        require_mesh(elastic, ParallelConfig(data=-1), rows_per_step=6)


def directives(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {line.partition("=")[0]: line.partition("=")[2] for line in lines}


def test_the_slurm_script_is_bash_and_asks_for_what_the_run_needs(tmp_path: Path):
    config = LaunchConfig.parse(
        {"nodes": "1:4", "processes_per_node": 8, "device": "cuda", "cpus_per_process": 6, "partition": "gpu",
         "setup": "source venv/bin/activate", "shared_folder": "/shared/project", "checkpoint_deadline": 90}
    )  # fmt: skip
    script = slurm_script(JOB, config)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    asked = directives(script)
    assert asked["nodes"] == "1-4"
    assert (asked["cpus-per-task"], asked["gpus-per-node"], asked["ntasks-per-node"]) == ("48", "8", "1")
    assert (asked["partition"], asked["chdir"], asked["signal"]) == ("gpu", "/shared/project", "B:TERM@120")
    assert {"requeue", "no-kill"} <= asked.keys()
    fixed = directives(slurm_script(JOB, LaunchConfig(nodes="2")))
    assert not {"no-kill", "gpus-per-node", "partition"} & fixed.keys()


FAKES = {
    "scontrol": 'if [ "$1" = show ]; then echo host-a; echo host-b; else echo "$@" >> asked; fi',
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "torchrun": 'echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT $*" > started; trap "exit 143" TERM; '
    "for i in $(seq 300); do [ -e finish ] && exit 0; sleep 0.02; done",
}
"""Slurm's commands and torchrun as far as the script uses them."""


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_slurm_script_runs_and_asks_to_be_queued_again_only_when_stopped(tmp_path: Path, interrupted: bool):
    for name, body in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(slurm_script(JOB, LaunchConfig.parse({"nodes": "1:2", "processes_per_node": 2})))
    environment = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "host-[a-b]",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "17",
    }  # fmt: skip
    with subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment) as job:
        deadline = time.monotonic() + 20
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        if interrupted:
            job.send_signal(signal.SIGTERM)
        else:
            (tmp_path / "finish").touch()
        assert job.wait(20) == (143 if interrupted else 0)
    deadline_seconds, *words = (tmp_path / "started").read_text().split()
    read = parse_args([*words[: words.index("-m")], "-m", "lmworks"])
    assert (deadline_seconds, read.nnodes, read.rdzv_endpoint) == ("120", "1:2", "host-a:29500")
    asked = tmp_path / "asked"
    assert asked.exists() == interrupted
    if interrupted:
        assert asked.read_text() == "requeue 17\n"


CLUSTER = LaunchConfig.parse(
    {"nodes": "2:4", "processes_per_node": 8, "device": "cuda", "shared_folder": "/shared", "memory": "500G",
     "claim": "runs", "namespace": "llm", "checkpoint_deadline": 60}
)  # fmt: skip


def check_pod(pod: dict, config: LaunchConfig) -> dict:
    """The fields without which a pod does not start, or does not do what was asked; gives its container."""
    assert pod["terminationGracePeriodSeconds"] > config.checkpoint_deadline
    assert pod["restartPolicy"] in ("Never", "OnFailure")
    (container,) = pod["containers"]
    assert container["name"]
    assert container["image"] == config.image
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert container["resources"]["requests"]["memory"] == "500Gi"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"shared": "/shared", "memory": "/dev/shm"}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    assert all(isinstance(variable["value"], str) for variable in container["env"])
    assert {"name": "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "value": "60"} in container["env"]
    return container


def test_the_jobset_has_what_its_controller_needs():
    manifest = yaml.safe_load(jobset_manifest(JOB, CLUSTER))
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"] == {"name": "life-base", "namespace": "llm"}
    network = manifest["spec"]["network"]
    assert network["enableDNSHostnames"]
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 4, 4)
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "a policy for failures asks for it"
    read = torchrun_options(check_pod(pod, CLUSTER)["command"])
    assert (read.nnodes, read.rdzv_endpoint) == (
        "2:4",
        f"life-base-{replicated['name']}-0-0.{network['subdomain']}:29500",
    )
    assert read.training_script_args == list(JOB.arguments)


def test_the_pytorchjob_has_what_its_operator_needs():
    manifest = yaml.safe_load(pytorchjob_manifest(JOB, CLUSTER))
    assert (manifest["apiVersion"], manifest["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    elastic = manifest["spec"]["elasticPolicy"]
    assert (elastic["minReplicas"], elastic["maxReplicas"], elastic["nProcPerNode"]) == (2, 4, 8)
    assert list(manifest["spec"]["pytorchReplicaSpecs"]) == ["Worker"], "an elastic job has no master"
    worker = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert worker["replicas"] == 4
    container = check_pod(worker["template"]["spec"], CLUSTER)
    assert container["name"] == "pytorch", "the operator looks for it by name"
    assert torchrun_options(container["command"]).training_script_args == list(JOB.arguments)


@pytest.mark.parametrize("manifest", [jobset_manifest, pytorchjob_manifest])
def test_odd_words_stay_words(manifest):
    odd = LaunchConfig.parse({"shared_folder": '/sha "red: {x}', "image": "a:b # c"})
    read = yaml.safe_load(manifest(JOB, odd))
    assert '/sha "red: {x}' in str(read)
    assert "a:b # c" in str(read)
    with pytest.raises(ConfigError, match=r"shared_folder 'here' is not absolute"):
        manifest(JOB, LaunchConfig.parse({"shared_folder": "here"}))
