"""Middlewares that come with taskiq. None loads an optional library by import."""

from taskiq.middlewares.prometheus_middleware import PrometheusMiddleware
from taskiq.middlewares.simple_retry_middleware import SimpleRetryMiddleware
from taskiq.middlewares.smart_retry_middleware import SmartRetryMiddleware
from taskiq.middlewares.taskiq_admin_middleware import TaskiqAdminMiddleware

__all__ = (
    "PrometheusMiddleware",
    "SimpleRetryMiddleware",
    "SmartRetryMiddleware",
    "TaskiqAdminMiddleware",
)
