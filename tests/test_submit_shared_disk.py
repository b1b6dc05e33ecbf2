"""Which file systems one node alone can see, known from a list of mounts."""

from pathlib import Path

import pytest

from wattflow.submit import shared_disk

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
28 27 0:25 / /dev/shm rw,nosuid shared:2 - tmpfs tmpfs rw,size=24683656k
29 27 0:30 / /run/user/1000 rw - tmpfs tmpfs rw
30 27 0:31 / /home rw,relatime shared:1 master:4 - nfs4 filer:/home rw,vers=4.2
31 27 0:32 / /scratch rw - lustre mds@tcp:/scratch rw
32 27 0:33 / /tmp/gluster rw - fuse.glusterfs pool rw
33 27 0:34 / /data\040disk rw - tmpfs tmpfs rw
34 27 0:35 / /pool rw - tmpfs tmpfs rw
35 34 0:36 / /pool rw - nfs filer:/pool rw
"""
CONTAINER = "1 0 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/a\n" + MOUNTS.split("\n")[4]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/dev/shm/sweeps", "a tmpfs at /dev/shm"),
        ("/run/user/1000/x", "a tmpfs at /run/user/1000"),
        ("/data disk/sweeps", "a tmpfs at /data disk"),
        ("/tmp/sweeps", "below /tmp"),
        ("/var/tmp/me/sweeps", "below /var/tmp"),
        ("/home/me/sweeps", None),
        ("/scratch/tmp/sweeps", None),
        ("/srv/sweeps", None),  # a disk of this machine, which may well be exported
        ("/tmpfs/sweeps", None),
        ("/tmp/gluster/sweeps", None),
        ("/pool/sweeps", None),  # what was mounted last is what one sees
    ],
)
def test_a_folder_in_memory_or_below_tmp_is_its_nodes_alone(path, why):
    """Memory, a container's layers and /tmp are never shared; a disk may be, and a network's file system is."""
    assert shared_disk.node_local(Path(path), MOUNTS) == why


def test_a_containers_own_layers_are_its_nodes_alone():
    """Its root is an overlay, and what is mounted into it is judged by itself."""
    assert shared_disk.node_local(Path("/root/sweeps"), CONTAINER) == "an overlay at /"
    assert shared_disk.node_local(Path("/home/me"), CONTAINER) is None


@pytest.mark.parametrize("text", ["", "27 1 254:0 /\n", "no mounts here - at all\n"])
def test_what_is_no_list_of_mounts_says_nothing(text):
    """Where it cannot be told, nothing is claimed but what the path itself says."""
    assert shared_disk.node_local(Path("/srv/sweeps"), text) is None
