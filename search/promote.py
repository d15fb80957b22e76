"""The command that promotes a trial, if it is better than the champion, or goes back to the champion before.

python -m search.promote NAME [--trial N] [--data FOLDER]    a sweep's winner, or any of its trials
python -m search.promote --rollback
"""

import argparse
from pathlib import Path

from pipeline.promotion import BEST_MODEL, promote_trial, restore
from search.study.storage import StorageError

__all__ = ["main"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m search.promote", description="Promote a trial, or roll back.")
    parser.add_argument("name", nargs="?", help="the sweep's folder below runs/")
    parser.add_argument("--trial", type=int, help="its number (default: the sweep's winner)")
    text = "always: without a comparison (default: if-better)"
    parser.add_argument("--promote", choices=("if-better", "always"), default="if-better", help=text)
    parser.add_argument("--data", default="", help="where its pictures are (default: where they were)")
    parser.add_argument("--rollback", action="store_true", help="make the champion before the present one it again")
    options = parser.parse_args()
    if options.rollback == bool(options.name) or (options.rollback and options.trial is not None):
        parser.error("give either the name of a sweep, and of a trial if you like, or --rollback")
    try:
        if options.rollback:
            print(restore(BEST_MODEL))
        else:
            folder, always = Path("runs") / Path(options.name).name, options.promote == "always"
            sentences = promote_trial(folder, options.trial, always, options.data)
            print("\n".join(sentences))
    except (ValueError, StorageError) as error:
        parser.exit(2, f"{error}\n")
    except (OSError, RuntimeError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
