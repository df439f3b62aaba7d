"""Judges that follow a rubric, and what they are shown."""
