"""What a device class costs, from guest to backend: latency, throughput, processor time, and a peer beside it."""
