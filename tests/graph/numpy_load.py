# SPDX-License-Identifier: MIT
"""Opens a graph that save_npz wrote with numpy.load and compares it, to the value, with what the writer was given.

Usage: numpy_load.py PROGRAM. PROGRAM DIR writes DIR/graph.npz and prints the rows. Exit 77: numpy is absent.
"""
import os
import subprocess
import sys
import tempfile

try:
    import numpy
except ImportError:
    print("numpy is absent: nothing checked")
    sys.exit(77)

with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "graph.npz")
    text = subprocess.run([sys.argv[1], path], check=True, capture_output=True, text=True).stdout
    with numpy.load(path) as archive:
        assert sorted(archive.files) == ["edge_type", "neigh_idx"], archive.files
        neigh_idx, edge_type = archive["neigh_idx"], archive["edge_type"]
    assert neigh_idx.dtype == numpy.int32 and edge_type.dtype == numpy.uint8
    assert neigh_idx.shape == edge_type.shape == (2, 9, neigh_idx.shape[2]), neigh_idx.shape
    rows = [[int(x) for x in line.split()] for line in text.splitlines()]
    assert rows == numpy.concatenate([neigh_idx, edge_type], axis=2).reshape(18, -1).tolist()
    print("numpy reads", neigh_idx.shape)
