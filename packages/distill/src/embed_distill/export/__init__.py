"""Exports of distilled models: the student, a router of student and teacher, cards and artifacts."""
