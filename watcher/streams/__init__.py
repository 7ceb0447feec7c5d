"""Sources that read a log which others write: Kafka topics and GPFS audit files. They go on where they were."""
