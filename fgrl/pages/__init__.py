"""Self-contained HTML pages: no script, nothing loaded from anywhere, all text escaped. Needs nothing but Python."""
