"""When to believe an answer: what held-out pairs teach of a head and its gallery."""
