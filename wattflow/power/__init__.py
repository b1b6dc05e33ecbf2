"""Meters and the sidecar: the only importer of pynvml and DCGM."""
