"""Spans and metrics, by OpenTelemetry: this room listens to the road, and the road does not know to whom it speaks."""
