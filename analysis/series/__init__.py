"""Changes, trends and schedules in single series."""
