"""The pool of inference servers: which ones are in service, and which one gets a request."""
