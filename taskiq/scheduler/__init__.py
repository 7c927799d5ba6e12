"""Scheduler: sends tasks at the moments their schedules name."""
