"""Numbers about a process and its storage, for Prometheus; the service and the worker record into them.

metrics   what is counted
listener  tells it over HTTP for a process that is no service
"""
