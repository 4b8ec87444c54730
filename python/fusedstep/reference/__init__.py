"""What the kernels compute, in NumPy, operation by operation: slow, and equal to them bit for bit.

All arrays are one-dimensional, in memory order, and in the type they are computed in: float64 for
float64 tensors, float32 for float32, bfloat16 and float16 ones.
"""
