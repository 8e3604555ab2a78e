"""Spans for OpenTelemetry, with the extra ``otel``, where the standard variables ``OTEL_*`` ask for them.

A span has a name, times, and what is listed where it is made: counts, statuses, names of collections and
templates of routes; never a path, a query, or the id of a user, a session or an object. These
variables are OpenTelemetry's own, and its SDK reads them too, so they are no settings.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING

from embedding_studio.errors import InvalidSettingError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span, Tracer

NAME = "embedding-studio"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

_tracer: "Tracer | None" = None
"""None: nothing is traced, and a span costs a look at this."""


@contextmanager
def tracing(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Send spans as long as the block runs, if the environment wants it; what is left is sent at its end.

    Raises:
        InvalidSettingError: the extra ``otel`` is missing, or an exporter is wanted that there is not.
    """
    exporter = _wanted(environment)
    if exporter is None:
        yield
        return
    processor = _processor(exporter, environment)
    with sending_to(processor):
        yield


@contextmanager
def sending_to(processor: "SpanProcessor") -> Iterator[None]:
    """Give spans to a processor as long as the block runs."""
    global _tracer  # noqa: PLW0603, a process has one, and who makes spans need not know of it
    provider = _provider()
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer(NAME, version(NAME))
    try:
        yield
    finally:
        _tracer = None
        provider.shutdown()


def span(name: str, **attributes: str | float) -> AbstractContextManager["Span | None"]:
    """Make what the block does a span within the one around it; None where nothing is traced.

    Args:
        **attributes: their names have underscores for dots.
    """
    return nullcontext() if _tracer is None else _span(_tracer, name, attributes)


def request_span(method: str, headers: Mapping[str, str]) -> AbstractContextManager["Span | None"]:
    """Make a request a span, below that of its caller where a ``traceparent`` names one."""
    return nullcontext() if _tracer is None else _request_span(_tracer, method, headers)


@contextmanager
def _request_span(tracer: "Tracer", method: str, headers: Mapping[str, str]) -> Iterator["Span"]:
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    with tracer.start_as_current_span(
        method,
        context=TraceContextTextMapPropagator().extract({"traceparent": headers.get("traceparent", "")}),
        kind=SpanKind.SERVER,
        attributes={"http.request.method": method},
        record_exception=False,
        set_status_on_exception=False,
    ) as made:
        yield made


def current_trace_id() -> str | None:
    """Return the id of the trace that this is part of, as log lines have it."""
    if _tracer is None:
        return None
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


@contextmanager
def _span(tracer: "Tracer", name: str, attributes: Mapping[str, str | float]) -> Iterator["Span"]:
    from opentelemetry.trace import StatusCode

    named = {key.replace("_", "."): value for key, value in attributes.items()}
    # What an exception says may hold what was sent, so its type alone is recorded.
    with tracer.start_as_current_span(
        name, attributes=named, record_exception=False, set_status_on_exception=False
    ) as made:
        try:
            yield made
        except BaseException as error:
            made.set_attribute("error.type", type(error).__qualname__)
            made.set_status(StatusCode.ERROR)
            raise


def _wanted(environment: Mapping[str, str]) -> str | None:
    """Return the exporter that is wanted; None: there is nothing to be traced."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if not exporter:
        exporter = "otlp" if any(environment.get(each) for each in ENDPOINTS) else "none"
    return None if exporter == "none" else exporter


def _processor(exporter: str, environment: Mapping[str, str]) -> "SpanProcessor":
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ImportError as error:
        raise InvalidSettingError(
            "OTEL_* asks for traces, which need packages that are missing; "
            "pip install 'embedding-studio[otel]', or set OTEL_SDK_DISABLED=true"
        ) from error
    protocol = next((each for name in PROTOCOLS if (each := environment.get(name))), "http/protobuf")
    if exporter == "console":
        return BatchSpanProcessor(ConsoleSpanExporter())
    if exporter != "otlp":
        raise InvalidSettingError(
            f"OTEL_TRACES_EXPORTER={exporter} is not known here; give otlp, console or none"
        )
    if protocol != "http/protobuf":
        raise InvalidSettingError(
            f"traces are sent as http/protobuf, not as {protocol}: set "
            "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf and an endpoint that takes it, most often on port 4318"
        )
    return BatchSpanProcessor(OTLPSpanExporter())


def _provider() -> "TracerProvider":
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider

    own = Resource({"service.name": NAME, "service.version": version(NAME)})
    return TracerProvider(resource=Resource.create().merge(own).merge(OTELResourceDetector().detect()))
