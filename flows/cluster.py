"""`ClusterSpec`: which workers carry out the tasks of a flow, as a form, a YAML file or Python."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from dask.utils import parse_bytes
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from patchworks.errors import InputError

Quantity = Annotated[float, Field(gt=0)]

_ADDRESS = re.compile(r"([a-z]+://)?([^\s/:]+|\[[0-9a-fA-F:.%]+\]):\d+")
_SCHEME = re.compile(r"(tcp|tls|ws|wss|ucx|ucxx)://")
_FIELDS_OF = {
    "local": ("n_workers", "threads_per_worker", "memory_limit", "gpus", "host"),
    "address": ("address",),
    "class": ("cluster_class", "cluster_kwargs", "scale"),
}


class ClusterSpec(BaseModel):
    """Which worker processes carry out the tasks of a flow.

    `kind` says where they come from; the other fields belong to one kind each.

    Examples
    --------
    >>> ClusterSpec(n_workers=4, memory_limit="8 GiB").kind
    'local'
    >>> ClusterSpec.parse("tcp://node1:8786").address
    'tcp://node1:8786'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["local", "address", "class"] = Field(
        default="local",
        description="local: worker processes of this machine. address: a Dask scheduler that runs "
        "already. class: a Dask cluster class, such as dask_jobqueue.SLURMCluster.",
    )
    n_workers: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="local: CPU worker processes; by default one per core.",
    )
    threads_per_worker: int = Field(
        default=1, ge=1, le=256, description="local: tasks at a time in one CPU worker."
    )
    memory_limit: str | None = Field(
        default=None,
        description="local: memory of one worker, such as '8 GiB'; by default an even share of the "
        "memory that is free.",
    )
    gpus: Literal["none", "all"] | list[str] = Field(
        default="none",
        description="local: GPUs, with a worker process for each, beside the CPU workers: none, "
        "all, or a list of what CUDA_VISIBLE_DEVICES is to be, such as ['0', '1']. Segmentation "
        "runs on the GPU workers alone, everything else on the CPU workers alone.",
    )
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="local: address that the scheduler and the workers listen on.",
    )
    address: str | None = Field(
        default=None, description="address: where the scheduler listens, such as tcp://node1:8786."
    )
    cluster_class: str | None = Field(
        default=None,
        description="class: import path, such as dask_jobqueue.SLURMCluster, "
        "dask_cuda.LocalCUDACluster or dask_kubernetes.operator.KubeCluster.",
    )
    cluster_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="class: what the cluster class is called with."
    )
    scale: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="class: how many workers to ask the cluster for.",
    )
    minimum: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="local and class: adaptive scaling keeps at least so many workers; "
        "1 by default.",
    )
    maximum: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="local and class: adaptive scaling, with at most so many workers.",
    )
    segment_resources: dict[str, Quantity] = Field(
        default_factory=dict,
        description="Dask resources that one segmentation task takes, such as {'GPU': 1}. By "
        "default found from the workers: those that offer GPU segment, the others do the rest.",
    )
    other_resources: dict[str, Quantity] = Field(
        default_factory=dict,
        description="Dask resources that any other task takes, such as {'CPU': 1}.",
    )
    wait_for_workers_s: float = Field(
        default=300.0,
        gt=0,
        le=604_800,
        description="Seconds that the first worker may take to come.",
    )

    @field_validator("memory_limit")
    @classmethod
    def _check_memory(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                n_bytes = parse_bytes(value)
            except ValueError as error:
                raise ValueError(f"{value!r} is no size; write '8 GiB', or bytes") from error
            if n_bytes <= 0:
                raise ValueError(f"{value!r} leaves a worker no memory; write '8 GiB', or bytes")
        return value

    @field_validator("gpus", mode="before")
    @classmethod
    def _name_gpus(cls, value: Any) -> Any:
        # In YAML, [0, 1] is a list of numbers.
        return [str(name) for name in value] if isinstance(value, list) else value

    @field_validator("gpus")
    @classmethod
    def _check_gpus(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and (not value or not all(name.strip() for name in value)):
            raise ValueError(f"{value!r} names no GPU; list devices such as ['0', '1'], or 'none'")
        return value

    @field_validator("address")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        if value is not None and not _ADDRESS.fullmatch(value):
            raise ValueError(f"{value!r} is no address of a scheduler; write tcp://HOST:PORT")
        return value

    @field_validator("cluster_class")
    @classmethod
    def _check_class(cls, value: str | None) -> str | None:
        parts = (value or "a.b").split(".")
        if len(parts) < 2 or not all(part.isidentifier() for part in parts):
            raise ValueError(
                f"{value!r} is no import path of a class; write PACKAGE.CLASS, such as "
                "dask_jobqueue.SLURMCluster"
            )
        return value

    @field_validator("cluster_kwargs")
    @classmethod
    def _check_kwargs(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "asynchronous" in value:
            raise ValueError("leave asynchronous out: the flow runs the cluster itself")
        return value

    @model_validator(mode="after")
    def _check_kind(self) -> ClusterSpec:
        for kind, names in _FIELDS_OF.items():
            given = [name for name in names if kind != self.kind and self._is_given(name)]
            if given:
                raise ValueError(
                    f"{', '.join(given)}: only for kind: {kind}, and kind is {self.kind}; "
                    f"set kind: {kind}, or leave {', '.join(given)} out"
                )
        if self.kind == "address" and self.address is None:
            raise ValueError("kind: address needs address: tcp://HOST:PORT of the scheduler")
        if self.kind == "class" and self.cluster_class is None:
            raise ValueError(
                "kind: class needs cluster_class: PACKAGE.CLASS, such as dask_jobqueue.SLURMCluster"
            )
        return self

    @model_validator(mode="after")
    def _check_scaling(self) -> ClusterSpec:
        if self.maximum is None:
            if self.minimum is not None:
                raise ValueError("minimum belongs to adaptive scaling: say maximum as well")
            return self
        if self.kind == "address":
            raise ValueError(
                "maximum: whoever started the scheduler scales its workers; leave minimum and "
                "maximum out"
            )
        if (self.minimum or 1) > self.maximum:
            raise ValueError(
                f"minimum {self.minimum} is more than maximum {self.maximum}; swap them"
            )
        if self.n_workers is not None or self.scale is not None:
            given = "scale" if self.scale is not None else "n_workers"
            raise ValueError(
                f"{given} is a fixed number of workers, maximum asks for adaptive scaling; "
                "leave one of them out"
            )
        if self.gpus != "none":
            raise ValueError(
                "gpus: adaptive scaling would end GPU workers and start CPU workers in their "
                "place; leave maximum out, or gpus"
            )
        return self

    def _is_given(self, name: str) -> bool:
        # A form sends every field: one that is as by default was not asked for.
        default = type(self).model_fields[name].get_default(call_default_factory=True)
        return bool(getattr(self, name) != default)

    def __str__(self) -> str:
        """Name the cluster for messages: what was asked for, without the defaults."""
        asked = {
            name: value
            for name in type(self).model_fields
            if self._is_given(name)
            for value in [getattr(self, name)]
            # Arguments of a cluster class may hold secrets.
            if name != "cluster_kwargs"
        }
        return (
            f"cluster ({', '.join(f'{k}: {v}' for k, v in ({'kind': self.kind} | asked).items())})"
        )

    @classmethod
    def parse(
        cls, value: ClusterSpec | Mapping[str, Any] | str | os.PathLike[str] | None
    ) -> ClusterSpec:
        """Make a spec of whatever a person gives for one.

        Parameters
        ----------
        value : ClusterSpec, mapping, str, path or None
            None is a local cluster; a string is a scheduler's address (``tcp://...``) or the path
            of a YAML file.

        Raises
        ------
        InputError
            If the value is none of these, or a key or its value is wrong.
        """
        if value is None:
            return cls()
        if isinstance(value, ClusterSpec):
            return value
        if isinstance(value, Mapping):
            return cls._validated(dict(value), "cluster")
        if isinstance(value, str) and _SCHEME.match(value):
            return cls._validated({"kind": "address", "address": value}, "cluster")
        if isinstance(value, (str, os.PathLike)):
            return cls.from_yaml(value)
        raise InputError(
            f"cluster: got a {type(value).__name__}; give a ClusterSpec, a mapping of its fields, "
            "the path of a YAML file, or the address of a scheduler (tcp://HOST:PORT)"
        )

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> ClusterSpec:
        """Read a spec from a YAML file whose keys are the fields.

        Raises
        ------
        InputError
            Names the file, and the key or the line that is wrong.
        """
        file = Path(path)
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"{file}: the cluster's YAML file cannot be read ({error.strerror}); correct the "
                "path, or give the address of a scheduler as tcp://HOST:PORT"
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: not a YAML file: {error}") from error
        if not isinstance(content, dict):
            raise InputError(
                f"{file}: a cluster's YAML file holds keys and values, such as 'kind: local'; got "
                f"{type(content).__name__}"
            )
        return cls._validated(content, str(file))

    @classmethod
    def _validated(cls, fields: dict[str, Any], where: str) -> ClusterSpec:
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise InputError("; ".join(_problems(error, where))) from error


def _problems(error: ValidationError, where: str) -> list[str]:
    """Say what is wrong with each key, as one line each."""
    problems = []
    for each in error.errors(include_url=False):
        key = ".".join(str(part) for part in each["loc"])
        message = each["msg"].removeprefix("Value error, ")
        if each["type"] == "extra_forbidden":
            message = f"no such key; the keys are {', '.join(ClusterSpec.model_fields)}"
        elif key:
            message = f"{message} (got {each['input']!r})"
        problems.append(f"{where}: {key + ': ' if key else ''}{message}")
    return problems
