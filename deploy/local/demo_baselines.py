"""What the recurrent model has to beat, on the very events that it will serve.

Run as `demo_baselines.py CONFIG TRAIN HELD_OUT RESULT` by demo_learn.py, as a program of its own,
since it loads TensorFlow. Trains on the part of TRAIN that the model was trained on, judges on all
of HELD_OUT, and writes the accuracies as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(config_file: Path, train: str, held_out: str, result: Path) -> None:
    """Train and judge both baselines."""
    # Imported late: an interrupt while TensorFlow loads has nothing to clean up.
    from keyfold.training.baselines import majority, nonrecurrent
    from keyfold.training.config import read_config
    from keyfold.training.data import build, read_log
    from keyfold.training.sources import read_files
    from keyfold.training.split import Part, split

    config = read_config(config_file, [f"data.files={train}"])
    log = read_log(config)
    part = split(log.sequences, config.split).train
    sequences = build(config.data, read_files((held_out,)), keyed=False).sequences
    judged = Part(sequences, (0,) * len(sequences))
    accuracies = {
        "majority": majority(part, judged, log.outputs)["accuracy"],
        "nonrecurrent": nonrecurrent(part, judged, log.outputs)["accuracy"],
    }
    result.write_text(json.dumps(accuracies) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
