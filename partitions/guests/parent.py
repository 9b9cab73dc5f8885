"""A partition that does nothing but have children: those whose `parent` it is in the config.

[[partition]]
name = "outer"
program = "partitions.guests.parent:main"
memory = "64MiB"           # its children's, and what it needs to serve them
[[partition.device]]
name = "disk0"

[[partition]]
name = "inner"
parent = "outer"
program = "partitions.guests.disk_load:main"
[[partition.device]]
name = "disk0"             # outer's
"""

from partitions.child import Partition
from partitions.stack.virtualization_stack import BuildError


def main(partition: Partition) -> int:
    """0 once all children have ended, however they did. 1: they could not be created."""
    try:
        partition.run_children()
    except BuildError as error:
        partition.report("build_failed", reason=str(error))
        return 1
    return 0
