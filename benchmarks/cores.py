"""Images per second of a machine: a worker on each core beside one worker on all of them, in turn, in one run.

    python benchmarks/cores.py [--rounds N]

Workers of a split train at the same time, each in a process of its own; their rates are added up. The median over
rounds is printed.
"""

import argparse
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context

import torch
from training import BATCH, JPEG_SIZE, NETWORKS, describe_machine, next_of, prepare_ours, resized

from catdog.data.synthetic import synthetic


def main() -> None:
    parser = argparse.ArgumentParser(description="A worker on each core beside one on all of them.")
    parser.add_argument("--rounds", type=int, default=5)
    num_rounds, num_cores = parser.parse_args().rounds, len(os.sched_getaffinity(0))
    print(describe_machine())
    splits = {f"{num_cores} x 1 thread": (num_cores, 1), f"1 x {num_cores} threads": (1, num_cores)}
    print(f"{'':15}" + "".join(f"{split:>16}" for split in splits) + f"   images/s, median of {num_rounds} rounds")
    images, labels = synthetic(BATCH * max(batches for _, batches in NETWORKS.values()), JPEG_SIZE, seed=0)
    for name, (config, num_batches) in NETWORKS.items():
        data = resized(torch.from_numpy(images), config.image_size), torch.from_numpy(labels).long()
        with ExitStack() as stack:
            teams = [start(stack, *split, (config, *data, num_batches)) for split in splits.values()]
            rounds = [[rate(team) for team in teams] for _ in range(num_rounds)]
        print(f"{name:15}" + "".join(f"{statistics.median(rates):16.1f}" for rates in zip(*rounds, strict=True)))


def start(stack: ExitStack, num_workers: int, threads: int, task: tuple) -> list[ProcessPoolExecutor]:
    """Start workers that have prepared their training."""
    context = get_context("spawn")
    team = [
        stack.enter_context(ProcessPoolExecutor(1, context, torch.set_num_threads, (threads,)))
        for _ in range(num_workers)
    ]
    for ready in [worker.submit(prepare_ours, *task) for worker in team]:
        ready.result()
    rate(team)  # the first epoch prepares kernels
    return team


def rate(team: list[ProcessPoolExecutor]) -> float:
    return sum(one.result() for one in [worker.submit(next_of, "ours") for worker in team])


if __name__ == "__main__":
    main()
