"""Weight transports: the trainer's ends of disk, shared memory, elastic groups and CUDA handles."""
