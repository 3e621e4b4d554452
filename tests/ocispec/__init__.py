"""Tests of `ocispec`: values and grammars, without I/O and without Prefect."""
