"""Fast forwards: layout of packed rows, attention over them, devices and kernels."""
