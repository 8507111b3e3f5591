"""Shards modules by their parallel plan. Model packages contain no sharding code."""
