"""The native kernels by the number of their instructions, which no load of the machine changes."""
