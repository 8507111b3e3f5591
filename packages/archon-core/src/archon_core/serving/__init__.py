"""Formats that trainers and inference servers share: records, manifests, notices, checksums, shared memory. No torch.

A driver that runs inside a foreign server, such as a plugin of vLLM, needs archon-core alone. The protocols are in
``archon_core.contracts.serving``, ``weight_transport`` and ``server_registry``.
"""
