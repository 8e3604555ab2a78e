"""What a process tells of itself: numbers for Prometheus, lines of a log, spans for OpenTelemetry.

metrics   what is counted; the service and the worker record into it
listener  tells it over HTTP for a process that is no service
logs      log lines, as text or as JSON, without what users sent
troubles  one line a second of one kind of trouble
traces    spans, with the extra ``otel``
"""
