"""Registry of inference servers in etcd."""

__version__ = "0.1.0"
