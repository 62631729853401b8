"""Drawing only: tables, figures (PNG), report.html, and several runs beside one another."""
