"""The server's side of a publication, for servers that have torch: the update protocol, the receiving ends of shared
memory and process groups, and a store in host memory.

It needs archon-core and torch alone, because it also runs inside foreign servers, such as in a plugin of vLLM.
"""
