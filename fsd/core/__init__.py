"""The model: spaces, nodes, reconcile, index. Synchronous; knows no HTTP, FUSE or Kafka."""
