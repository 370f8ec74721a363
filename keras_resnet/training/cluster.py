"""The machines that train one model together, as the environment variable TF_CONFIG describes them."""

import contextlib
import json
import os
import re
from dataclasses import dataclass

from keras_resnet.errors import is_integer


@dataclass(frozen=True)
class Cluster:
    """The machines that train one model together, as TF_CONFIG describes them to each."""

    addresses: tuple[str, ...] = ("localhost:0",)
    """host:port of each machine, the chief first."""
    index: int = 0
    """Index of this machine; number 0, the chief, writes the files."""

    def __len__(self):
        return len(self.addresses)


def cluster():
    """The Cluster of TF_CONFIG; without TF_CONFIG, this machine alone.

    TensorFlow's own TFConfigClusterResolver reads the same variable, but accepts indices such as "0" and 0.9, addresses
    without a port and duplicates, which end in processes that wait for each other forever.

    Raises:
        ValueError: for a TF_CONFIG that describes no cluster, or one with jobs other than `worker` and `chief`.
    """
    text, config = os.environ.get("TF_CONFIG"), None
    if text is None:
        return Cluster()

    def check(is_met, expected):
        if not is_met:
            raise ValueError(f"`TF_CONFIG` should {expected}. Received: TF_CONFIG={text}")

    with contextlib.suppress(ValueError):
        config = json.loads(text)
    is_config = isinstance(config, dict) and all(isinstance(config.get(key), dict) for key in ("cluster", "task"))
    check(is_config, "be a JSON object that holds the objects `cluster` and `task`")
    jobs, task = config["cluster"], config["task"]
    jobs_known = jobs.keys() <= {"chief", "worker"}
    check(jobs_known, "have no jobs in `cluster` but `worker` and `chief` (no parameter servers, no evaluators)")
    are_lists = all(isinstance(job, list) for job in jobs.values())
    check(are_lists and any(jobs.values()), "have lists of addresses in `cluster`, with at least one address")
    chiefs, workers = jobs.get("chief", []), jobs.get("worker", [])
    check(len(chiefs) <= 1, "have one chief at most")
    addresses = (*chiefs, *workers)
    check(all(map(_is_address, addresses)), "have addresses of the form 'host:port', with a port from 1 to 65535")
    check(len(set(addresses)) == len(addresses), "name every address once")
    check(task.get("type") in list(jobs), "have the name of a job of `cluster` as the `type` of `task`")
    is_index = is_integer(task.get("index"), 0) and task["index"] < len(jobs[task["type"]])
    check(is_index, "have an `index` of `task` that counts the addresses of its job from 0")
    return Cluster(addresses, task["index"] + (len(chiefs) if task["type"] == "worker" else 0))


def _is_address(address):
    match = isinstance(address, str) and re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/]+):([0-9]{1,5})", address)
    return bool(match) and 1 <= int(match[2]) <= 65535
