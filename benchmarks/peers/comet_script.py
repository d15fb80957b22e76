"""What `comet optimize -j 2` starts twice: the tutorial's training on the parameters that Comet proposes."""

import comet_ml  # before torch, as it asks

from benchmarks.peers.task import note, read_task
from benchmarks.peers.tutorial import losses


def main():
    task = read_task()
    optimizer = comet_ml.Optimizer()  # the one that `comet optimize` made
    for experiment in optimizer.get_experiments(project_name="sweep"):
        parameters = {name: experiment.get_parameter(name) for name in optimizer.status()["parameters"]}
        for epoch, loss in enumerate(losses(parameters, task), 1):
            note(task, experiment.get_key(), epoch, loss)
            experiment.log_metric("val_loss", loss, epoch=epoch)
        experiment.end()


if __name__ == "__main__":
    main()
