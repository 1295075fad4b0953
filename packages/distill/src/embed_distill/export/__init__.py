"""Exports of distilled models: the student, a router of student and teacher, and a copy when the run has ended."""
