"""One command on many hosts: the torchrun line, the Slurm script and the Kubernetes manifests that start it.

All of them start torchrun, which finds the hosts, restarts what fails and goes on with fewer or more of them. Knows
no trainer and no recipe: what is started is words of a command line.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lmworks.core.config import Config
from lmworks.core.errors import ConfigError, ParallelError
from lmworks.parallel.config import ParallelConfig, rows_per_rank

Positive = Annotated[int, Field(gt=0)]
TEMPLATES = Path(__file__).parent / "launchers"
MARGIN_SECONDS = 30
"""After the deadline of a checkpoint, until the process is killed."""
NAME_LENGTH = 40
"""Kubernetes allows 63 characters in the names of hosts, which are longer than the job's."""


class LaunchConfig(Config):
    """Where a training run is to be started, and how it ends and begins again."""

    nodes: Annotated[str, Field(pattern=r"^[1-9]\d*(:[1-9]\d*)?$")] = "1"
    """Hosts; `1:4` starts with what there is and goes on when hosts leave or join."""
    processes_per_node: Positive = 1
    """One for every accelerator, or for every few processor cores."""
    device: Literal["cpu", "cuda"] = "cpu"
    """With `cuda` each process is given one GPU."""
    cpus_per_process: Positive = 1
    """Processor cores, which are also the threads, of each process."""
    memory: Annotated[str, Field(pattern=r"^[1-9]\d*[MGT]$")] = "32G"
    """Main memory of each host that is asked for."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often processes that fail are started again from the last checkpoint."""
    checkpoint_deadline: Positive = 120
    """Seconds between a request to stop and the end, within which the run writes a checkpoint."""
    shared_folder: Path = Path()
    """Where every host sees the project and its runs: data are read from there and checkpoints written."""
    head: str = ""
    """Host name or address of the host where the others meet; torchrun on several hosts alone needs it."""
    port: Annotated[int, Field(gt=0, lt=65536)] = 29500
    """Where they meet."""
    time_limit: Annotated[str, Field(pattern=r"^(\d+-)?\d+:\d{2}:\d{2}$")] = "24:00:00"
    """Of a Slurm job, which is queued again when it ends before the run does."""
    partition: str = ""
    """Of a Slurm cluster; its default unless given."""
    setup: str = ""
    """A shell line that Slurm runs first, such as `source venv/bin/activate`."""
    image: str = "lmworks:latest"
    """Of Kubernetes pods; holds this package."""
    claim: str = "lmworks"
    """Persistent volume claim that Kubernetes mounts at `shared_folder`."""
    namespace: str = "default"
    """Of Kubernetes."""

    @field_validator("nodes", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"nodes {self.nodes!r} ends before it begins; write the smaller number first")
        return self

    @property
    def min_nodes(self) -> int:
        """With fewer hosts the run waits."""
        return int(self.nodes.partition(":")[0])

    @property
    def max_nodes(self) -> int:
        """More hosts are not used."""
        return int(self.nodes.rpartition(":")[2])

    @property
    def world_sizes(self) -> list[int]:
        """Numbers of processes that the run may have."""
        return [n * self.processes_per_node for n in range(self.min_nodes, self.max_nodes + 1)]


@dataclass(frozen=True)
class Job:
    """What is started."""

    name: str
    """A DNS label; see `job_name`."""
    module: str
    """As of `python -m`."""
    arguments: tuple[str, ...]


