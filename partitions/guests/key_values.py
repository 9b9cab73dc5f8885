"""A guest that takes its integration services, and does nothing else until it is told to end: for whoever asks it."""

from partitions.child import Partition


def main(partition: Partition) -> None:
    integration = partition.integration
    integration.key_values.publish("state", "well")
    partition.report("takes_part")
    integration.stopping.wait()
