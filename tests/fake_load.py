"""A load for the fake NVML, in place of engine.pulsed_load: the watts of FAKE_NVML_CURVE=load follow it exactly.

It adds the edges that it is told to the file of FAKE_NVML_LOAD at once, and answers when they are over.
FAKE_LOAD_DIES=2 has it die when it is told edges for the second time.
"""

import json
import os
import struct
import sys
import time
from pathlib import Path


def main():
    path = Path(os.environ["FAKE_NVML_LOAD"]) / os.environ["CUDA_VISIBLE_DEVICES"]
    print(json.dumps({"ready": "a fake"}), flush=True)
    for told, line in enumerate(sys.stdin, start=1):
        if os.environ.get("FAKE_LOAD_DIES") == str(told):
            sys.exit("the fake load dies")
        edges = json.loads(line)["edges"]
        with path.open("ab") as file:
            file.write(struct.pack(f"{len(edges)}q", *edges))
        time.sleep(max(0, edges[-1] - time.time_ns()) / 1e9)
        print(json.dumps({"edges": edges}), flush=True)


if __name__ == "__main__":
    main()
