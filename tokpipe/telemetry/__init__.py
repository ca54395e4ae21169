"""What a run reports: events, speed, code usage, numbers for people; secrets are masked."""
