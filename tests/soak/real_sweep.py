"""run_sweep.py itself, which also writes down every epoch as it begins, in FOLDER/epochs.log.

STOPPED_SECONDS=S python tests/soak/real_sweep.py ARGUMENTS OF run_sweep.py
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import search.workers.liveness
from catdog import train
from pipeline import stages
from pipeline.cli import main
from pipeline.task import TrainTrial


class Counted(TrainTrial):
    def epochs(self, context):
        epoch = train._Trainer.run_epoch

        def counted(run, number):
            log = "epochs.log" if context.confirms is None else "confirmation.log"
            parameters = " ".join(f"{name}={value}" for name, value in sorted(context.parameters.items()))
            with (context.folder.parents[1] / log).open("a") as file:
                file.write(f"{context.number} {number} seed={context.seed} {parameters}\n")
            return epoch(run, number)

        train._Trainer.run_epoch = counted
        try:
            yield from super().epochs(context)
        finally:
            train._Trainer.run_epoch = epoch


if __name__ == "__main__":
    search.workers.liveness.STOPPED_SECONDS = float(os.environ["STOPPED_SECONDS"])
    stages.TrainTrial = Counted
    sys.exit(main())
