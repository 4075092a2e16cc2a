"""What carries letters between the nodes of a bus: within one process, or over NATS JetStream."""