def job_name(*parts: str) -> str:
    """A name that Slurm, Kubernetes and DNS accept."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower())[:NAME_LENGTH].strip("-")


def require_mesh(config: LaunchConfig, parallel: ParallelConfig, rows_per_step: int) -> None:
    """Check that the mesh fits every number of processes that the run may have.

    Args:
        config: hosts and processes.
        parallel: degrees; those of -1 take what there is.
        rows_per_step: which have to divide among the ranks that read.

    Raises:
        ParallelError: naming the number of hosts at which it does not.
    """
    for world_size in config.world_sizes:
        try:
            rows_per_rank(rows_per_step, parallel.resolve(world_size))
        except ParallelError as error:
            nodes = world_size // config.processes_per_node
            raise ParallelError(
                f"on {nodes} of nodes {config.nodes!r}, {config.processes_per_node} a node: {error.problem}",
                error.remedy,
            ) from None


def torchrun_line(job: Job, config: LaunchConfig) -> str:
    """The shell line to run on each host.

    Raises:
        ConfigError: there are several hosts and none is named as their meeting point.
    """
    if config.max_nodes > 1 and not config.head:
        raise ConfigError(
            f"{config.nodes} nodes need to know where they meet", "Give `head`, the name or address of one of them"
        )
    return _shell_line(job, config, f"{config.head}:{config.port}" if config.head else "")


def slurm_script(job: Job, config: LaunchConfig) -> str:
    """A script for sbatch; what is stopped by preemption or the time limit is queued again and goes on."""
    line = _shell_line(job, config, f'"$head:{config.port}"', nodes=_slurm_nodes(config))
    return _render("slurm.sh.jinja", job, config, line=line)


def jobset_manifest(job: Job, config: LaunchConfig) -> str:
    """A JobSet (jobset.x-k8s.io/v1alpha2); its controller makes the headless service by which pods find each other.

    Raises:
        ConfigError: the shared folder is no absolute path, at which a volume could be mounted.
    """
    _require_absolute(config)
    return _render(
        "jobset.yaml.jinja", job, config, torchrun=_torchrun(job, config, f"{job.name}-nodes-0-0.{job.name}")
    )


def pytorchjob_manifest(job: Job, config: LaunchConfig) -> str:
    """A PyTorchJob (kubeflow.org/v1), whose operator tells torchrun who takes part; errors as of `jobset_manifest`."""
    _require_absolute(config)
    return _render("pytorchjob.yaml.jinja", job, config, torchrun=["torchrun", "-m", job.module, *job.arguments])


def _require_absolute(config: LaunchConfig) -> None:
    if not config.shared_folder.is_absolute():
        raise ConfigError(
            f"shared_folder {str(config.shared_folder)!r} is not absolute, and pods mount the volume there",
            "Write for example /shared/project",
        )


def _torchrun(job: Job, config: LaunchConfig, head: str) -> list[str]:
    return [
        "torchrun", "--nnodes", config.nodes, "--nproc-per-node", str(config.processes_per_node),
        "--max-restarts", str(config.max_restarts), "--rdzv-backend", "c10d",
        "--rdzv-endpoint", f"{head}:{config.port}", "--rdzv-id", job.name, "-m", job.module, *job.arguments,
    ]  # fmt: skip


def _shell_line(job: Job, config: LaunchConfig, endpoint: str, nodes: str = "") -> str:
    """For a shell; `endpoint` and `nodes` may hold its variables."""
    meeting = f"--rdzv-backend c10d --rdzv-endpoint {endpoint} --rdzv-id {job.name}" if endpoint else "--standalone"
    words = [
        *(f"{name}={value}" for name, value in _environment(config).items()),
        f"torchrun --nnodes {nodes or config.nodes} --nproc-per-node {config.processes_per_node}",
        f"--max-restarts {config.max_restarts} {meeting} -m {job.module}",
        shlex.join(job.arguments),
    ]
    return " ".join(words)


def _slurm_nodes(config: LaunchConfig) -> str:
    """As many as the job was given."""
    if config.min_nodes == config.max_nodes:
        return config.nodes
    return f'"{config.min_nodes}:$SLURM_JOB_NUM_NODES"'


def _environment(config: LaunchConfig) -> dict[str, str]:
    """How long torchrun waits for its processes once it is asked to stop; threads of each; how hosts meet again."""
    environment = {
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(config.checkpoint_deadline),
        "OMP_NUM_THREADS": str(config.cpus_per_process),
    }
    if config.max_nodes > 1:
        # torchrun would keep the address of the first meeting and not tell it to hosts that join later, which wait in
        # vain and then end the run for all.
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return environment


def _render(template: str, job: Job, config: LaunchConfig, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters["word"] = lambda value: shlex.quote(str(value))
    return environment.get_template(template).render(
        job=job, config=config, environment=_environment(config), margin=MARGIN_SECONDS, **values
    )
