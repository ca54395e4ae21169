"""Names that never change: ids of clips, and the fingerprint of what decides the codes."""
