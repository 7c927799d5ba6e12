"""What OpenTelemetry's bootstrap tooling reads about this package."""

_instruments = ("taskiq >= 0.11.20",)
