"""CUDA kernels written in Python for Numba: one file an op, named as in `gradlib.ops`.

Nothing here is imported by `import gradlib`. `launch` needs neither a GPU nor Numba; the files of kernels load
`numba.cuda` (or the simulator, with NUMBA_ENABLE_CUDASIM=1 in the environment) when they are imported.
"""
