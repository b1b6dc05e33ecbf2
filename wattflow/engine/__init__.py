"""Sharded inference: the only importer of torch and fairscale."""
