"""Answers that stand in a passage: SQuAD files, spans, models that find them, and how they are judged."""
