"""What a job may take and cost on spot nodes: traces of the past, played by the real dispatcher."""
