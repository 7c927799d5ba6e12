"""Sources of schedules that need nothing but a broker."""

from taskiq.schedule_sources.label_based import LabelScheduleSource

__all__ = ["LabelScheduleSource"]
