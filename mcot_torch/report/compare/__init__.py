"""Several runs beside one another: tables, figure, page."""
