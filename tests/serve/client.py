"""What the server promises, asked of the real program over real sockets by the official client.

`client.py SCENARIO --binary PROGRAM --place FOLDER`. tests/serve.rs makes the folder: serve.yaml (the tiny base), adapters/medical,
adapters/legal (of other layers and another rank) and adapters/early, train.yaml (a run to be started), and runs each scenario.
"""

import argparse
import os

import api
import batch
import life
import trust

SCENARIOS = {s.__name__: s for module in (api, batch, trust, life) for s in module.SCENARIOS}


class Place:
    """The folder, and the program to run in it."""

    def __init__(self, binary: str, folder: str):
        self.binary = os.path.abspath(binary)
        self.folder = os.path.abspath(folder)
        self.config = self.path("serve.yaml")
        # What most scenarios serve.
        self.adapters = ["--adapter", f"medical={self.path('adapters/medical')}", "--adapter", f"legal={self.path('adapters/legal')}"]

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--place", required=True)
    args = parser.parse_args()
    SCENARIOS[args.scenario](Place(args.binary, args.place))
