"""The walls around a partition's process: what the kernel refuses to it, whatever its program does.

`apply.enter` puts them up, in order, between the fork from the zygote and the first line of the program.
"""
