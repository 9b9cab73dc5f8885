"""What runs inside partitions: the root, children, and the devices that they share."""
