"""What a run tells people and programs: events, masked secrets, numbers, speed."""
