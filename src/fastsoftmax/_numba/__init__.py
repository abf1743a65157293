"""The kernels of the Numba backend; imported by `fastsoftmax._backends._numba` alone."""
