"""The process in which wandb writes one offline run: its JSON comes in on standard input.

Started by :func:`sim.trackers.write_wandb`, which says where it may write.
"""

from __future__ import annotations

import json
import sys

from shared.extras import require


def main() -> None:
    """Write the run, and leave out what wandb would find out about this machine."""
    wandb = require("wandb", extra="wandb")
    told = json.load(sys.stdin)
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        save_code=False,
        silent=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    with wandb.init(
        mode="offline", project="llmos", name=told["name"], config=told["config"], settings=settings
    ) as run:
        for number, values in told["rounds"]:
            run.log(values, step=number)


if __name__ == "__main__":
    main()
