"""The server's side of a publication: the update protocol, and the receiving end of each transport."""
