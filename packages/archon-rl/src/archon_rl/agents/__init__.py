"""Agents that know only an OpenAI client: their sessions, and the workflow that trains on them."""
